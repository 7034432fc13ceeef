"""Datasets with a feature spec, in csv or Parquet -> checked Parquet in the types that models read.

    python -m recsys.transcode --input FOLDER_OR_YAML --output FOLDER

Csv files have no header line; their columns are the chunk's ``features``, in order. A multi-hot cell is a
list of ids in brackets, ``"[244, 155, 120]"`` or ``[]``. Every value is checked: its type, ids against the
cardinality, list lengths against ``max_hotness``, labels (0 or 1), missing and infinite values, and that the
chunks of a mapping have equally many rows. Cardinalities ``auto`` become the largest id of all mappings plus
one. Row order stays: a model that streams its rows wants them in random order, and the preprocess step
(``dataset=feature_spec``) does the same checks and shuffles.

The output has one Parquet chunk per mapping; every ``--chunk_size`` rows are one file. Ids become int32,
numericals and labels float32, groups and timestamps int64.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from recsys import tables
from recsys.chunks import ARROW_TYPES, checked_ids, checked_values, open_file
from recsys.feature_spec import FILE_NAME, FeatureSpec
from recsys.feature_spec_rules import AUTO, CATEGORICAL_CHANNELS, Chunk
from recsys.step import Outputs, Step, UserError

BATCH_ROWS = 1 << 16
READ_BYTES = 8 << 20
LIST = r"^\s*\[\s*(\d+(\s*,\s*\d+)*)?\s*\]\s*$"

STEP = Step("transcode", "Checks a dataset with a feature spec and writes it as Parquet.")
STEP.parser.prog = "python -m recsys.transcode"
STEP.input("input", help="feature_spec.yaml, or the folder that holds it")
STEP.output("output", help="a new folder: feature_spec.yaml and Parquet files")
STEP.parameter("chunk_size", type=int, default=65536, help="rows of one file")
STEP.parameter("minimum_partitions", type=int, default=8, help="fewer files of a mapping are refused")
STEP.parameter("labels", default="binary", choices=["binary", "any"], help="whether labels must be 0 or 1")


class Transcoder:
    """Reads mappings in checked tables.

    Args:
        spec: the dataset.
        binary_labels: labels must be 0 or 1.
    """

    def __init__(self, spec: FeatureSpec, binary_labels: bool = True):
        self.spec = spec
        self._binary = set(spec.channel_spec.get("label", ())) if binary_labels else set()
        self._largest = {
            name: -1 for name, entry in spec.feature_spec.items() if entry.get("cardinality") == AUTO
        }
        self._dtypes = {name: _dtype(spec, name) for name in spec.feature_spec}

    def tables(self, mapping: str) -> Iterator[pa.Table]:
        """All features of a mapping, in the types of the output.

        Raises:
            UserError: a file cannot be read, a value breaks a rule, or chunks differ in length.
        """
        chunks = self.spec.source_spec[mapping]
        try:
            yield from tables.side_by_side([self._chunk(chunk) for chunk in chunks])
        except tables.UnequalLengths as error:
            rows = zip(chunks, error.rows, strict=True)
            counts = "; ".join(f"{', '.join(chunk.files)}: {count} rows" for chunk, count in rows)
            raise UserError(
                f"{self.spec.path}: the chunks of mapping {mapping!r} differ in length: {counts}"
            ) from None
        except UserError as error:
            raise UserError(f"{error} (mapping {mapping!r})") from None

    def feature_spec(self) -> dict[str, dict[str, Any]]:
        """The section of the output; complete when all mappings have been read."""
        found = {name: {"cardinality": max(largest, 0) + 1} for name, largest in self._largest.items()}
        return {
            name: {**entry, **found.get(name, {}), "dtype": self._dtypes[name]}
            for name, entry in self.spec.feature_spec.items()
        }

    def _chunk(self, chunk: Chunk) -> Iterator[pa.Table]:
        for file in chunk.files:
            where, row = self.spec.files.address(file), 0
            try:
                with open_file(self.spec.files, file) as stream:
                    for batch in self._batches(chunk, stream):
                        rows = f"{where}: rows {row + 1} to {row + batch.num_rows}"
                        yield pa.table(
                            {
                                name: self._checked(f"{rows}: feature {name!r}", name, batch.column(name))
                                for name in chunk.features
                            }
                        )
                        row += batch.num_rows
            except (pa.ArrowException, KeyError, OSError) as error:
                line = " ".join(str(error).split())
                column = re.match(r"In CSV column #(\d+): ", line)
                named = f"feature {chunk.features[int(column[1])]!r}: " if column else ""
                hint = " (csv has no header line)" if chunk.type == "csv" else ""
                raise UserError(f"{where}: cannot be read as {chunk.type}{hint}: {named}{line}") from None

    def _batches(self, chunk: Chunk, stream: pa.NativeFile) -> Iterator[pa.RecordBatch]:
        if chunk.type == "parquet":
            yield from pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=list(chunk.features))
            return
        features = self.spec.feature_spec
        # What is narrowed afterwards is read wide, so that a value that does not fit is checked, not cut.
        wide = {"int32": "int64", "float32": "float64"}
        types = {
            name: ARROW_TYPES[features[name].get("dtype") or wide.get(self._dtypes[name], self._dtypes[name])]
            for name in chunk.features
        }
        lists = {name: pa.string() for name in chunk.features if "max_hotness" in features[name]}
        yield from pa.csv.open_csv(
            stream,
            # One thread: only then does a fault name its row.
            pa.csv.ReadOptions(use_threads=False, block_size=READ_BYTES, column_names=list(chunk.features)),
            convert_options=pa.csv.ConvertOptions(column_types={**types, **lists}),
        )

    def _checked(self, where: str, name: str, column: pa.Array) -> pa.Array:
        properties = dict(self.spec.feature_spec[name])
        dtype = self._dtypes[name]
        if "max_hotness" in properties:
            if pa.types.is_string(column.type):
                column = _parsed_lists(where, column)
                properties.pop("dtype", None)
            values, lengths = checked_ids(where, column, properties)
            array = tables.as_lists(pa.array(values.astype(dtype)), lengths)
        else:
            values = checked_values(where, column, properties)
            if name in self._binary and not np.isin(values, (0, 1)).all():
                wrong = values[~np.isin(values, (0, 1))][0]
                raise UserError(f"{where} has the label {wrong:g}; allowed: 0 and 1")
            if dtype.startswith("int") and values.dtype.kind != "i":
                raise UserError(f"{where} holds {values.dtype}; it must hold integers")
            with np.errstate(over="ignore"):
                narrow = values.astype(dtype)
            if not np.isfinite(narrow).all():
                raise UserError(f"{where} has a value beyond the range of {dtype}")
            array = pa.array(narrow)
        if name in self._largest and len(values):
            self._largest[name] = max(self._largest[name], int(values.max()))
        return array


def _dtype(spec: FeatureSpec, name: str) -> str:
    """The type in which models read a feature."""
    channels = [channel for channel, names in spec.channel_spec.items() if name in names]
    if set(channels) & set(CATEGORICAL_CHANNELS) or "cardinality" in spec.feature_spec[name]:
        return "int32"
    return "int64" if set(channels) & {"group", "timestamp"} else "float32"


def _parsed_lists(where: str, column: pa.Array) -> pa.Array:
    wrong = pc.invert(pc.fill_null(pc.match_substring_regex(column, LIST), False))
    if pc.any(wrong).as_py():
        cell = column[pc.index(wrong, True).as_py()].as_py()
        raise UserError(f"{where} has the cell {cell!r}; a list of ids looks like [244, 155, 120] or []")
    lists = tables.split_texts(pc.replace_substring_regex(column, r"[\[\]\s]", ""), ",")
    return lists.cast(pa.list_(pa.int64()))


def transcode(arguments: argparse.Namespace, outputs: Outputs) -> None:
    """Writes the dataset beside its final place; it is published when all of it is there."""
    for name in ("chunk_size", "minimum_partitions"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be 1 or more")
    if arguments.output.exists():
        raise UserError(f"--output {arguments.output}: exists already; name a new folder")
    spec = FeatureSpec.read(arguments.input)
    transcoder = Transcoder(spec, arguments.labels == "binary")
    folder = outputs.folder("output")
    written: dict[tuple[Chunk, ...], tuple[Chunk, ...]] = {}  # two mappings may be the same data
    for mapping, chunks in spec.source_spec.items():
        if chunks not in written:
            names: list[str] = []
            for table in tables.sized(transcoder.tables(mapping), arguments.chunk_size, exactly=True):
                names.append(f"{mapping}/{len(names):05d}.parquet")
                (folder / mapping).mkdir(exist_ok=True)
                pq.write_table(table, folder / names[-1], row_group_size=arguments.chunk_size)
            if len(names) < arguments.minimum_partitions:
                raise UserError(
                    f"mapping {mapping!r} fills {len(names)} files of {arguments.chunk_size} rows, "
                    f"--minimum_partitions asks for {arguments.minimum_partitions}; lower one of the two"
                )
            features = tuple(name for chunk in chunks for name in chunk.features)
            written[chunks] = (Chunk("parquet", features, tuple(names)),)
    sources = {mapping: written[chunks] for mapping, chunks in spec.source_spec.items()}
    FeatureSpec(folder, transcoder.feature_spec(), sources, spec.channel_spec, spec.metadata).write()
    print(f"{arguments.output / FILE_NAME} written")


def main(argv: list[str] | None = None) -> int:
    """Runs the program."""
    return STEP.run(transcode, argv)


if __name__ == "__main__":
    sys.exit(main())
