"""How it goes, in short: what the pages for people and for health checks are made from. Pure values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from ..supervision import TreeNode, render
from ._readings import ParentReadings, Readings, readiness, readiness_of_all

MISSING: Final = {
    "broker_connected": "the broker is not connected",
    "listener_accepting": "no devices are accepted",
    "not_draining": "it is stopping",
    "worker_ready": "no worker takes devices",
}
"""What it means in words that a check fails."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What people look at first. Those of several processes add up."""

    open: int = 0
    max_connections: int = 0
    handshaking: int = 0
    paused: int = 0
    lines_in: int = 0
    lines_out: int = 0
    unconfirmed: int = 0
    window: int = 0
    undeliverable: int = 0

    def __add__(self, other: Numbers) -> Numbers:
        return Numbers(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker, as its parent sees it, and what it says itself."""

    name: str
    process: str
    """How far it is, in its parent's words."""
    says: State | None
    """`None`, where it does not answer."""


@dataclass(frozen=True, slots=True)
class State:
    """One process; or a parent and its workers."""

    node: str
    """The node's name; empty, where there are several."""
    checks: Mapping[str, bool]
    """What it takes to send devices here, and whether it is so."""
    numbers: Numbers
    tree: TreeNode
    workers: Sequence[WorkerState] | None = None
    """A parent's."""

    @property
    def ready(self) -> bool:
        return all(self.checks.values())

    @property
    def missing(self) -> list[str]:
        """What is not so, in words."""
        return [MISSING.get(name, name) for name, is_so in self.checks.items() if not is_so]


def state_of(readings: Readings) -> State:
    """One process, now."""
    admission, window, hub = readings.admission, readings.window, readings.hub
    return State(
        readings.node(),
        readiness(readings),
        Numbers(
            open=admission.open,
            max_connections=admission.max_connections,
            handshaking=admission.handshaking,
            paused=hub.paused_connections,
            lines_in=readings.producer.confirmed_lines + readings.producer.given_up_lines + window.messages,
            lines_out=hub.lines_out,
            unconfirmed=window.messages,
            window=window.max_messages,
            undeliverable=sum(readings.courier.recorded.values()),
        ),
        readings.tree(),
    )


def state_of_all(readings: ParentReadings, workers: Sequence[WorkerState]) -> State:
    """A parent and its workers."""
    says = [worker.says for worker in workers if worker.says is not None]
    trees = {worker.name: worker.says.tree for worker in workers if worker.says is not None}
    return State(
        node="",
        checks=readiness_of_all(readings, (state.ready for state in says)),
        numbers=sum((state.numbers for state in says), Numbers()),
        tree=_grafted(readings.tree(), trees),
        workers=workers,
    )


def _grafted(tree: TreeNode, trees: Mapping[str, TreeNode]) -> TreeNode:
    """A tree, with other processes' trees below the children that stand for them."""
    children = [_grafted(child, trees) for child in tree.get("children", [])]
    if tree["id"] in trees:
        children.append(trees[tree["id"]])
    return {**tree, "children": children} if children else tree


def state_to_json(state: State) -> dict[str, Any]:
    """One process's state as JSON can hold it, to be read by `state_from_json`."""
    return {"node": state.node, "checks": dict(state.checks), "numbers": asdict(state.numbers), "tree": state.tree}


def state_from_json(sent: Any) -> State:
    """What another process says. Numbers that it does not know are 0. `ValueError`, if it is no state."""
    try:
        node, checks, numbers, tree = sent["node"], sent["checks"], sent["numbers"], sent["tree"]
        render(tree)
        state = State(
            str(node),
            {str(name): bool(is_so) for name, is_so in checks.items()},
            Numbers(*(int(numbers.get(one.name, 0)) for one in fields(Numbers))),
            tree,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this is no state: {error!r}") from None
    if not state.checks:
        raise ValueError("this is no state: it has no checks")
    return state
