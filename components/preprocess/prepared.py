"""What each kind of preparation hands back to the step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prepared:
    """A dataset that has been written to its folder.

    Attributes:
        summary: what the dashboard shows of it: counts, the split in words.
        page: the statistics page, HTML.
    """

    summary: Mapping[str, Any]
    page: str
