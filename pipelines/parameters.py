"""Pipeline parameters: from a run file and ``key=value`` words to what the compiled pipeline takes.

The compiled YAML is the authority on which parameters there are and of which type.
"""

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from recsys.step import UserError

RUNS = Path(__file__).with_name("runs")
PATHS = ("source", "resume", "dataset_store")


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that 1e-3 is a number, as everywhere else, and a date is text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def names(runs: Path = RUNS) -> list[str]:
    """The runs there are: the files ``pipelines/runs/NAME.yaml``."""
    return sorted(path.stem for path in runs.glob("*.yaml"))


def compiled_spec(compiled: Path) -> dict[str, Any]:
    """The compiled pipeline; what only Kubernetes reads is a second document behind it."""
    return next(yaml.safe_load_all(compiled.read_text()))


def declared(compiled: Path) -> dict[str, Mapping[str, Any]]:
    """Parameter name to ``parameterType`` and perhaps ``defaultValue``, as the compiled pipeline has them."""
    return compiled_spec(compiled)["root"]["inputDefinitions"]["parameters"]


def resolve(run: str, words: Iterable[str], compiled: Path, runs: Path = RUNS) -> dict[str, Any]:
    """All parameters of a run: the pipeline's defaults, then the run file, then ``key=value`` words.

    Args:
        run: a file name in ``runs``, without ``.yaml``.
        words: ``seed=7``; a dotted key sets one entry of a dict parameter: ``hyperparameters.epochs=3``.
    Raises:
        UserError: unknown run or parameter, a value of the wrong type, a required parameter without value.
    """
    specs = declared(compiled)
    if run not in names(runs):
        raise UserError(f"RUN: unknown run {run!r}{_close(run, names(runs))}; runs: {', '.join(names(runs))}")
    path = runs / f"{run}.yaml"
    values: dict[str, Any] = {}
    for key, value in _read(path).items():
        _spec(specs, key, str(path))
        values[key] = _checked(str(path), key, specs[key]["parameterType"], value)
    for word in words:
        _assign(values, word, specs)
    for key, spec in specs.items():
        if key not in values and "defaultValue" not in spec:
            raise UserError(f"{path}: parameter {key!r} is missing and has no default")
        if key not in values:
            # YAML holds a number of the spec as a double.
            whole = spec["parameterType"] == "NUMBER_INTEGER"
            values[key] = int(spec["defaultValue"]) if whole else spec["defaultValue"]
    return {key: values[key] for key in specs}


def split(text: str) -> list[str]:
    """Splits ``PARAMS`` into words as a shell would, so that a value may hold spaces."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"PARAMS: {error}: {text!r}") from None


def with_absolute_paths(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the local paths among the parameters absolute: the steps run in another folder."""
    return {
        key: str(Path(value).expanduser().absolute()) if key in PATHS and is_local(value) else value
        for key, value in parameters.items()
    }


def is_local(value: str) -> bool:
    """Whether a path parameter names a file of this machine rather than a URI."""
    return bool(value) and "://" not in value


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold pipeline parameters as key: value lines")
    return content


def _assign(values: dict[str, Any], word: str, specs: Mapping[str, Any]) -> None:
    key, equals, text = word.partition("=")
    if not equals:
        raise UserError(f"PARAMS: {word!r} is not key=value; parameters: {', '.join(specs)}")
    name, dot, entry = key.partition(".")
    kind = _spec(specs, name, "PARAMS")["parameterType"]
    if dot and (kind != "STRUCT" or not entry):
        raise UserError(f"PARAMS: {key!r}: {name} is not a dict with entries; write {name}=...")
    try:
        # Text is taken as it stands: a gate or a path is not YAML.
        value = text if kind == "STRING" else yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise UserError(f"PARAMS: {word!r}: the value is not valid YAML") from None
    values[name] = _checked("PARAMS", name, kind, {**values.get(name, {}), entry: value} if dot else value)


def _spec(specs: Mapping[str, Any], name: Any, where: str) -> Mapping[str, Any]:
    if name not in specs:
        raise UserError(
            f"{where}: unknown parameter {name!r}{_close(name, specs)}; parameters: {', '.join(specs)}"
        )
    return specs[name]


def _checked(where: str, name: str, kind: str, value: Any) -> Any:
    def fail(wanted: str) -> UserError:
        return UserError(f"{where}: {name} must be {wanted}, not {value!r}")

    if kind == "STRING":
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise fail("text")
    elif kind == "NUMBER_INTEGER":
        if not isinstance(value, int) or isinstance(value, bool):
            raise fail("a whole number")
    elif kind == "STRUCT":
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise fail(f"key: value pairs (one of them: {name}.key=value)")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise fail("values that JSON can carry") from None
    return value


def _close(name: Any, allowed: Iterable[str]) -> str:
    match = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
