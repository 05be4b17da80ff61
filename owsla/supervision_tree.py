"""Snapshot of a supervision tree, and its rendering for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NotRequired, Protocol, TypeAlias, TypedDict, runtime_checkable

ChildState: TypeAlias = Literal["planned", "starting", "running", "restarting", "stopping", "stopped"]
"""State of a child. planned: not started yet; restarting: it, or a sibling, ended, and it waits for its restart."""


class TreeIntensity(TypedDict):
    """Intensity of a supervisor in a snapshot."""

    restarts: int
    period: float


class TreeNode(TypedDict):
    """Child, and everything below it, in a snapshot: plain values, ready for `json.dumps`."""

    id: str
    type: str
    """Type of the child: `worker` or `supervisor`."""
    restart: str | None
    """Restart type; `None` at the root."""
    state: ChildState
    restarts: int
    """Number of restarts."""
    uptime: float | None
    """Seconds since the last start, while the child runs."""
    failure: str | None
    """Reason of the last failure."""
    strategy: NotRequired[str]
    """Strategy of a supervisor; `simple_one_for_one` for a dynamic one."""
    intensity: NotRequired[TreeIntensity]
    """Intensity of a supervisor. A dynamic one has none, because it restarts nothing."""
    children: NotRequired[list[TreeNode]]
    count: NotRequired[int]
    """Number of children of a dynamic supervisor, which are not listed."""
    failures: NotRequired[int]
    """Number of children of a dynamic supervisor that ended with a failure."""


@runtime_checkable
class HasTree(Protocol):
    """Service with a tree of its own, such as a supervisor."""

    def tree(self) -> TreeNode: ...


def render(tree: TreeNode) -> str:
    """Return the tree as text for a terminal: one line for each child, with box-drawing characters."""
    return "\n".join(_lines(tree, "", ""))


def _lines(node: TreeNode, first: str, rest: str) -> Iterator[str]:
    yield first + _line(node)
    children = node.get("children", [])
    for index, child in enumerate(children):
        last = index == len(children) - 1
        yield from _lines(child, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   "))


def _line(node: TreeNode) -> str:
    about = [node["restart"]] if node["restart"] is not None else []
    if "strategy" in node:
        about.append(node["strategy"])
    if "intensity" in node:
        restarts, period = node["intensity"]["restarts"], node["intensity"]["period"]
        about.append(f"{restarts} restart{'s' if restarts != 1 else ''} in {period:g} s")
    line = node["id"] + (f" ({', '.join(about)})" if about else "")
    if node["state"] == "planned":
        return line
    facts = [node["state"] if node["uptime"] is None else f"{node['state']} {_duration(node['uptime'])}"]
    if "count" in node:
        facts.append(f"{node['count']:,} children")
    if node.get("failures"):
        facts.append(f"{node.get('failures'):,} failed")
    if node["restarts"]:
        facts.append(f"restarted {node['restarts']} times" if node["restarts"] > 1 else "restarted once")
    if node["failure"] is not None:
        facts.append(f"last: {node['failure']}")
    return f"{line}: {', '.join(facts)}"


def _duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{seconds:.1f} s"
