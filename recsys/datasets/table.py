"""Bring your own: a table with a label and named feature columns, CSV (with a header line) or Parquet.

For example MovieLens 100K as one table, for Wide & Deep::

    {"label": "rating", "user": "user_id", "item": "item_id", "group": "user_id", "timestamp": "timestamp",
     "onehot": ["gender", "occupation", "release_year"], "multihot": ["genres"], "numerical": ["age"]}

with the preparation ``{"label_threshold": 4}``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recsys import data_files
from recsys.raw_data import LISTS, ROLES, RawTable
from recsys.step import UserError

NAMES = ("table",)


@dataclass(frozen=True)
class Options:
    """What the columns are for.

    Args:
        label: the column to predict.
        user, item: columns that say whom the row is about; one-hot features too.
        group: rows with an equal value are ranked against each other (MAP).
        timestamp: a number or an ISO 8601 time, for a split by time.
        onehot: categorical columns with one value in a row.
        multihot: categorical columns with several values in a row: text split at ``list_separator``, or
            Parquet lists.
        numerical: columns of numbers.
        separator: between csv fields, one character; ``null`` is a tab for ``.tsv``, else a comma.
        format: ``csv`` or ``parquet``; ``null`` goes by the suffix.
    """

    label: str = "label"
    user: str | None = None
    item: str | None = None
    group: str | None = None
    timestamp: str | None = None
    onehot: tuple[str, ...] = ()
    multihot: tuple[str, ...] = ()
    numerical: tuple[str, ...] = ()
    separator: str | None = None
    list_separator: str = "|"
    format: str | None = None

    def __post_init__(self) -> None:
        data_files.check_choice(self.format, self.separator)
        if len(self.separator or ",") > 1 or not self.list_separator:
            raise UserError("--options: separator is one character, list_separator at least one")
        if odd := [column for _, column in self.columns() if not column or "/" in column]:
            raise UserError(f"--options: column {odd[0]!r} has no name, or a slash in it; rename it")
        uses: dict[str, str] = {self.label: "label"}
        for use, column in self._features():
            if uses.setdefault(column, use) != use and {use, uses[column]} != {"onehot", "user or item"}:
                raise UserError(
                    f"--options: column {column!r} is given as {uses[column]} and as {use}; choose one"
                )
        if len(uses) == 1:
            raise UserError(
                "--options: no feature; name columns in user, item, onehot, multihot or numerical"
            )
        if self.label in (self.group, self.timestamp) or (self.user == self.item and self.user):
            raise UserError("--options: label and group or timestamp, or user and item, are the same column")

    def _features(self) -> Iterator[tuple[str, str]]:
        yield from (("user or item", column) for column in (self.user, self.item) if column)
        yield from ((use, column) for use in LISTS for column in getattr(self, use))

    def columns(self) -> Iterator[tuple[str, str]]:
        """(option, column) of every column that is named."""
        yield from ((role, getattr(self, role)) for role in ROLES if getattr(self, role) is not None)
        yield from ((use, column) for use in LISTS for column in getattr(self, use))


def fetch(name: str, source: str, options: Options, seed: int, folder: Path, downloads: Path) -> RawTable:
    """Puts the user's files into ``folder``.

    Args:
        source: one file, or a folder of files with the same columns (those of a store end with a slash).
        seed: not used.
        folder: where the files go.
        downloads: where downloads live until the step has succeeded.
    Raises:
        UserError: no source, no such file, a file that is empty, or a column that is not there.
    """

    def check(fields: list[str], line: str, separator: str) -> None:
        for option, column in options.columns():
            if fields.count(column) != 1:
                close = data_files.close(column, fields)
                raise UserError(
                    f"{'several columns' if column in fields else 'no column'} {column!r} (option {option}); "
                    + (f"did you mean {close!r}? " if close and close != column else "")
                    + f"The columns, separated by {separator!r}, are {', '.join(fields[:50])}"
                )

    files = data_files.collect(
        name, source, options.format, options.separator, True, check, folder, downloads
    )
    return RawTable(
        dataset=name,
        files=files.names,
        format=files.format,
        columns={role: getattr(options, role) for role in ROLES},
        features={use: list(getattr(options, use)) for use in LISTS},
        separator=files.separator,
        list_separator=options.list_separator,
        source=files.source,
    )
