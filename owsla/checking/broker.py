"""Check of the brokers: connection and login of each, and permissions and queues on one of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from twisted.internet.defer import DeferredList

from ..broker.arguments import MOST_DIFFERENCES, without_difference
from ..broker.client import BrokerClient
from ..broker.connection import EXPECTED, explain
from ..broker.management import Management
from ..broker.queue_state import QueueState
from ..config.addresses import BrokerAddress
from ..config.settings import Settings
from ..runtime.end_of_turn import EndOfTurn
from ..runtime.files import Files
from ..tls.broker import BrokerTLS, load_broker_tls
from ..tls.expiry import WARNING as WARNING_DAYS
from .certificates import date
from .connecting import Attempt, Refusal
from .findings import Finding, Report, fail, ok, skip, warn
from .plan import QueuePlan, planned_queues
from .policies import ask_management, check_policies
from .probes import Probes
from .verdicts import QueueAnswers, judge_broadcast, judge_permissions, judge_publishing, judge_queue

ANSWERS_TIMEOUT: Final = 20.0
"""Seconds for all probes of a broker. They take some milliseconds each."""

_CONNECTION_ID: Final = b"00000000-0000-8000-8000-000000000000"
"""Connection id in the routing key of a message that is never routed."""


async def check_brokers(reactor: Any, settings: Settings, files: Files, report: Report) -> None:
    """Connect to all brokers at once, and check permissions and queues on the first one that accepts the login.

    The queues of the others are the same: the brokers are hosts of one cluster.
    """
    turn = EndOfTurn(reactor)
    tls = BrokerTLS(load_broker_tls(settings.broker_ca, settings.broker_cert, settings.broker_key, files.read))
    attempts = [Attempt(reactor, turn, address, settings, files, tls) for address in settings.brokers]
    for attempt in attempts:
        attempt.start()
    connected: list[tuple[Attempt, BrokerClient]] = []
    try:
        for attempt in attempts:
            try:
                client = await attempt.outcome
            except Refusal as refusal:
                if refusal.by_broker:
                    report.add(ok("broker", f"{attempt.address}: reached"))
                report.add(fail("login" if refusal.by_broker else "broker", f"{attempt.address}: {refusal}"))
            else:
                connected.append((attempt, client))
                for finding in _connection_findings(attempt.address, client, datetime.now(UTC)):
                    report.add(finding)
        if connected:
            address = settings.broker_management
            management = None if address is None else Management(reactor, address, tls)
            await check_queues(reactor, settings, *connected[0], management, report)
        else:
            report.add(skip("queues", "permissions and queues are not checked, since no broker accepts the login"))
    finally:
        await DeferredList([attempt.stop() for attempt in attempts])


def _connection_findings(address: BrokerAddress, client: BrokerClient, now: datetime) -> Iterator[Finding]:
    about = [f"RabbitMQ {'.'.join(map(str, client.rabbitmq))}"] if any(client.rabbitmq) else []
    ending = None
    if address.tls:
        about.append(client.transport.getHandle().get_protocol_version_name())
        certificate = client.transport.getPeerCertificate().to_cryptography()
        ending = certificate.not_valid_after_utc
        about.append(f"its certificate is valid until {date(ending)}")
    yield ok("broker", f"{address}: {', '.join(about) or 'reached'}")
    if ending is not None and ending - now < timedelta(days=WARNING_DAYS):
        yield warn("dates", f"{address}: the certificate of the broker expires on {date(ending)}")
    yield ok("login", f"{address}: accepted")


async def check_queues(
    reactor: Any, settings: Settings, attempt: Attempt, client: BrokerClient, management: Management | None, report: Report
) -> None:
    """Check permissions, queues and policies. A broker that does not answer, or closes the connection, is a finding."""
    try:
        with _time_limit(reactor, client):
            existing = await _probe_queues(settings, attempt, client, report)
        # Outside: the management API has a time limit of its own.
        shown = None if management is None else await ask_management(management, existing, client.login)
        with _time_limit(reactor, client):
            async for finding in check_policies(client, existing, shown):
                report.add(finding)
    except EXPECTED as error:
        report.add(fail("broker", f"{attempt.address}: {explain(error)}"))


@contextmanager
def _time_limit(reactor: Any, client: BrokerClient) -> Iterator[None]:
    """Abort the connection after `ANSWERS_TIMEOUT`."""
    timeout = reactor.callLater(ANSWERS_TIMEOUT, client.abort, TimeoutError(f"no answer within {ANSWERS_TIMEOUT:g} s"))
    try:
        yield
    finally:
        if timeout.active():
            timeout.cancel()


async def _probe_queues(settings: Settings, attempt: Attempt, client: BrokerClient, report: Report) -> list[QueuePlan]:
    """Check permissions and queues. Return the queues that exist."""
    probes = Probes(client)
    queues = [await _ask(probes, plan) for plan in planned_queues(settings, secrets.token_hex(4))]
    for finding in judge_permissions(queues):
        report.add(finding)
    # Before the first message, after which a broker that is short of memory reads nothing more of this connection.
    exchange = f"{settings.to_device}.all"
    declared = await probes.declare_fanout(exchange)
    bound = await probes.bind(f"{settings.to_device}.{secrets.token_hex(4)}", exchange)
    await _check_publishing(probes, settings, attempt, report)
    published = None
    if attempt.blocked_because:
        report.add(skip("permission", f"write to {exchange}: not checked, since the broker takes no messages"))
    else:
        published = await probes.publish(exchange, b"")
    for finding in judge_broadcast(exchange, declared, bound, published):
        report.add(finding)
    for answers in queues:
        for finding in judge_queue(answers):
            report.add(finding)
    return [answers.plan for answers in queues if isinstance(answers.state, QueueState)]


async def _ask(probes: Probes, plan: QueuePlan) -> QueueAnswers:
    """Return the answers of a broker about a queue."""
    name = plan.queue.name
    state = await probes.inspect(name)
    arguments = probes.arguments(plan.queue)
    declared = []
    refusal = await probes.declare(name, arguments)
    while refusal is not None:
        declared.append(refusal)
        adopted = without_difference(arguments, refusal) if isinstance(state, QueueState) else None
        if adopted is None or len(declared) >= MOST_DIFFERENCES:
            break
        arguments = adopted
        refusal = await probes.declare(name, arguments)
    return QueueAnswers(plan, state, declared, await probes.consume(name) if plan.consumed else None)


async def _check_publishing(probes: Probes, settings: Settings, attempt: Attempt, report: Report) -> None:
    """Check that messages may be published to the default exchange, and to those for lines.

    A broker that is short of memory or disk space says so after the first message, and reads no further ones.
    """
    own = [door.settings for door in settings.doors]
    exchanges = {each.publish_exchange: each.routing_key for each in own if each.publish_exchange is not None}
    found = {exchange: await probes.find_exchange(exchange) for exchange in exchanges}
    for finding in judge_publishing("", await probes.publish("", f"owsla.check.{secrets.token_hex(8)}".encode())):
        report.add(finding)
    if attempt.blocked_because:
        blocked = f"takes no messages from anybody now, so devices would wait: {attempt.blocked_because}"
        report.add(warn("broker", f"{attempt.address}: {blocked}"))
    for exchange, routing_key in exchanges.items():
        if found[exchange] is None and attempt.blocked_because:
            report.add(skip("permission", f"write to {exchange}: not checked, since the broker takes no messages"))
            continue
        answer = None
        if found[exchange] is None:
            answer = await probes.publish(exchange, routing_key.fill(_CONNECTION_ID, None))
        for finding in judge_publishing(exchange, answer, found[exchange]):
            report.add(finding)
