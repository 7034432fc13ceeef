"""Who may import whom, read from the imports of every file; each rule is first shown to fail when broken."""

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("recsys", "components", "pipelines")
NO_MEANING = ("utils", "util", "helpers", "helper", "common", "misc")

Rule = Callable[[Path], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(check: Rule) -> Rule:
    """Registers a rule: a function that yields a sentence per violation in a tree."""
    RULES[check.__name__.replace("_", " ")] = check
    return check


def files(root: Path, *packages: str) -> Iterator[Path]:
    for package in packages or PACKAGES:
        yield from sorted((root / package).rglob("*.py"))


def steps(root: Path) -> list[Path]:
    return sorted(path for path in (root / "components").iterdir() if any(path.glob("*.py")))


def imports(root: Path, path: Path) -> Iterator[str]:
    """Full names of what a file imports, at any depth: ``from a import b`` is ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(root).parts[: -node.level] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (entry.value for entry in node.args[:1] if isinstance(entry, ast.Constant))


def within(name: str, *packages: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def violations(root: Path, paths: Iterator[Path], allowed: Callable[[str], bool]) -> Iterator[str]:
    for path in paths:
        for name in imports(root, path):
            if not allowed(name):
                yield f"{path.relative_to(root)} imports {name}"


@rule
def recsys_imports_none_of_the_other_folders_and_no_kubeflow(root):
    yield from violations(
        root, files(root, "recsys"), lambda name: not within(name, "components", "pipelines", "kfp")
    )


@rule
def a_component_imports_only_kfp_and_its_image(root):
    def allowed(name: str) -> bool:
        return name.split(".")[0] in sys.stdlib_module_names or within(name, "kfp", "components.images")

    yield from violations(root, (step / "component.py" for step in steps(root)), allowed)


@rule
def a_program_imports_neither_its_component_nor_kubeflow(root):
    def allowed(name: str) -> bool:
        return not within(name, "kfp") and not (within(name, "components") and "component" in name.split("."))

    programs = (path for step in steps(root) for path in files(step.parent, step.name))
    yield from violations(root, (path for path in programs if path.name != "component.py"), allowed)


@rule
def a_step_never_imports_another_step(root):
    names = [f"components.{step.name}" for step in steps(root)]
    for step in steps(root):
        others = [name for name in names if name != f"components.{step.name}"]
        paths = files(step.parent, step.name)
        yield from violations(root, paths, lambda name, others=others: not within(name, *others))


@rule
def a_program_imports_nothing_of_the_pipelines(root):
    yield from violations(root, files(root, "components"), lambda name: not within(name, "pipelines"))


@rule
def pipelines_import_of_this_project_only_components_reports_and_the_step_contract(root):
    interfaces = [f"components.{step.name}.component" for step in steps(root)]

    def allowed(name: str) -> bool:
        return within(name, "recsys.report", "recsys.step", *interfaces) or not within(
            name, "recsys", "components"
        )

    yield from violations(root, files(root, "pipelines"), allowed)


@rule
def only_distributed_py_imports_horovod(root):
    paths = (path for path in files(root) if path != root / "recsys" / "distributed.py")
    yield from violations(root, paths, lambda name: not within(name, "horovod"))


@rule
def no_file_or_folder_has_a_name_without_meaning(root):
    for path in files(root, *PACKAGES, "tests", "benchmarks", "images"):
        parts = path.relative_to(root).with_suffix("").parts
        if any(part.strip("_") in NO_MEANING for part in parts):
            yield f"{path.relative_to(root)} is named {' or '.join(NO_MEANING)}"


@rule
def every_step_has_a_component_and_a_program(root):
    for step in steps(root):
        for name in ("component.py", "main.py"):
            if not (step / name).is_file():
                yield f"components/{step.name} has no {name}"


@rule
def no_file_is_too_long_to_read(root):
    """300 lines; a model has 400, because one paper is one file."""
    for path in files(root):
        limit = 400 if path.parent == root / "recsys" / "models" else 300
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > limit:
            yield f"{path.relative_to(root)} has {length} lines; allowed: {limit}"


SOUND = {
    "recsys/__init__.py": "",
    "recsys/step.py": "import argparse\n",
    "recsys/report.py": "import jinja2\nfrom recsys import step\n",
    "recsys/distributed.py": "import horovod.tensorflow as hvd\n",
    "components/images.py": "import os\n",
    "components/train/component.py": "from kfp import dsl\n\nfrom components import images\n",
    "components/train/main.py": "from components.train.loop import fit\nfrom recsys import step\n",
    "components/train/loop.py": "import numpy\n\nfrom . import main\n",
    "components/evaluate/component.py": "from kfp import dsl\n",
    "components/evaluate/main.py": "import recsys.distributed\n",
    "pipelines/pipeline.py": "from components.train.component import train\nfrom kfp import dsl\n",
    "pipelines/local.py": "import yaml\n\nfrom pipelines.pipeline import recsys\nfrom recsys import report\n",
}

# File and content that break a rule; a sentence of None removes the file.
PLANTED: list[tuple[Rule, str, str | None]] = [
    (recsys_imports_none_of_the_other_folders_and_no_kubeflow, "recsys/a.py", "import components.train.loop"),
    (recsys_imports_none_of_the_other_folders_and_no_kubeflow, "recsys/models/a.py", "from kfp import dsl"),
    (
        recsys_imports_none_of_the_other_folders_and_no_kubeflow,
        "recsys/a.py",
        "def f():\n    import pipelines",
    ),
    (a_component_imports_only_kfp_and_its_image, "components/train/component.py", "from recsys import step"),
    (a_component_imports_only_kfp_and_its_image, "components/train/component.py", "from . import main"),
    (a_component_imports_only_kfp_and_its_image, "components/train/component.py", "import numpy"),
    (
        a_program_imports_neither_its_component_nor_kubeflow,
        "components/train/main.py",
        "from components.train import component",
    ),
    (
        a_program_imports_neither_its_component_nor_kubeflow,
        "components/train/loop.py",
        "from .component import train",
    ),
    (a_program_imports_neither_its_component_nor_kubeflow, "components/train/main.py", "import kfp"),
    (a_step_never_imports_another_step, "components/train/main.py", "from components.evaluate import main"),
    (a_step_never_imports_another_step, "components/train/loop.py", "from ..evaluate.main import step"),
    (
        a_step_never_imports_another_step,
        "components/train/loop.py",
        "importlib.import_module('components.evaluate.main')",
    ),
    (a_program_imports_nothing_of_the_pipelines, "components/train/main.py", "from pipelines import local"),
    (
        pipelines_import_of_this_project_only_components_reports_and_the_step_contract,
        "pipelines/local.py",
        "from components.train.main import train",
    ),
    (
        pipelines_import_of_this_project_only_components_reports_and_the_step_contract,
        "pipelines/local.py",
        "from recsys import checkpoint",
    ),
    (
        pipelines_import_of_this_project_only_components_reports_and_the_step_contract,
        "pipelines/local.py",
        "import recsys",
    ),
    (only_distributed_py_imports_horovod, "components/train/loop.py", "import horovod"),
    (only_distributed_py_imports_horovod, "recsys/engine.py", "from horovod import tensorflow"),
    (no_file_or_folder_has_a_name_without_meaning, "recsys/utils.py", ""),
    (no_file_or_folder_has_a_name_without_meaning, "tests/common/test_a.py", ""),
    (every_step_has_a_component_and_a_program, "components/train/component.py", None),
    (every_step_has_a_component_and_a_program, "components/export/main.py", ""),
    (no_file_is_too_long_to_read, "recsys/engine.py", "x = 1\n" * 301),
    (no_file_is_too_long_to_read, "recsys/models/ncf.py", "x = 1\n" * 401),
]


@pytest.fixture
def tree(tmp_path):
    """A small project that keeps every rule."""
    for name, content in SOUND.items():
        write(tmp_path, name, content)
    return tmp_path


def write(root: Path, name: str, content: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.mark.parametrize("check", RULES.values(), ids=RULES.keys())
def test_in_this_repository(check):
    assert list(check(REPOSITORY)) == []


@pytest.mark.parametrize("check", RULES.values(), ids=RULES.keys())
def test_a_sound_tree_keeps_the_rule_that(check, tree):
    assert list(check(tree)) == []


@pytest.mark.parametrize(("check", "name", "content"), PLANTED)
def test_a_planted_violation_is_named(check, name, content, tree):
    if content is None:
        (tree / name).unlink()
    else:
        write(tree, name, content)
    (found,) = check(tree)
    assert name in found or "/".join(name.split("/")[:2]) in found


def test_every_rule_has_been_seen_to_fail():
    assert {check for check, _, _ in PLANTED} == set(RULES.values())
