"""Text files of ratings as typed batches: any separator, any column order, and faults with their line."""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from components.preprocess.ratings.columns import MEANING, checked, find
from recsys.raw_data import RawRatings
from recsys.step import UserError

READ_BYTES = 8 << 20
UNIT_SEPARATOR = b"\x1f"  # stands in for separators of several bytes, which pyarrow.csv does not take

# Types to try for a csv column, narrow to wide; a wider one restarts the reading.
CSV_TYPES = {
    "user": (pa.int64(), pa.string()),
    "item": (pa.int64(), pa.string()),
    "rating": (pa.float64(),),
    "timestamp": (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")),
}


class Unconvertible(Exception):
    """A csv value that does not fit the type that its column is read as."""

    def __init__(self, role: str, place: tuple[int, int], message: str):
        self.role, self.place, self.message = role, place, message


def batches(raw: RawRatings, folder: Path, types: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """Streams all files.

    Args:
        types: per role the type to read its column as, one of :data:`CSV_TYPES`.
    Raises:
        Unconvertible: a value that a wider type may take.
        UserError: any other fault.
    """
    for number, path in enumerate(raw.paths(folder)):
        names = _csv_columns(raw, path)
        found = {role: find(path, raw.columns[role], role, names, raw.header) for role in types}
        convert = pa.csv.ConvertOptions(
            include_columns=list(found.values()),
            column_types={found[role]: kind for role, kind in types.items()},
            strings_can_be_null=True,
        )
        rows = 1 if raw.header else 0
        try:
            for batch in _open(raw, path, convert):
                yield checked(path, batch.columns, types, rows)
                rows += batch.num_rows
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise _explained(error, number, path, {names.index(name): role for role, name in found.items()},
                             found) from None  # fmt: skip


def _csv_columns(raw: RawRatings, path: Path) -> list[str]:
    with pa.input_stream(str(path)) as stream:
        head = stream.read(4096)
    if not head.strip():
        raise UserError(f"{path}: the file is empty; it should hold ratings")
    if b"\0" in head:  # UTF-16, or no text at all
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8")
    try:
        return _open(raw, path, pa.csv.ConvertOptions()).schema.names
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise _explained(error, 0, path, {}, {}) from None


def _open(raw: RawRatings, path: Path, convert: pa.csv.ConvertOptions) -> pa.csv.CSVStreamingReader:
    stream = pa.input_stream(str(path))
    separator = raw.separator.encode()
    if len(separator) > 1:
        stream = pa.TransformInputStream(stream, _SeparatorTranslation(separator))
        separator = UNIT_SEPARATOR
    return pa.csv.open_csv(
        stream,
        # One thread: only then does a fault name its line. It costs a tenth of the time.
        pa.csv.ReadOptions(
            use_threads=False, block_size=READ_BYTES, autogenerate_column_names=not raw.header
        ),
        pa.csv.ParseOptions(delimiter=separator.decode()),
        convert,
    )


class _SeparatorTranslation:
    """Replaces a separator of several bytes, block by block.

    What follows a block's last line end waits for the next block, so no separator is cut in two.
    """

    def __init__(self, separator: bytes):
        self.separator = separator
        self.waiting = b""

    def __call__(self, block: pa.Buffer) -> bytes:
        text = self.waiting + bytes(block)
        end = text.rfind(b"\n") + 1 if len(block) else len(text)  # the empty block is the last one
        self.waiting = text[end:]
        return text[:end].replace(self.separator, UNIT_SEPARATOR)


def _explained(
    error: Exception, number: int, path: Path, roles: dict[int, str], names: dict[str, str]
) -> Exception:
    """One line for what pyarrow.csv says; a value that may fit a wider type becomes `Unconvertible`."""
    text = " ".join(str(error).split())
    if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in text:
        line = re.search(r"Row #(\d+)", text)
        return UserError(f"{path}: {f'line {line[1]}: ' if line else ''}not UTF-8 text; save it as UTF-8")
    conversion = re.search(r"CSV column #(\d+): Row #(\d+): .*? error to .*?: (.*)", text)
    if conversion and int(conversion[1]) in roles:
        role = roles[int(conversion[1])]
        what = f"line {conversion[2]}: {role} (column {names[role]}): {conversion[3]}, not {MEANING[role]}"
        return Unconvertible(role, (number, int(conversion[2])), f"{path}: {what}")
    parsing = re.search(r"Row #(\d+): (.*)", text)
    return UserError(f"{path}: " + (f"line {parsing[1]}: {parsing[2]}" if parsing else text))
