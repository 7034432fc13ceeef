"""What this process computes on, and how fast that is."""

import contextlib
import functools
import os
import platform
import resource
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops


@functools.cache
def on_cpu() -> bool:
    """Whether the Keras backend has no accelerator."""
    return not any(name.lower().startswith(("gpu", "cuda", "tpu")) for name in devices())


def devices() -> list[str]:
    """Devices of the Keras backend, such as ``cpu:0`` and ``gpu:0``."""
    if keras.backend.backend() == "torch":  # Keras lists no devices for PyTorch.
        import torch

        return [f"gpu:{number}" for number in range(torch.cuda.device_count())] or ["cpu:0"]
    return keras.distribution.list_devices()


def synchronize(tensor) -> None:
    """Waits until ``tensor`` is computed; read a clock only after this."""
    ops.convert_to_numpy(ops.ravel(tensor)[:1])


def versions() -> dict[str, str]:
    """Installed versions of what decides a result."""
    found = {"python": platform.python_version(), "keras_backend": keras.backend.backend()}
    for name in ("keras", "tensorflow", "tensorflow-cpu", "jax", "torch", "horovod", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory, accelerators."""
    import psutil

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "devices": ", ".join(devices()),
    }


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def matrix_product_rate(size: int = 2048, repeats: int = 5) -> float:
    """Measured float32 FLOP/s of a ``size`` x ``size`` matrix product: the bound of a dense step."""
    matrix = ops.convert_to_tensor(np.random.default_rng(0).random((size, size), np.float32))
    synchronize(ops.matmul(matrix, matrix))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        synchronize(ops.matmul(matrix, matrix))
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)


@contextlib.contextmanager
def trace(folder: Path) -> Iterator[None]:
    """Writes a profiler trace (TensorBoard's format) of the enclosed steps to ``folder``."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.profiler.experimental.Profile(str(folder)):
            yield
    elif backend == "jax":
        import jax

        with jax.profiler.trace(str(folder)):
            yield
    else:
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        with torch.profiler.profile() as profiler:
            yield
        profiler.export_chrome_trace(str(folder / "trace.json"))


def _processor() -> str:
    with open("/proc/cpuinfo") as stream:
        names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    return names[0] if names else platform.processor()
