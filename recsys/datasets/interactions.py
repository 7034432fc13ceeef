"""Bring your own: CSV or Parquet files of (user, item[, rating][, timestamp]).

The options say which columns those are; ids may be text or numbers. The files travel as they are: what is
in their rows is read, and judged, by the preprocess step.
"""

from dataclasses import dataclass
from pathlib import Path

from recsys import data_files
from recsys.raw_data import COLUMNS, REQUIRED_COLUMNS, RawRatings
from recsys.step import UserError

NAMES = ("interactions",)
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
        data_files.check_choice(self.format, self.separator)
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
        source: one file, or a folder of files with the same columns (those of a store end with a slash).
        seed: not used.
        folder: where the files go.
        downloads: where downloads live until the step has succeeded.
    Raises:
        UserError: no source, no such file, a file that is empty, or a column that is not there.
    """
    columns = {role: getattr(options, role) for role in COLUMNS}

    def check(fields: list[str], line: str, separator: str) -> None:
        _check_columns(columns, fields, line, separator)

    files = data_files.collect(
        name, source, options.format, options.separator, options.header, check, folder, downloads
    )
    return RawRatings(
        dataset=name,
        files=files.names,
        format=files.format,
        columns=columns,
        separator=files.separator,
        header=options.header,
        source=files.source,
    )


def _check_columns(
    columns: dict[str, str | int | None], fields: list[str], line: str, separator: str
) -> None:
    for role, column in columns.items():
        if isinstance(column, int) and column >= len(fields):
            raise UserError(
                f"{role} is position {column}, the first line has {len(fields)} fields, "
                f"separated by {separator!r}: {line[:60]!r}; set {role} or separator in --options"
            )
        if isinstance(column, str) and column not in fields:
            raise UserError(_missing(role, column, fields, separator))


def _missing(role: str, column: str, fields: list[str], separator: str) -> str:
    close = data_files.close(column, fields) or data_files.close(role, fields)
    mend = f'set --options {{"{role}": "{close or "NAME"}"}}'
    if role not in REQUIRED_COLUMNS:
        mend += ", or null where the data has none"
    shown = ", ".join(fields[:20])
    return f"no column {column!r} for {role}; the columns, separated by {separator!r}, are {shown}; {mend}"
