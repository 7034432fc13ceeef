"""Several processes (ranks) that train one model, started by mpirun; the only file that imports Horovod.

Without mpirun there is one rank: everything here is the identity then, and Horovod need not be installed.
With it, every function that takes part in the exchange is called by all ranks in the same order, or all wait.

What ends a run of several ranks, and how fast:

* a mistake that all ranks see (:class:`CommonError`): the first rank tells it, the others are silent;
* a rank that fails alone tells it itself, and its exit ends the others;
* a rank that dies: mpirun asks the others to stop, and those that wait for it in vain give up
  ``SIGNAL_SECONDS`` later; the state that the first rank saved last stays;
* a host that is cut off: mpirun misses it after 25 s (``manifests/base``) and ends the run in the same way;
* a rank that hangs, or two that no longer reach each other: who waits gives up after ``STALL_SECONDS``.
"""

import contextlib
import itertools
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from recsys import stall_watch
from recsys.step import UserError

# Below the 30 s that Kubernetes leaves between SIGTERM and SIGKILL.
SIGNAL_SECONDS = 25
STALL_SECONDS = 600
STALL_VARIABLE = "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"  # sets another limit, for Horovod too
T = TypeVar("T")
R = TypeVar("R")


class CommonError(UserError):
    """A mistake that every rank has seen."""


def size() -> int:
    """Number of ranks."""
    return int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this rank, from 0."""
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))


def local_rank() -> int:
    """Number of this rank among those of its host, from 0."""
    return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))


def local_size() -> int:
    """Ranks of this host."""
    return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))


def is_first() -> bool:
    """Whether this rank writes and reports."""
    return rank() == 0


def init() -> None:
    """Joins the ranks that mpirun started and gives this one its GPU, or its share of the cores.

    Raises:
        UserError: Horovod is missing or was built for another MPI, the backend is not TensorFlow, or there
            are fewer GPUs than ranks on this host.
    """
    if size() == 1:
        return
    import keras

    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"KERAS_BACKEND {keras.backend.backend()} trains with one worker, not {size()}; use tensorflow"
        )
    os.environ.setdefault(STALL_VARIABLE, str(STALL_SECONDS))
    try:
        hvd = _horovod()
    except ImportError as error:
        raise UserError(f"{size()} workers need Horovod: run make setup-horovod ({error})") from None
    _take_device()
    hvd.init()
    if hvd.size() != size():
        raise UserError(
            f"mpirun started {size()} ranks and Horovod sees {hvd.size()}: it was built for another MPI; "
            "run make setup-horovod with the mpirun that you use"
        )
    stall_watch.start(rank(), float(os.environ[STALL_VARIABLE]))


def _horovod() -> Any:
    import horovod.tensorflow as hvd

    return hvd


def _take_device() -> None:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus and local_size() > len(gpus):
        raise UserError(f"{local_size()} workers on {socket.gethostname()} share {len(gpus)} GPUs; one each")
    if gpus:
        tf.config.set_visible_devices(gpus[local_rank()], "GPU")
        return
    cores = len(os.sched_getaffinity(0))
    if cores == os.cpu_count():  # otherwise mpirun has bound each rank to cores of its own
        cores = max(1, cores // local_size())
    tf.config.threading.set_intra_op_parallelism_threads(cores)


def gather(value: T) -> list[T]:
    """The value of every rank, by rank; anything that pickle takes."""
    if size() == 1:
        return [value]
    import tensorflow as tf

    hvd = _horovod()
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    with stall_watch.waiting(), tf.device("cpu"):
        lengths = hvd.allgather(tf.constant([len(data)], tf.int64), name="gather.lengths").numpy()
        joined = hvd.allgather(tf.constant(data), name="gather.data").numpy()
    return [pickle.loads(part.tobytes()) for part in np.split(joined, np.cumsum(lengths)[:-1])]


def broadcast(value: T) -> T:
    """The first rank's value."""
    return value if size() == 1 else gather(value if is_first() else None)[0]  # type: ignore[return-value]


def broadcast_variables(variables: Iterable[Any]) -> None:
    """Gives Keras variables the first rank's values."""
    if size() > 1:
        for number, variable in enumerate(variables):
            variable.assign(_horovod().broadcast(variable.value, 0, name=f"variable.{number}"))


