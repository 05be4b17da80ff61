"""Samples and the state of a running gateway: differences of counters by worker, connections to the broker, certificates."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from ._support.api import ApiClient
from ._support.certificates import Authority
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.waiting import pause, reactor_test, until
from .test_workers import devices_on_each, pids, processes


class Observed:
    """The samples and the state of a gateway, over its control socket."""

    def __init__(self, gateway: Gateway) -> None:
        self._client = ApiClient(gateway.owsla.folder / "owsla.sock")

    async def samples(self) -> list[Any]:
        history = await self._client.get("/history")
        assert history["step"] == 1000
        samples: list[Any] = history["samples"]
        return samples

    async def sample(self, condition: Callable[[Any], bool]) -> Any:
        """Return the newest sample as soon as it meets a condition."""
        (*_, newest) = await self._when(self.samples, lambda samples: bool(samples) and condition(samples[-1]))
        return newest

    async def more_than(self, count: int) -> list[Any]:
        """Return the samples as soon as there are more than this number."""
        samples: list[Any] = await self._when(self.samples, lambda samples: len(samples) > count)
        return samples

    async def state(self, condition: Callable[[Any], bool] = lambda state: True) -> Any:
        """Return the state as soon as it meets a condition."""
        return await self._when(lambda: self._client.get("/state"), condition)

    async def _when(self, ask: Callable[[], Awaitable[Any]], condition: Callable[[Any], bool]) -> Any:
        for _ in range(100):
            if condition(answer := await ask()):
                return answer
            await pause(0.2)
        raise AssertionError(answer)


@reactor_test
async def test_workers(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """Samples have the devices and the lines of each worker, and their sums. A worker that hangs is a gap, and is named; the
    others go on. A worker that was killed begins again: no sample has a rate that never was.
    """
    gateway = await lab.gateway(embedded.url, workers=2)
    workers = await processes(gateway.owsla, 2)
    observed = Observed(gateway)
    # The first sample of a process has no rates.
    await observed.sample(lambda sample: [(one or {}).get("connects") for one in sample["workers"].values()] == [0, 0])
    found = await devices_on_each(gateway, lab, 2)
    count = sum(map(len, found.values()))
    await observed.sample(lambda sample: sample["devices"] == count)
    for devices in found.values():
        for _ in range(20):
            await gateway.round_trip(devices[0][0])
    samples = await observed.more_than(len(await observed.samples()) + 1)
    for name in ("worker-1", "worker-2"):
        each = [sample["workers"][name] for sample in samples if sample["workers"].get(name)]
        # A rate is for the time between two samples, which is not a second exactly.
        assert sum(one["lines_in"] or 0 for one in each) >= 15
        assert sum(one["lines_out"] or 0 for one in each) >= 15
        assert any(one["p50"] for one in each)
        assert any(one["lateness"] is not None for one in each)  # null before the first measurement
    assert sum(sample["connects"] or 0 for sample in samples) >= 0.75 * count

    os.kill(workers["worker-1"], signal.SIGSTOP)
    try:
        sample = await observed.sample(lambda sample: sample["missing"] == ["worker-1"])
        assert sample["workers"]["worker-1"] is None
        assert sample["devices"] == sample["workers"]["worker-2"]["devices"] < count
    finally:
        os.kill(workers["worker-1"], signal.SIGKILL)
    await until(lambda: pids(gateway.owsla)["worker-1"] != workers["worker-1"])
    sample = await observed.sample(lambda sample: (sample["workers"]["worker-1"] or {}).get("lines_in") is not None)
    assert (sample["workers"]["worker-1"]["devices"], sample["missing"]) == (0, [])
    rates = [sample["workers"].get("worker-1") or {} for sample in await observed.samples()]
    assert all(0 <= (each.get("lines_in") or 0) <= 100 for each in rates)
    state = await observed.state()
    assert [(worker["name"], worker["restarts"]) for worker in state["workers"]] == [("worker-1", 1), ("worker-2", 0)]
    assert {connection["worker"] for connection in state["broker_connections"]} == {"worker-1", "worker-2"}


@reactor_test
async def test_state(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """The state has each connection to the broker, with its last fault when it is lost, and the certificates in use: also that
    of the broker.
    """
    authority = Authority(lab.folder / "authority")
    proxy = await lab.proxy(embedded.port, authority.issue("broker"))
    url = f"amqps://guest:guest@localhost:{proxy.port}"
    gateway = await lab.gateway(url, backend=False, broker_ca=str(authority.ca))
    observed = Observed(gateway)
    state = await observed.state(lambda state: {each["state"] for each in state["broker_connections"]} == {"up"})
    assert {"producer", "consumers", "courier", "roster", "broadcast"} == {each["role"] for each in state["broker_connections"]}
    assert {each["last_fault"] for each in state["broker_connections"]} == {None}
    assert [(each["kind"], each["door"]) for each in state["certificates"]] == [
        ("server", "default"),
        ("broker-ca", None),
        ("broker", None),
    ]
    assert state["certificates"][2]["file"] == f"amqps://guest@localhost:{proxy.port}/%2F"
    assert all(each["days"] > 0 for each in state["certificates"])
    assert state["doors"]["default"]["address"].endswith(f":{gateway.owsla.port}")

    await proxy.refuse()
    proxy.cut()
    await gateway.owsla.wait_for_line("Broker lost")
    state = await observed.state()
    lost = [each for each in state["broker_connections"] if each["state"] in ("waiting", "connecting")]
    assert lost
    for each in lost:
        assert each["last_fault"]["text"], each
        assert abs(each["last_fault"]["time"] - each["since"]) < 60_000
