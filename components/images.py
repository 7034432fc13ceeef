"""Which image runs which step: one image per set of dependencies, so several steps share one.

References carry no registry host: ``REGISTRY=my.registry/team TAG=1.2.3 make compile`` puts one in front.
"""

import os

VERSION = "0.1.0"


def image(name: str) -> str:
    """The reference of image ``name``, which is a folder under ``images/``."""
    registry = os.environ.get("REGISTRY", "").strip("/")
    reference = f"recsys-{name}:{os.environ.get('TAG') or VERSION}"
    return f"{registry}/{reference}" if registry else reference


DOWNLOAD = image("download")
PREPROCESS = image("preprocess")
TRAIN = image("train")
