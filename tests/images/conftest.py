"""The three images, built for CPU by ``make images`` from a base made here, in a storage of their own.

``.venv/images`` keeps both, so that a second run builds only what has changed.
"""

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines import local, parameters
from tests.images.container import Pod

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".venv" / "images"
TAG = "test"
NAMES = ("download", "preprocess", "train")
BASE = "python:3.11.14-slim-bookworm"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
TOOLS = ("buildah", "debootstrap", "runc", "unshare", "ip", "ssh-keygen")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
CHOSEN = (1_000_650_000, 0)  # a user that no image knows, as OpenShift chooses one
SMALL = [
    "dataset_options.users=400",
    "dataset_options.items=200",
    "hyperparameters.epochs=6",
    "hyperparameters.batch_size=1024",
    "benchmark.train_seconds=0.5",
    "benchmark.inference_seconds=0.1",
    "benchmark.batch_sizes=[1, 64]",
    "gate=hr@10>0.3",
]
PLANTED = "planted-secret-" + "7f3d9a1c"  # in two, so that this file does not hold it
FORGOTTEN = (".env", "components/train/id_rsa", "recsys/.netrc", "manifests/token", "runs/log.txt", "key.pem")


def run(*command: object, **options: Any) -> str:
    """Standard output of a command; its end goes into the failure when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=3600, **options)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@dataclass(frozen=True)
class Image:
    """A built image: its reference, its configuration, its files."""

    reference: str
    config: dict[str, Any]
    root: str

    def pod(self, user: tuple[int, int] = (1000, 1000), mounts: dict[str, str] | None = None) -> Pod:
        return Pod(self.root, self.config, *user, mounts or {})


@pytest.fixture(scope="session")
def storage() -> Iterator[None]:
    """Containers' storage under ``.venv``, for buildah here and in ``make``."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if os.geteuid() or missing:
        pytest.skip(f"NOT RUN: needs root and {', '.join(TOOLS)}; missing: {', '.join(missing) or 'root'}")
    KEPT.mkdir(parents=True, exist_ok=True)
    lines = ["[storage]", 'driver = "overlay"', f'graphroot = "{KEPT}/graph"', f'runroot = "{KEPT}/run"', ""]
    (KEPT / "storage.conf").write_text("\n".join(lines))
    os.environ |= {"CONTAINERS_STORAGE_CONF": f"{KEPT}/storage.conf", "BUILDAH_ISOLATION": "chroot"}
    yield
    # What buildah mounts there for good would keep `make clean` from removing it.
    subprocess.run(["umount", KEPT / "graph/overlay"], capture_output=True)


@pytest.fixture(scope="session")
def base(storage: None) -> str:
    """What stands for Python's own image: Debian 12 with its Python 3.11, and this machine's certificates."""
    if subprocess.run(["buildah", "inspect", "--type", "image", BASE], capture_output=True).returncode == 0:
        return BASE
    tree = KEPT / "base"
    shutil.rmtree(tree, ignore_errors=True)
    run("debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", tree, MIRROR)
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
    packages = ["python3.11-venv", "python3.11-dev"]
    run("chroot", tree, "apt-get", "install", "--yes", "--no-install-recommends", *packages)
    run("chroot", tree, "apt-get", "clean")
    for name in ("python", "python3"):
        (tree / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
    shutil.copy(CERTIFICATES, tree / CERTIFICATES[1:])
    container = run("buildah", "from", "scratch").strip()
    run("buildah", "copy", container, tree, "/")
    path = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    for value in (f"PATH={path}", f"PIP_CERT={CERTIFICATES}", f"SSL_CERT_FILE={CERTIFICATES}"):
        run("buildah", "config", "--env", value, container)
    run("buildah", "commit", "--rm", container, BASE)
    shutil.rmtree(tree)
    return BASE


@pytest.fixture(scope="session")
def images(base: str) -> Iterator[dict[str, Image]]:
    """Name to image, built from a copy of the working tree in which secrets have been left lying about."""
    tree = KEPT / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    for name in FORGOTTEN:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(PLANTED)
    login = KEPT / "netrc"
    login.write_text(f"machine index.test login reader password {PLANTED}\n")
    login.chmod(0o600)
    words = ["FLAVOUR=cpu", f"TAG={TAG}", "CONTAINER_TOOL=buildah"]
    words += [f"BUILD_FLAGS=--pull-never --secret id=netrc,src={login}"]
    run("make", "-C", tree, "images", *words, env={**os.environ, "AWS_SECRET_ACCESS_KEY": PLANTED})
    built = {}
    try:
        for name in NAMES:
            reference = f"recsys-{name}:{TAG}"
            container = run("buildah", "from", "--pull-never", reference).strip()
            config = json.loads(run("buildah", "inspect", "--type", "image", reference))["OCIv1"]["config"]
            built[name] = Image(reference, config, run("buildah", "mount", container).strip())
        yield built
    finally:
        shutil.rmtree(tree)
        login.unlink()
        run("buildah", "rm", "--all")  # also those that a build has left


@pytest.fixture(scope="session")
def layers(images: dict[str, Image]) -> Callable[[str], list[Path]]:
    """Image's name to its layers, base first, as archives; the last file is its configuration."""

    def unpacked(name: str) -> list[Path]:
        folder = KEPT / "layers" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run("buildah", "push", "--disable-compression", images[name].reference, f"dir:{folder}")
        manifest = json.loads((folder / "manifest.json").read_text())
        digests = [entry["digest"] for entry in (*manifest["layers"], manifest["config"])]
        files = [folder / digest.partition(":")[2] for digest in digests]
        assert all(tarfile.is_tarfile(file) for file in files[:-1])
        return files

    yield unpacked
    shutil.rmtree(KEPT / "layers", ignore_errors=True)


@pytest.fixture(scope="session")
def smoke(images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run of the compiled pipeline, each step in its image, as a user that no image knows.

    Artifacts go from step to step through this folder, as through Kubeflow's volume; two ranks train.
    """
    folder = tmp_path_factory.mktemp("smoke")
    folder.chmod(0o777)
    programs = {}
    for name in NAMES:
        place = tmp_path_factory.mktemp(name)
        programs[f"recsys-{name}"] = images[name].pod(CHOSEN, {str(folder): str(folder)}).as_python(place)
    workplace = local.Workplace(environments=programs)
    words = [*SMALL, "num_workers=2"]
    values = parameters.resolve("ncf_synthetic", words, workplace.compiled, workplace.run_files)
    run_folder = folder / "run"
    umask = os.umask(0o002)  # what is made here, the pods' group may fill
    try:
        run_folder.mkdir()
        code = local.run("ncf_synthetic", values, run_folder, workplace)
    finally:
        os.umask(umask)
    logs = sorted(run_folder.glob("*/log.txt"))
    assert code == 0, "\n".join(f"{log}\n{log.read_text()[-2000:]}" for log in logs)
    return run_folder
