"""The result of a swarm: the reports of its processes added up, judged, and shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from ._histogram import LatencyHistogram
from ._measurements import HISTOGRAMS
from ._plan import Plan

PERCENTS: Final = (50, 90, 99, 99.9)
"""Percentiles that are shown."""

BUSY: Final = 0.9
"""Share of a core, used or waited for, above which a process cannot keep its schedule."""
LATE: Final = 10.0
"""Milliseconds that one line in a hundred may be late. Above that, the swarm adds noticeably to the latencies."""
LONG: Final = 0.5
"""Seconds from which on the CPU usage of a process means something."""
SHORT: Final = 0.98
"""Share of the requested lines below which the rate was not the requested one."""

MANY: Final = 1000
"""Connections of a process from which on its memory is divided by them: the first connection brings some megabytes."""

_SUMS: Final = (
    "up", "resumed", "failed", "dropped", "said", "written", "bytes", "acked",
    "answers", "disordered", "duplicates", "strange", "lost", "held", "memory",
)  # fmt: skip


class Report:
    """The reports of all processes, added up."""

    def __init__(self, plan: Plan, parts: Sequence[dict[str, Any]], *, interrupted: bool = False) -> None:
        self.plan = plan
        self.interrupted = interrupted
        self.sums: dict[str, int] = {name: sum(part[name] for part in parts) for name in _SUMS}
        self.reasons: Counter[str] = Counter()
        self.histograms = {name: LatencyHistogram() for name in HISTOGRAMS}
        for part in parts:
            self.reasons.update(part["reasons"])
            for name, histogram in self.histograms.items():
                histogram.merge(LatencyHistogram.load(part[name]))
        self._connecting = [part["connecting"] for part in parts]
        self._talking = [part["talking"] for part in parts if part["talking"]]

    # -- judging -------------------------------------------------------------------------------------------------------------

    @property
    def talked(self) -> float:
        """Seconds for which lines were sent."""
        return max((use["took"] for use in self._talking), default=0.0)

    @property
    def connected(self) -> float:
        """Seconds until all connections were up."""
        return max((use["took"] for use in self._connecting), default=0.0)

    def problems(self) -> list[str]:
        """Return the requirements that did not hold, in a few words each."""
        sums, plan = self.sums, self.plan
        found = []
        if sums["failed"]:
            found.append(f"{sums['failed']} connections failed")
        if sums["dropped"]:
            found.append(f"{sums['dropped']} connections dropped")
        if self.interrupted:
            return [*found, *self._about_answers()]
        if plan.mode == "storm" and not sums["up"]:
            found.append("no connection")
        if sums["lost"]:
            found.append(f"{sums['lost']} lines not answered within {plan.grace:g} s")
        found += self._about_answers()
        missing = sums["said"] - sums["written"]
        if missing and plan.mode != "storm":
            found.append(f"{missing} lines not written")
        if plan.device_ack is not None and sums["acked"] < sums["said"] and plan.mode != "hold":
            found.append(f"{sums['said'] - sums['acked']} lines not acknowledged")
        asked = int(plan.rate * plan.seconds)
        if plan.mode != "storm" and asked and sums["said"] < int(asked * SHORT) - plan.processes:
            found.append(f"{sums['said']} of {asked} lines sent in time")
        return found

    def _about_answers(self) -> list[str]:
        words = {"duplicates": "answers came twice", "disordered": "answers out of order", "strange": "strange lines"}
        if self.sums["strange"] and self.plan.device_ack is None:
            words["strange"] += " (if the gateway has --device-ack, give it here too)"
        return [f"{self.sums[name]} {text}" for name, text in words.items() if self.sums[name]]

    def limits(self) -> list[str]:
        """Return the limits that the swarm itself reached: the figures then show the swarm rather than the gateway."""
        found = []
        for what, uses in (("connecting", self._connecting), ("talking", self._talking)):
            for use in uses:
                if use["seconds"] < LONG:
                    continue
                cpu, starved = use["cpu"] / use["seconds"], use["starved"] / use["seconds"]
                if cpu + starved > BUSY:
                    waited = f", and waited for one for another {starved:.0%}" if starved > 0.02 else ""
                    found.append(f"while {what} a process used {cpu:.0%} of a CPU{waited}")
                    break
        late = self.histograms["lateness"].percentile(99)
        if self.plan.rate and late is not None and late / 1000 > LATE:
            found.append(f"1 % of the lines were sent more than {late / 1000:.1f} ms late")
        return found

    def status(self) -> int:
        """Return the exit status: 0 if everything held, 2 if not."""
        return 2 if self.problems() else 0

    def _memory(self) -> int | None:
        """Return the bytes of a connection, or `None` with too few connections (see `MANY`)."""
        up = self.sums["up"]
        return None if self.plan.mode == "storm" or up < MANY * self.plan.processes else round(self.sums["memory"] / up)

    # -- showing -------------------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Return the result for JSON. Times are milliseconds if the name says so, else seconds."""
        sums, plan = self.sums, self.plan
        connect = {
            "asked": plan.connections or None,
            "connected": sums["up"],
            "failed": sums["failed"],
            "dropped": sums["dropped"],
            "resumed": sums["resumed"],
            "reasons": dict(self.reasons),
            "seconds": _round(self.connected),
            "per_second": _rate(sums["up"], self.connected),
            "ms": _times(self.histograms["connect_times"]),
        }
        summary: dict[str, Any] = {"mode": plan.mode, "processes": plan.processes, "connections": connect}
        if plan.mode != "storm":
            summary["lines"] = {
                "rate": plan.rate or None,
                "burst": plan.burst,
                "seconds": _round(self.talked),
                "said": sums["said"],
                "written": sums["written"],
                "bytes": sums["bytes"],
                "per_second": _rate(sums["written"], self.talked),
                "held_back": sums["held"],
                # Without a rate a line is due when it is written.
                "late_ms": _times(self.histograms["lateness"]) if plan.rate else None,
            }
            if plan.acknowledged:
                summary["lines"]["acknowledged"] = sums["acked"]
                summary["lines"]["acknowledged_per_second"] = _rate(sums["acked"], self.talked)
        if plan.mode == "echo":
            summary["answers"] = {
                "answered": sums["answers"],
                "per_second": _rate(sums["answers"], self.talked),
                **{name: sums[name] for name in ("lost", "duplicates", "disordered", "strange")},
                "ms_since_due": _times(self.histograms["latency"]),
                "ms_since_written": _times(self.histograms["service"]),
            }
        summary["swarm"] = {
            "cpu_connecting": [_use(use) for use in self._connecting],
            "cpu_talking": [_use(use) for use in self._talking],
            "memory_per_connection": self._memory(),
            "limits": self.limits(),
        }
        summary["interrupted"] = self.interrupted
        summary["problems"] = self.problems()
        summary["held"] = not summary["problems"]
        return summary

    def table(self) -> str:
        """Return the result as a table."""
        summary = self.summary()
        connections, swarm = summary["connections"], summary["swarm"]
        rows = [("connections", _connections(connections))]
        rows.append(("", _milliseconds(connections["ms"])))
        if lines := summary.get("lines"):
            rows.append(
                (
                    "lines",
                    f"{lines['written']} in {lines['seconds']} s: {lines['per_second']} a second, {lines['bytes']} bytes"
                    + (f", {lines['burst']} lines in a write" if lines["burst"] > 1 else ""),
                )
            )
            if "acknowledged" in lines:
                rows.append(("acknowledged", f"{lines['acknowledged']}: {lines['acknowledged_per_second']} a second meanwhile"))
            if summary["lines"]["rate"]:
                late = _milliseconds(lines["late_ms"])
                rows.append(("late by us", f"{late}; {lines['held_back']} lines held back by the gateway"))
        if answers := summary.get("answers"):
            rows += [
                (
                    "answers",
                    f"{answers['answered']}: {answers['per_second']} a second; {answers['lost']} lost, "
                    f"{answers['duplicates']} twice, {answers['disordered']} out of order, {answers['strange']} strange",
                ),
                ("since due", _milliseconds(answers["ms_since_due"])),
                ("since written", _milliseconds(answers["ms_since_written"])),
            ]
        cpu = " and ".join(
            f"{sum(use['cpu'] for use in uses):.2f} s of CPU {what} ({max(use['share'] for use in uses):.0%} of one at most)"
            for what, uses in (("connecting", swarm["cpu_connecting"]), ("talking", swarm["cpu_talking"]))
            if uses
        )
        rows.append(("the swarm", f"{_count(summary['processes'], 'process', 'processes')}: {cpu}"))
        if swarm["memory_per_connection"]:
            rows.append(("", f"{swarm['memory_per_connection'] / 1024:.1f} KiB a connection"))
        text = [f"{name:<14} {what}" for name, what in rows]
        text += [f"{'':<14} {count} times: {reason}" for reason, count in self.reasons.most_common(5)]
        text += [f"Limited by the swarm or its machine: {limit}." for limit in swarm["limits"]]
        if self.interrupted:
            text.append("Interrupted.")
        text.append("It held." if summary["held"] else f"It did not hold: {'; '.join(summary['problems'])}.")
        return "\n".join(text) + "\n"


def _connections(of: dict[str, Any]) -> str:
    text = f"{of['connected']} in {of['seconds']} s: {of['per_second']} a second; "
    text += f"{of['failed']} failed, {of['dropped']} dropped"
    return text + (f", {of['resumed']} resumed" if of["resumed"] else "")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _milliseconds(times: dict[str, float] | None) -> str:
    if times is None:
        return "-"
    return "  ".join(f"{name} {value:g}" for name, value in times.items() if name != "mean") + " ms"


def _times(histogram: LatencyHistogram) -> dict[str, float] | None:
    mean = histogram.mean()
    if mean is None:
        return None
    times = {f"p{percent:g}": (histogram.percentile(percent) or 0) / 1000 for percent in PERCENTS}
    return {**times, "max": histogram.largest / 1000, "mean": round(mean / 1000, 3)}


def _use(use: dict[str, float]) -> dict[str, float]:
    return {
        "cpu": _round(use["cpu"]),
        "share": round(use["cpu"] / use["seconds"], 3) if use["seconds"] else 0.0,
        "starved": round(use["starved"] / use["seconds"], 3) if use["seconds"] else 0.0,
    }


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 1) if seconds else 0.0


def _round(seconds: float) -> float:
    return round(seconds, 3)
