"""The preprocess step: raw data -> encoded, split Parquet with a feature spec, and a statistics page.

What the raw data is (``kind`` in its ``raw.yaml``) decides who prepares it: a package of this folder with a
module ``dataset``, which says in ``MODELS`` whom it prepares for, and in ``prepare`` how.
"""

import argparse
import importlib
import sys

from recsys.raw_data import RawData
from recsys.step import Outputs, Step, UserError, json_object

STEP = Step("preprocess", "Filters, encodes and splits raw data into the dataset that a model trains on.")
STEP.input("raw", help="folder of the download step: data files and raw.yaml")
STEP.parameter("model", help="the model to prepare for, such as ncf, vae_cf or wide_deep")
STEP.parameter("options", type=json_object, default="{}", help="preparation as JSON")
STEP.parameter("seed", type=int, help="seed of every random choice, 0 or more")
STEP.output("dataset", help="folder with feature_spec.yaml, Parquet and the fitted workflow")
STEP.output("statistics", help="HTML page about the data")


def prepare(arguments: argparse.Namespace, outputs: Outputs) -> None:
    """Prepares the raw data for the model and reports what became of its rows."""
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: must be 0 or more")
    raw = RawData.read(arguments.raw)
    preparation = importlib.import_module(f"components.preprocess.{raw.kind}.dataset")
    if arguments.model not in preparation.MODELS:
        raise UserError(
            f"--model {arguments.model!r} cannot be trained on dataset {raw.dataset}: its raw data are of "
            f"kind {raw.kind}, which is prepared for {', '.join(preparation.MODELS)}"
        )
    folder = outputs.folder("dataset")
    prepared = preparation.prepare(
        raw, arguments.raw, arguments.model, arguments.options, arguments.seed, folder
    )
    outputs.file("statistics").write_text(prepared.page)
    outputs.describe("dataset", prepared.summary)


def main(argv: list[str] | None = None) -> int:
    """Runs the step; see :meth:`recsys.step.Step.run`."""
    return STEP.run(prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
