"""The preprocess step: raw data -> encoded, split Parquet with a feature spec, and a statistics page.

What the raw data is (``kind`` in its ``raw.yaml``) decides who prepares it: a package of this folder with a
module ``dataset``, which says in ``MODELS`` whom it prepares for, and in ``prepare`` how.
"""

import argparse
import importlib
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from components.preprocess.prepared import Prepared
from recsys.raw_data import RawData
from recsys.step import Outputs, Step, UserError, json_object

STEP = Step("preprocess", "Filters, encodes and splits raw data into the dataset that a model trains on.")
STEP.input("raw", help="folder of the download step: data files and raw.yaml")
STEP.parameter("model", help="the model to prepare for, such as ncf, vae_cf or wide_deep")
STEP.parameter("options", type=json_object, default="{}", help="preparation as JSON")
STEP.parameter("seed", type=int, help="seed of every random choice, 0 or more")
STEP.parameter(
    "dataset_store", default="", help="folder or URI where datasets are kept and found again; empty: none"
)
STEP.output(
    "dataset", help="folder with feature_spec.yaml; without a store also Parquet and the fitted workflow"
)
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

    def work(into: Path) -> Prepared:
        return preparation.prepare(
            raw, arguments.raw, arguments.model, arguments.options, arguments.seed, into
        )

    in_store = bool(arguments.dataset_store)
    prepared = with_store(arguments, raw, folder, work) if in_store else work(folder)
    outputs.file("statistics").write_text(prepared.page)
    outputs.describe("dataset", prepared.summary)


def with_store(
    arguments: argparse.Namespace, raw: RawData, folder: Path, work: Callable[[Path], Prepared]
) -> Prepared:
    """Takes the dataset from the store, or prepares and publishes it; only its spec comes to ``folder``."""
    from components.preprocess.publication import Publication, key  # and the store's client

    made_of = key(raw, arguments.raw, arguments.model, arguments.options, arguments.seed)
    store = Publication(f"{arguments.dataset_store.rstrip('/')}/{made_of}")
    found = store.find()
    state = "found" if found else "prepared"
    if found:
        logging.info("%s holds this dataset; nothing to prepare", store.address)
    else:
        store.check()
        local = folder / "prepared"
        local.mkdir()
        store.publish(local, work(local))
        shutil.rmtree(local)
        found = store.find()
    if found is None:
        raise UserError(f"{store.address}: was published, but cannot be read; does someone delete it?")
    spec, prepared = found
    spec.write(folder)
    return Prepared({**prepared.summary, "dataset_store": store.address, "in_store": state}, prepared.page)


def main(argv: list[str] | None = None) -> int:
    """Runs the step; see :meth:`recsys.step.Step.run`."""
    return STEP.run(prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
