"""Fixtures of this folder, and a quiet TensorFlow."""

import os

from planted import ncf_dataset, vae_dataset, wide_dataset

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__all__ = ["ncf_dataset", "vae_dataset", "wide_dataset"]
