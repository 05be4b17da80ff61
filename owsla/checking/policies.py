"""Check of arguments and policies of the queues that exist: those that break a promise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from ..broker.arguments import read_arguments
from ..broker.client import BrokerClient, Credentials
from ..broker.management import Management, ManagementError, ShownQueue
from ..broker.promises import QueueRules, broken_promises, retention
from ..broker.queues import declared_arguments
from .findings import Finding, ok, skip, warn
from .plan import QueuePlan

_CHANNEL = 1


@dataclass(frozen=True, slots=True)
class ShownQueues:
    """Queues by name, as the management API at an address shows them."""

    address: str
    queues: Mapping[str, ShownQueue | None]
    fault: str = ""
    """Reason why the API cannot be asked."""


async def ask_management(management: Management, existing: Sequence[QueuePlan], login: Credentials) -> ShownQueues:
    """Ask the management API for existing queues."""
    address = str(management)
    try:
        return ShownQueues(address, {plan.queue.name: await management.queue(plan.queue.name, login) for plan in existing})
    except ManagementError as error:
        return ShownQueues(address, {}, str(error))


async def check_policies(
    client: BrokerClient, existing: Sequence[QueuePlan], shown: ShownQueues | None
) -> AsyncIterator[Finding]:
    """Check existing queues. Without the management API, AMQP shows only their arguments."""
    if shown is None:
        yield skip("policies", "not checked without --broker-management, since AMQP does not show them")
    elif shown.fault:
        yield warn("policies", f"not checked: {shown.fault}")
        shown = None
    hidden: list[str] = []
    broken: list[str] = []
    for plan in existing:
        found = None if shown is None else shown.queues.get(plan.queue.name)
        if found is not None:
            arguments, policy = found.arguments, found.policy
        else:
            read = await read_arguments(client, _CHANNEL, plan.queue.name, declared_arguments(client, plan.queue))
            arguments, policy = read or {}, None
        if policy is None:
            hidden.append(plan.queue.name)
        rules = QueueRules(plan.queue.name, plan.use, arguments, policy)
        broken += broken_promises(rules, client.rabbitmq)
        if rules.is_stream and not plan.consumed:
            yield _stream_finding(rules)
    for text in broken:
        yield warn("policies", text)
    if shown is not None and hidden:
        yield warn("policies", f"{shown.address} does not show them, or not yet, of {', '.join(hidden)}")
    elif shown is not None and not broken:
        yield ok("policies", f"{shown.address}: none breaks a promise")


def _stream_finding(rules: QueueRules) -> Finding:
    """Say how long a stream keeps messages."""
    limits = retention(rules)
    if limits:
        return ok("queue", f"{rules.name}: a stream that drops its oldest messages, read or not: {', '.join(limits)}")
    unseen = ", unless a policy limits it, which AMQP does not show (--broker-management)" if rules.policy is None else ""
    return warn(
        "queue",
        f"{rules.name}: a stream without x-max-age and x-max-length-bytes{unseen}: it grows until the disk is full, and then "
        "RabbitMQ takes no messages from anybody",
    )
