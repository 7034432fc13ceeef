"""``gs://`` objects for :mod:`recsys.storage`.

Google's client is imported where it is used: that takes a second, and only one image has it.
"""

import base64
import contextlib
import functools
import hashlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import requests
import urllib3

from recsys.step import UserError
from recsys.transfer import TIMEOUT, Part, TransientError, one_line

log = logging.getLogger(__name__)


def fetch(part: Part) -> None:
    """One attempt: the rest of the object if ``part`` holds the start of this generation, else all of it."""
    bucket, name = _split(part.address)
    with _errors(part.address):
        blob = _client().bucket(bucket).blob(name)
        blob.reload(timeout=TIMEOUT, retry=None)
        generation = str(blob.generation)
        resumed = part.version == generation and part.size <= blob.size
        with part.writer(generation, blob.size, resumed) as writer:
            if writer.size < blob.size:  # a range that starts at the end would be an error
                blob.download_to_file(
                    writer,
                    start=writer.size or None,
                    if_generation_match=blob.generation,
                    raw_download=True,
                    checksum=None,  # it would be taken over the rest only; the whole is compared below
                    timeout=TIMEOUT,
                    retry=None,
                )
    if blob.md5_hash:  # composite objects have none
        with open(part.data, "rb") as stream:
            arrived = hashlib.file_digest(stream, "md5").digest()
        if arrived != base64.b64decode(blob.md5_hash):
            part.forget()
            raise TransientError("the bytes that arrived are not the object's (MD5 differs)")


def read(address: str) -> bytes | None:
    """The content of a small object, ``None`` if there is none that we may see."""
    from google.api_core.exceptions import Forbidden, NotFound, Unauthorized

    bucket, name = _split(address)
    with _errors(address):
        try:
            return _client().bucket(bucket).blob(name).download_as_bytes(timeout=TIMEOUT, retry=None)
        except (NotFound, Forbidden, Unauthorized):
            return None


def list_folder(address: str) -> list[str]:
    """Addresses of the objects directly under ``gs://bucket/folder/``, sorted."""
    bucket, prefix = _split(address)
    with _errors(address):
        blobs = _client().list_blobs(bucket, prefix=prefix, delimiter="/", timeout=TIMEOUT, retry=None)
        return sorted(f"gs://{bucket}/{blob.name}" for blob in blobs if blob.name != prefix)


def _split(address: str) -> tuple[str, str]:
    """``gs://bucket/some/object`` -> (``bucket``, ``some/object``); names may hold ``?`` and ``#``."""
    bucket, _, name = address.removeprefix("gs://").partition("/")
    if not bucket or not name:
        raise UserError(f"{address}: names no object; write gs://BUCKET/PATH/FILE")
    return bucket, name


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
            credentials, _ = google.auth.default(["https://www.googleapis.com/auth/devstorage.read_only"])
        except DefaultCredentialsError:
            log.info("no Google credentials found: reading gs:// anonymously, which public buckets allow")
    return storage.Client(project="<none>", credentials=credentials)


@contextlib.contextmanager
def _errors(address: str) -> Iterator[None]:
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except exceptions.NotFound as error:
        raise UserError(f"{address}: no such bucket or object ({_reason(error)})") from None
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise UserError(
            f"{address}: no permission ({_reason(error)}); set GOOGLE_APPLICATION_CREDENTIALS, run "
            f"'gcloud auth application-default login', or give the account storage.objects.get"
        ) from None
    except (exceptions.ServerError, exceptions.TooManyRequests, exceptions.PreconditionFailed) as error:
        raise TransientError(f"Cloud Storage answers: {_reason(error)}") from None
    except GoogleAuthError as error:
        raise UserError(f"{address}: the Google credentials do not work: {one_line(error)}") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise TransientError(f"the connection failed ({one_line(error)})") from None
    except exceptions.GoogleAPICallError as error:
        raise UserError(f"{address}: Cloud Storage answers: {_reason(error)}") from None


def _reason(error: Any) -> str:
    """Google's own sentence, without the request that the client puts before it."""
    return one_line(error.errors[0]["message"] if error.errors else error.message)
