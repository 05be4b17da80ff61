"""The lines that devices send and receive. No sockets: the caller moves the bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ._device import UP, Device
from ._frames import Frames
from ._lines import LineTemplate, ack_pattern
from ._measurements import Measurements
from ._plan import Plan


class Conversation:
    """Makes lines, matches answers and acknowledgements to them, and measures both."""

    def __init__(self, plan: Plan, measured: Measurements) -> None:
        self._counts = measured.counts
        self._latency = measured.latency.add
        self._service = measured.service.add
        self._lateness = measured.lateness.add
        template = LineTemplate(plan.line, plan.size)
        self._line = template.line
        self._frames = frames = Frames(plan.framing, plan.delimiter.encode("latin-1"))
        self._frame = frames.frame
        self._split = frames.split
        self._with_time = "time" in template.fields
        self._with_device = "device" in template.fields
        self._find_answer = template.pattern().search if plan.mode == "echo" else None
        self._find_ack = ack_pattern(plan.device_ack).fullmatch if plan.device_ack is not None else None
        self._acknowledged = plan.acknowledged
        self._limit = plan.in_flight
        self._burst = plan.burst
        self._scheduled = bool(plan.rate)
        self._held_back_to = 0

    def may_send(self, device: Device) -> bool:
        """Return whether the limit of lines in flight allows another burst."""
        if not self._limit:
            return True
        lines = device.lines
        return (len(lines.outstanding) if self._find_answer else lines.said - device.acked) + self._burst <= self._limit

    def greeting(self, device: Device) -> bytes:
        """Return the bytes that a device sends before its lines and that the server answers; empty if there are none."""
        return b""

    def greeted(self, device: Device, data: bytes) -> bool:
        """Take bytes of the answer to the greeting. Return whether it is complete. Raise `SwarmError` for a refusal."""
        return True

    def farewell(self) -> bytes:
        """Return the bytes that a device sends before it closes its connection."""
        return b""

    def held_back(self, lines: int) -> None:
        """Count the next lines as delayed by the gateway, for which every connection waits, and not by this process."""
        self._held_back_to = self._counts.said + lines

    def next_lines(self, device: Device, due: int | None, count: int) -> bytes:
        """Return the frames of the next lines of a device, and register these. `due` is `None` without a schedule."""
        lines = device.lines
        milliseconds = time.time_ns() // 1_000_000 if self._with_time else 0
        data = self._framed(device.index, range(lines.said, lines.said + count), milliseconds)
        if self._find_answer is None and not self._scheduled:
            lines.sent_without_answer(count)
            self._counts.said += count
            return data
        now = time.monotonic_ns()
        if due is None:
            due = now
        if self._find_answer:
            for _ in range(count):
                lines.sent(due, now)
        else:
            lines.sent_without_answer(count)
        self._count_late(now - due, count)
        return data

    def _framed(self, device: int, numbers: range, milliseconds: int) -> bytes:
        """Return the lines of a device with these numbers, each in its frame."""
        line, frame = self._line, self._frame
        return b"".join([frame(line(number, device, milliseconds)) for number in numbers])

    def _count_late(self, late: int, lines: int) -> None:
        """Count lines that were sent `late` nanoseconds after they were due."""
        counts = self._counts
        for _ in range(lines):
            counts.said += 1
            if counts.said <= self._held_back_to:
                counts.held += 1
            elif self._scheduled:
                self._lateness(late // 1000)

    def received(self, device: Device, data: bytes) -> str | None:
        """Take bytes from the gateway. Return why they cannot be read, or `None`."""
        lines, rest = self._split(device.rest + data)
        problem = self._frames.problem(rest) if rest else None
        device.rest = rest
        self.take_lines(device, lines)
        return problem

    def replies(self, device: Device) -> bytes:
        """Return, once, the bytes with which a device answers what it has received."""
        return b""

    def take_lines(self, device: Device, lines: Sequence[bytes]) -> None:
        """Match lines from the gateway to those of the device."""
        now = time.monotonic_ns()
        for line in lines:
            if self._find_ack is not None and (match := self._find_ack(line)) is not None:
                self.acknowledge(device, int(match[1]) + 1)
            elif self._find_answer is not None:
                match = self._find_answer(line)
                if match is None or (self._with_device and int(match["device"]) != device.index):
                    self._counts.answers.strange += 1
                elif (times := device.lines.answered(int(match["n"]))) is not None:
                    self._latency((now - times[0]) // 1000)
                    if self._scheduled:
                        self._service((now - times[1]) // 1000)

    def acknowledge(self, device: Device, acked: int) -> None:
        """Take the acknowledgement of the first `acked` lines of a device."""
        if device.acked < acked <= device.lines.said:
            self._counts.acked += acked - device.acked
            device.acked = acked
        else:
            self._counts.answers.strange += 1

    def unfinished(self, device: Device) -> bool:
        """Return whether a device has lines that are not written, answered or acknowledged yet."""
        return device.state == UP and bool(
            device.pending or device.lines.outstanding or (self._acknowledged and device.acked < device.lines.said)
        )
