"""Merging of the answers of several workers: a function for each kind of question. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from twisted.internet.defer import Deferred

from ._close import close_at_workers, merge_close
from ._device import merge_device, read_id
from ._devices import check_devices, merge_devices
from ._end_search import merge_ends, read_ends
from ._events import check_events, merge_events
from ._top import check_top, merge_top
from ._traces import merge_end_trace, merge_trace, merge_traces
from ._types import JSON, Args, Merge

MERGES: Final[Mapping[str, Merge]] = {
    "close": merge_close,
    "device": merge_device,
    "devices": merge_devices,
    "end-trace": merge_end_trace,
    "ends": merge_ends,
    "events": merge_events,
    "top": merge_top,
    "trace": merge_trace,
    "traces": merge_traces,
}
"""The functions by question. A question that is not listed is unknown to a parent."""

ACTIONS: Final = frozenset({"close"})
"""Questions that change something."""

CHECKS: Final[Mapping[str, Callable[[Args], object]]] = {
    "close": read_id,
    "device": read_id,
    "devices": check_devices,
    "ends": read_ends,
    "events": check_events,
    "top": check_top,
}
"""Functions by question that raise `BadArgument` for arguments that cannot be used, before any worker is asked."""

STEPS: Final[Mapping[str, Callable[[Callable[[str, Args], Deferred[JSON]], Args], Deferred[JSON]]]] = {
    "close": close_at_workers,
}
"""Functions by question that needs several questions to all workers. They get a function that asks one."""
