"""One pipeline step: flags in, artifacts out, exit code 0, 1 or 2.

Every ``components/<step>/main.py`` declares its flags on a :class:`Step` and hands its work to
:meth:`Step.run`. That one place keeps the promises a Kubeflow launcher, a plain shell and a retry all
rely on:

* a flag is named like the Kubeflow input or output, letter for letter;
* an output is written under ``<path>.partial`` and renamed when the step has succeeded, so that a
  killed step leaves nothing that looks finished;
* an output that is a URI is staged in the temporary folder and uploaded when the step has succeeded;
* the step fails when an output that it promised is missing;
* the executor-output JSON is written last, lists every artifact and holds finite numbers only
  (Kubeflow's launcher refuses ``NaN`` after the work is done);
* a user's mistake (:class:`UserError`) is one line on stderr and exit code 2, never a traceback.

Standard library only, but for an output that is a URI: all images import this file.
"""

import argparse
import json
import logging
import math
import numbers
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

USER_MISTAKE = 2


class UserError(Exception):
    """A mistake that the user can mend: says what, where, which values are allowed, what to do."""


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Writes a whole file or nothing: a temporary name beside ``path``, then a rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as strict JSON can carry them.

    Numbers become Python's own (also NumPy's scalars). An entry that is NaN or infinite is left out; inside
    a list it becomes ``None``, so that the other places keep their meaning.
    """
    plain = {key: _plain(value) for key, value in values.items()}
    return {key: value for key, value in plain.items() if value is not None or values[key] is None}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return finite(value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    return value


def boolean(text: str) -> bool:
    """Parses every spelling that KFP's backends use for a boolean parameter."""
    lowered = text.strip().lower()
    if lowered in ("true", "1", "yes"):
        return True
    if lowered in ("false", "0", "no", "", "null"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not true or false")


def json_object(text: str) -> dict[str, Any]:
    """Parses a JSON object; empty text and ``null`` are the empty object."""
    if text.strip() in ("", "null"):
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not valid JSON ({error}): {text[:80]!r}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text[:80]!r} is not a JSON object like {{"key": 1}}')
    return value


def location(text: str) -> Path | str:
    """A local path, or the URI of something remote, which stays text."""
    if text.startswith("file://"):
        return Path(unquote(text.removeprefix("file://")))
    return text if "://" in text else Path(text)


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USER_MISTAKE, f"{self.prog}: {message}. See --help.\n")


