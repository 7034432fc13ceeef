"""Which image runs which step: one image per set of dependencies, so several steps share one.

References carry no registry host: ``REGISTRY=my.registry/team TAG=1.2.3 make compile`` puts one in front.
This file decides for all that name an image: ``make images`` and ``make push``, the compiled pipeline, and
the manifests, whose stanza ``images:`` is what ``python -m components.images FILE`` writes.
"""

import os
import sys
from pathlib import Path

VERSION = "0.1.0"


def image(name: str) -> str:
    """The reference of image ``name``, which is a folder under ``images/``."""
    registry = os.environ.get("REGISTRY", "").strip("/")
    reference = f"recsys-{name}:{os.environ.get('TAG') or VERSION}"
    return f"{registry}/{reference}" if registry else reference


DOWNLOAD = image("download")
PREPROCESS = image("preprocess")
TRAIN = image("train")


def stamp(kustomization: Path) -> None:
    """Writes the reference of the train image into ``images:``, the last stanza of a kustomization."""
    before, stanza, _ = kustomization.read_text().partition("\nimages:")
    if not stanza:
        raise SystemExit(f"{kustomization}: no line `images:` to write the references under")
    name, _, tag = TRAIN.rpartition(":")
    lines = ["images: # written by make compile", "  - name: recsys-train"]
    lines += [f"    newName: {name}", f'    newTag: "{tag}"', ""]
    kustomization.write_text(before + "\n" + "\n".join(lines))


if __name__ == "__main__":
    stamp(Path(sys.argv[1]))
