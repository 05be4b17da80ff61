"""Check of arguments and policies of the queues that exist: those that break a promise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from ..broker.arguments import read_arguments
from ..broker.client import BrokerClient
from ..broker.management import Management, ManagementError, ShownQueue
from ..broker.promises import QueueRules, broken_promises
from ..broker.queues import declared_arguments
from .findings import Finding, ok, skip, warn
from .plan import QueuePlan

_CHANNEL = 1


async def check_policies(
    client: BrokerClient, existing: Sequence[QueuePlan], management: Management | None
) -> AsyncIterator[Finding]:
    """Check existing queues. Without the management API, AMQP shows only their arguments."""
    shown: dict[str, ShownQueue | None] = {}
    if management is None:
        yield skip("policies", "not checked without --broker-management, since AMQP does not show them")
    else:
        try:
            shown = {plan.queue.name: await management.queue(plan.queue.name, client.login) for plan in existing}
        except ManagementError as error:
            yield warn("policies", f"not checked: {error}")
            management = None
    hidden: list[str] = []
    broken: list[str] = []
    for plan in existing:
        found = shown.get(plan.queue.name)
        if found is not None:
            arguments, policy = found.arguments, found.policy
        else:
            read = await read_arguments(client, _CHANNEL, plan.queue.name, declared_arguments(client, plan.queue))
            arguments, policy = read or {}, None
        if policy is None:
            hidden.append(plan.queue.name)
        broken += broken_promises(QueueRules(plan.queue.name, plan.use, arguments, policy), client.rabbitmq)
    for text in broken:
        yield warn("policies", text)
    if management is not None and hidden:
        yield warn("policies", f"{management} does not show them, or not yet, of {', '.join(hidden)}")
    elif management is not None and not broken:
        yield ok("policies", f"{management}: none breaks a promise")
