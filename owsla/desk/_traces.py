"""Traces: what a device says and hears, for an operator who watches.

Theory of operation
===================

**A trace is a question that is repeated**: `trace`, with an id that the reader has chosen. The first one starts the trace in
each process, and the others take the records since. So a worker that starts later joins by itself. A trace is *running* until
its time (`until`), and then *over*: nothing is recorded, and what was recorded waits for the reader. It *ends* when the reader
says so (`end-trace`), or when there was no question for `ABANDONED` seconds. `Traces` is this life, in each process.

**Cursors.** An answer has `next`, which the reader gives back as `after`: for each process the position of the reader in its
records. A process keeps what it has sent until then, so that an answer that comes too late costs no record. A reader that gives
no `after` gets each record once. An answer is not longer than a reader that does not read may cost; `more` is true if more
records are there already.

**What is recorded** (`_device_trace`): the lines of the connections that the target names, and the events that concern it. The
connections are those that are open now, and each one that connects, or is identified, later: events tell of these. Their
handler is installed only while a trace runs, so without one nothing is looked up when a device connects.

**Who reports.** With workers there is a `DeviceTrace` of a trace in each of them, and one `ReportedTrace` in the parent, which
emits the events `trace-started` and `trace-ended`. It counts the records by the cursors that the reader gives back. In a node
without a parent the one contains the other.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, Protocol

from ..events import Event, TraceEnded, TraceStarted
from ..interfaces import Clock, DelayedCall
from ._types import JSON, Args, NamedAnswers

LIMIT: Final = 16
"""Traces at once. Each may take two megabytes of memory in each process (`_trace_buffer.SIZE`)."""

ABANDONED: Final = 30.0
"""Seconds without a question after which a trace ends. Its reader asks four times a second."""

TraceCursor = Mapping[str, tuple[int, int]]
"""For each process the position of the reader in its records: `TraceBuffer.position`, in JSON a list."""


class TooManyTraces(RuntimeError):
    """`LIMIT` traces run already. The message is a sentence for people."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """Arguments with which a trace was started."""

    id: str
    target: str
    until: int
    """Time at which it is over, in milliseconds since the epoch."""
    bodies: bool
    by: str
    """Operator, for events."""


class RunningTrace(Protocol):
    """A trace in this process, as `Traces` sees it."""

    def poll(self, after: TraceCursor | None) -> JSON:
        """Return what is new for the reader."""

    def stop(self) -> None:
        """Stop recording. The records that were not read stay."""

    def end(self, after: TraceCursor | None, reason: str) -> None:
        """Forget the records."""


class _Entry:
    __slots__ = ("call", "deadline", "over", "polled", "request", "trace")

    def __init__(self, request: TraceRequest, trace: RunningTrace, deadline: float) -> None:
        self.request = request
        self.trace = trace
        self.deadline = deadline
        """Time at which the trace is over, by the clock of the reactor."""
        self.polled = 0.0
        """Time of the last question, by the clock of the reactor."""
        self.over: str | None = None
        """Reason for which nothing is recorded any more."""
        self.call: DelayedCall | None = None


class Traces:
    """The traces of this process, by id: their start, and their end."""

    def __init__(self, clock: Clock, now: Callable[[], float], begin: Callable[[TraceRequest], RunningTrace]) -> None:
        """`now()` returns the time in seconds since the epoch. `begin` starts a trace."""
        self._clock = clock
        self._now = now
        self._begin = begin
        self._entries: dict[str, _Entry] = {}

    def poll(self, args: Args) -> JSON:
        """Answer `trace`: start it if it is unknown, and return its new records. Raise `TooManyTraces`."""
        entry = self._entries.get(args["id"])
        if entry is None:
            request = TraceRequest(args["id"], args["target"], args["until"], bool(args.get("bodies")), args.get("by") or "")
            seconds = request.until / 1000 - self._now()
            if seconds <= 0:
                return {**_NOTHING, "ended": "its time is over"}
            if len(self._entries) >= LIMIT:
                raise TooManyTraces(f"{LIMIT} traces run already, which is the limit")
            entry = self._entries[request.id] = _Entry(request, self._begin(request), self._clock.seconds() + seconds)
        entry.polled = self._clock.seconds()
        if entry.call is None:
            self._check(entry)
        answer = {**_NOTHING, **entry.trace.poll(args.get("after"))}
        return {**answer, "ended": entry.over or answer["ended"]}

    def end(self, args: Args) -> JSON:
        """Answer `end-trace`: end a trace, if it is known. `reason` is for the event."""
        entry = self._entries.get(args["id"])
        if entry is not None:
            self._end(entry, entry.over or args.get("reason") or "ended by its reader", args.get("after"))
        return {}

    def running(self, args: Args) -> JSON:
        """Answer `traces`: the traces that have not ended."""
        return {
            "traces": [
                {"id": each.id, "target": each.target, "until": each.until, "bodies": each.bodies, "by": each.by}
                for each in (entry.request for entry in self._entries.values())
            ]
        }

    def _check(self, entry: _Entry) -> None:
        """End the recording of a trace whose time is over, and a trace that nobody reads. Look again when that is due."""
        now = self._clock.seconds()
        entry.call = None
        if now - entry.polled >= ABANDONED:
            self._end(entry, entry.over or f"its reader has not asked for {ABANDONED:g} s", None)
            return
        if entry.over is None and now >= entry.deadline:
            entry.over = "its time is over"
            entry.trace.stop()
        due = entry.polled + ABANDONED if entry.over is not None else min(entry.deadline, entry.polled + ABANDONED)
        entry.call = self._clock.callLater(max(0.0, due - now), self._check, entry)

    def _end(self, entry: _Entry, reason: str, after: TraceCursor | None) -> None:
        del self._entries[entry.request.id]
        if entry.call is not None:
            entry.call.cancel()
            entry.call = None
        entry.trace.stop()
        entry.trace.end(after, reason)


_NOTHING: Final[JSON] = {"records": [], "dropped": 0, "connections": [], "next": {}, "ended": None, "more": False}


class ReportedTrace:
    """A trace whose start and end are events."""

    def __init__(
        self, request: TraceRequest, emit: Callable[[Event], None], now: float, recorded: RunningTrace | None = None
    ) -> None:
        """Report the start. `recorded` records in this process, if there are devices."""
        self._request = request
        self._emit = emit
        self._recorded = recorded
        self._after: TraceCursor = {}
        seconds = round(request.until / 1000 - now, 1)
        emit(TraceStarted(request.target, request.by, seconds, request.bodies))

    def poll(self, after: TraceCursor | None) -> JSON:
        self._after = after or self._after
        return {} if self._recorded is None else self._recorded.poll(after)

    def stop(self) -> None:
        if self._recorded is not None:
            self._recorded.stop()

    def end(self, after: TraceCursor | None, reason: str) -> None:
        after = after or self._after
        if self._recorded is not None:
            self._recorded.end(after, reason)
        last, dropped = (sum(counts[index] for counts in after.values()) for index in (0, 1))
        request = self._request
        self._emit(TraceEnded(request.target, request.by, last - dropped, dropped, reason))


def merge_trace(answers: NamedAnswers, args: Args) -> JSON:
    """Merge the answers of processes to `trace`: all records in the order of their times, and a cursor for all."""
    own = [answer for _, answer in answers]
    following: dict[str, Any] = dict(args.get("after") or {})  # the positions in workers that did not answer stay
    for answer in own:
        following.update(answer["next"])
    return {
        "records": list(heapq.merge(*(answer["records"] for answer in own), key=itemgetter("time"))),
        "dropped": sum(answer["dropped"] for answer in own),
        "connections": list(_all(own, "connections")),
        "next": following,
        "more": any(answer["more"] for answer in own),
        "ended": next((answer["ended"] for answer in own if answer["ended"] is not None), None),
    }


def _all(answers: Iterable[JSON], name: str) -> Iterable[Any]:
    return (each for answer in answers for each in answer[name])


def merge_end_trace(answers: NamedAnswers, args: Args) -> JSON:
    """Merge the answers to `end-trace`: they are empty."""
    return {}


def merge_traces(answers: NamedAnswers, args: Args) -> JSON:
    """Merge the answers to `traces`: each trace once, although it runs in each worker."""
    return {"traces": list({trace["id"]: trace for trace in _all((answer for _, answer in answers), "traces")}.values())}


def node_traces(
    clock: Clock,
    now: Callable[[], float],
    record: Callable[[TraceRequest], RunningTrace],
    report: Callable[[Event], None] | None,
) -> Traces:
    """Return the traces of a node. `record` is `NodeTraces.begin`; `report` emits their start and end, unless a parent does."""
    if report is None:
        return Traces(clock, now, record)

    def begin(request: TraceRequest) -> RunningTrace:
        return ReportedTrace(request, report, now(), record(request))

    return Traces(clock, now, begin)


def parent_traces(clock: Clock, now: Callable[[], float], report: Callable[[Event], None]) -> Traces:
    """Return the traces of a parent, whose workers record."""
    return Traces(clock, now, lambda request: ReportedTrace(request, report, now()))
