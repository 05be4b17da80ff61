"""Verdicts on a broker: what its answers to probes mean for a gateway. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ..broker.arguments import DIFFERENCE, NEVER_VALID, NEVER_VALID_FOR_STREAMS
from ..broker.client import BrokerError
from ..broker.queue_state import QueueState, is_missing
from ..broker.queues import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, is_stream_consumed
from ..log import pluralize
from .findings import Finding, fail, ok, warn
from .plan import QueuePlan

DEFAULT_EXCHANGE: Final = "amq.default"
"""Name of the default exchange in permissions."""

_INTERNAL: Final = "internal exchange"
"""Words of a refusal (403) for an exchange to which only other exchanges publish."""

_ALONE: Final = "so devices of other nodes are not found by their names"

_INVALID = re.compile(r"invalid arg '(?P<name>[^']*)'")


@dataclass(frozen=True, slots=True)
class QueueAnswers:
    """Answers of a broker about one queue."""

    plan: QueuePlan
    state: QueueState | BrokerError
    """State of the queue, or the reason why it cannot be had: 404 if the queue does not exist."""
    declared: Sequence[BrokerError]
    """Refusals of declarations with an invalid argument. There are several only where the queue differs in several arguments,
    and none if it exists with these arguments."""
    consumed: BrokerError | None = None
    """Refusal of a consumer with an invalid argument; `None` where Owsla does not consume."""

    @property
    def missing(self) -> bool:
        """True if the queue does not exist."""
        return isinstance(self.state, BrokerError) and is_missing(self.state)

    @property
    def may_declare(self) -> bool:
        """True if the user has the permission to configure the queue."""
        return not any(map(_is_refused, self.declared))

    @property
    def may_consume(self) -> bool:
        """True if the user has the permission to read the queue, or does not need it."""
        return not _is_refused(self.consumed)


def _is_refused(answer: BrokerError | None) -> bool:
    return answer is not None and answer.code == ACCESS_REFUSED


def judge_permissions(queues: Sequence[QueueAnswers]) -> Iterator[Finding]:
    """Judge the permissions on queues: a line for each kind of permission that is complete, and for each that is not."""
    refused = [queue for queue in queues if not queue.may_declare]
    missing = ", ".join(queue.plan.shown for queue in refused if queue.missing)
    existing = ", ".join(queue.plan.shown for queue in refused if not queue.missing)
    if missing:
        yield fail("permission", f"no permission to configure, and not there either: {missing}")
    if existing:
        yield warn("permission", f"no permission to configure, so used as found: {existing}")
    if not refused:
        yield ok("permission", f"configure {', '.join(queue.plan.shown for queue in queues)}")
    unread = ", ".join(queue.plan.shown for queue in queues if not queue.may_consume)
    if unread:
        yield fail("permission", f"no permission to read: {unread}")
    else:
        yield ok("permission", f"read {', '.join(queue.plan.shown for queue in queues if queue.plan.consumed)}")


def judge_publishing(exchange: str, answer: BrokerError | None, found: BrokerError | None = None) -> Iterator[Finding]:
    """Judge the answer to a message with an invalid property. `exchange` is empty for the default exchange; `found` says
    whether it exists."""
    name = exchange or DEFAULT_EXCHANGE
    if found is not None:
        absent = "it does not exist, and Owsla does not declare it" if found.code == NOT_FOUND else str(found)
        yield fail("exchange", f"{name}: {absent}")
    elif answer is not None and _INTERNAL in answer.text:
        yield fail("exchange", f"{name}: it is internal, so nobody can publish to it")
    elif _is_refused(answer):
        yield fail("permission", f"no permission to write: {name}")
    elif answer is not None and answer.code != PRECONDITION_FAILED:
        yield fail("exchange", f"{name}: {answer}")
    else:
        yield ok("permission", f"write to {name}")


def judge_broadcast(
    exchange: str, declared: BrokerError | None, bound: BrokerError | None, published: BrokerError | None
) -> Iterator[Finding]:
    """Judge the answers about the exchange that reaches all nodes. Without it a node serves its own devices.

    `published` is `None` if the broker takes no messages.
    """
    if declared is not None and "arg 'type'" in declared.text:
        yield warn("exchange", f"{exchange}: it is not a fanout exchange; {_ALONE}")
        return
    queue = _is_refused(bound) and bound is not None and " queue " in bound.text
    refused = {
        "configure": _is_refused(declared),
        "read": _is_refused(bound) and not queue,
        "write": _is_refused(published),
    }
    missing = [f"{', '.join(name for name, is_so in refused.items() if is_so)}: {exchange}"] if any(refused.values()) else []
    if queue:
        missing.append("write: the queues of nodes")
    if missing:
        yield warn("permission", f"no permission to {'; '.join(missing)}; {_ALONE}")
    else:
        yield ok("permission", f"configure, read{'' if published is None else ', write'} {exchange}")


def judge_queue(answers: QueueAnswers) -> Iterator[Finding]:
    """Judge a queue: whether it exists or can be declared, and whether its arguments are those of the settings."""
    plan, state = answers.plan, answers.state
    if answers.missing:
        yield from _judge_missing(answers)
        return
    if isinstance(state, BrokerError):
        yield fail("queue", f"{plan.shown}: {state}")
        return
    held = f"{pluralize(state.messages, 'message')} ready, {pluralize(state.consumers, 'consumer')}"
    if not answers.may_declare and answers.consumed is not None and is_stream_consumed(answers.consumed):
        yield fail("queue", f"{plan.shown}: it is a stream; Owsla cannot use such a queue")
    elif not answers.may_declare:
        yield ok("queue", f"{plan.shown}: {held}; its arguments cannot be compared without permission to configure it")
    elif not answers.declared:
        yield ok("queue", f"{plan.shown}: exists with these arguments; {held}")
    for refusal in answers.declared if answers.may_declare else ():
        yield _judge_difference(plan, refusal)


def _judge_missing(answers: QueueAnswers) -> Iterator[Finding]:
    """Judge a queue that does not exist. Without permission to declare it, `judge_permissions` says so."""
    plan = answers.plan
    for refusal in answers.declared:
        invalid = _INVALID.search(refusal.text)
        if invalid is not None and invalid["name"] in {*NEVER_VALID, *NEVER_VALID_FOR_STREAMS}:
            yield ok("queue", f"{plan.shown}: does not exist yet; {plan.when_missing}")
        elif refusal.code != ACCESS_REFUSED:
            yield fail("queue", f"{plan.shown}: the broker would refuse its declaration: {refusal}")


def _judge_difference(plan: QueuePlan, refusal: BrokerError) -> Finding:
    difference = DIFFERENCE.search(refusal.text)
    if difference is None:
        return warn("queue", f"{plan.shown}: used as it is, because the broker refuses its declaration: {refusal}")
    name, current = difference["name"], difference["current"]
    ours = plan.queue.arguments.get(name)
    text = f"{plan.shown}: {name} is {_shown(current)} there, and {_shown(ours)} in the settings of Owsla"
    if name in plan.needed or (plan.consumed and current == "stream"):
        return fail("queue", f"{text}; Owsla cannot use such a queue")
    return warn("queue", f"{text}; the queue is used as it is")


def _shown(value: object) -> str:
    if value is None:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)
