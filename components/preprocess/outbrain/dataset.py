"""Outbrain's clicks, events and documents -> the dataset that Wide & Deep trains on.

Reading, joining and transforming go bucket by bucket (:mod:`components.preprocess.outbrain.buckets`), so
memory does not grow with the clicks, only with the documents and ads. The features are those of the reference
(:mod:`components.preprocess.outbrain.features`).

A display is of train if its event is of a train day and its share, a hash of (seed, display id) in [0, 1), is
at least ``test_share``; the same seed splits alike whatever the order of the files. Held-out rows are stored
by (display_id, ad_id), train rows in a seeded random order. Only held-out rows have a ``display_id``.

What is amiss in the raw files; all but the first is counted, in ``metadata.counts`` and on the page:

===================================================  =========================================================
no column, no table, text for a number, negative id  refused, with file and line; likewise a missing key,
                                                     ``clicked`` other than 0 and 1, a confidence that is no
                                                     finite number of 0 or more
(display, ad) pair again                             first line kept
event, ad, document or (document, topic) again       first line kept
display without a click, or with several             kept; MAP leaves out groups without a positive
display without an event, or without a time          held out: its day is unknown; document, platform, place
                                                     missing
event without clicks                                 not used (Kaggle: the displays of clicks_test)
timestamp below 0                                    taken as missing
platform other than 1, 2, 3                          taken as missing, and missing as 1 (as in the reference)
publish time that is no time, or before 1970         taken as missing: the median of days since published
ad not in promoted_content                           kept; document, campaign, advertiser missing
document not in documents_meta                       kept; source, publisher, publish time missing
document in none of topics, entities, categories,    kept; empty lists, similarity 0
or of an id beyond these tables
publisher missing                                    a publisher of its own (as in the reference)
===================================================  =========================================================
"""

import importlib
import logging
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa

from components.preprocess.outbrain import buckets, features, statistics, tables
from components.preprocess.outbrain.documents import read_ads, read_documents, read_subjects
from components.preprocess.outbrain.preparation import WHERE, Preparation
from components.preprocess.prepared import Prepared
from components.preprocess.ratings.workflow import nvtabular
from components.preprocess.shards import write_shards
from recsys.feature_spec import Chunk, FeatureSpec
from recsys.raw_data import RawOutbrain
from recsys.step import UserError

MODELS = ("wide_deep",)
THREADS = 2

log = logging.getLogger(__name__)


def prepare(
    raw: RawOutbrain, source: Path, model: str, options: Mapping[str, Any], seed: int, folder: Path
) -> Prepared:
    """Joins, splits and transforms; see :class:`components.preprocess.outbrain.preparation.Preparation`."""
    started = time.perf_counter()
    preparation = Preparation.of(options)
    paths = tables.paths(raw, source)
    work = folder / "work"
    counts: Counter = Counter()
    with ThreadPoolExecutor(1) as importer:  # of NVTabular, which takes seconds
        module = importer.submit(_workflow)
        joined = _join(paths, preparation, seed, work, counts)
        subjects = read_subjects(paths, preparation.max_buckets, counts)
    log.info("%s clicks of %s displays joined", f"{counts['clicks_read']:,}", f"{counts['displays']:,}")
    _check_rows(paths, counts, preparation)

    chunks, summaries = {}, {}
    with module.result().gpu_workers() as client:
        workflow = module.result().OutbrainWorkflow(
            preparation, subjects, buckets.files(joined / "train"), counts["rows_train"]
        )
        log.info("workflow fitted on %s rows", f"{counts['rows_train']:,}")
        workflow.save(folder / "workflow")
        for mapping in buckets.MAPPINGS:
            files = buckets.files(joined / mapping)
            if files:
                summaries[mapping] = statistics.Summary(preparation.max_buckets)
                rows = summaries[mapping].watched(workflow.tables(mapping, files, client))
                chunks[mapping] = _written(rows, folder, mapping, seed)
                log.info("%s: %s rows written", mapping, f"{counts[f'rows_{mapping}']:,}")
    shutil.rmtree(work)

    metadata = {
        "dataset": raw.dataset,
        "model": model,
        "split": _split_in_words(preparation),
        "seed": seed,
        "options": asdict(preparation),
        "counts": dict(counts),
    }
    _write_spec(folder, chunks, preparation, metadata)
    notes = {
        "seconds": f"{time.perf_counter() - started:.1f}",
        "peak memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB",
    }
    log.info("%s rows prepared in %s s", f"{counts['rows']:,}", notes["seconds"])
    return Prepared({**counts, "split": metadata["split"]}, statistics.page(metadata, summaries, notes))


