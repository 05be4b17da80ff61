"""A soak: devices talk, children of the tree fail at random, the broker's connections are cut; in the end the books balance.

OWSLA_SOAK_MINUTES is how long (half a minute without it); OWSLA_FAULT_SEED repeats the choices. `python -m bench.soak` runs it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from ._support.mischief import MischiefLab
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import block_on, pause, reactor_test
from .test_faults import Run
from .test_supervision import CONSUMERS, COURIER, PORT, PRODUCER, Trial, trial

#: Failures within a minute in one supervisor that are not too often: it gives up at six. (Of connections, which may fail as
#: often as they like, ten tracebacks a minute are logged, and this looks for each.)
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
    """The world's own: connections to the broker are lost, and nothing is restarted."""
    mark = it.owsla.mark()
    it.run.proxy.cut()
    await it.owsla.wait_for_line("Broker lost", 30, start=mark)
    await it.owsla.wait_for_line("Broker connected", 60, start=mark)
    await it.served()


STRIKES: dict[str, tuple[str, Strike]] = {
    "deliver": ("broker", _fails("owsla.broker.consumers:Consumer.deliver", CONSUMERS)),
    "confirmed": ("broker", _fails("owsla.broker.lines:LinePublisher.confirmed", PRODUCER)),
    "parcels": ("broker", _fails("owsla.broker.courier:CourierRole.messages_confirmed", COURIER)),
    "tick": ("listener", _fails("owsla.device.port:Listener._tick", PORT)),
    "sweep": ("listener", _fails("owsla.device.port:Listener._sweep", PORT)),
    "data": ("endpoints", _ends_one("owsla.device.protocol:DeviceProtocol.dataReceived")),
    "send": ("endpoints", _ends_one("owsla.device.protocol:DeviceProtocol.send")),
    "told": ("endpoints", _ends_one("owsla.device.protocol:DeviceProtocol.confirmed")),
    "flush": ("endpoints", _ends_one("owsla.device.protocol:DeviceProtocol._flush")),
    "cut": ("world", _cut),
}
"""What may happen, and which supervisor it counts against."""


@pytest.fixture
def run(rabbitmq: RabbitMQ, tmp_path: Path, certs_dir: Path) -> Iterator[Run]:
    """Devices that talk to an Owsla that can be made to fail, and their books; not started."""
    lab = MischiefLab(tmp_path, certs_dir)
    one = Run(rabbitmq, lab)
    yield one
    block_on(one.end())
    block_on(lab.close())


@reactor_test
async def test_soak(run: Run) -> None:
    """Whatever fails in whatever order: the right child is restarted, every device is served, and nothing is lost."""
    seconds = 60 * float(os.environ.get("OWSLA_SOAK_MINUTES") or 0.5)
    # Comparing a long run's books takes this process some seconds, in which its proxy forwards no heartbeats either.
    it = await trial(run, heartbeat="60s")
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
