"""Where a step and its MPIJob's pods meet: a folder of a volume that all of them mount, or object storage.

Both hold, under the names of the step's outputs, what the trainer leaves, and last its executor output: the
marker of complete results.
"""

import argparse
import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from recsys import dataset_store, storage
from recsys.step import Outputs, UserError

OUTPUTS = ("checkpoint", "history", "learning_curve")
MARKER, LAST = "executor_output.json", "last.npz"


class Volume:
    """A folder on a volume: the dataset goes in, the results come out.

    Args:
        arguments: of the step.
        name: of the job.
    """

    def __init__(self, arguments: argparse.Namespace, name: str):
        self.claim, self.mounted = arguments.workspace_claim, Path(arguments.workspace)
        self.workers, self.folder = arguments.num_workers, self.mounted / name
        self.inputs: dict[str, Path] = {}
        if isinstance(arguments.dataset, Path):
            self.inputs["dataset"] = arguments.dataset
        resume = arguments.resume
        if resume and not storage.is_remote(resume) and not Path(resume).is_relative_to(self.mounted):
            self.inputs["resume"] = Path(resume)
        self.flags = {name: str(self.folder / name) for name in (*self.inputs, *OUTPUTS)}
        self.marker = str(self.folder / MARKER)

    def __str__(self) -> str:
        return str(self.folder)

    def fill(self) -> None:
        """Copies what the workers read."""
        if not self.mounted.is_dir():
            raise UserError(
                f"--workspace {self.mounted}: no such folder; {self.workers} workers need a volume claim "
                "that all of them and this step mount (workspace_claim), or a remote dataset_store"
            )
        for name, source in self.inputs.items():
            share(source, self.folder / name)

    def forget(self) -> None:
        """Results of an earlier job no longer count."""
        Path(self.marker).unlink(missing_ok=True)

    def complete(self, patience: float = 0) -> bool:
        """Whether all results are there; a network file system may show them seconds later."""
        wanted = [Path(self.marker), *(self.folder / name for name in OUTPUTS)]
        end = time.monotonic() + patience
        while not all(path.exists() for path in wanted):
            if time.monotonic() >= end:
                return False
            time.sleep(min(1, patience))
        return True

    def take(self, outputs: Outputs) -> None:
        """Brings results, which are complete, to the step's outputs."""
        written = json.loads(Path(self.marker).read_text())["artifacts"]
        for name in OUTPUTS:
            source = self.folder / name
            if source.is_dir():
                shutil.copytree(source, outputs.folder(name), dirs_exist_ok=True)
            else:
                shutil.copyfile(source, outputs.file(name))
            _describe(outputs, name, written)

    def state(self) -> str:
        """The checkpoint that a failed job can be continued from; empty for none."""
        partial = self.folder / "checkpoint.partial"
        return str(partial) if (partial / LAST).is_file() else ""

    def clear(self, keep: str = "") -> None:
        """Removes the folder, but for ``keep`` in it."""
        for path in self.folder.iterdir() if keep else [self.folder]:
            if str(path) != keep:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


class ObjectStorage:
    """The URIs of the step's own outputs: no volume is needed.

    Args:
        dataset: the URI of its spec.
        uris: output name to URI.
        resume: a checkpoint to continue.
    """

    claim = ""

    def __init__(self, dataset: str, uris: Mapping[str, str], resume: str):
        if resume and not storage.is_remote(resume):
            raise UserError(f"--resume {resume}: the workers share no volume; give the URI of a checkpoint")
        self.uris = dict(uris)
        self.flags = {"dataset": dataset, **uris}
        self.marker = f"{self.uris['checkpoint'].rpartition('/')[0]}/{MARKER}"

    def __str__(self) -> str:
        return self.uris["checkpoint"]

    def fill(self) -> None:
        """What the workers read is there."""

    def forget(self) -> None:
        """Results of an earlier job no longer count."""
        storage.write(self.marker, b"{}")

    def complete(self, patience: float = 0) -> bool:
        """Whether all results are there."""
        return bool(self._written())

    def take(self, outputs: Outputs) -> None:
        """Brings the pages to the step's outputs; the checkpoint stays where it is."""
        written = self._written()
        for name in OUTPUTS:
            if name == "checkpoint":
                outputs.elsewhere(name)
            else:
                outputs.file(name).write_bytes(storage.read_if_present(self.uris[name]) or b"")
            _describe(outputs, name, written)

    def state(self) -> str:
        """The checkpoint that a failed job can be continued from; empty for none."""
        names = [storage.file_name(address) for address in storage.list_folder(f"{self}/")]
        return str(self) if LAST in names else ""

    def clear(self, keep: str = "") -> None:
        """Everything is an artifact's."""

    def _written(self) -> Any:
        return json.loads(storage.read_if_present(self.marker) or b"{}").get("artifacts")


def place(arguments: argparse.Namespace, name: str) -> Volume | ObjectStorage:
    """Object storage, where dataset and artifacts are in it already, else a volume."""
    given = (arguments.executor_input.get("outputs") or {}).get("artifacts") or {}
    uris = {output: given[output]["artifacts"][0]["uri"] for output in OUTPUTS if output in given}
    dataset = _published(arguments.dataset)
    if len(uris) == len(OUTPUTS) and all(map(storage.is_remote, [dataset, *uris.values()])):
        return ObjectStorage(dataset, uris, arguments.resume)
    return Volume(arguments, name)


def _published(dataset: Path | str) -> str:
    """The URI of a dataset's spec; empty where it has none."""
    if isinstance(dataset, str):
        return dataset
    file = dataset / "feature_spec.yaml" if dataset.is_dir() else dataset
    try:
        return dataset_store.published(yaml.safe_load(file.read_text()))
    except (OSError, AttributeError, KeyError, TypeError, yaml.YAMLError):
        return ""  # the trainer says what is wrong with it


def _describe(outputs: Outputs, name: str, written: Mapping[str, Any]) -> None:
    outputs.describe(name, written[name]["artifacts"][0].get("metadata", {}))


def share(source: Path, target: Path) -> None:
    """Copies a folder to where the workers see it, whole or not at all, unless it is there."""
    if target.exists():
        return
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):
        target.parent.chmod(0o777)  # the job's pods may run as another user than this step
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        shutil.copytree(source, temporary)
        with contextlib.suppress(OSError):  # another attempt was faster
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
