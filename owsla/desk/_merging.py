"""Merging of the answers of several workers: a function for each kind of question. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ._events import merge_events
from ._traces import merge_end_trace, merge_trace, merge_traces
from ._types import Merge

MERGES: Final[Mapping[str, Merge]] = {
    "end-trace": merge_end_trace,
    "events": merge_events,
    "trace": merge_trace,
    "traces": merge_traces,
}
"""The functions by question. A question that is not listed is unknown to a parent."""
