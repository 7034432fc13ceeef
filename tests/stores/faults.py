"""A proxy between a client and a store that breaks some of the exchanges that pass through it."""

import http.client
import http.server
import json
import os
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

# Faults of the answer: reset, truncate (both in the middle of the body), stall, slow, corrupt.
# Faults of the request: reset_request (in the middle of its body), corrupt_request, lost (done, unanswered).
# A number is an answer in place of the server's: 503, 429.
Fault = str


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    size: int
    range: str | None


class Proxy:
    """Passes everything on, but commits ``faults`` (in order) on the requests that ``on`` chooses."""

    def __init__(self, server: str):
        self.server = urlsplit(server)
        self.lock, self.release = threading.Lock(), threading.Event()
        self.json = False  # how errors are written
        self.reset()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def __getattr__(self, name):  # do_GET, do_PUT, ...
                if name.startswith("do_"):
                    return lambda: owner._pass_on(self)
                raise AttributeError(name)

            def setup(self):
                super().setup()
                self.upstream = http.client.HTTPConnection(owner.server.hostname, owner.server.port)

            def finish(self):
                self.upstream.close()
                super().finish()

        class Listener(http.server.ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 128

            def handle_error(self, *_):
                """A client that hangs up is no fault of the proxy; anything else is one of the test's."""
                if not owner.release.is_set() and not isinstance(sys.exception(), OSError | ValueError):
                    traceback.print_exc()

        self.http = Listener(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def reset(self) -> None:
        """Passes everything on, and lets go of what stalls."""
        self.release.set()
        self.release = threading.Event()
        self.requests: list[Request] = []
        self.retry_after: str | None = None
        self.error = "planned"  # the code of an answer other than 503 and 429
        self.delay = 0.0
        self.commit()

    def stop(self) -> None:
        self.release.set()
        self.http.shutdown()
        self.http.server_close()

    def commit(self, *faults: Fault, on: Callable[[Request], bool] = lambda _: True) -> None:
        """Plans faults for the next requests that ``on`` chooses."""
        with self.lock:
            self.faults, self.on, self.committed = list(faults), on, []

    def _next(self, request: Request) -> Fault:
        with self.lock:
            self.requests.append(request)
            if not self.faults or not self.on(request):
                return ""
            self.committed.append(self.faults.pop(0))
            return self.committed[-1]

    def _pass_on(self, client: http.server.BaseHTTPRequestHandler) -> None:
        size = int(client.headers.get("Content-Length", 0))
        fault = self._next(Request(client.command, client.path, size, client.headers.get("Range")))
        if fault == "reset_request":
            client.rfile.read(size // 2)
            return _reset(client)
        body = client.rfile.read(size)
        if self.delay:
            time.sleep(self.delay)
        if fault.isdigit():
            return self._refuse(client, int(fault))
        if fault == "corrupt_request":
            body = _flip(body)
        head, answer = self._ask(client, body)
        if fault == "lost":
            return _reset(client)
        client.send_response_only(head.status, head.reason)
        for name, value in head.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                client.send_header(name, value)
        if head.getheader("Content-Length") is None and head.status not in (204, 304):
            client.send_header("Content-Length", str(len(answer)))
        client.end_headers()
        self._send(client, answer, fault)

    def _ask(self, client, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        client.upstream.putrequest(client.command, client.path, skip_host=True, skip_accept_encoding=True)
        for name, value in client.headers.items():
            if name.lower() not in ("expect", "connection"):
                client.upstream.putheader(name, value)
        client.upstream.endheaders(body)
        head = client.upstream.getresponse()
        return head, head.read()

    def _send(self, client, answer: bytes, fault: Fault) -> None:
        half = len(answer) // 2
        if fault == "corrupt":
            answer = _flip(answer)
        if fault == "slow":
            for start in range(0, len(answer), max(1, len(answer) // 20)):
                client.wfile.write(answer[start : start + max(1, len(answer) // 20)])
                time.sleep(0.02)
        elif fault in ("reset", "truncate", "stall"):
            client.wfile.write(answer[:half])
            if fault == "stall":
                self.release.wait(60)
            if fault == "reset":
                time.sleep(0.02)  # a reset takes back what the client has not read yet
                return _reset(client)
            client.close_connection = True
        else:
            client.wfile.write(answer)

    def _refuse(self, client, status: int) -> None:
        code = {503: "SlowDown", 429: "TooManyRequests"}.get(status, self.error)
        text = f"<Error><Code>{code}</Code><Message>planned by the test</Message></Error>"
        if self.json:
            text = json.dumps({"error": {"code": status, "message": code, "errors": [{"message": code}]}})
        client.send_response_only(status, code)
        client.send_header("Content-Type", "application/json" if self.json else "application/xml")
        client.send_header("Content-Length", str(len(text)))
        if self.retry_after:
            client.send_header("Retry-After", self.retry_after)
        client.end_headers()
        if client.command != "HEAD":
            client.wfile.write(text.encode())


def _flip(body: bytes) -> bytes:
    half = len(body) // 2
    return body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :] if body else body


def _reset(client: http.server.BaseHTTPRequestHandler) -> None:
    client.close_connection = True
    client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(client.connection.detach())
