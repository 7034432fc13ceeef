"""Copies the launcher's log while it is being written, across lost connections and restarted launchers."""

import http.client
import logging
import threading
from collections.abc import Callable, Iterator

from kubernetes.client.exceptions import ApiException

from components.train.kube import CONNECTION_ERRORS, PODS, Cluster
from components.train.mpirun import Cause, Lines

log = logging.getLogger(__name__)
SILENCE_SECONDS = 60  # then the connection is made anew; it may be dead


class LauncherLog:
    """Follows one launcher pod after the other, in a thread of its own.

    Args:
        write: takes a line.
    """

    def __init__(self, cluster: Cluster, write: Callable[[str], None]):
        self.cluster, self.write, self.cause = cluster, write, Cause()  # of the launcher that is read
        self._pods: dict[str, bool] = {}  # name to whether it has ended
        self._news = threading.Condition()
        self._closed = False
        self._failed = ""
        self._thread = threading.Thread(target=self._run, name="launcher log", daemon=True)
        self._thread.start()

    def tell(self, pod: str, ended: bool) -> None:
        """A launcher pod whose container has started, and whether it has ended since."""
        with self._news:
            self._pods[pod] = ended
            self._news.notify()

    def close(self, seconds: float = 15) -> None:
        """Reads on to the end of what there is, but not for longer than this."""
        with self._news:
            self._closed = True
            self._pods = dict.fromkeys(self._pods, True)
            self._news.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        done: set[str] = set()
        while True:
            with self._news:
                todo = [pod for pod in self._pods if pod not in done]
                if not todo:
                    if self._closed:
                        return
                    self._news.wait()
                    continue
            self._copy(todo[0])
            done.add(todo[0])

    def _copy(self, pod: str) -> None:
        """Copies a pod's log until the pod has ended and the log too."""
        seen, count, attempts = "", 0, 0  # time of the last line, and how many had the same
        lines, self.cause = Lines(), Cause()
        while True:
            ended = self._pods[pod]
            try:
                repeated, since = count, seen
                for line in self._lines(pod, seen):
                    time, _, text = line.partition(" ")
                    repeated -= time == since
                    if time < since or (time == since and repeated >= 0):
                        continue  # sinceTime counts in whole seconds
                    seen, count = time, count + 1 if time == seen else 1
                    for stream, whole in lines.feed(text):
                        self.cause.read(stream, whole)
                        self.write(whole)
                complete = True
            except (ApiException, http.client.HTTPException, *CONNECTION_ERRORS) as error:
                complete = False
                self._excuse(error)
            if ended and (complete or attempts > 3):
                return
            attempts += ended
            with self._news:
                if self._pods[pod] == ended:
                    self._news.wait(timeout=1)

    def _lines(self, pod: str, since: str) -> Iterator[str]:
        path = self.cluster.path(PODS, pod) + "/log"
        query = {"follow": "true", "timestamps": "true", **({"sinceTime": since} if since else {})}
        response = self.cluster.once("GET", path, query=query, timeout=SILENCE_SECONDS, stream=True)
        try:
            rest = b""
            for chunk in response.stream(65_536):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            if rest:
                yield rest.decode(errors="replace")
        finally:
            response.close()

    def _excuse(self, error: Exception) -> None:
        """Says once that the log cannot be read, where that is more than an interruption."""
        if isinstance(error, ApiException) and error.status in (401, 403) and not self._failed:
            self._failed = str(error.status)
            log.info("the launcher's log cannot be read (%s)", self._failed)