class Step:
    """The command line of one step.

    Args:
        name: the step's folder under ``components/``; further programs of a folder are ``folder.program``.
        description: what the step does, one sentence, shown by ``--help``.
    """

    def __init__(self, name: str, description: str):
        module = name if "." in name else f"{name}.main"
        self.name = name.replace(".", " ")
        self.parser = _OneLineParser(
            prog=f"python -m components.{module}", description=description, allow_abbrev=False
        )
        self.parser.add_argument("--executor_input", type=json_object, default="", help="set by Kubeflow")
        self._inputs: list[str] = []
        self._outputs: list[str] = []

    def input(self, flag: str, help: str, remote: bool = False) -> None:
        """Declares an input artifact: a local path that must exist, or with ``remote`` perhaps a URI."""
        self.parser.add_argument(f"--{flag}", required=True, type=location if remote else Path, help=help)
        self._inputs.append(flag)

    def output(self, flag: str, help: str) -> None:
        """Declares an output artifact: a path that the step must fill, or a URI."""
        self.parser.add_argument(f"--{flag}", required=True, type=location, help=help)
        self._outputs.append(flag)

    def parameter(
        self, flag: str, type: Callable[[str], Any] = str, default: Any = None, help: str = "", **options: Any
    ) -> None:
        """Declares a parameter; without a default it is required. ``choices`` etc. go to argparse."""
        self.parser.add_argument(
            f"--{flag}", type=type, default=default, required=default is None, help=help, **options
        )

    def run(
        self, work: Callable[[argparse.Namespace, "Outputs"], None], argv: list[str] | None = None
    ) -> int:
        """Parses ``argv``, does ``work(arguments, outputs)``, publishes the outputs.

        Returns:
            0 when every promised output was published, 2 for a user's mistake. Anything else that goes
            wrong propagates with its traceback, which Python ends with exit code 1.
        """
        logging.basicConfig(
            level=logging.INFO,
            format=f"%(asctime)s {self.name}: %(message)s",
            datefmt="%H:%M:%S",
            stream=sys.stdout,
        )
        arguments = self.parser.parse_args(argv)
        outputs = Outputs(
            {name: getattr(arguments, name) for name in self._outputs}, arguments.executor_input
        )
        try:
            for name in self._inputs:
                path = getattr(arguments, name)
                if isinstance(path, Path) and not path.exists():
                    raise UserError(f"--{name} {path}: no such file or folder")
            work(arguments, outputs)
            outputs.publish()
        except UserError as error:
            print(f"{self.parser.prog}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            return USER_MISTAKE
        finally:
            outputs.discard()
        return 0


class Outputs:
    """The output artifacts of one step, staged beside their final paths until all of them are there.

    Args:
        paths: artifact name to final local path, or (text) to its URI.
        executor_input: Kubeflow's ``{{$}}`` (empty outside Kubeflow).
    """

    def __init__(self, paths: Mapping[str, Path | str], executor_input: Mapping[str, Any] | None = None):
        self.paths = dict(paths)
        self._executor = (executor_input or {}).get("outputs") or {}
        self._metadata: dict[str, dict[str, Any]] = {name: {} for name in self.paths}
        self._kept: set[str] = set()
        self._elsewhere: set[str] = set()
        self._scratch: Path | None = None  # for outputs that are URIs

    def staging(self, name: str) -> Path:
        """Where ``name`` is written until it is published: ``<path>.partial``."""
        path = self.paths[name]
        if isinstance(path, Path):
            return path.with_name(path.name + ".partial")
        self._scratch = self._scratch or Path(tempfile.mkdtemp(prefix="recsys-"))
        return self._scratch / name

    def elsewhere(self, name: str) -> None:
        """The artifact is at its URI already: its local path stays absent, which Kubeflow allows."""
        self._elsewhere.add(name)

    def folder(self, name: str, keep: bool = False) -> Path:
        """An empty folder to fill. With ``keep``, what an interrupted attempt left stays (for resuming)."""
        path = self.staging(name)
        if keep:
            self._kept.add(name)
        else:
            _remove(path)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def file(self, name: str) -> Path:
        """A file path to write to."""
        path = self.staging(name)
        _remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def describe(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Adds metadata to an artifact; the dashboard shows it. Non-finite numbers are left out."""
        self._metadata[name].update(finite(metadata))

    def metrics(self, name: str, values: Mapping[str, Any]) -> None:
        """Fills a ``Metrics`` artifact: scalars as metadata, and as a JSON file for the next step."""
        self.describe(name, values)
        self.file(name).write_text(json.dumps(finite(values), indent=2, allow_nan=False) + "\n")

    def publish(self) -> None:
        """Renames every staged output to its final path, then writes the executor-output JSON.

        Raises:
            RuntimeError: an output that the step promised was not written, or is an empty folder.
        """
        own = {name: path for name, path in self.paths.items() if name not in self._elsewhere}
        missing = [name for name in own if not _filled(self.staging(name))]
        if missing:
            raise RuntimeError(f"the step ended without writing its outputs: {', '.join(missing)}")
        executor_output = json.dumps(self._executor_output(), allow_nan=False)
        for name, path in own.items():
            if isinstance(path, Path):
                _remove(path)
                os.replace(self.staging(name), path)
            else:
                _upload(self.staging(name), path)
        marker = location(self._executor.get("outputFile") or "")
        if isinstance(marker, str):
            _storage().write(marker, executor_output.encode())
        elif self._executor.get("outputFile"):
            atomic_write(marker, executor_output)

    def discard(self) -> None:
        """Removes what was staged and not published, except folders kept for resuming."""
        for name, path in self.paths.items():
            if name not in self._kept and isinstance(path, Path):
                _remove(self.staging(name))
        if self._scratch:
            _remove(self._scratch)

    def _executor_output(self) -> dict[str, Any]:
        declared = self._executor.get("artifacts", {})
        artifacts = {}
        for name, metadata in self._metadata.items():
            if declared.get(name, {}).get("artifacts"):
                given = declared[name]["artifacts"][0]
                kept = {key: given[key] for key in ("name", "uri") if key in given}
                artifacts[name] = {
                    "artifacts": [{**kept, "metadata": {**given.get("metadata", {}), **metadata}}]
                }
        return {"artifacts": artifacts}


def _upload(source: Path, address: str) -> None:
    if source.is_dir():
        _storage().upload(source, address)
    else:
        _storage().write(address, source.read_bytes())


def _storage() -> Any:
    from recsys import storage  # which needs clients that not every environment has

    return storage


def _filled(path: Path) -> bool:
    """Whether there is something to publish; Kubeflow uploads nothing for an empty folder."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
