"""What stands in for a node: it serves container logs, and lets deleted pods go, as a kubelet does."""

import contextlib
import ssl
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

STEP = 0.1


class Log:
    """A container's log: lines with their times, until it ends."""

    def __init__(self) -> None:
        self.lines: list[tuple[datetime, str]] = []
        self.ended = False
        self.cuts = 0
        self.changed = threading.Condition()

    def write(self, text: str) -> None:
        with self.changed:
            self.lines += [(datetime.now(UTC), line) for line in text.splitlines()]
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def cut(self) -> None:
        """Breaks every stream that is being followed; the log itself goes on."""
        with self.changed:
            self.cuts += 1
            self.changed.notify_all()


class Kubelet:
    """Serves ``GET /containerLogs/<namespace>/<pod>/<container>``, which the API server asks for a log."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.logs: dict[tuple[str, str], Log] = {}
        self.requests: list[str] = []
        self.stopped = threading.Event()
        kubelet = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                kubelet.requests.append(self.path)
                kubelet.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    def log(self, namespace: str, pod: str) -> Log:
        return self.logs.setdefault((namespace, pod), Log())

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        kind, namespace, pod, container = url.path.strip("/").split("/")
        log = self.logs.get((namespace, pod))
        if kind != "containerLogs" or log is None:
            reason = f'container "{container}" in pod "{pod}" is waiting to start: ContainerCreating'.encode()
            request.send_response(400)
            request.send_header("Content-Length", str(len(reason)))
            request.end_headers()
            request.wfile.write(reason)
            return
        request.send_response(200)
        request.send_header("Content-Type", "text/plain")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        query = {key: value[-1] for key, value in parse_qs(url.query).items()}
        request.close_connection = True
        with contextlib.suppress(OSError):  # who reads has gone
            if stream(request, log, query, self.stopped):
                request.wfile.write(b"0\r\n\r\n")


def stream(
    request: BaseHTTPRequestHandler, log: Log, query: dict[str, str], stopped: threading.Event
) -> bool:
    """Writes the lines asked for, and the next ones while followed; false if cut off on the way."""
    with log.changed:
        cuts, done = log.cuts, first_line(log, query)
    while not stopped.is_set():
        with log.changed:
            lines, ended, cut = log.lines[done:], log.ended, log.cuts != cuts
        done += len(lines)
        if lines:
            text = "".join(f"{stamp(time) if 'timestamps' in query else ''}{line}\n" for time, line in lines)
            data = text.encode()
            request.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        if cut:
            return False
        if ended or query.get("follow") != "true":
            return True
        with log.changed:
            log.changed.wait_for(
                lambda done=done: len(log.lines) > done or log.ended or log.cuts != cuts, timeout=STEP
            )
    return False


def first_line(log: Log, query: dict[str, str]) -> int:
    since = datetime.fromisoformat(query["sinceTime"]) if "sinceTime" in query else None
    first = next(
        (i for i, (time, _) in enumerate(log.lines) if since is None or time >= since), len(log.lines)
    )
    return max(first, len(log.lines) - int(query["tailLines"])) if "tailLines" in query else first


def stamp(time: datetime) -> str:
    """A time as the kubelet writes it before a line: with nanoseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.%f000Z ")
