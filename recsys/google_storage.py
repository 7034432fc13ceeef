"""``gs://`` objects for :mod:`recsys.storage`.

Google's client is imported where it is used: that takes a second.
"""

import base64
import contextlib
import functools
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
import urllib3

from recsys import transfer
from recsys.object_storage import Changed, Chunk, Held, split, split_folder
from recsys.step import UserError
from recsys.transfer import AccessError, TransientError, one_line

log = logging.getLogger(__name__)

# Of the versions of Python that it will support next year: nothing that a user of a step could act on.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"google\.")

LOGIN = "set GOOGLE_APPLICATION_CREDENTIALS or run 'gcloud auth application-default login'"
UPLOAD_CHUNK = 4 * transfer.CHUNK  # what one request of a resumable upload carries, and keeps in memory


def describe(address: str) -> Held:
    """Size, generation and checksum; a composite object has a CRC32C only."""
    bucket, name = split(address)
    with _errors(address):
        blob = _client().bucket(bucket).blob(name)
        blob.reload(timeout=transfer.TIMEOUT, retry=None)
        checksum = ("md5", blob.md5_hash) if blob.md5_hash else ("crc32c", blob.crc32c)
        checked = (checksum[0], base64.b64decode(checksum[1]).hex()) if checksum[1] else None
        return Held(blob.size, checked, str(blob.generation))


def read_into(address: str, chunk: Chunk, held: Held) -> None:
    bucket, name = split(address)
    ends = chunk.end - 1 if chunk.end < held.size else None
    with _errors(address):
        _client().bucket(bucket).blob(name).download_to_file(
            chunk,
            start=chunk.position or None,
            end=ends,
            if_generation_match=int(held.version) if held.version else None,
            raw_download=True,
            checksum=None,  # the whole is compared
            timeout=transfer.TIMEOUT,
            retry=None,
        )


def read(address: str) -> bytes | None:
    """The content of a small object, ``None`` if there is none."""
    from google.api_core.exceptions import NotFound

    bucket, name = split(address)
    with _errors(address):
        blob = _client().bucket(bucket).blob(name)
        try:
            return blob.download_as_bytes(raw_download=True, timeout=transfer.TIMEOUT, retry=None)
        except NotFound as error:
            if "bucket does not exist" in str(error):
                raise
            return None


def write(address: str, content: bytes, only_if_absent: bool) -> bool:
    from google.api_core.exceptions import PreconditionFailed

    bucket, name = split(address)
    with _errors(address):
        try:
            _client().bucket(bucket).blob(name).upload_from_string(
                content,
                content_type="application/octet-stream",
                if_generation_match=0 if only_if_absent else None,
                checksum="auto",
                timeout=transfer.TIMEOUT,
                retry=None,
            )
        except PreconditionFailed:
            if only_if_absent:
                return False
            raise
        return True


def upload(address: str, path: Path) -> None:
    """Puts a file: a small one at once, a larger one by a resumable upload.

    (Parts in parallel would need the right to list and abort them, and what a killed process leaves
    would be paid for until someone removes it; an unfinished resumable upload ends by itself.)
    """
    if path.stat().st_size <= transfer.CHUNK:
        content = path.read_bytes()
        transfer.persist(address, lambda: write(address, content, False))
        return
    bucket, name = split(address)

    def attempt() -> None:
        with _errors(address):
            blob = _client().bucket(bucket).blob(name, chunk_size=UPLOAD_CHUNK)
            blob.upload_from_filename(
                path,
                content_type="application/octet-stream",
                checksum="auto",
                timeout=transfer.TIMEOUT,
                retry=_patience(),
            )

    transfer.persist(address, attempt)


def remove(address: str) -> None:
    from google.api_core.exceptions import NotFound

    bucket, name = split(address)
    with _errors(address), contextlib.suppress(NotFound):
        _client().bucket(bucket).blob(name).delete(timeout=transfer.TIMEOUT, retry=None)


def list_folder(address: str) -> list[str]:
    """Addresses of the objects directly under ``gs://bucket/folder/``, sorted."""
    bucket, prefix = split_folder(address)
    with _errors(address):
        blobs = _client().list_blobs(
            bucket, prefix=prefix, delimiter="/", timeout=transfer.TIMEOUT, retry=None
        )
        return sorted(f"gs://{bucket}/{blob.name}" for blob in blobs if blob.name != prefix)


def _client() -> Any:
    return _client_for(os.environ.get("STORAGE_EMULATOR_HOST"))


@functools.cache  # finding credentials may take seconds, and the connection is worth keeping
def _client_for(emulator: str | None) -> Any:
    import google.auth
    from google.auth.credentials import AnonymousCredentials
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    credentials: Any = AnonymousCredentials()
    if not emulator:
        try:
            credentials, _ = google.auth.default(["https://www.googleapis.com/auth/devstorage.read_write"])
        except DefaultCredentialsError:
            log.info("no Google credentials found: reading gs:// anonymously, which public buckets allow")
    client = storage.Client(project="<none>", credentials=credentials)
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=2 * transfer.CONNECTIONS)
    for scheme in ("http://", "https://"):
        client._http.mount(scheme, adapter)  # the default keeps ten connections, and warns about each above
    return client


def _patience() -> Any:
    """Retries of one request of a resumable upload, which only the client itself can continue."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    longest = transfer.LONGEST_WAIT
    return DEFAULT_RETRY.with_delay(transfer.BACKOFF, longest, 2.0).with_timeout(4 * longest)


@contextlib.contextmanager
def _errors(address: str) -> Iterator[None]:
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.cloud.storage.exceptions import DataCorruption

    try:
        yield
    except exceptions.NotFound as error:
        raise UserError(
            f"{address}: no such bucket or object ({_reason(error)}); check the address"
        ) from None
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise AccessError(
            f"{address}: no permission ({_reason(error)}); {LOGIN}, or give the account storage.objects.get, "
            f".create and .list",
            error.code,
        ) from None
    except exceptions.PreconditionFailed as error:
        raise Changed(f"the object changed meanwhile ({_reason(error)})") from None
    except (exceptions.ServerError, exceptions.TooManyRequests, exceptions.RetryError) as error:
        asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
        wait = float(asked) if asked.isdigit() else 0.0
        raise TransientError(f"Cloud Storage answers: {_reason(error)}", wait) from None
    except DataCorruption:
        raise TransientError(
            "the bytes that arrived are not those that were sent (checksum differs)"
        ) from None
    except TransportError as error:
        raise TransientError(f"no access token: the connection failed ({_clean(error)})") from None
    except GoogleAuthError as error:
        raise AccessError(f"{address}: no permission ({_clean(error)}); {LOGIN}", 401) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
        raise TransientError(f"the connection failed ({_clean(error)})") from None
    except exceptions.GoogleAPICallError as error:
        if "CRC32C" in _reason(error).upper():  # the server found the checksum wrong
            raise TransientError(f"Cloud Storage answers: {_reason(error)}") from None
        raise UserError(f"{address}: Cloud Storage answers: {_reason(error)}") from None


def _reason(error: Any) -> str:
    """Google's own sentence, without the request that the client puts before it."""
    errors = getattr(error, "errors", None)
    if errors and isinstance(errors[0], dict) and "message" in errors[0]:
        return one_line(errors[0]["message"])
    return _clean(error.message)


def _clean(error: object) -> str:
    """One line without the queries of addresses: that of a resumable upload is as good as a password."""
    return one_line(re.sub(r"[?][^ )\"']*", "", str(error)))
