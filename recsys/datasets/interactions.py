"""Bring your own: CSV or Parquet files of (user, item[, rating][, timestamp]).

The options say which columns those are; ids may be text or numbers. The files travel as they are: what is
in their rows is read, and judged, by the preprocess step.
"""

import csv
import difflib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from recsys import storage, transfer
from recsys.raw_data import COLUMNS, REQUIRED_COLUMNS, RawRatings
from recsys.step import UserError

log = logging.getLogger(__name__)

NAMES = ("interactions",)
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".dat": "csv",
    ".data": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
POSITIONS = '{"header": false, "user": 0, "item": 1, "rating": 2, "timestamp": 3}'


@dataclass(frozen=True)
class Options:
    """How to read the files.

    Args:
        user, item, rating, timestamp: column names, or 0-based positions in csv files without a header.
            ``null`` for a rating or timestamp that the data does not have.
        separator: between csv fields, one or more characters; ``null`` is a tab for ``.tsv``, else a comma.
        header: whether the first line of a csv file names its columns.
        format: ``csv`` or ``parquet``; ``null`` goes by the suffix.
    """

    user: str | int = "user"
    item: str | int = "item"
    rating: str | int | None = "rating"
    timestamp: str | int | None = "timestamp"
    separator: str | None = None
    header: bool = True
    format: str | None = None

    def __post_init__(self) -> None:
        if self.format not in (None, "csv", "parquet"):
            raise UserError(f'--options: format must be "csv", "parquet" or null, not {self.format!r}')
        if self.separator is not None and (not self.separator or set(self.separator) & set('\r\n"')):
            raise UserError(
                f'--options: separator {self.separator!r} cannot stand between fields; use e.g. ","'
            )
        given = [(role, getattr(self, role)) for role in COLUMNS if getattr(self, role) is not None]
        for role, column in given:
            if self.header != isinstance(column, str):
                wanted = "a column name (header is true)" if self.header else f"a position, as in {POSITIONS}"
                raise UserError(f"--options: {role} must be {wanted}, not {column!r}")
            if column == "" or (not self.header and int(column) < 0):
                raise UserError(f"--options: {role} is {column!r}; it names a column")
            twins = [other for other, value in given if value == column and other != role]
            if twins:
                raise UserError(f"--options: {role} and {twins[0]} are both column {column!r}")


def fetch(name: str, source: str, options: Options, seed: int, folder: Path, downloads: Path) -> RawRatings:
    """Puts the user's files into ``folder``: a hard link where the disk is the same, else a copy.

    Args:
        source: one file, or a folder of files with the same columns (``gs://`` folders end with a slash).
        seed: not used.
        folder: where the files go.
        downloads: where downloads live until the step has succeeded.
    Raises:
        UserError: no source, no such file, a file that is empty, or a column that is not there.
    """
    if not source:
        raise UserError(f"--source: --dataset {name} needs a file or folder: {storage.SCHEMES}")
    addresses = _addresses(source, options)
    kind = options.format or SUFFIXES[Path(storage.file_name(addresses[0])).suffix.lower()]
    if kind == "parquet" and not options.header:
        raise UserError("--options: header is false, but a Parquet file always names its columns")
    separator = options.separator or ("\t" if addresses[0].lower().endswith(".tsv") else ",")
    columns = {role: getattr(options, role) for role in COLUMNS}
    names, checksums, first = [], {}, None
    for address in addresses:
        path = storage.obtain(address, downloads)
        if kind == "parquet":
            _check_parquet(path, address)
        else:
            header = _check_csv(path, address, separator, options, columns)
            first = first or header
            if options.header and header != first:
                raise UserError(f"{address}: columns {header} differ from those of {addresses[0]}: {first}")
        target = folder / storage.file_name(address)
        _place(path, target)
        names.append(target.name)
        checksums[target.name] = storage.digest(target, "sha256")
    return RawRatings(
        dataset=name,
        files=tuple(names),
        format=kind,
        columns=columns,
        separator=separator,
        header=options.header,
        source={
            "address": source,
            "sha256": checksums,
            "licence": "Data of the user; this project knows no terms for it.",
            "citation": "",
        },
    )


def _addresses(source: str, options: Options) -> list[str]:
    """The data files of ``source``, in the order of their names."""
    path = storage.local_path(source)
    if path is not None and not path.exists():
        raise UserError(f"--source {source}: no such file or folder")
    is_folder = path.is_dir() if path is not None else source.startswith("gs://") and source.endswith("/")
    if not is_folder:
        if options.format is None and _kind(source) is None:
            raise UserError(
                f'--source {source}: the name does not say whether it is csv or parquet; set "format" in '
                f"--options (known suffixes: {', '.join(SUFFIXES)}; compressed files: unpack them first)"
            )
        return [source]
    listed = storage.list_folder(str(path) if path is not None else source)
    visible = [address for address in listed if not storage.file_name(address).startswith((".", "_"))]
    kinds = {_kind(address) for address in visible} - {None}
    wanted = options.format or (kinds.pop() if len(kinds) == 1 else None)
    if wanted is None and kinds:
        raise UserError(
            f'--source {source}: holds csv and parquet files; set "format" in --options to the ones to read'
        )
    found = [address for address in visible if _kind(address) == wanted and wanted]
    if not found:
        raise UserError(f"--source {source}: the folder holds no file named *{', *'.join(SUFFIXES)}")
    return found


def _kind(address: str) -> str | None:
    return SUFFIXES.get(Path(storage.file_name(address)).suffix.lower())


def _check_csv(
    path: Path, address: str, separator: str, options: Options, columns: dict[str, str | int | None]
) -> list[str]:
    """Reads the first line only; returns its fields. Fails on an empty file or a column that is not there."""
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
    for role, column in columns.items():
        if isinstance(column, int) and column >= len(fields):
            raise UserError(
                f"{address}: {role} is position {column}, the first line has {len(fields)} fields, "
                f"separated by {separator!r}: {text[:60]!r}; set {role} or separator in --options"
            )
        if isinstance(column, str) and column not in fields:
            raise UserError(f"{address}: {_missing(role, column, fields, separator)}")
    if options.header and not rest:
        raise UserError(f"{address}: the file has a header and no rows")
    return fields


def _missing(role: str, column: str, fields: list[str], separator: str) -> str:
    close = _close(column, fields) or _close(role, fields)
    mend = f'set --options {{"{role}": "{close or "NAME"}"}}'
    if role not in REQUIRED_COLUMNS:
        mend += ", or null where the data has none"
    shown = ", ".join(fields[:20])
    return f"no column {column!r} for {role}; the columns, separated by {separator!r}, are {shown}; {mend}"


def _close(name: str, fields: list[str]) -> str | None:
    """The field that ``name`` most likely means: ``user`` -> ``userId``, ``USER`` or ``usr``."""
    lowered = {field.lower(): field for field in reversed(fields)}
    inside = [field for field in fields if name.lower() in field.lower()]
    match = difflib.get_close_matches(name.lower(), lowered, n=1)
    return inside[0] if inside else (lowered[match[0]] if match else None)


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


def _place(path: Path, target: Path) -> None:
    # A copy, not a link: an edit of the user's file must not change what was checksummed.
    transfer.require_space(target.parent, path.stat().st_size, f"copying {path}")
    shutil.copyfile(path, target)
