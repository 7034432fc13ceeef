"""NVTabular operators for what no stock one does: pandas on a CPU, cuDF on a GPU, one result.

Why not the stock ones (NVTabular 23.8): ``HashBucket`` hashes differently on CPU and GPU; ``JoinGroupby`` and
``TargetEncoding`` join all rows, and the folds of the latter go by row, not by display; ``FillMedian`` takes
an approximate median; ``ColumnSimilarity`` reads beyond its matrix where an id is too large, and its parallel
loop must not run in two threads; list columns of pandas are slow, so here a list is three columns.

The operators that are fitted are in :mod:`components.preprocess.outbrain.fitted_operators`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from nvtabular.ops import Operator

from components.preprocess.outbrain.features import places
from components.preprocess.outbrain.ids import Index, bucket, text_keys
from recsys.arrays import array_module, to_numpy

Array = Any  # numpy.ndarray or cupy.ndarray
Frame = Any  # pandas.DataFrame or cudf.DataFrame


class ColumnOperator(Operator):
    """Makes new columns; a subclass says how.

    Attributes:
        outputs: each new column, and the columns it is made of.
        dtype: of the new columns.
    """

    outputs: Mapping[str, list[str]]
    dtype: type

    def compute(self, df: Frame) -> dict[str, Array]:
        """The new columns of some rows."""
        raise NotImplementedError

    def transform(self, col_selector, df: Frame) -> Frame:
        """NVTabular calls this."""
        return type(df)(self.compute(df))

    def column_mapping(self, col_selector):
        """NVTabular makes the schema with this."""
        return dict(self.outputs)

    @property
    def output_dtype(self):
        """NVTabular makes the schema with this."""
        return self.dtype


class HashIds(ColumnOperator):
    """Integer ids -> hash buckets, int32, given each column's number of buckets."""

    dtype = np.int32

    def __init__(self, buckets: Mapping[str, int]):
        super().__init__()
        self.buckets = dict(buckets)
        self.outputs = {name: [name] for name in buckets}

    def compute(self, df):
        return {name: bucket(df[name].values, number) for name, number in self.buckets.items()}


class HashText(ColumnOperator):
    """A text column -> hash buckets of the text and of its beginnings, int32; missing is the empty text.

    Args:
        column: the text column.
        prefix: feature to how many characters of the text it takes; ``None`` takes all.
        buckets: feature to its number of buckets.
    """

    dtype = np.int32

    def __init__(self, column: str, prefix: Mapping[str, int | None], buckets: Mapping[str, int]):
        super().__init__()
        self.column, self.prefix, self.buckets = column, dict(prefix), dict(buckets)
        self.outputs = {name: [column] for name in prefix}

    def compute(self, df):
        code, distinct = df[self.column].fillna("").factorize()
        texts = distinct.to_pandas() if hasattr(distinct, "to_pandas") else distinct
        xp = array_module(code)
        columns = {}
        for name, length in self.prefix.items():
            keys = text_keys(text[:length] for text in texts)  # each distinct text once, on the host
            columns[name] = xp.asarray(bucket(keys, self.buckets[name]))[code]
        return columns


class SubjectLists(ColumnOperator):
    """A document -> its first three topics, entities and categories as hash buckets, -1 after the last.

    Args:
        column: of the document.
        index, lists: see :class:`components.preprocess.outbrain.documents.Subjects`.
    """

    dtype = np.int32

    def __init__(self, column: str, index: Index, lists: Mapping[str, Array]):
        super().__init__()
        self.column, self.index, self.lists = column, index, dict(lists)
        self.outputs = {place: [column] for name in lists for place in places(name)}

    def compute(self, df):
        row = self.index(df[self.column].values)
        taken = {name: array_module(row).asarray(lists)[row] for name, lists in self.lists.items()}
        return {place: taken[name][:, at] for name in taken for at, place in enumerate(places(name))}


class SubjectSimilarity(ColumnOperator):
    """Two documents -> cosine of their tf-idf weights; 0 where one is unknown. Computed on the host.

    Args:
        pair: columns of the two documents.
        index: of the documents (n of them).
        weights: feature to the weights, CSR (n + 1, subjects), rows of length 1.
    """

    dtype = np.float32

    def __init__(self, pair: tuple[str, str], index: Index, weights: Mapping[str, Any]):
        super().__init__()
        self.pair, self.index, self.weights = pair, index, dict(weights)
        self.outputs = {name: list(pair) for name in weights}

    def compute(self, df):
        left, right = (self.index(to_numpy(df[column].values)) for column in self.pair)
        return {
            name: np.asarray(weights[left].multiply(weights[right]).sum(axis=1)).ravel()
            for name, weights in self.weights.items()
        }


def from_zero(platform):
    """1 to 3 -> 0 to 2; a missing one (-1) counts as 1, as in the reference."""
    return platform.clip(lower=1) - 1
