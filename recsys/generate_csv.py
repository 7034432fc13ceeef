"""Random values for every csv file of a feature spec: data to try a model, a cluster or an own spec with.

    python -m recsys.generate_csv --spec feature_spec.yaml --output FOLDER --rows 100000

Ids are uniform below their cardinality (``auto``: 100), lists have 0 to ``max_hotness`` ids, numericals are
uniform in [0, 1), groups are runs of 2 to 12 rows. Labels are 0 or 1 with even odds, or, with ``--signal``,
1 with the odds ``exp(signal * score)``: the score adds a weight of each id and number of the row, and has
mean 0 and variance 1 over the rows, so that a model has something to find. The spec is copied beside them.
"""

import argparse
import csv
import sys
import zlib
from pathlib import Path

import numpy as np

from recsys.feature_spec import FILE_NAME, FeatureSpec
from recsys.feature_spec_rules import AUTO, Chunk
from recsys.step import Outputs, Step, UserError

AUTO_CARDINALITY = 100
SMALLEST_GROUP, LARGEST_GROUP = 2, 12

STEP = Step("generate_csv", "Writes random values for every csv file of a feature spec.")
STEP.parser.prog = "python -m recsys.generate_csv"
STEP.input("spec", help="feature_spec.yaml whose files need not exist, or the folder that holds it")
STEP.output("output", help="a new folder: the spec and its csv files")
STEP.parameter("rows", type=int, help="rows of every mapping")
STEP.parameter("seed", type=int, default=0, help="of every random choice, 0 or more")
STEP.parameter(
    "signal", type=float, default=0.0, help="how much the features say about the label; 0: nothing"
)

Lists = list[list[int]]


def columns(spec: FeatureSpec, rows: int, seed: int, signal: float = 0.0) -> dict[str, np.ndarray | Lists]:
    """Values of all features: arrays of shape (rows,), multi-hot ones as lists of ids.

    Args:
        seed: of the values. What an id or number adds to the score depends on the feature's name only, so
            that mappings with different seeds hold the same pattern.
    """
    rng = np.random.default_rng(seed)
    roles = {name: channel for channel, names in spec.channel_spec.items() for name in names}
    values: dict[str, np.ndarray | Lists] = {}
    score = np.zeros(rows)
    for name, entry in spec.feature_spec.items():
        cardinality = entry.get("cardinality")
        cardinality = AUTO_CARDINALITY if cardinality == AUTO else cardinality
        if cardinality is None and roles.get(name) in ("label", "group", "timestamp"):
            continue
        weights = np.random.default_rng(zlib.crc32(name.encode())).normal(size=cardinality or 2)
        if "max_hotness" in entry:
            lengths = rng.integers(0, entry["max_hotness"] + 1, rows)
            ids = rng.integers(0, cardinality or 2, lengths.sum())
            values[name] = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
            score += np.bincount(np.repeat(np.arange(rows), lengths), weights[ids], rows)
        elif cardinality:
            values[name] = ids = rng.integers(0, cardinality, rows)
            score += weights[ids]
        else:
            values[name] = numbers = rng.random(rows)
            score += weights[0] * (numbers - 0.5)
    score = (score - score.mean()) / (score.std() or 1)
    for name, role in roles.items():
        if name not in values and role == "label":
            values[name] = (rng.random(rows) < 1 / (1 + np.exp(-signal * score))).astype(int)
        elif name not in values:
            sizes = rng.integers(SMALLEST_GROUP, LARGEST_GROUP + 1, rows)
            values[name] = np.repeat(np.arange(rows), sizes)[:rows]
    return values


def generate(arguments: argparse.Namespace, outputs: Outputs) -> None:
    """Writes the folder beside its final place; it is published when all of it is there."""
    if arguments.rows < 1 or arguments.seed < 0:
        raise UserError(f"--rows {arguments.rows} --seed {arguments.seed}: rows is 1 or more, seed 0 or more")
    if arguments.output.exists():
        raise UserError(f"--output {arguments.output}: exists already; name a new folder")
    spec = FeatureSpec.read(arguments.spec, with_files=False)
    written: set[tuple[Chunk, ...]] = set()  # two mappings may be the same data
    folder = outputs.folder("output")
    for number, (mapping, chunks) in enumerate(spec.source_spec.items()):
        if chunks in written:
            continue
        written.add(chunks)
        values = columns(spec, arguments.rows, 1000 * arguments.seed + number, arguments.signal)
        for chunk in chunks:
            if chunk.type != "csv":
                raise UserError(
                    f"{arguments.spec}: mapping {mapping!r} is {chunk.type}; only csv is generated"
                )
            bounds = np.linspace(0, arguments.rows, len(chunk.files) + 1).astype(int)
            for file, start, end in zip(chunk.files, bounds, bounds[1:], strict=False):
                _write(folder, file, [values[name][start:end] for name in chunk.features])
    FeatureSpec(folder, spec.feature_spec, spec.source_spec, spec.channel_spec, spec.metadata).write()
    print(f"{arguments.output / FILE_NAME} written")


def _write(folder: Path, file: str, values: list) -> None:
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()) or "://" in file:
        raise UserError(f"file {file!r} lies outside the folder; generated files are relative to the YAML")
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = (column.tolist() if isinstance(column, np.ndarray) else column for column in values)
    with open(path, "w", encoding="ascii", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(zip(*plain, strict=True))


def main(argv: list[str] | None = None) -> int:
    """Runs the program."""
    return STEP.run(generate, argv)


if __name__ == "__main__":
    sys.exit(main())
