"""Soak test: devices send, children of the supervision tree fail at random, broker connections are cut; in the end the books
balance.

OWSLA_SOAK_MINUTES is the duration (half a minute by default); OWSLA_FAULT_SEED repeats the choices. `python -m bench.soak` runs
it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests import variable

from ._support.batches import BATCHES, both_ways
from ._support.mischief import MischiefLab
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import block_on, pause, reactor_test
from .test_faults import Run
from .test_supervision import CONSUMERS, COURIER, PRODUCER, SOCKETS, Trial, trial

#: Failures within a minute in one supervisor that are allowed: it gives up at six. (Connections may fail any number of times,
#: but only ten tracebacks a minute are logged, and this test needs each of them.)
ALLOWED = 4

Strike = Callable[[Trial], Awaitable[None]]


def _fails(target: str, child: str) -> Strike:
    async def strike(it: Trial) -> None:
        await it.fails(target, child)

    return strike


def _ends_one(target: str) -> Strike:
    async def strike(it: Trial) -> None:
        await it.ends_one(target)

    return strike


async def _cut(it: Trial) -> None:
    """Cut the connections to the broker: a failure from outside, after which nothing is restarted."""
    mark = it.owsla.mark()
    it.run.proxy.cut()
    await it.owsla.wait_for_line("Broker lost", 30, start=mark)
    await it.owsla.wait_for_line("Broker connected", 60, start=mark)
    await it.served()


STRIKES: dict[str, tuple[str, Strike]] = {
    "deliver": ("broker", _fails("owsla.broker.consumer:Consumer.deliver", CONSUMERS)),
    "confirmed": ("broker", _fails("owsla.broker.door_publisher:DoorPublisher.confirmed", PRODUCER)),
    "parcels": ("broker", _fails("owsla.broker.courier:CourierRole.messages_confirmed", COURIER)),
    "tick": ("listener", _fails("owsla.device.connected_sockets:ConnectedSockets._tick", SOCKETS)),
    "sweep": ("listener", _fails("owsla.device.connected_sockets:ConnectedSockets._sweep", SOCKETS)),
    "data": ("endpoints", _ends_one("owsla.device.protocol:DeviceProtocol.dataReceived")),
    "send": ("endpoints", _ends_one("owsla.device.protocol:DeviceProtocol.send")),
    "told": ("endpoints", _ends_one("owsla.device.protocol:DeviceProtocol.confirmed")),
    "flush": ("endpoints", _ends_one("owsla.device.protocol:DeviceProtocol._flush")),
    "cut": ("world", _cut),
}
"""Possible failures, and the supervisor that counts them."""


@pytest.fixture
def run(rabbitmq: RabbitMQ, tmp_path: Path, certs_dir: Path, batching: bool) -> Iterator[Run]:
    """Return devices that send to an Owsla with injected faults, and their books; not started."""
    lab = MischiefLab(tmp_path, certs_dir, BATCHES if batching else None)
    one = Run(rabbitmq, lab)
    yield one
    block_on(one.end())
    block_on(lab.close())


@both_ways
@reactor_test
async def test_soak(run: Run) -> None:
    """After failures of any kind in any order, only the failed child was restarted, every device is served, and nothing is
    lost.
    """
    seconds = 60 * float(variable("SOAK_MINUTES") or 0.5)
    # Comparing the books of a long run takes this process some seconds, in which its proxy forwards no heartbeats either: the
    # heartbeat of a trial is long enough for that.
    it = await trial(run)
    began = time.monotonic()
    done: Counter[str] = Counter()
    counted: list[tuple[float, str]] = []
    while time.monotonic() - began < seconds:
        now = time.monotonic()
        recent = Counter(supervisor for at, supervisor in counted if now - at < 65)
        possible = [name for name, (supervisor, _) in STRIKES.items() if recent[supervisor] < ALLOWED]
        name = run.rng.choice(possible)
        supervisor, strike = STRIKES[name]
        await strike(it)
        if supervisor != "world":
            counted.append((now, supervisor))
        done[name] += 1
        print(f"{time.monotonic() - began:6.1f} s, {run.fleet.said} messages: {name}", flush=True)
        await pause(run.rng.random() * 2)
    print(f"struck: {dict(done)}")
    await it.finish()
