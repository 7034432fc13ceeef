"""Ends a rank that waits for another one in vain.

Who waits for a rank that hangs, or that it no longer reaches, is inside MPI, which never gives up. Horovod's
own limit does not see that either: the thread that would look is the one that waits.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

_since: list[float] = []


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Within, this rank may wait for others, but not for longer than the limit."""
    _since.append(time.monotonic())
    try:
        yield
    finally:
        _since.pop()


def start(rank: int, seconds: float) -> None:
    """Begins to watch; 0 seconds are no limit."""

    def watch() -> None:
        while True:
            time.sleep(1)
            if any(time.monotonic() - since > seconds for since in tuple(_since)):
                told = f"rank {rank}: no answer of another worker for {seconds:g} s; it hangs or is cut off\n"
                os.write(2, told.encode())
                os._exit(1)

    if seconds:
        threading.Thread(target=watch, name="stall watch", daemon=True).start()
