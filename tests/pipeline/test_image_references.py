"""One place decides where the images are: the pipeline and the manifests say what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components import images

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = sorted(path.name for path in (ROOT / "manifests/overlays").iterdir())
NAMES = sorted(path.parent.name for path in (ROOT / "images").glob("*/Dockerfile"))


def in_pipeline(compiled: Path) -> set[str]:
    executors = next(yaml.safe_load_all(compiled.read_text()))["deploymentSpec"]["executors"]
    return {executor["container"]["image"] for executor in executors.values()}


def in_manifests(manifests: Path, overlay: str) -> set[str]:
    built = ROOT / ".venv/cluster/bin/kubectl"
    kubectl = str(built) if built.exists() else shutil.which("kubectl")
    if not kubectl:
        pytest.skip("no kubectl to render manifests with: `make setup-cluster` builds one, with Go")
    command = [kubectl, "kustomize", str(manifests / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(re.findall(r"image: (\S+)", done.stdout))


def stamp(kustomization: Path, **variables: str) -> None:
    command = [sys.executable, "-m", "components.images", str(kustomization)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=True, timeout=60)


def test_what_is_committed_agrees():
    assert in_pipeline(ROOT / "pipelines/pipeline.yaml") == {images.image(name) for name in NAMES}
    for overlay in OVERLAYS:
        assert in_manifests(ROOT / "manifests", overlay) == {images.TRAIN}


def test_another_registry_reaches_pipeline_and_manifests(tmp_path):
    variables = {"REGISTRY": "registry.test:5000/team/", "TAG": "1.10"}
    command = [sys.executable, "-m", "pipelines.pipeline", str(tmp_path / "pipeline.yaml")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=True, timeout=120)
    expected = {f"registry.test:5000/team/recsys-{name}:1.10" for name in NAMES}
    assert in_pipeline(tmp_path / "pipeline.yaml") == expected
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    kustomization = tmp_path / "manifests/base/kustomization.yaml"
    before = kustomization.read_text()
    stamp(kustomization, **variables)
    for overlay in OVERLAYS:
        assert in_manifests(tmp_path / "manifests", overlay) == {"registry.test:5000/team/recsys-train:1.10"}
    stamp(kustomization, REGISTRY="", TAG="")
    assert kustomization.read_text() == before


@pytest.mark.parametrize("name", NAMES)
def test_a_dockerfile_pins_what_it_stands_on_and_names_no_registry(name):
    text = (ROOT / "images" / name / "Dockerfile").read_text()
    bases = re.findall(r"^ARG \w+_IMAGE=(.+)$", text, re.MULTILINE)
    assert bases
    for base in bases:
        assert re.fullmatch(r"[a-z]+(/[a-z]+)?:[\d.]+-[\w.-]+", base), base
    for used in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert used.startswith(("${", "base-${", "toolkit-${")), f"{used} cannot be chosen by build argument"
    assert "ARG FLAVOUR=gpu" in text


def pinned(path: str) -> dict[str, str]:
    """Package to version of a lock file."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "images" / path).read_text(), re.MULTILINE))


def test_the_gpu_flavour_of_train_differs_by_tensorflow_and_cuda_alone():
    cpu, gpu = pinned("train/requirements.txt"), pinned("train/requirements-gpu.txt")
    assert gpu.pop("tensorflow") == cpu.pop("tensorflow-cpu")
    cuda = {name: gpu.pop(name) for name in list(gpu) if name.startswith("nvidia-")}
    assert gpu == cpu
    assert cuda["nvidia-cuda-runtime-cu12"].startswith("12.5.")


def test_the_gpu_flavour_of_preprocess_leaves_rapids_packages_to_its_base():
    gpu, kept = pinned("preprocess/requirements-gpu.txt"), (ROOT / "images/preprocess/rapids.txt").read_text()
    assert not set(gpu) & set(re.findall(r"^([a-z0-9-]+)", kept, re.MULTILINE))
    for line in (ROOT / "images/preprocess/requirements.in").read_text().splitlines():
        name, _, version = line.partition("==")
        assert line.startswith("#") or name in kept or gpu[name] == version
