"""``s3://`` and ``minio://`` objects for :mod:`recsys.storage`: Amazon's, and every server that speaks S3.

Keys, region and endpoint come from where ``boto3`` finds them: ``AWS_ACCESS_KEY_ID``, ``AWS_REGION``,
``AWS_ENDPOINT_URL_S3``, profiles, the roles of pods. ``boto3`` is imported where it is used.
"""

import base64
import contextlib
import hashlib
import logging
import math
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recsys import transfer
from recsys.object_storage import BLOCK, Changed, Chunk, Held, split, split_folder
from recsys.step import UserError
from recsys.transfer import CHUNK, AccessError, TransientError, one_line

log = logging.getLogger(__name__)

KUBEFLOW = "http://seaweedfs.kubeflow:9000"  # what minio:// means where no endpoint is set
MOST_PARTS = 10_000  # of one upload, a limit of S3
ABSENT = ("NoSuchKey", "404", "NotFound")
TRANSIENT = (
    *("RequestTimeout", "SlowDown", "InternalError", "OperationAborted", "ConditionalRequestConflict"),
    *("IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),
)
FULL = ("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage")
# A server's code to what to do about it.
ADVICE = {
    "NoSuchBucket": "no such bucket; create it, or check the address and AWS_ENDPOINT_URL",
    "InvalidAccessKeyId": "the server does not know this access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; get new credentials",
    "InvalidToken": "the session token is not valid; get new credentials, or unset AWS_SESSION_TOKEN",
    "InvalidTokenId": "the session token is not valid; get new credentials, or unset AWS_SESSION_TOKEN",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION",
    "PermanentRedirect": "the bucket is in another region or at another endpoint; set AWS_REGION",
    "IllegalLocationConstraintException": "the bucket is in another region; set AWS_REGION",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the server's; set the clock (NTP)",
    "NotImplemented": "the server cannot do this; conditional writes need a newer one",
} | dict.fromkeys(FULL, "the store is full; free space there")


def describe(address: str) -> Held:
    """Size, ETag and, if it came in one piece or by :func:`upload`, a checksum of the whole."""
    with _errors(address) as s3:
        bucket, name = split(address)
        try:
            head = s3.head_object(Bucket=bucket, Key=name, ChecksumMode="ENABLED")
        except s3.exceptions.ClientError:
            # The answer to HEAD has no body, which is where S3 says what is wrong: the same question by GET.
            s3.get_object(Bucket=bucket, Key=name, Range="bytes=0-0")["Body"].close()
            raise
        checksum = None
        if md5 := _md5(head):
            checksum = ("md5", md5)
        elif head.get("ChecksumType") == "FULL_OBJECT" and "ChecksumCRC32" in head:
            checksum = ("crc32", base64.b64decode(head["ChecksumCRC32"]).hex())
        return Held(head["ContentLength"], checksum, head["ETag"])


def _md5(head: dict[str, Any]) -> str | None:
    """The ETag, where it is the MD5 of the content: not of what came in parts, nor of what S3 encrypted."""
    tag = head["ETag"].strip('"')
    encrypted = head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head
    return tag if re.fullmatch("[0-9a-f]{32}", tag) and not encrypted else None


def read_into(address: str, chunk: Chunk, held: Held) -> None:
    bucket, name = split(address)
    guard = {"IfMatch": held.version} if held.version else {}
    if chunk.position or chunk.end < held.size:
        guard["Range"] = f"bytes={chunk.position}-{chunk.end - 1}"
    with _errors(address) as s3:
        answer = s3.get_object(Bucket=bucket, Key=name, **guard)
        with contextlib.closing(answer["Body"]) as body:
            if answer["ContentLength"] != chunk.end - chunk.position:
                raise Changed("the object has another size than was told")
            for block in iter(lambda: body.read(BLOCK), b""):
                chunk.write(block)


def read(address: str) -> bytes | None:
    """The content of a small object, ``None`` if there is none."""
    bucket, name = split(address)
    with _errors(address) as s3:
        try:
            answer = s3.get_object(Bucket=bucket, Key=name)
            with contextlib.closing(answer["Body"]) as body:
                content = body.read()
        except s3.exceptions.ClientError as error:
            if error.response["Error"].get("Code") in ABSENT:
                return None
            raise
    if _md5(answer) not in (None, hashlib.md5(content, usedforsecurity=False).hexdigest()):
        raise TransientError("the bytes that arrived are not the object's (MD5 differs)")
    return content


def write(address: str, content: bytes, only_if_absent: bool) -> bool:
    bucket, name = split(address)
    guard = {"IfNoneMatch": "*"} if only_if_absent else {}
    with _errors(address) as s3:
        try:
            s3.put_object(Bucket=bucket, Key=name, Body=content, **guard)
        except s3.exceptions.ClientError as error:
            if only_if_absent and error.response["Error"].get("Code") in ("PreconditionFailed", "412"):
                return False
            raise
        return True


def upload(address: str, path: Path) -> None:
    """Puts a file: a small one at once, a larger one in parts, several at a time."""
    size = path.stat().st_size
    if size <= CHUNK:
        content = path.read_bytes()
        transfer.persist(address, lambda: write(address, content, False))
        return
    bucket, name = split(address)
    length = max(CHUNK, math.ceil(size / MOST_PARTS))

    def call(operation: str, **arguments: Any) -> dict[str, Any]:
        def attempt() -> dict[str, Any]:
            with _errors(address) as s3:
                return getattr(s3, operation)(Bucket=bucket, Key=name, **arguments)

        return transfer.persist(address, attempt)

    # Every part travels with its checksum, from which the server makes that of the whole.
    whole = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
    pending = call("create_multipart_upload", **whole)["UploadId"]

    def send(number: int) -> dict[str, Any]:
        with open(path, "rb") as stream:
            stream.seek((number - 1) * length)
            part = stream.read(length)
        sent = call("upload_part", UploadId=pending, PartNumber=number, Body=part, ChecksumAlgorithm="CRC32")
        return {"PartNumber": number} | {key: sent[key] for key in ("ETag", "ChecksumCRC32") if key in sent}

    def complete(parts: list[dict[str, Any]]) -> None:
        try:
            call(
                "complete_multipart_upload",
                UploadId=pending,
                MultipartUpload={"Parts": parts},
                ChecksumType="FULL_OBJECT",
            )
        except UserError as error:
            # Of an attempt whose answer was lost, the next one hears that there is no such upload any more.
            if "NoSuchUpload" not in str(error) or call("head_object")["ContentLength"] != size:
                raise

    try:
        at_once = max(1, transfer.CONNECTIONS * CHUNK // length)  # bounds the memory
        complete(transfer.parallel(send, range(1, math.ceil(size / length) + 1), at_once))
    except BaseException:
        with contextlib.suppress(UserError):  # what is left unfinished costs money
            call("abort_multipart_upload", UploadId=pending)
        raise


def remove(address: str) -> None:
    bucket, name = split(address)
    with _errors(address) as s3:
        s3.delete_object(Bucket=bucket, Key=name)


def list_folder(address: str) -> list[str]:
    """Addresses of the objects directly under a folder, sorted."""
    bucket, prefix = split_folder(address)
    scheme = address.partition("://")[0]
    with _errors(address) as s3:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        names = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return sorted(f"{scheme}://{bucket}/{name}" for name in names if name != prefix)


_clients: dict[tuple[Any, ...], Any] = {}
_making = threading.Lock()


def _client(scheme: str) -> Any:
    """The client, which threads share; it is made anew when the environment has changed."""
    settings = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    identity = (scheme, transfer.TIMEOUT, *sorted(settings.items()))
    with _making:
        if identity not in _clients:
            _clients[identity] = _make_client(scheme, settings)
        return _clients[identity]


def _make_client(scheme: str, settings: dict[str, str]) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = boto3.session.Session(region_name=settings.get("AWS_REGION") or None)
    endpoint = settings.get("AWS_ENDPOINT_URL_S3") or settings.get("AWS_ENDPOINT_URL")
    if not endpoint and scheme == "minio":
        endpoint = KUBEFLOW
    anonymous = session.get_credentials() is None
    if anonymous:
        log.info("no S3 credentials found: reading anonymously, which public buckets allow")
    config = Config(
        connect_timeout=transfer.TIMEOUT[0],
        read_timeout=transfer.TIMEOUT[1],
        retries={"total_max_attempts": 1},  # transfer.persist repeats
        max_pool_connections=2 * transfer.CONNECTIONS,
        signature_version=UNSIGNED if anonymous else None,
        response_checksum_validation="when_required",  # the whole object is compared
        s3={
            "addressing_style": "path" if endpoint else "auto",  # an endpoint has no name per bucket
            "payload_signing_enabled": False,  # would cost as much again; CRC32 is checked
        },
    )
    try:
        return session.client("s3", endpoint_url=endpoint, config=config)
    except ValueError as error:
        raise UserError(f"AWS_ENDPOINT_URL: {_clean(error)}; write http://HOST:PORT") from None


@contextlib.contextmanager
def _errors(address: str) -> Iterator[Any]:
    """The client, whose errors become one line."""
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    try:
        yield _client(address.partition(":")[0])
    except exceptions.ClientError as error:
        raise _translated(address, error.response) from None
    except exceptions.SSLError as error:
        raise UserError(f"{address}: the server's certificate is not accepted: {_clean(error)}") from None
    except (
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.IncompleteReadError,
        exceptions.FlexibleChecksumError,
        HTTPError,
    ) as error:
        raise TransientError(f"the connection failed ({_clean(error)})") from None
    except exceptions.BotoCoreError as error:
        raise UserError(f"{address}: cannot be reached through S3: {_clean(error)}") from None


def _translated(address: str, answer: dict[str, Any]) -> Exception:
    """The exception for an error that the server answered."""
    code = answer["Error"].get("Code", "")
    status = answer["ResponseMetadata"].get("HTTPStatusCode", 0)
    reason = f"{code}: {_clean(answer['Error'].get('Message', ''))}".rstrip(": ")
    if code in ADVICE:
        region = answer["Error"].get("Region")
        return UserError(f"{address}: {ADVICE[code]}{f'={region}' if region else ''} ({reason})")
    if code in ABSENT:
        return UserError(f"{address}: no such object ({reason}); check the address")
    if code in ("PreconditionFailed", "412", "InvalidRange", "416"):
        return Changed(f"the object changed meanwhile ({reason})")
    if code in TRANSIENT or status in (408, 429) or status >= 500:
        asked = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("retry-after", "")
        return TransientError(f"the store answers {reason}", float(asked) if asked.isdigit() else 0.0)
    if status in (401, 403):
        return AccessError(
            f"{address}: no permission ({reason}), or no such object; check AWS_ACCESS_KEY_ID, or "
            f"give the account s3:GetObject, s3:PutObject and s3:ListBucket there",
            status,
        )
    return UserError(f"{address}: the store answers {reason}")


def _clean(error: object) -> str:
    """One line without anything of the credentials, whatever a server or a client puts into its messages."""
    text = re.sub(r"[?][^ )\"']*|(?<=://)[^/@ ]*@", "", str(error))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if secret := os.environ.get(name):
            text = text.replace(secret, f"${name}")
    return one_line(text)
