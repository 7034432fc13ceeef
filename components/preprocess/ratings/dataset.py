"""Ratings of users for items -> the dataset that NCF or VAE-CF trains on."""

import logging
import resource
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.preprocess.prepared import Prepared
from components.preprocess.ratings import mappings, statistics
from components.preprocess.ratings.blocks import Blocks, write_blocks
from components.preprocess.ratings.preparation import SPLIT_OF_MODEL, Preparation
from components.preprocess.ratings.workflow import Encoded, RatingsWorkflow, nvtabular
from recsys import splits
from recsys.arrays import to_numpy
from recsys.feature_spec import Chunk, FeatureSpec
from recsys.raw_data import RawRatings
from recsys.step import UserError

MODELS = tuple(SPLIT_OF_MODEL)
DTYPES = {"user": "int32", "item": "int32", "label": "float32"}


def prepare(
    raw: RawRatings, source: Path, model: str, options: Mapping[str, Any], seed: int, folder: Path
) -> Prepared:
    """Filters, encodes and splits; see :class:`components.preprocess.ratings.preparation.Preparation`."""
    started = time.perf_counter()
    preparation = Preparation.of(model, options)
    rng = np.random.default_rng(seed)
    work = folder / "work"

    with ThreadPoolExecutor(1) as importer:  # importing takes as long as reading 15 million ratings
        importer.submit(nvtabular)
        blocks = write_blocks(raw, source, work / "ratings", preparation.rating_threshold)
    logging.info("%s ratings read", f"{blocks.rows:,}")
    _check_rows(blocks, raw, preparation)

    workflow = RatingsWorkflow(
        blocks, preparation.rating_threshold, preparation.min_user_ratings, preparation.min_item_ratings, work
    )
    leave_one_out = preparation.split == "leave_one_out"
    encoded = workflow.encode(lambda n: mappings.user_groups(n, preparation, rng), with_time=leave_one_out)
    logging.info("%s users and %s items encoded", f"{len(encoded.group):,}", f"{encoded.n_items:,}")
    counts, user, item = _distinct(blocks, encoded)
    group, n_items = encoded.group, encoded.n_items
    del encoded  # the columns with repeated pairs: memory that the split can use
    if leave_one_out:
        split = mappings.leave_one_out(user, item, len(group), n_items, preparation, rng)
    else:
        split = mappings.held_out_users(user, item, group, preparation, rng)
    counts.update(split.counts)

    workflow.save(folder / "workflow")
    _write_id_maps(workflow, folder)
    shutil.rmtree(work)
    metadata = {
        "dataset": raw.dataset,
        "model": model,
        "split": split.description,
        "seed": seed,
        "options": preparation.relevant(),
        "counts": counts,
        **split.metadata,
    }
    write_dataset(folder, split.columns, {"user": len(group), "item": n_items}, metadata)
    notes = {
        "seconds": f"{time.perf_counter() - started:.1f}",
        "peak memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB",
        "rating column": "yes" if "rating" in blocks.columns else "none: every row is a positive",
        "timestamp column": "yes" if "timestamp" in blocks.columns else "none: file order is time order",
    }
    logging.info("%s interactions prepared in %s s", f"{counts['interactions']:,}", notes["seconds"])
    page = statistics.page(metadata, to_numpy(user), to_numpy(item), notes)
    return Prepared({**counts, "split": split.description}, page)


def _write_id_maps(workflow: RatingsWorkflow, folder: Path) -> None:
    for name in ("user", "item"):
        raw = workflow.vocabulary(name)
        ids = pa.array(np.arange(len(raw), dtype=np.int32))
        pq.write_table(pa.table({"id": ids, "raw": raw}), folder / f"{name}_ids.parquet")


def write_dataset(
    folder: Path,
    columns: Mapping[str, Mapping[str, np.ndarray]],
    cardinality: Mapping[str, int],
    metadata: Mapping[str, Any],
) -> None:
    """Writes each mapping as Parquet and the feature spec; equal mappings (same object) share a file."""
    files: dict[int, str] = {}
    for mapping, arrays in columns.items():
        files.setdefault(id(arrays), f"{mapping}.parquet")
    with ThreadPoolExecutor() as pool:
        writes = [
            pool.submit(pq.write_table, pa.table(dict(arrays)), folder / f"{mapping}.parquet")
            for mapping, arrays in columns.items()
            if files[id(arrays)] == f"{mapping}.parquet"
        ]
    for write in writes:
        write.result()
    sources = {
        mapping: (Chunk("parquet", tuple(arrays), (files[id(arrays)],)),)
        for mapping, arrays in columns.items()
    }
    names = columns["train"]
    features = {
        name: {"dtype": DTYPES[name], **({"cardinality": cardinality[name]} if name in cardinality else {})}
        for name in names
    }
    FeatureSpec(folder, features, sources, {name: (name,) for name in names}, metadata).write()


def _check_rows(blocks: Blocks, raw: RawRatings, options: Preparation) -> None:
    where = ", ".join(raw.files)
    if not blocks.rows:
        raise UserError(f"{where}: no ratings, only a header; the data needs at least one row")
    if not blocks.positives:
        raise UserError(
            f"{where}: all {blocks.rows:,} ratings are below preparation rating_threshold "
            f"{options.rating_threshold:g}; lower it, or set it to null to take every row"
        )


def _distinct(blocks: Blocks, encoded: Encoded) -> tuple[dict[str, Any], Any, Any]:
    """Counts of every rule that dropped rows; distinct pairs, ordered by user and time."""
    order = splits.earliest_interactions(encoded.user, encoded.item, encoded.n_items, encoded.timestamp)
    user, item = encoded.user[order], encoded.item[order]
    counts = {
        "rows_read": blocks.rows,
        "rows_below_rating_threshold": blocks.rows - blocks.positives,
        "rows_of_rare_users": blocks.positives - encoded.rows_of_known_users,
        "rows_of_unknown_items": encoded.rows_of_known_users - len(encoded.user),
        "duplicate_rows": len(encoded.user) - len(user),
        **statistics.counts_of(len(user), len(encoded.group), encoded.n_items),
    }
    return counts, user, item
