"""The raw-data contract: a folder of rating files with ``raw.yaml`` beside them that says how to read them.

The download step writes it, the preprocess step reads it, so that preprocess holds nothing about any
particular dataset. Beside both lies ``LICENCE.md``: under which terms the data may be used, and its citation.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from recsys.step import UserError, atomic_write

FILE_NAME = "raw.yaml"
LICENCE_NAME = "LICENCE.md"
KINDS = ("ratings",)
FORMATS = ("csv", "parquet")
COLUMNS = ("user", "item", "rating", "timestamp")
REQUIRED_COLUMNS = ("user", "item")


@dataclass(frozen=True)
class RawRatings:
    """Files of (user, item[, rating][, timestamp]) rows, all with the same columns.

    Args:
        dataset: the dataset's name on the command line (``movielens-20m``, ``interactions``, ...).
        files: paths relative to the folder; rows of the first file come before rows of the second.
        format: ``csv`` (any separator) or ``parquet``.
        columns: for each of :data:`COLUMNS` a column name, a 0-based position, or ``None`` where the data
            has none (only rating and timestamp). Positions are for csv files without a header only.
        separator: what stands between two csv fields; may be several characters (``::``).
        header: whether the first line of each csv file holds the column names.
        source: where the data came from: ``address``, ``md5`` or ``sha256``, ``licence``, ``citation``.
        kind: what the rows are; only ``ratings`` exists.
    """

    dataset: str
    files: tuple[str, ...]
    format: str
    columns: Mapping[str, str | int | None]
    separator: str = ","
    header: bool = True
    source: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "ratings"

    @classmethod
    def read(cls, folder: str | Path) -> "RawRatings":
        """Reads and checks ``folder/raw.yaml``.

        Raises:
            UserError: the file is missing, is not YAML, breaks a rule of the contract, or names a data
                file that does not exist.
        """
        path = Path(folder) / FILE_NAME
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{path}: no such file; raw data is a folder that the download step has written"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise UserError(f"{path}: holds {type(content).__name__}, not key: value pairs")
        allowed = [entry.name for entry in fields(cls)]
        unknown = [str(key) for key in content if key not in allowed]
        missing = [key for key in ("dataset", "files", "format", "columns") if key not in content]
        if unknown or missing:
            raise UserError(
                f"{path}: " + (f"unknown key {unknown[0]!r}" if unknown else f"key {missing[0]!r} is missing")
                + f"; keys are {', '.join(allowed)}"
            )  # fmt: skip
        files = content["files"]
        raw = cls(**{**content, "files": tuple(map(str, files)) if isinstance(files, list) else ()})
        raw._check(path)
        return raw

    def write(self, folder: str | Path) -> Path:
        """Checks the description and writes it as ``folder/raw.yaml``; returns that path."""
        path = Path(folder) / FILE_NAME
        self._check(path)
        content = {**asdict(self), "files": list(self.files), "columns": dict(self.columns)}
        atomic_write(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        return path

    def paths(self, folder: str | Path) -> list[Path]:
        """The data files of a folder, in the order of their rows."""
        return [Path(folder) / name for name in self.files]

    def _check(self, path: Path) -> None:
        for name, value, allowed in (("kind", self.kind, KINDS), ("format", self.format, FORMATS)):
            if value not in allowed:
                raise UserError(f"{path}: {name} {value!r} is not one of {', '.join(allowed)}")
        if not isinstance(self.header, bool):
            raise UserError(f"{path}: header {self.header!r} is not true or false")
        if self.format == "csv" and not (isinstance(self.separator, str) and self.separator):
            raise UserError(f"{path}: separator {self.separator!r} is not a text of one or more characters")
        self._check_columns(path)
        if not self.files:
            raise UserError(f"{path}: files is empty; it lists the rating files, relative to {path.parent}")
        for name in self.files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UserError(f"{path}: file {name!r} lies outside the folder; files are relative to it")
            if not (path.parent / name).is_file():
                raise UserError(f"{path}: file {name!r} does not exist in {path.parent}")

    def _check_columns(self, path: Path) -> None:
        if not isinstance(self.columns, Mapping) or set(self.columns) != set(COLUMNS):
            raise UserError(
                f"{path}: columns must name exactly {', '.join(COLUMNS)} (null where there is none)"
            )
        by_position = self.format == "csv" and not self.header
        wanted = "a 0-based position (the files have no header)" if by_position else "a column name"
        for role, column in self.columns.items():
            if column is None and role not in REQUIRED_COLUMNS:
                continue
            # bool is an int in Python, but no position.
            if by_position:
                right = type(column) is int and column >= 0
            else:
                right = isinstance(column, str) and column != ""
            if not right:
                raise UserError(f"{path}: column of {role} is {column!r}; it must be {wanted}")
        given = [column for column in self.columns.values() if column is not None]
        if len(set(given)) < len(given):
            raise UserError(f"{path}: two of {', '.join(COLUMNS)} name the same column: {dict(self.columns)}")
