"""``http(s)://`` files for :mod:`recsys.storage`."""

import contextlib
import re
from collections.abc import Iterator

import requests

from recsys import transfer
from recsys.step import UserError
from recsys.transfer import AccessError, Part, TransientError, one_line, shown


def fetch(part: Part, address: str, login: tuple[str, str] | None = None) -> None:
    """One attempt: the rest of the file if the server still has the version in ``part``, else all of it."""
    # Compression on the way would make lengths and ranges count other bytes than the file's.
    headers = {"Accept-Encoding": "identity"}
    have = part.size
    if have and part.version:
        headers |= {"Range": f"bytes={have}-", "If-Range": part.version}
    with _get(address, headers, login) as response:
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == 416 and content_range == f"bytes */{have}":
            return  # nothing is missing
        resumed = response.status_code == 206 and content_range.startswith(f"bytes {have}-")
        if response.status_code in (206, 416) and not resumed:
            part.forget()
            raise TransientError("the server sent another range than was asked for")
        _check(address, response)
        total: int | None = None
        if response.headers.get("Content-Encoding", "identity") == "identity":
            total = int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
            total = total + have if resumed and total is not None else total
        with part.writer(_version(response), total, resumed) as writer, _errors(address):
            for block in response.iter_content(1 << 16):
                writer.write(block)


def read(address: str) -> bytes | None:
    """The content of a small file, ``None`` if there is none that we may see."""
    with _get(address, {}) as response:
        if response.status_code in (401, 403, 404, 410):
            return None
        _check(address, response)
        with _errors(address):
            return response.content


@contextlib.contextmanager
def _get(
    address: str, headers: dict[str, str], login: tuple[str, str] | None = None
) -> Iterator[requests.Response]:
    with _errors(address):
        # Requests drops the login when it is redirected to another host.
        response = requests.get(address, headers=headers, auth=login, stream=True, timeout=transfer.TIMEOUT)
    with response:
        yield response


def _version(response: requests.Response) -> str | None:
    """What names these bytes for ``If-Range``, which forbids weak ETags (RFC 9110, 13.1.5)."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _check(address: str, response: requests.Response) -> None:
    code, answer = response.status_code, f"the server answers {response.status_code} {response.reason}"
    if code == 429 or code == 408 or code >= 500:
        asked = response.headers.get("Retry-After", "")
        raise TransientError(answer, float(asked) if asked.isdigit() else 0.0)
    if code in (401, 403):
        message = f"{shown(address)}: no permission ({answer}); use an address that needs no login, or a copy"
        raise AccessError(message, code)
    if code >= 400:
        raise UserError(f"{shown(address)}: {answer}; check the address")


@contextlib.contextmanager
def _errors(address: str) -> Iterator[None]:
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise UserError(
            f"{shown(address)}: the server's certificate is not accepted: {_plain(error)}"
        ) from None
    except (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    ) as error:
        raise TransientError(f"the connection failed ({_plain(error)})") from None
    except requests.RequestException as error:
        raise UserError(f"{shown(address)}: cannot be fetched: {_plain(error)}") from None


def _plain(error: object) -> str:
    """Without the query of an address that we were redirected to: a signed one is as good as a password."""
    return one_line(re.sub(r"://[^/@ ]*@", "://", re.sub(r"[?][^ )]*", "", str(error))))
