"""The NVTabular workflow: from requests (``REQUEST`` in ``features``) to the 29 features.

Fitting needs one pass over few columns of the train rows: click rates and days. The counts, their mean and
standard deviation follow from what that pass has counted.

The saved workflow takes requests; multi-hot features are three columns each (``topic_id_list_0`` and so on),
-1 after the list's end. It holds its own operators by value: loading it needs NVTabular, not this project.
Train rows go through the same fitted operators, with ``fold`` as one more input.
"""

import functools
import importlib
import importlib.util
import operator
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.dataframe
import numpy as np
import nvtabular as nvt
import pyarrow as pa
from merlin.core.dispatch import get_lib

from components.preprocess import hashing
from components.preprocess.outbrain import features, fitted_operators, ids, operators
from components.preprocess.outbrain.documents import Subjects
from components.preprocess.outbrain.preparation import Preparation
from recsys import arrays

THREADS = 2  # each holds a bucket in memory
BY_VALUE = (operators, fitted_operators, ids, hashing, features, arrays)  # what the operators need


class OutbrainWorkflow:
    """Fits, applies and saves the workflow.

    Args:
        preparation: the options.
        subjects: what documents are about.
        train: joined files of train rows (:mod:`components.preprocess.outbrain.buckets`).
        train_rows: rows in these.
    """

    def __init__(self, preparation: Preparation, subjects: Subjects, train: list[Path], train_rows: int):
        rates = fitted_operators.ClickRate(features.CLICK_RATE, preparation.folds)
        days = fitted_operators.DaysSincePublished(features.DAYS)
        keys = list(dict.fromkeys(key for key, _ in features.CLICK_RATE.values()))
        times = ["timestamp", *features.DAYS.values()]
        fit = nvt.Workflow(([*keys, "clicked", "fold"] >> rates) + (times >> days))
        fit.fit(_dataset(train, [*keys, "clicked", "fold", *times]))
        counts = fitted_operators.KeyCount(features.COUNT, rates)
        normalize = nvt.ops.Normalize(out_dtype=np.float32)
        normalize.means, normalize.stds = counts.moments(train_rows)
        plan = [
            (times, days, nvt.ops.LogOp()),
            (list(features.COUNT.values()), counts, nvt.ops.LogOp(), normalize),
            *_fixed(preparation.max_buckets, subjects),
        ]

        def graph(*more: str) -> nvt.Workflow:
            node = [*keys, *more] >> rates
            for columns, *steps in plan:
                # New nodes each time, with the same operators: `+` changes a node that is a sum.
                node += functools.reduce(operator.rshift, steps, columns)
            sample = _read(train[0], [*features.REQUEST, *more])[:1]
            return nvt.Workflow(node).fit_schema(nvt.Dataset(sample).schema)

        self.serving = graph()
        self.training = graph("fold") if preparation.folds > 1 else self.serving

    def save(self, folder: Path) -> None:
        """Saves the workflow for requests."""
        self.serving.save(str(folder), modules_byvalue=[*BY_VALUE])

    def tables(self, mapping: str, joined: list[Path], client: Any) -> Iterator[pa.Table]:
        """The features of the joined files, in order, with the label, and the display id but in train."""
        held_out = mapping != "train"
        workflow = self.serving if held_out else self.training
        if client is None:
            with ThreadPoolExecutor(THREADS) as pool:
                yield from _windowed(
                    lambda path: pool.submit(transformed, workflow, held_out, path), joined, THREADS
                )
        else:
            shared = client.scatter(workflow, broadcast=True)
            yield from _windowed(
                lambda path: client.submit(transformed, shared, held_out, path, pure=False),
                joined,
                len(client.scheduler_info()["workers"]),
            )


def _fixed(max_buckets: int, subjects: Subjects) -> list[tuple]:
    """Input columns, and the operators that they go through, of what needs no fitting."""
    buckets = {name: features.buckets(name, max_buckets) for name in features.ONEHOT}
    text = {name: buckets.pop(name) for name in features.GEO_PREFIX}
    platform = {"platform": buckets.pop("platform")}
    pair = ("document_id", "document_id_promo")
    weights = {name: subjects.weights[of] for name, of in features.SIMILARITY.items()}
    return [
        (list(buckets), operators.HashIds(buckets)),
        (["platform"], nvt.ops.LambdaOp(operators.from_zero), operators.HashIds(platform)),
        (["geo_location"], operators.HashText("geo_location", features.GEO_PREFIX, text)),
        (["document_id"], operators.SubjectLists("document_id", subjects.index, subjects.lists)),
        (list(pair), operators.SubjectSimilarity(pair, subjects.index, weights)),
    ]


def transformed(workflow: nvt.Workflow, held_out: bool, path: Path) -> pa.Table:
    """The features of one joined file; multi-hot features as lists."""
    rows = _read(path, ["display_id", "clicked", "fold", *features.REQUEST])
    out = workflow.transform(rows)
    table = {name: _arrow(out[name].values) for name in features.ONEHOT}
    for name in features.MULTIHOT:
        places = [arrays.to_numpy(out[place].values) for place in features.places(name)]
        table[name] = _lists(np.stack(places, axis=1))
    table.update({name: _arrow(out[name].values) for name in features.NUMERICAL})
    table[features.LABEL] = _arrow(rows[features.LABEL].values.astype(np.float32))
    if held_out:
        table[features.GROUP] = _arrow(rows[features.GROUP].values)
    return pa.table(table)


@contextmanager
def gpu_workers() -> Iterator[Any]:
    """A Dask client with a worker per GPU where there are several; ``None`` otherwise."""
    if (
        importlib.util.find_spec("cupy") is None
        or importlib.import_module("cupy").cuda.runtime.getDeviceCount() < 2
    ):
        yield None
        return
    client = importlib.import_module("distributed").Client
    with importlib.import_module("dask_cuda").LocalCUDACluster() as cluster, client(cluster) as connected:
        yield connected


def _windowed(submit: Callable[[Path], Any], paths: Iterable[Path], workers: int) -> Iterator[Any]:
    """Results in order; at most one more than there are workers is computed ahead of the consumer."""
    waiting: deque[Any] = deque()
    for path in paths:
        waiting.append(submit(path))
        if len(waiting) > workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _dataset(files: list[Path], columns: list[str]):
    # Merlin's fit reads all columns of its dataset, so it gets no others; the token spares Dask hashing them.
    frames = dask.dataframe.from_map(
        _read, files, columns=columns, meta=_read(files[0], columns)[:0], token=uuid.uuid4().hex,
        enforce_metadata=False,
    )  # fmt: skip
    return nvt.Dataset(frames, schema=nvt.Dataset(_read(files[0], columns)[:1]).schema)


def _read(path: Path, columns: list[str]):
    return get_lib().read_parquet(str(path), columns=columns)


def _arrow(values) -> pa.Array:
    return pa.array(arrays.to_numpy(values))


def _lists(padded: np.ndarray) -> pa.ListArray:
    """Rows of a matrix, each up to its first -1, as lists of int32."""
    filled = padded >= 0
    offsets = np.append(0, np.cumsum(filled.sum(axis=1, dtype=np.int32), dtype=np.int32))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(padded[filled]))
