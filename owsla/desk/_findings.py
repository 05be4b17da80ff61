"""Findings: sentences that say why a device may not work, from what its connection shows. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..log import pluralize

AT_ONCE: Final = 2.0
"""Seconds within which a device that has just connected may be silent, and a back end may answer."""

SETTLED: Final = 5.0
"""Seconds after which the broker should have confirmed a line, and the system of a device acknowledged what was written: more
than a slow network takes."""

SILENT: Final = 30.0
"""Seconds without a line, before and after a message to a device, from which on the device is silent. The answer to a line is
no such message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts about a connection. Times are in seconds before now, sizes in bytes."""

    age: float
    lines_in: int = 0
    lines_out: int = 0
    bytes_in: int = 0
    last_in: float | None = None
    last_out: float | None = None
    closing: str | None = None
    """Reason for which the connection closes."""
    pauses: tuple[str, ...] = ()
    """Reasons for which the device is not read."""
    served: bool = True
    """True if the broker confirms lines of the connection."""
    max_rate: float | None = None
    unpublished: int = 0
    """Size of what was read and not published, incomplete lines included."""
    delimiter: bytes = b""
    """Delimiter of lines; empty in other framings."""
    held_back: bool = False
    """True while the dialect holds the lines of the device back, such as during a login."""
    unconfirmed: int = 0
    """Number of lines that the broker has not confirmed, where that is known (`--device-ack`)."""
    slow: float | None = None
    """Time since which the socket takes no more."""
    stuck: float | None = None
    """Time since which the device has taken nothing of it."""
    write_timeout: float = 0.0
    waiting: int = 0
    waiting_bytes: int = 0
    untaken: int = 0
    """Size of what was written and not acknowledged by the system of the device."""
    held: int = 0
    missing: int | None = None
    """Number of the message for which `held` messages wait."""
    missing_for: float | None = None
    gap_timeout: float = 0.0
    same_device: int = 1
    """Number of open connections of this device id, this one included."""
    newest: str | None = None
    """The newest of these that is not being closed, if it is another one."""

    @property
    def idle(self) -> float:
        """Time since the last line in either direction, or since the connection was made."""
        return min(each for each in (self.age, self.last_in, self.last_out) if each is not None)


def findings(facts: Facts) -> list[str]:
    """Return what is unusual about a connection, the most likely reason for trouble first."""
    return [
        *_closing(facts),
        *_not_read(facts),
        *_not_written(facts),
        *_silent(facts),
        *_not_answered(facts),
        *_same_device(facts),
    ]


def _closing(facts: Facts) -> Iterator[str]:
    if facts.closing is not None:
        yield f"The connection is being closed ({facts.closing}). The device has not closed its side yet."


def _not_read(facts: Facts) -> Iterator[str]:
    """Find why the device is not read, or its lines are not published."""
    if "broker" in facts.pauses:
        if not facts.served:
            yield (
                "It is not read: its lines cannot be published now, since the connection to RabbitMQ is lost or blocked, or "
                "since RabbitMQ refuses them. They wait in the device."
            )
        else:
            yield (
                "It is not read: too many lines of all devices are unconfirmed by RabbitMQ. It is read again when RabbitMQ has "
                "confirmed some."
            )
    if "share" in facts.pauses:
        yield "It is not read: it sends faster than RabbitMQ confirms its lines. It is read again when they are confirmed."
    if "rate" in facts.pauses and facts.max_rate is not None:
        yield f"It is not read all the time: it sends more than {facts.max_rate:g} lines a second (--max-rate)."
    if "draining" in facts.pauses:
        yield "It is not read any more: the gateway stops, and closes the connection when its lines are confirmed."
    if facts.held_back:
        yield "Its lines are held back by its dialect: a login is not complete, or an answer is awaited."
    if facts.unconfirmed and facts.last_in is not None and facts.last_in >= SETTLED:
        yield f"RabbitMQ has not confirmed the last of its lines yet: {facts.unconfirmed}."


def _not_written(facts: Facts) -> Iterator[str]:
    """Find why messages do not reach the device."""
    if facts.slow is not None:
        waiting = f"; {pluralize(facts.waiting, 'message')} ({facts.waiting_bytes} bytes) wait" if facts.waiting else ""
        if facts.stuck is not None:
            yield (
                f"It has taken nothing that was written to it for {_span(facts.stuck)}{waiting}. It does not read, or is not "
                f"reachable. It is closed after {_span(facts.write_timeout)} (--write-timeout)."
            )
        else:
            yield f"It reads slower than messages arrive: its socket has been full for {_span(facts.slow)}{waiting}."
    elif facts.untaken and facts.idle >= SETTLED:
        yield (
            f"Its system has not acknowledged {pluralize(facts.untaken, 'byte')} written to it {_span(facts.idle)} ago or "
            "before: it does not read, or is not reachable any more."
        )
    if facts.held and facts.missing is not None:
        since = "" if facts.missing_for is None else f" for {_span(facts.missing_for)}"
        yield (
            f"Messages to it wait{since} for the one with to_device_seq {facts.missing}, which has not arrived: {facts.held}. "
            f"The missing one is skipped after {_span(facts.gap_timeout)} (--gap-timeout)."
        )


def _silent(facts: Facts) -> Iterator[str]:
    """Find that the device says nothing, or nothing that can be understood."""
    if facts.pauses:
        return  # it may have sent something that was not read
    if not facts.bytes_in:
        if facts.age >= AT_ONCE:
            yield f"It has sent nothing since it connected {_span(facts.age)} ago."
    elif not facts.lines_in:
        if facts.unpublished:
            wanted = (
                f"the end of a line ({ascii(facts.delimiter)[1:]}, --delimiter)" if facts.delimiter else "a whole --framing"
            )
            yield f"It has sent {pluralize(facts.bytes_in, 'byte')}, but not {wanted}."
    elif facts.last_out is not None and facts.last_in is not None and _ignored(facts.last_in, facts.last_out):
        yield (
            f"It has sent nothing since the last message to it, {_span(facts.last_out)} ago. Its last line came "
            f"{_span(facts.last_in)} ago."
        )


def _ignored(last_in: float, last_out: float) -> bool:
    """Return whether the last message to a device came after a silence, and has not ended it."""
    return last_out >= SILENT and last_in - last_out >= SILENT


def _not_answered(facts: Facts) -> Iterator[str]:
    """Find that back ends send nothing to the device."""
    if facts.lines_out or facts.waiting or facts.held or facts.held_back or "broker" in facts.pauses:
        return
    if (facts.lines_in > 1 and facts.age >= AT_ONCE) or (facts.lines_in and facts.idle >= AT_ONCE):
        yield (
            f"It has sent {pluralize(facts.lines_in, 'line')} and no message was ever sent to it: no back end answers, or it "
            "answers with another connection id."
        )


def _same_device(facts: Facts) -> Iterator[str]:
    """Find that other connections have the same device id."""
    if facts.same_device > 1:
        to = "this one" if facts.newest is None else facts.newest
        yield (
            f"Its device id has {facts.same_device} open connections: messages for the device id go to the newest, {to}. The "
            "device connects again without closing, or several devices have the same id."
        )


def at_several_workers(device_id: str, connections: int, workers: int) -> str:
    """Return the finding that a device has connections at several workers."""
    return (
        f"Device id {device_id} has {connections} open connections, at {workers} workers: the device connects again without "
        "closing, or several devices have the same id."
    )


def refusals(*, denied_device: bool, denied_address: bool, held_off: float) -> list[str]:
    """Return why new connections of a device id or address are refused now."""
    found = []
    if denied_device:
        found.append("Connections of this device id are refused: the list of --deny has it.")
    if denied_address:
        found.append("Connections from this address are refused: the list of --deny has it.")
    if held_off:
        found.append(
            f"Connections of this device id are refused for another {_span(held_off)}: it connected too often (--max-flaps)."
        )
    return found


def _span(seconds: float) -> str:
    """Return a duration for people, in one unit."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if not 0 < seconds < 0.9995 else f"{1000 * seconds:.0f} ms"
