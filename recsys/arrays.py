"""NumPy or CuPy: the one place that decides which.

Array code takes its module from the arrays it is given, so the same lines run on a CPU and on a GPU. Random
numbers are always drawn on the host by a NumPy ``Generator``: a seed means the same on both.
"""

import importlib
from typing import Any

import numpy as np


def array_module(array: Any) -> Any:
    """The module (``numpy`` or ``cupy``) that ``array`` belongs to."""
    return importlib.import_module("cupy") if type(array).__module__.startswith("cupy") else np


def to_numpy(array: Any) -> np.ndarray:
    """``array`` in host memory; a NumPy array is returned as it is."""
    return array.get() if hasattr(array, "get") else np.asarray(array)
