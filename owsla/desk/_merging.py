"""Merging of the answers of several workers: a function for each kind of question. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ._events import merge_events
from ._types import Merge

MERGES: Final[Mapping[str, Merge]] = {
    "events": merge_events,
}
"""The functions by question. A question that is not listed is unknown to a parent."""
