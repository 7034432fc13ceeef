"""The user's own data files: CSV or Parquet, found, checked at their first line and copied to the raw folder.

What every dataset that is brought by its user shares. What is in the rows is read, and judged, by the
preprocess step.
"""

import csv
import difflib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys import storage, transfer
from recsys.step import UserError

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".dat": "csv",
    ".data": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True)
class DataFiles:
    """Files that lie in the raw folder.

    Attributes:
        names: file names, in the order of their rows.
        format: ``csv`` or ``parquet``.
        separator: what stands between two csv fields.
        source: for ``raw.yaml``: address, checksums, licence, citation.
    """

    names: tuple[str, ...]
    format: str
    separator: str
    source: dict[str, Any]


def collect(
    name: str,
    source: str,
    format: str | None,
    separator: str | None,
    header: bool,
    check: Callable[[list[str], str, str], None],
    folder: Path,
    downloads: Path,
) -> DataFiles:
    """Copies the files of ``source`` into ``folder``.

    Args:
        name: the dataset, for messages.
        source: one file, or a folder of files with the same columns (those of a store end with a slash).
        format: ``csv`` or ``parquet``; ``None`` goes by the suffix.
        separator: ``None`` is a tab for ``.tsv``, else a comma.
        header: whether the first line of a csv file names its columns.
        check: called with the fields of a csv file's first line, that line and the separator; raises
            :class:`UserError` where a column is not there.
        downloads: where downloads live until the step has succeeded.
    Raises:
        UserError: no source, no such file, a file that is empty, or columns that differ between files.
    """
    if not source:
        raise UserError(f"--source: --dataset {name} needs a file or folder: {storage.SCHEMES}")
    addresses = _addresses(source, format)
    kind = format or SUFFIXES[Path(storage.file_name(addresses[0])).suffix.lower()]
    if kind == "parquet" and not header:
        raise UserError("--options: header is false, but a Parquet file always names its columns")
    separator = separator or ("\t" if addresses[0].lower().endswith(".tsv") else ",")
    names: list[str] = []
    checksums, first = {}, None
    for address in addresses:
        path = storage.obtain(address, downloads)
        address = transfer.shown(address)
        if kind == "parquet":
            _check_parquet(path, address)
        else:
            fields, line = _first_line(path, address, separator, header)
            try:
                check(fields, line, separator)
            except UserError as error:
                raise UserError(f"{address}: {error}") from None
            first = first or fields
            if header and fields != first:
                raise UserError(f"{address}: columns {fields} differ from those of {names[0]}: {first}")
        names.append(storage.file_name(address))
        checksums[names[-1]] = place(path, folder / names[-1])
    return DataFiles(tuple(names), kind, separator, described(source, checksums))


def described(source: str, checksums: dict[str, str]) -> dict[str, Any]:
    """``source`` of a ``raw.yaml`` about a user's data."""
    return {
        "address": transfer.shown(source),
        "sha256": checksums,
        "licence": "Data of the user; this project knows no terms for it.",
        "citation": "",
    }


def place(path: Path, target: Path) -> str:
    """Copies a file; returns its SHA-256."""
    # A copy, not a link: an edit of the user's file must not change what was checksummed.
    target.parent.mkdir(parents=True, exist_ok=True)
    transfer.require_space(target.parent, path.stat().st_size, f"copying {path}")
    shutil.copyfile(path, target)
    return storage.digest(target, "sha256")


def close(name: str, fields: Iterable[str]) -> str | None:
    """The field that ``name`` most likely means: ``user`` -> ``userId``, ``USER`` or ``usr``."""
    fields = list(fields)
    lowered = {field.lower(): field for field in reversed(fields)}
    inside = [field for field in fields if name.lower() in field.lower()]
    match = difflib.get_close_matches(name.lower(), lowered, n=1)
    return inside[0] if inside else (lowered[match[0]] if match else None)


def check_choice(format: str | None, separator: str | None) -> None:
    """Checks the two options that all datasets of a user's files have."""
    if format not in (None, "csv", "parquet"):
        raise UserError(f'--options: format must be "csv", "parquet" or null, not {format!r}')
    if separator is not None and (not separator or set(separator) & set('\r\n"')):
        raise UserError(f'--options: separator {separator!r} cannot stand between fields; use e.g. ","')


def _addresses(source: str, format: str | None) -> list[str]:
    """The data files of ``source``, in the order of their names."""
    path = storage.local_path(source)
    if path is not None and not path.exists():
        raise UserError(f"--source {source}: no such file or folder")
    is_folder = path.is_dir() if path is not None else _in_store(source) and source.endswith("/")
    if not is_folder:
        if format is None and _kind(source) is None:
            raise UserError(
                f'--source {source}: the name does not say whether it is csv or parquet; set "format" in '
                f"--options (known suffixes: {', '.join(SUFFIXES)}; compressed files: unpack them first)"
            )
        return [source]
    listed = storage.list_folder(str(path) if path is not None else source)
    visible = [address for address in listed if not storage.file_name(address).startswith((".", "_"))]
    kinds = {_kind(address) for address in visible} - {None}
    wanted = format or (kinds.pop() if len(kinds) == 1 else None)
    if wanted is None and kinds:
        raise UserError(
            f'--source {source}: holds csv and parquet files; set "format" in --options to the ones to read'
        )
    found = [address for address in visible if _kind(address) == wanted and wanted]
    if not found:
        raise UserError(f"--source {source}: the folder holds no file named *{', *'.join(SUFFIXES)}")
    return found


def _in_store(source: str) -> bool:
    return source.startswith(("gs://", "s3://", "minio://"))


def _kind(address: str) -> str | None:
    return SUFFIXES.get(Path(storage.file_name(address)).suffix.lower())


def _first_line(path: Path, address: str, separator: str, header: bool) -> tuple[list[str], str]:
    """The fields and the text of a csv file's first line. Fails on an empty file."""
    with open(path, "rb") as stream:
        line = stream.readline(1 << 20)
        rest = stream.read(1 << 16).strip()
    if not line.strip() and not rest:
        raise UserError(f"{address}: the file is empty")
    if b"\0" in line:
        raise UserError(f"{address}: the first line is not text; is it a csv file?")
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first name.
        text = line.decode("utf-8-sig").rstrip("\r\n")
        fields = (
            text.split(separator) if len(separator) > 1 else next(csv.reader([text], delimiter=separator))
        )
    except csv.Error as error:
        raise UserError(f"{address}: the first line is not csv: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{address}: the first line is not UTF-8 (byte {error.start} is 0x{line[error.start]:02x}); "
            f"convert the file, e.g. iconv -f latin1 -t utf-8"
        ) from None
    if header and not rest:
        raise UserError(f"{address}: the file has a header and no rows")
    return fields, text


def _check_parquet(path: Path, address: str) -> None:
    """Checks the magic bytes at both ends; the columns are checked where Parquet can be read."""
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{address}: the file is empty")
    with open(path, "rb") as stream:
        start = stream.read(4)
        stream.seek(max(size - 4, 0))
        end = stream.read(4)
    if size < 12 or start != b"PAR1" or end != b"PAR1":
        state = "cut off" if start == b"PAR1" else "not a Parquet file"
        raise UserError(f'{address}: {state}; get it again, or set "format": "csv" in --options')