def sum_gradients(loss: Any, gradients: list[Any], compress: bool = False) -> tuple[Any, list[Any]]:
    """Sums loss and gradients over the ranks, inside a TensorFlow graph; one grouped allreduce.

    Args:
        loss: float32 scalar; is never compressed.
        gradients: float32 tensors, the same shapes on every rank.
        compress: send float16. Gradients of a mean over a large batch are smaller than float16 can hold, so
            each tensor is scaled by a power of two such that its sum over the ranks just cannot overflow.
    """
    if size() == 1:
        return loss, gradients
    import tensorflow as tf

    hvd = _horovod()
    if not compress:
        loss, *gradients = hvd.grouped_allreduce([loss, *gradients], op=hvd.Sum)
        return loss, gradients
    largest = tf.stack([loss, *(tf.reduce_max(tf.abs(gradient)) for gradient in gradients)])
    loss, *bounds = tf.unstack(hvd.allreduce(largest, op=hvd.Sum))
    scales = [2.0 ** tf.floor(15.0 - tf.math.log(tf.maximum(b, 1e-30)) / np.log(2.0)) for b in bounds]
    halves = [tf.cast(g * scale, tf.float16) for g, scale in zip(gradients, scales, strict=True)]
    sums = hvd.grouped_allreduce(halves, op=hvd.Sum)
    return loss, [tf.cast(s, tf.float32) / scale for s, scale in zip(sums, scales, strict=True)]


def alltoall(tensor: Any, counts: Any) -> tuple[Any, Any]:
    """Sends ``counts[r]`` rows to each rank ``r``, in order; gradients flow back the same way.

    Returns:
        the rows received, and how many each rank has sent.
    """
    return _horovod().alltoall(tensor, splits=counts)


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """What is a user's mistake on one rank becomes one of all ranks, told by the first.

    Raises:
        CommonError: on every rank, when a :class:`UserError` ended the block on any.
    """
    mistake = ""
    try:
        yield
    except UserError as error:
        if size() == 1:
            raise
        mistake = str(error)
    _raise_mistakes(gather(mistake))


def spread(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``[function(item) for item in items]`` on every rank, each item computed by one of them.

    Raises:
        CommonError: on every rank, when a :class:`UserError` ended it on any.
    """
    if size() == 1:
        return [function(item) for item in items]
    results, mistake = [], ""
    try:
        results = [function(item) for item in itertools.islice(items, rank(), None, size())]
    except UserError as error:
        mistake = str(error)
    shares, mistakes = zip(*gather((results, mistake)), strict=True)
    _raise_mistakes(mistakes)
    count = sum(len(share) for share in shares)
    return [shares[number % size()][number // size()] for number in range(count)]


def _raise_mistakes(mistakes: Iterable[str]) -> None:
    ranks: dict[str, list[int]] = {}
    for number, mistake in enumerate(mistakes):
        if mistake:
            ranks.setdefault(mistake, []).append(number)
    if ranks:
        everyone = [list(range(size()))]
        lines = [text if [who] == everyone else f"{_named(who)}: {text}" for text, who in ranks.items()]
        raise CommonError("; ".join(lines))


def prove(facts: Mapping[str, str]) -> list[str]:
    """Checks that the ranks are those that were asked for, and work on the same thing.

    ``RECSYS_NUM_WORKERS`` and ``RECSYS_NUM_HOSTS`` say what was asked for, where they are set: an mpirun that
    does not know its hosts starts all ranks on one, or as many runs of one rank each, and succeeds.

    Args:
        facts: what must be equal on all ranks, such as digests of the code and the data; empty where another
            rank of the host has looked.
    Returns:
        the host of every rank.
    Raises:
        CommonError: on every rank, with the list of differences.
    """
    found = gather({"host": socket.gethostname(), **facts})
    hosts = [entry["host"] for entry in found]
    faults = []
    for name, have in (("RECSYS_NUM_WORKERS", size()), ("RECSYS_NUM_HOSTS", len(set(hosts)))):
        asked = os.environ.get(name, "")
        if asked and asked != str(have):
            faults.append(
                f"{name} is {asked}, there {'is' if have == 1 else 'are'} {have} ({', '.join(hosts)})"
            )
    for name in facts:
        ranks: dict[str, list[int]] = {}
        for number, entry in enumerate(found):
            if entry[name]:
                ranks.setdefault(entry[name], []).append(number)
        if len(ranks) > 1:
            values = ", ".join(f"{value} on {_named(who)}" for value, who in ranks.items())
            faults.append(f"{name} differs: {values}")
    if faults:
        raise CommonError("these are not the workers that were asked for: " + "; ".join(faults))
    return hosts


def _named(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def give_up_after_a_signal(last_words: str) -> None:
    """Ends this process ``SIGNAL_SECONDS`` after SIGINT or SIGTERM, if it is still there.

    A rank that waits for one that is gone is inside MPI, where no handler written in Python ever runs. The
    interpreter's own handler does, and wakes a thread.
    """
    if size() == 1:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)

    def wait() -> None:
        number = os.read(reader, 1)[0]
        time.sleep(SIGNAL_SECONDS)
        if is_first():
            os.write(2, f"{last_words}\n".encode())
        os._exit(128 + number)

    threading.Thread(target=wait, name="give up", daemon=True).start()


def wait_for_the_end() -> None:
    """Waits, on another rank than the first, until mpirun ends it.

    The first rank tells what all know and exits with the run's code; exiting before it would have it killed.
    """
    time.sleep(SIGNAL_SECONDS)


def is_gone(error: Exception) -> bool:
    """Whether an exchange failed because another rank has ended."""
    return size() > 1 and "Horovod" in str(error)
