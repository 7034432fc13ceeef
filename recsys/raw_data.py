"""The raw-data contract: a folder of data files with ``raw.yaml`` beside them that says how to read them.

The download step writes it, the preprocess step reads it, so that preprocess holds nothing about any
particular dataset, only about kinds of data. Beside both lies ``LICENCE.md``: under which terms the data may
be used, and its citation.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import yaml

from recsys.step import UserError, atomic_write

FILE_NAME = "raw.yaml"
LICENCE_NAME = "LICENCE.md"
FORMATS = ("csv", "parquet")
COLUMNS = ("user", "item", "rating", "timestamp")
REQUIRED_COLUMNS = ("user", "item")
LISTS = ("onehot", "multihot", "numerical")
ROLES = ("label", "user", "item", "group", "timestamp")


@dataclass(frozen=True, kw_only=True)
class RawData:
    """Raw files of one kind; each kind is a subclass.

    Args:
        dataset: the dataset's name on the command line (``movielens-20m``, ``outbrain``, ...).
        files: paths relative to the folder; rows of the first file come before rows of the second.
        source: where the data came from: ``address``, ``md5`` or ``sha256``, ``licence``, ``citation``.
        kind: what the rows are.
    """

    kind: ClassVar[str]
    dataset: str
    files: tuple[str, ...]
    source: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(folder: str | Path) -> "RawData":
        """Reads and checks ``folder/raw.yaml``.

        Returns:
            an object of the subclass that its ``kind`` names.
        Raises:
            UserError: the file is missing, is not YAML, breaks a rule of the contract, or names a data
                file that does not exist.
        """
        path = Path(folder) / FILE_NAME
        content = _content(path)
        kinds = {cls.kind: cls for cls in RawData.__subclasses__()}
        kind = content.pop("kind", None)
        if kind not in kinds:
            raise UserError(f"{path}: kind {kind!r} is not one of {', '.join(kinds)}")
        keys = dataclasses.fields(kinds[kind])
        allowed = [key.name for key in keys]
        no_default = (key for key in keys if key.default is key.default_factory is dataclasses.MISSING)
        unknown = [str(key) for key in content if key not in allowed]
        missing = [key.name for key in no_default if key.name not in content]
        if unknown or missing:
            raise UserError(
                f"{path}: " + (f"unknown key {unknown[0]!r}" if unknown else f"key {missing[0]!r} is missing")
                + f"; keys are kind, {', '.join(allowed)}"
            )  # fmt: skip
        files = content["files"]
        raw = kinds[kind](**{**content, "files": tuple(map(str, files)) if isinstance(files, list) else ()})
        raw._check(path)
        return raw

    def write(self, folder: str | Path) -> Path:
        """Checks the description and writes it as ``folder/raw.yaml``; returns that path."""
        path = Path(folder) / FILE_NAME
        self._check(path)
        content = {"kind": self.kind, **dataclasses.asdict(self)}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in content.items()}
        atomic_write(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
        return path

    def paths(self, folder: str | Path) -> list[Path]:
        """The data files of a folder, in the order of their rows."""
        return [Path(folder) / name for name in self.files]

    def _check(self, path: Path) -> None:
        if not self.files:
            raise UserError(f"{path}: files is empty; it lists the data files, relative to {path.parent}")
        for name in self.files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UserError(f"{path}: file {name!r} lies outside the folder; files are relative to it")
            if not (path.parent / name).is_file():
                raise UserError(f"{path}: file {name!r} does not exist in {path.parent}")
        self._check_layout(path)

    def _check_layout(self, path: Path) -> None:
        """Checks what the kind adds."""


@dataclass(frozen=True, kw_only=True)
class RawRatings(RawData):
    """(user, item[, rating][, timestamp]) rows, in files with the same columns.

    Args:
        format: ``csv`` (any separator) or ``parquet``.
        columns: for each of :data:`COLUMNS` a column name, a 0-based position, or ``None`` where the data
            has none (only rating and timestamp). Positions are for csv files without a header only.
        separator: what stands between two csv fields; may be several characters (``::``).
        header: whether the first line of each csv file holds the column names.
    """

    kind = "ratings"
    format: str
    columns: Mapping[str, str | int | None]
    separator: str = ","
    header: bool = True

    def _check_layout(self, path: Path) -> None:
        _check_format(path, self.format, self.separator)
        if not isinstance(self.header, bool):
            raise UserError(f"{path}: header {self.header!r} is not true or false")
        self._check_columns(path)

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


@dataclass(frozen=True, kw_only=True)
class RawTable(RawData):
    """Rows with a label and features of any kind, in files with the same named columns.

    Args:
        format: ``csv`` (with a header line) or ``parquet``.
        columns: for each of :data:`ROLES` the name of a column or ``None``; only ``label`` must have one.
            ``user`` and ``item`` are one-hot features too; ``group`` (whose rows are ranked against each
            other) and ``timestamp`` are no features.
        features: for each of :data:`LISTS` the names of columns.
        separator: what stands between two csv fields, one character.
        list_separator: what stands between the values of a multi-hot text column.
    """

    kind = "table"
    format: str
    columns: Mapping[str, str | None]
    features: Mapping[str, list[str]]
    separator: str = ","
    list_separator: str = "|"

    def _check_layout(self, path: Path) -> None:
        _check_format(path, self.format, self.separator)
        if not isinstance(self.columns, Mapping) or set(self.columns) != set(ROLES):
            raise UserError(f"{path}: columns must name {', '.join(ROLES)} (null where there is none)")
        if not isinstance(self.features, Mapping) or set(self.features) != set(LISTS):
            raise UserError(f"{path}: features must list exactly {', '.join(LISTS)} (perhaps empty lists)")
        for role, column in self.columns.items():
            if not (isinstance(column, str) and column) and (column is not None or role == "label"):
                raise UserError(f"{path}: column of {role} is {column!r}; it must be a column name")


@dataclass(frozen=True, kw_only=True)
class RawOutbrain(RawData):
    """The files of Kaggle's Outbrain Click Prediction: comma-separated, with a header line.

    Args:
        tables: table name (``clicks_train``, ``events``, ...) to its entry in ``files``.
    """

    kind = "outbrain"
    tables: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RawDataset(RawData):
    """A dataset that has a ``feature_spec.yaml``, which is the first of ``files``, and its csv or Parquet."""

    kind = "feature_spec"


def _content(path: Path) -> dict[str, Any]:
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
    return content


def _check_format(path: Path, kind: Any, separator: Any) -> None:
    if kind not in FORMATS:
        raise UserError(f"{path}: format {kind!r} is not one of {', '.join(FORMATS)}")
    if kind == "csv" and not (isinstance(separator, str) and separator):
        raise UserError(f"{path}: separator {separator!r} is not a text of one or more characters")
