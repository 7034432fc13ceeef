"""A table with a label -> the dataset that Wide & Deep trains on."""

import logging
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.preprocess.prepared import Prepared
from components.preprocess.shards import write_shards
from components.preprocess.table.blocks import Blocks
from components.preprocess.table.preparation import WHERE, Preparation
from components.preprocess.table.workflow import OUT_OF_VOCABULARY, TableWorkflow
from recsys import report
from recsys.config import from_json
from recsys.feature_spec import Chunk, FeatureSpec
from recsys.raw_data import RawTable
from recsys.splits import TEST, TRAIN, VALIDATION
from recsys.step import UserError

MODELS = ("wide_deep",)
PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def prepare(
    raw: RawTable, source: Path, model: str, options: Mapping[str, Any], seed: int, folder: Path
) -> Prepared:
    """Splits and encodes; see :class:`components.preprocess.table.preparation.Preparation`."""
    started = time.perf_counter()
    preparation = from_json(Preparation, options, WHERE)
    work = folder / "work"
    blocks = Blocks(raw, source, work / "blocks", preparation.label_threshold)
    rows = sum(blocks.rows)
    if not rows:
        raise UserError(f"{', '.join(raw.files)}: no rows, only a header; the data needs at least two")
    logging.info("%s rows read", f"{rows:,}")
    part, words = preparation.parts(rows, blocks.time, seed)
    workflow = TableWorkflow(blocks, part == TRAIN, preparation, work)
    logging.info("vocabularies fitted on %s rows", f"{(part == TRAIN).sum():,}")

    counts: dict[str, Any] = {"rows_read": rows, "rows_dropped": 0}
    counts.update({f"missing_{name}": number for name, number in blocks.missing.items() if number})
    sources: dict[str, tuple[Chunk, ...]] = {}
    unknown: Counter[str] = Counter()  # out of the vocabulary, in the test
    for mapping, number in PARTS.items():
        if (part == number).any():
            found: Counter[str] = Counter()
            tables = _counted(workflow.tables(part == number, mapping != "train"), blocks, found)
            names, counts[f"{mapping}_rows"] = write_shards(
                tables, folder, mapping, seed if mapping == "train" else None
            )
            counts[f"{mapping}_positives"] = found.pop(blocks.columns.label)
            sources[mapping] = (Chunk("parquet", _features(blocks, mapping), names),)
            unknown = found
    sources.setdefault("validation", sources["test"])
    workflow.save(folder / "workflow")
    shutil.rmtree(work)
    metadata = {
        "dataset": raw.dataset,
        "model": model,
        "split": words,
        "seed": seed,
        "options": asdict(preparation),
        "counts": counts,
    }
    spec = FeatureSpec(folder, workflow.feature_spec(), sources, _channels(raw, blocks), metadata)
    spec.write()
    notes = {
        "seconds": f"{time.perf_counter() - started:.1f}",
        "peak memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB",
    }
    return Prepared({**counts, "split": words}, _page(spec, blocks.missing, unknown, notes))


def _features(blocks: Blocks, mapping: str) -> tuple[str, ...]:
    columns = blocks.columns
    group = (columns.group_feature,) if columns.group_feature and mapping != "train" else ()
    return (columns.label, *columns.features, *group)


def _channels(raw: RawTable, blocks: Blocks) -> dict[str, tuple[str, ...]]:
    columns = blocks.columns
    named = {role: raw.columns[role] for role in ("user", "item")}
    channels = {
        **{role: (name,) for role, name in named.items() if name},
        "onehot_categorical": tuple(name for name in columns.onehot if name not in named.values()),
        "multihot_categorical": tuple(columns.multihot),
        "numerical": tuple(columns.numerical),
        "label": (columns.label,),
        "group": (columns.group_feature,) if columns.group_feature else (),
    }
    return {channel: names for channel, names in channels.items() if names}


def _counted(tables: Iterator[pa.Table], blocks: Blocks, found: Counter[str]) -> Iterator[pa.Table]:
    """Counts positives, and rows whose value is out of the vocabulary, as the tables pass."""
    for table in tables:
        found[blocks.columns.label] += int(pc.sum(table[blocks.columns.label]).as_py())
        for name in blocks.columns.onehot:
            found[name] += pc.sum(pc.equal(table[name], OUT_OF_VOCABULARY)).as_py()
        yield table


def _page(
    spec: FeatureSpec, missing: Mapping[str, int], unknown: Mapping[str, int], notes: Mapping[str, Any]
) -> str:
    metadata, counts = spec.metadata, spec.metadata["counts"]
    kinds = {name: channel for channel, names in spec.channel_spec.items() for name in names}
    rows = [
        [mapping, counts[f"{mapping}_rows"], counts[f"{mapping}_positives"]]
        for mapping in PARTS
        if f"{mapping}_rows" in counts
    ]
    return report.page(
        f"Data statistics: {metadata['dataset']} for {metadata['model']}",
        report.paragraph(f"Split {metadata['split']}. Seed {metadata['seed']}. No row was dropped."),
        report.table(
            ["mapping", "rows", "positives", "% positive"],
            [[*row, round(100 * row[2] / row[1], 3)] for row in rows],
            "Rows",
        ),
        report.table(
            [
                "feature",
                "channel",
                "cardinality",
                "longest list",
                "missing cells",
                "test rows out of vocabulary",
            ],
            [
                [
                    name,
                    kinds[name],
                    entry.get("cardinality"),
                    entry.get("max_hotness"),
                    missing.get(name, 0),
                    unknown.get(name),
                ]
                for name, entry in spec.feature_spec.items()
            ],
            "Features",
        ),
        report.facts(metadata["options"], "Options"),
        report.facts(notes, "This run"),
    )
