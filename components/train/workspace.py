"""The folder of a run on the volume that the step and the MPIJob's pods share: data in, results out."""

import contextlib
import json
import shutil
import time
import uuid
from pathlib import Path

from recsys.step import Outputs, UserError

OUTPUTS = ("checkpoint", "history", "learning_curve")


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


def marker(shared: Path) -> Path:
    """The trainer's executor output: it is written last, when all results are there."""
    return shared / "executor_output.json"


def complete(shared: Path, patience: float = 0) -> bool:
    """Whether a trainer has written all its results; a network file system may show them seconds later."""
    end = time.monotonic() + patience
    while not (marker(shared).is_file() and all((shared / name).exists() for name in OUTPUTS)):
        if time.monotonic() >= end:
            return False
        time.sleep(min(1, patience))
    return True


def take(shared: Path, outputs: Outputs) -> None:
    """Brings the trainer's results, which are complete, to the step's outputs."""
    written = json.loads(marker(shared).read_text())["artifacts"]
    for name in OUTPUTS:
        source = shared / name
        if source.is_dir():
            shutil.copytree(source, outputs.folder(name), dirs_exist_ok=True)
        else:
            shutil.copyfile(source, outputs.file(name))
        outputs.describe(name, written[name]["artifacts"][0].get("metadata", {}))


def clear(shared: Path, keep: str = "") -> None:
    """Removes the run's folder from the workspace, but for ``keep``."""
    if not keep:
        shutil.rmtree(shared, ignore_errors=True)
        return
    for path in shared.iterdir():
        if path.name != keep:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
