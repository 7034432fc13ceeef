"""A dataset with a feature spec -> the same data, checked, in the form that a model reads."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.preprocess.hashing import uniform
from components.preprocess.prepared import Prepared
from components.preprocess.ratings import dataset as ratings
from components.preprocess.shards import write_shards
from recsys import report
from recsys.config import from_json
from recsys.feature_spec import Chunk, FeatureSpec
from recsys.raw_data import RawDataset, RawRatings
from recsys.step import UserError
from recsys.transcode import Transcoder

MODELS = ("ncf", "vae_cf", "wide_deep")
INPUTS = ("user", "item", "onehot_categorical", "multihot_categorical", "numerical")
WHERE = "preparation (--options)"
READY = {
    "ncf": ("train", "test"),
    "wide_deep": ("train", "test"),
    "vae_cf": ("train", "validation_input", "validation_target", "test_input", "test_target"),
}


@dataclass(frozen=True)
class Options:
    """Of data that are used as they are split.

    Attributes:
        test_fraction: share of ``train`` that becomes the test where Wide & Deep finds no mapping ``test``;
            at random, of whole groups where ``train`` holds a group.
    """

    test_fraction: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise UserError(f"{WHERE}: test_fraction must be between 0 and 1, not {self.test_fraction!r}")


def prepare(
    raw: RawDataset, source: Path, model: str, options: Mapping[str, Any], seed: int, folder: Path
) -> Prepared:
    """Checks every value and writes the mappings that the model needs.

    For NCF and VAE-CF a dataset with nothing but ``train`` goes through the preparation of ratings, whose
    options then apply.
    """
    spec = FeatureSpec.read(source / raw.files[0])
    if model == "wide_deep":
        return _ready(spec, _wide_deep_channels(spec), raw, model, options, seed, folder)
    if set(spec.source_spec) == {"train"}:
        return _from_ratings(spec, raw, model, options, seed, folder)
    channels = ("user", "item", "label") if model == "ncf" else ("user", "item")
    _require(spec, model, channels, READY[model])
    if model == "ncf" and "test_samples_per_series" not in spec.metadata:
        raise UserError(
            f"{spec.path}: model ncf needs metadata test_samples_per_series, the candidates in each list "
            "of mapping 'test'; or leave out 'test', then it is sampled from 'train'"
        )
    return _ready(spec, channels, raw, model, options, seed, folder)


def _wide_deep_channels(spec: FeatureSpec) -> tuple[str, ...]:
    _require(spec, "wide_deep", ("label",), ("train",))
    inputs = tuple(channel for channel in INPUTS if spec.channel_spec.get(channel))
    if not inputs:
        filled = ", ".join(channel for channel, names in spec.channel_spec.items() if names)
        raise UserError(
            f"{spec.path}: model wide_deep needs a feature in one of the channels {', '.join(INPUTS)}; "
            f"this dataset fills {filled}"
        )
    return ("label", *inputs, *(["group"] if spec.channel_spec.get("group") else []))


def _require(spec: FeatureSpec, model: str, channels: tuple[str, ...], mappings: tuple[str, ...]) -> None:
    """As :meth:`FeatureSpec.require`, but cardinalities may still have to be found."""
    known = {
        name: {key: value for key, value in entry.items() if key != "cardinality"}
        for name, entry in spec.feature_spec.items()
    }
    FeatureSpec(spec.folder, known, spec.source_spec, spec.channel_spec).require(model, channels, mappings)


def _ready(
    spec: FeatureSpec,
    channels: tuple[str, ...],
    raw: RawDataset,
    model: str,
    options: Mapping[str, Any],
    seed: int,
    folder: Path,
) -> Prepared:
    """Transcodes the mappings as they are; Wide & Deep's test is drawn from the training rows if need be."""
    chosen = from_json(Options, options, WHERE)
    transcoder = Transcoder(spec)
    plan: dict[str, tuple[str, bool | None]] = {name: (name, None) for name in READY[model]}
    split = "as given"
    if "test" not in spec.source_spec and model == "wide_deep":
        plan = {"train": ("train", False), "test": ("train", True)}
        split = f"a random {chosen.test_fraction:.4g} of train is the test"
    if model != "vae_cf" and "validation" in spec.source_spec:
        plan["validation"] = ("validation", None)
    used: dict[str, None] = {}
    sources: dict[str, tuple[Chunk, ...]] = {}
    shared: dict[Any, tuple[Chunk, ...]] = {}  # two mappings may be the same data
    counts: dict[str, int] = {}
    for mapping, (of, part) in plan.items():
        train = mapping == "train"
        features = _features(spec, model, channels, of, train)
        used |= dict.fromkeys(features)
        key = (spec.source_spec[of], part, train)
        if key not in shared:
            tables = _drawn(transcoder.tables(of), spec, chosen.test_fraction, seed, part)
            rows = (table.select(features) for table in tables)
            names, counts[f"{mapping}_rows"] = write_shards(rows, folder, mapping, seed if train else None)
            if not names:
                raise UserError(f"{spec.path}: no row is left for mapping {mapping!r}")
            shared[key] = (Chunk("parquet", features, names),)
        sources[mapping] = shared[key]
    if model != "vae_cf" and "validation" not in sources:
        sources["validation"] = sources["test"]
        split += ", validation is the test"
    logging.info("%s rows checked", f"{sum(counts.values()):,}")
    metadata = {
        **spec.metadata,
        "dataset": spec.metadata.get("dataset", raw.dataset),
        "model": model,
        "split": split,
        "seed": seed,
        "options": asdict(chosen) if plan["train"][1] is False else {},
        "counts": counts,
    }
    features_of = transcoder.feature_spec()
    prepared = FeatureSpec(
        folder,
        {name: features_of[name] for name in used},
        sources,
        {channel: spec.channel_spec[channel] for channel in channels},
        metadata,
    )
    prepared.write()
    return Prepared({**counts, "split": split}, _page(prepared))


