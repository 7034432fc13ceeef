"""The NVTabular workflow of a table: ids by ``Categorify``, numbers by ``Normalize``; pandas or cuDF.

Codes are kept as ``Categorify`` writes them: 0 padding, 1 missing, 2 out of vocabulary, then the values of
the training rows by falling frequency. So a feature's cardinality is the size of its vocabulary plus 3. The
saved workflow takes the features in the types of :meth:`components.preprocess.table.blocks.Blocks.read`
(multi-hot cells as lists) and gives codes and numbers.

``Categorify`` transforms by a join and a sort of all rows, and NVTabular (23.8) fails on a pandas frame all
of whose lists are empty. So here each column is fitted on its flat values, and a block's *distinct* values
are transformed.
"""

import importlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.preprocess.ratings.workflow import nvtabular
from components.preprocess.table.blocks import Blocks
from components.preprocess.table.preparation import Preparation
from recsys.step import UserError
from recsys.tables import as_lists

NULL, OUT_OF_VOCABULARY, FIRST_CODE = 1, 2, 3


class TableWorkflow:
    """Fitted on the training rows.

    Args:
        blocks: the typed table.
        train: bool of shape (rows,), the training rows.
        work: an empty folder for the vocabularies, needed until :meth:`save`.
    """

    def __init__(self, blocks: Blocks, train: np.ndarray, preparation: Preparation, work: Path):
        self._nvt = nvtabular()
        self._library = importlib.import_module("merlin.core.dispatch").get_lib()  # cuDF or pandas
        self._blocks, self._columns = blocks, blocks.columns
        self._train = self._by_block(train)
        self._categorify: dict[str, Any] = {}
        self._fitted: dict[str, Any] = {}
        for name in [*self._columns.onehot, *self._columns.multihot]:
            self._categorify[name] = self._nvt.ops.Categorify(
                freq_threshold=preparation.min_frequency,
                out_path=str(work / str(len(self._fitted))),
                dtype=np.int32,
            )
            self._fitted[name] = self._fit([name] >> self._categorify[name], [name])
        if numbers := self._columns.numerical:
            normalize = preparation.numerical == "normalize"
            scaled = numbers >> self._nvt.ops.Normalize(out_dtype=np.float32) if normalize else numbers
            self._numbers = scaled >> self._nvt.ops.FillMissing(0)
            self._scale = self._fit(self._numbers, numbers)

    def tables(self, part: np.ndarray, with_group: bool) -> Iterator[pa.Table]:
        """The encoded rows of a part, block by block: label, features and, if asked, the group.

        Args:
            part: bool of shape (rows,).
        """
        group = [self._columns.group_feature] if with_group and self._columns.group_feature else []
        for number, chosen in enumerate(self._by_block(part)):
            if chosen.any():
                raw = self._blocks.read(number, chosen).combine_chunks()
                columns = {self._columns.label: raw[self._columns.label]}
                for name in self._columns.onehot:
                    columns[name] = self._codes(name, raw[name])
                for name in self._columns.multihot:
                    lengths = pc.list_value_length(raw[name]).to_numpy()
                    columns[name] = as_lists(self._codes(name, pc.list_flatten(raw[name])), lengths)
                if numbers := self._columns.numerical:
                    scaled = self._scale.transform(self._frame(raw.select(numbers)))
                    columns |= {name: pa.array(scaled[name].to_numpy(), pa.float32()) for name in numbers}
                yield pa.table(columns | {name: raw[name] for name in group})

    def feature_spec(self) -> dict[str, dict[str, Any]]:
        """The section of the same name."""
        columns = self._columns
        features: dict[str, dict[str, Any]] = {columns.label: {"dtype": "float32"}}
        for name, op in self._categorify.items():
            vocabulary = pq.read_metadata(op.categories[name]).num_rows
            features[name] = {"dtype": "int32", "cardinality": vocabulary + FIRST_CODE}
        for name in columns.multihot:
            features[name]["max_hotness"] = self._blocks.max_hotness[name]
        features |= {name: {"dtype": "float32"} for name in columns.numerical}
        return features | ({columns.group_feature: {"dtype": "int64"}} if columns.group_feature else {})

    def save(self, folder: Path) -> None:
        """Saves one fitted workflow over all features."""
        nodes = [[name] >> op for name, op in self._categorify.items()]
        nodes += [self._numbers] if self._columns.numerical else []
        workflow = self._nvt.Workflow(sum(nodes[1:], nodes[0]))
        types = {field.name: field.type for field in self._blocks.schema()}
        sample = {name: pa.array([_example(types[name])], types[name]) for name in self._columns.features}
        workflow.fit_schema(self._nvt.Dataset(self._frame(pa.table(sample))).schema)
        workflow.save(str(folder))

    def _fit(self, node: Any, names: list[str]) -> Any:
        """A workflow fitted on the training rows' columns ``names``; lists count as their values."""

        def read(block: int) -> pa.Table:
            table = self._blocks.read(block, self._train[block], names)
            flat = names[0] in self._columns.multihot
            return pa.table({names[0]: pc.list_flatten(table[names[0]])}) if flat else table

        training = [block for block, chosen in enumerate(self._train) if chosen.any()]
        given = {block: _columns_with_values(read(block)) for block in training}
        for name in names:
            if not any(name in columns for columns in given.values()):
                raise UserError(
                    f"column {name!r} has no value in the training rows; leave it out of the options"
                )
        # Categorify fails where there is nothing to count.
        filled = [block for block, columns in given.items() if columns]
        workflow = self._nvt.Workflow(node)
        workflow.fit(self._dataset(lambda block: self._frame(read(block)), filled))
        return workflow

    def _dataset(self, read: Callable[[int], Any], blocks: list[int]):
        from_map = importlib.import_module("dask.dataframe").from_map
        sample = read(blocks[0])[:1]
        # A name for the data: without one, Dask pickles and hashes all that the function refers to.
        token = uuid.uuid4().hex
        frames = from_map(read, blocks, meta=sample[:0], token=token, enforce_metadata=False)
        return self._nvt.Dataset(frames, schema=self._nvt.Dataset(sample).schema)

    def _codes(self, name: str, column: pa.ChunkedArray) -> pa.Array:
        encoded = column.combine_chunks().dictionary_encode()
        codes = np.array([NULL], np.int32)  # last: the code of a missing value
        if len(encoded.dictionary):
            frame = self._frame(pa.table({name: encoded.dictionary}))
            codes = np.append(self._fitted[name].transform(frame)[name].to_numpy().astype(np.int32), codes)
        place = pc.fill_null(encoded.indices, len(codes) - 1).to_numpy()
        return pa.array(codes[place])

    def _by_block(self, rows: np.ndarray) -> list[np.ndarray]:
        return np.split(rows, np.cumsum(self._blocks.rows)[:-1])

    def _frame(self, table: pa.Table):
        on_gpu = hasattr(self._library.DataFrame, "from_arrow")
        return self._library.DataFrame.from_arrow(table) if on_gpu else table.to_pandas()


def _columns_with_values(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if len(table[name].drop_null())]


def _example(kind: pa.DataType) -> Any:
    """A value that tells NVTabular the type of a column."""
    if pa.types.is_list(kind):
        return [_example(kind.value_type)]
    return "" if pa.types.is_string(kind) else 0
