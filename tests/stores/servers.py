"""Starts an S3 server (MinIO) and a Cloud Storage one (fake-gcs-server); both end with the tests."""

import ctypes
import signal
import socket
import subprocess
import time
from pathlib import Path

import requests

BINARIES = Path(__file__).resolve().parents[2] / ".venv" / "stores"
BUCKET = "bucket"
REGION = "eu-north-7"
# Values to look for wherever something is printed.
KEYS = {"AWS_ACCESS_KEY_ID": "planted-access-key", "AWS_SECRET_ACCESS_KEY": "planted+secret/key=0123456789"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One server on a free port of the loopback interface, with its data in ``folder``."""

    def __init__(self, folder: Path, health: str, program: str, *arguments: str, **environment: str) -> None:
        self.port, self.data, self.log = free_port(), folder / "data", folder / "log"
        self.address = f"http://127.0.0.1:{self.port}"
        self.data.mkdir(parents=True)
        places = {"port": self.port, "data": self.data}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [BINARIES / "bin" / program, *(argument.format(**places) for argument in arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment},
                preexec_fn=_end_with_caller,
            )
        self._wait(self.address + health)

    def _wait(self, health: str) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if requests.get(health, timeout=5).ok:
                    return
            except requests.ConnectionError:
                time.sleep(0.05)
        self.stop()
        raise AssertionError(f"{health} never answered\n{self.log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _end_with_caller() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def start_s3(folder: Path) -> Server:
    root = {
        "MINIO_ROOT_USER": KEYS["AWS_ACCESS_KEY_ID"],
        "MINIO_ROOT_PASSWORD": KEYS["AWS_SECRET_ACCESS_KEY"],
    }
    server = Server(
        folder,
        "/minio/health/ready",
        "minio",
        *("server", "--quiet", "--address", "127.0.0.1:{port}", "{data}"),
        **root,
        MINIO_BROWSER="off",
        MINIO_UPDATE="off",
        MINIO_SITE_REGION=REGION,
        MINIO_CI_CD="1",
    )
    client(server.address).create_bucket(
        Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    return server


def start_google(folder: Path) -> Server:
    server = Server(
        folder,
        "/storage/v1/b?project=x",
        "fake-gcs-server",
        *("-scheme", "http", "-host", "127.0.0.1", "-port", "{port}", "-log-level", "error"),
        *("-backend", "memory", "-filesystem-root", "{data}"),
    )
    answer = requests.post(f"{server.address}/storage/v1/b?project=x", json={"name": BUCKET}, timeout=10)
    answer.raise_for_status()
    return server


def client(endpoint: str, service: str = "s3"):
    """A plain client of the S3 server, past the code under test."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        config=Config(s3={"addressing_style": "path"}),
    )


def built() -> bool:
    return (BINARIES / ".ready").exists()
