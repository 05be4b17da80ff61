"""A picture of a supervision tree, as it lives or as it is planned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NotRequired, Protocol, TypeAlias, TypedDict, runtime_checkable

State: TypeAlias = Literal["planned", "starting", "running", "restarting", "stopping", "stopped"]
"""planned: not started yet. restarting: it ended, or a sibling did, and it waits for its start."""


class Limit(TypedDict):
    """A supervisor's intensity."""

    restarts: int
    period: float


class Node(TypedDict):
    """One child and what is below it: plain values, ready for `json.dumps`."""

    id: str
    type: str
    """`worker` or `supervisor`."""
    restart: str | None
    """`None` at the root."""
    state: State
    restarts: int
    """How often it was started again."""
    uptime: float | None
    """Seconds since its last start, while it runs."""
    failure: str | None
    """Why it ended the last time."""
    strategy: NotRequired[str]
    """A supervisor's: `one_for_one`, `one_for_all`, `rest_for_one`, or `simple_one_for_one` for a dynamic one."""
    intensity: NotRequired[Limit]
    """Not for a dynamic supervisor, which restarts nobody."""
    children: NotRequired[list[Node]]
    count: NotRequired[int]
    """A dynamic supervisor's children, which come and go and are only counted."""
    failures: NotRequired[int]
    """How many of them ended with a failure."""


@runtime_checkable
class HasTree(Protocol):
    """A service that has something below it to show."""

    def tree(self) -> Node: ...


def render(tree: Node) -> str:
    """The tree for a terminal, one line a child, with box-drawing lines."""
    return "\n".join(_lines(tree, "", ""))


def _lines(node: Node, first: str, rest: str) -> Iterator[str]:
    yield first + _line(node)
    children = node.get("children", [])
    for index, child in enumerate(children):
        last = index == len(children) - 1
        yield from _lines(child, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   "))


def _line(node: Node) -> str:
    about = [node["restart"]] if node["restart"] is not None else []
    if "strategy" in node:
        about.append(node["strategy"])
    if "intensity" in node:
        restarts, period = node["intensity"]["restarts"], node["intensity"]["period"]
        about.append(f"{restarts} restart{'s' if restarts != 1 else ''} in {period:g} s")
    line = node["id"] + (f" ({', '.join(about)})" if about else "")
    if node["state"] == "planned":
        return line
    says = [node["state"] if node["uptime"] is None else f"{node['state']} {_duration(node['uptime'])}"]
    if "count" in node:
        says.append(f"{node['count']:,} children")
    if node.get("failures"):
        says.append(f"{node.get('failures'):,} failed")
    if node["restarts"]:
        says.append(f"restarted {node['restarts']} times" if node["restarts"] > 1 else "restarted once")
    if node["failure"] is not None:
        says.append(f"last: {node['failure']}")
    return f"{line}: {', '.join(says)}"


def _duration(seconds: float) -> str:
    """The two largest units."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{seconds:.1f} s"
