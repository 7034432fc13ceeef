"""The download step: gets the raw files of a dataset, verified, with their licence.

A dataset is one file in ``recsys/datasets``, found by its name: it says in ``NAMES`` which values of
``--dataset`` it serves, in ``Options`` what ``--options`` may hold, and in ``fetch`` how the files get there.
"""

import argparse
import difflib
import importlib
import logging
import pkgutil
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import recsys.datasets
from recsys.config import from_json
from recsys.raw_data import LICENCE_NAME, RawData
from recsys.step import Outputs, Step, UserError, json_object

log = logging.getLogger(__name__)


STEP = Step("download", "Gets the raw files of a dataset, verified, with their licence.")
STEP.parameter("dataset", help="file in recsys/datasets that serves it, such as movielens-1m or synthetic")
STEP.parameter(
    "source", default="", help="address of a copy: path, file://, http(s)://, gs://, s3:// or minio://"
)
STEP.parameter("options", type=json_object, default={}, help="the dataset's options, a JSON object")
STEP.parameter("seed", type=int, default=0, help="of generated data")
STEP.output("raw", help="folder of the raw files and raw.yaml")
STEP.output("about", help="Markdown: source, checksum, sizes, licence, citation")


def main(argv: list[str] | None = None) -> int:
    """Runs the step."""
    return STEP.run(work, argv)


def work(arguments: argparse.Namespace, outputs: Outputs) -> None:
    """Fetches the dataset into the raw folder and describes it."""
    module = dataset_module(arguments.dataset)
    options = from_json(module.Options, arguments.options, f"--options of dataset {arguments.dataset}")
    # Beside the output, and kept when the step fails or is killed: the rerun resumes what is in it.
    downloads = arguments.raw.with_name(arguments.raw.name + ".download")
    folder = outputs.folder("raw")
    try:
        raw = module.fetch(arguments.dataset, arguments.source, options, arguments.seed, folder, downloads)
    except UserError:
        if downloads.is_dir() and not any(downloads.iterdir()):
            downloads.rmdir()
        raise
    raw.write(folder)
    (folder / LICENCE_NAME).write_text(licence(raw), encoding="utf-8")
    outputs.file("about").write_text(about(raw, folder), encoding="utf-8")
    size = sum(path.stat().st_size for path in raw.paths(folder))
    checksum = {key: raw.source[key] for key in ("md5", "sha256") if isinstance(raw.source.get(key), str)}
    outputs.describe(
        "raw", {"dataset": raw.dataset, "source": raw.source["address"], "bytes": size, **checksum}
    )
    log.info("licence: %s %s", raw.source["licence"], raw.source["citation"])
    shutil.rmtree(downloads, ignore_errors=True)


def dataset_names() -> list[str]:
    """Every value of ``--dataset``, in the order of the files in ``recsys/datasets``."""
    return [name for module in _modules() for name in module.NAMES]


def dataset_module(name: str) -> ModuleType:
    """The file in ``recsys/datasets`` that serves ``name``.

    Raises:
        UserError: no file does.
    """
    for module in _modules():
        if name in module.NAMES:
            return module
    names = dataset_names()
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise UserError(f"--dataset {name!r}: unknown{hint}; allowed: {', '.join(names)}")


def _modules() -> Iterable[ModuleType]:
    for found in pkgutil.iter_modules(recsys.datasets.__path__):
        yield importlib.import_module(f"{recsys.datasets.__name__}.{found.name}")


def licence(raw: RawData) -> str:
    """Terms and citation as Markdown."""
    citation = raw.source["citation"]
    cite = f"\n## Citation\n\n{citation}\n" if citation else ""
    return f"# Licence of {raw.dataset}\n\n{raw.source['licence']}\n{cite}"


def about(raw: RawData, folder: Path) -> str:
    """What was fetched from where, as Markdown for the dashboard."""
    checksums = raw.source.get("sha256", {})
    lines = [f"# {raw.dataset}", "", f"Source: `{raw.source['address']}`", ""]
    if "md5" in raw.source:
        lines += [f"MD5 of the archive: `{raw.source['md5']}`", ""]
    if "options" in raw.source:
        settings = ", ".join(f"{key} {value}" for key, value in raw.source["options"].items())
        lines += [f"Generated with seed {raw.source['seed']}: {settings}", ""]
    lines += ["| File | Bytes | SHA-256 |", "|---|---:|---|"]
    for name, path in zip(raw.files, raw.paths(folder), strict=True):
        checksum = checksums.get(name, "") if isinstance(checksums, dict) else checksums
        lines.append(f"| {name} | {path.stat().st_size:,} | {checksum} |")
    return "\n".join(lines) + "\n\n" + licence(raw).replace("\n## ", "\n### ").replace("# L", "## L", 1)


if __name__ == "__main__":
    sys.exit(main())