def _workflow() -> ModuleType:
    nvtabular()  # without its warnings
    return importlib.import_module("components.preprocess.outbrain.workflow")


def _join(
    paths: Mapping[str, Path], preparation: Preparation, seed: int, work: Path, counts: Counter
) -> Path:
    """Reads and joins all but the subjects; returns the folder of the joined files."""
    starts = buckets.ranges(paths["clicks_train"])
    rows, _, last = buckets.deal(paths["clicks_train"], "clicks_train", starts, work / "clicks")
    counts["clicks_read"] = rows
    counts["events_read"], counts["events_without_clicks"], _ = buckets.deal(
        paths["events"], "events", starts, work / "events", last
    )
    documents = read_documents(paths["documents_meta"], counts)
    ads = read_ads(paths["promoted_content"], documents, counts)
    joined = work / "joined"
    for mapping in buckets.MAPPINGS:
        (joined / mapping).mkdir(parents=True)
    join = buckets.Join(ads, documents, work / "clicks", work / "events", joined, preparation, seed)
    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(join, range(len(starts) + 1)):
            counts.update(found)
    counts["rows"] = sum(counts[f"rows_{mapping}"] for mapping in buckets.MAPPINGS)
    return joined


def _check_rows(paths: Mapping[str, Path], counts: Counter, preparation: Preparation) -> None:
    if not counts["rows"]:
        raise UserError(f"{paths['clicks_train']}: no clicks, only a header; the data needs at least one row")
    needed = ["train", "test", *(["validation"] if preparation.validation_share else [])]
    for mapping in needed:
        if not counts[f"rows_{mapping}"]:
            raise UserError(
                f"{WHERE}: no display falls to {mapping}: {counts['displays']:,} displays, "
                f"{counts['displays_without_event']:,} of them without an event, train_last_day "
                f"{preparation.train_last_day}, test_share {preparation.test_share:g}, validation_share "
                f"{preparation.validation_share:g}; change these, or give more data"
            )


def _written(rows: Iterator[pa.Table], folder: Path, mapping: str, seed: int) -> Chunk:
    files, _ = write_shards(rows, folder, mapping, shuffle=seed if mapping == "train" else None)
    group = () if mapping == "train" else (features.GROUP,)
    names = (*features.ONEHOT, *features.MULTIHOT, *features.NUMERICAL, features.LABEL, *group)
    return Chunk("parquet", names, files)


def _write_spec(
    folder: Path, chunks: Mapping[str, Chunk], preparation: Preparation, metadata: Mapping[str, Any]
) -> None:
    properties: dict[str, dict[str, Any]] = {}
    for name, (_, size) in {**features.ONEHOT, **features.MULTIHOT}.items():
        cardinality = features.buckets(name, preparation.max_buckets)
        properties[name] = {"dtype": "int32", "cardinality": cardinality, "embedding_size": size}
    for name in features.MULTIHOT:
        properties[name]["max_hotness"] = features.MAX_HOTNESS
    properties.update({name: {"dtype": "float32"} for name in (*features.NUMERICAL, features.LABEL)})
    properties[features.GROUP] = {"dtype": "int64"}
    sources = {mapping: (chunks.get(mapping, chunks["test"]),) for mapping in ("train", "validation", "test")}
    channels = {
        "onehot_categorical": tuple(features.ONEHOT),
        "multihot_categorical": tuple(features.MULTIHOT),
        "numerical": features.NUMERICAL,
        "label": (features.LABEL,),
        "group": (features.GROUP,),
        "item": (features.ITEM,),
    }
    FeatureSpec(folder, properties, sources, channels, metadata).write()


def _split_in_words(preparation: Preparation) -> str:
    days, test, validation = (
        preparation.train_last_day, preparation.test_share, preparation.validation_share
    )  # fmt: skip
    words = f"by display: test is all displays after day {days} and {100 * test:g} % of the earlier ones"
    return words + (f"; validation is {100 * validation:g} % of the earlier ones" if validation else "")
