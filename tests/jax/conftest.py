"""The planted datasets of the train environment's tests."""

from planted import ncf_dataset, vae_dataset, wide_dataset

__all__ = ["ncf_dataset", "vae_dataset", "wide_dataset"]