def _features(
    spec: FeatureSpec, model: str, channels: tuple[str, ...], mapping: str, train: bool
) -> tuple[str, ...]:
    """The features that a mapping must have; the group is for held-out rows only."""
    wanted = [channel for channel in channels if not (train and channel == "group")]
    features = tuple(dict.fromkeys(name for channel in wanted for name in spec.channel_spec[channel]))
    present = [name for chunk in spec.source_spec[mapping] for name in chunk.features]
    for name in features:
        if name not in present:
            raise UserError(
                f"{spec.path}: mapping {mapping!r} lacks the feature {name!r}, which model {model} needs "
                f"there; it has {', '.join(present)}"
            )
    return features


def _drawn(
    tables: Iterator[pa.Table], spec: FeatureSpec, fraction: float, seed: int, part: bool | None
) -> Iterator[pa.Table]:
    """The rows that are (or are not) drawn for the test, the same at every call; all rows if ``None``."""
    group = spec.channel_spec.get("group")
    rng = np.random.default_rng([seed, 1])
    for table in tables:
        if part is None:
            yield table
            continue
        share = uniform(table[group[0]].to_numpy(), seed, 0) if group else rng.random(table.num_rows)
        yield table.filter(pa.array((share < fraction) == part))


def _from_ratings(
    spec: FeatureSpec, raw: RawDataset, model: str, options: Mapping[str, Any], seed: int, folder: Path
) -> Prepared:
    """Lets the preparation of ratings filter and split ``train``; a label is the rating."""
    _require(spec, model, ("user", "item"), ("train",))
    roles = {"user": "user", "item": "item", "label": "rating", "timestamp": "timestamp"}
    names = {role: spec.feature(channel) for channel, role in roles.items() if spec.channel_spec.get(channel)}
    highest = 0.0

    def columns() -> Iterator[pa.Table]:
        nonlocal highest
        for table in Transcoder(spec, binary_labels=False).tables("train"):
            if "rating" in names and table.num_rows:
                highest = max(highest, pc.max(table[names["rating"]]).as_py())
            yield table.select(list(names.values()))

    given = folder / "given"
    files, _ = write_shards(columns(), given, "train", None)
    if "rating" in names and highest <= 1:
        options = {"rating_threshold": 1.0, **options}  # a click is a positive, no click is none
    ratings_of = RawRatings(
        dataset=str(spec.metadata.get("dataset", raw.dataset)),
        files=files,
        source=raw.source,
        format="parquet",
        columns={role: names.get(role) for role in roles.values()},
    )
    prepared = ratings.prepare(ratings_of, given, model, options, seed, folder)
    shutil.rmtree(given)
    return prepared


def _page(spec: FeatureSpec) -> str:
    metadata = spec.metadata
    channels = {name: channel for channel, names in spec.channel_spec.items() for name in names}
    return report.page(
        f"Data statistics: {metadata['dataset']} for {metadata['model']}",
        report.paragraph(f"Split: {metadata['split']}. Seed {metadata['seed']}. No row was dropped."),
        report.facts({key.replace("_", " "): value for key, value in metadata["counts"].items()}, "Rows"),
        report.table(
            ["feature", "channel", "type", "cardinality", "longest list allowed"],
            [
                [name, channels[name], entry["dtype"], entry.get("cardinality"), entry.get("max_hotness")]
                for name, entry in spec.feature_spec.items()
            ],
            "Features",
        ),
        report.facts(metadata["options"], "Options"),
    )
