"""Bring your own: a dataset that has a ``feature_spec.yaml`` (:mod:`recsys.feature_spec`), csv or Parquet."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from recsys import data_files, storage
from recsys.feature_spec_rules import parse
from recsys.raw_data import RawDataset
from recsys.step import UserError

NAMES = ("feature_spec",)
FILE_NAME = "feature_spec.yaml"


@dataclass(frozen=True)
class Options:
    """None: the spec says it all."""


def fetch(name: str, source: str, options: Options, seed: int, folder: Path, downloads: Path) -> RawDataset:
    """Puts the spec and the files that it names into ``folder``; absolute URIs stay where they are.

    Args:
        source: the YAML file, or the folder of a ``feature_spec.yaml`` (those of a store end with a slash).
        seed: not used.
        folder: where the files go.
        downloads: where downloads live until the step has succeeded.
    Raises:
        UserError: no source, no such file, or a spec that breaks a rule.
    """
    if not source:
        raise UserError(f"--source: --dataset {name} needs a {FILE_NAME} or its folder: {storage.SCHEMES}")
    local = storage.local_path(source)
    if local is not None and local.is_dir():
        source = str(local / FILE_NAME)
    elif source.endswith("/"):
        source += FILE_NAME
    path = storage.obtain(source, downloads)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not a YAML file: {' '.join(str(error).split())}") from None
    try:
        sections = parse(None, content)
        chunks = (chunk for mapping in sections.source_spec.values() for chunk in mapping)
        files = dict.fromkeys(file for chunk in chunks for file in chunk.files if "://" not in file)
        for file in files:
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts or file == FILE_NAME:
                raise UserError(
                    f"file {file!r}; allowed: paths within the folder of the YAML, and absolute URIs"
                )
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    checksums = {FILE_NAME: data_files.place(path, folder / FILE_NAME)}
    base = str(path.parent) if storage.local_path(source) else source.rpartition("/")[0]
    for file in files:
        # In a folder of its own: train/0.csv and test/0.csv are different downloads.
        found = storage.obtain(f"{base}/{file}", downloads / PurePosixPath(file).parent)
        checksums[file] = data_files.place(found, folder / file)
    return RawDataset(dataset=name, files=(FILE_NAME, *files), source=data_files.described(source, checksums))
