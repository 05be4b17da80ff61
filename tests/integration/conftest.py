"""Fixtures of the integration tests: brokers, Owslas, devices and back ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests import ONE_WAY, is_required

from ._support import haproxy
from ._support.batches import BATCHES
from ._support.commands import Commands
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Broker, Lab
from ._support.rabbitmq import Cluster, RabbitMQ, installed
from ._support.waiting import block_on

B = TypeVar("B", bound=Broker)

_BROKERS = ["rabbitmq"] if ONE_WAY else ["embedded", "rabbitmq"]
"""Brokers of the tests that hold for both."""

_REQUIRED = is_required("RABBITMQ")
_HAPROXY_REQUIRED = is_required("HAPROXY")
_FAKETIME_REQUIRED = is_required("FAKETIME")
_CHROMIUM_REQUIRED = is_required("CHROMIUM")


def _require_rabbitmq() -> None:
    """Skip the test if RabbitMQ is not installed; fail it if OWSLA_REQUIRE_RABBITMQ is set."""
    if installed():
        return
    if _REQUIRED:
        pytest.fail("OWSLA_REQUIRE_RABBITMQ=1, and no RabbitMQ is installed")
    pytest.skip("no RabbitMQ is installed")


@pytest.fixture(scope="session")
def require_haproxy() -> None:
    """Skip the test if HAProxy is not installed; fail it if OWSLA_REQUIRE_HAPROXY is set."""
    if haproxy.installed():
        return
    if _HAPROXY_REQUIRED:
        pytest.fail("OWSLA_REQUIRE_HAPROXY=1, and no HAProxy is installed")
    pytest.skip("no HAProxy is installed")


@pytest.fixture(scope="session")
def require_faketime() -> None:
    """Skip the test if Debian's faketime is not installed; fail it if OWSLA_REQUIRE_FAKETIME is set."""
    if shutil.which("faketime") is not None:
        return
    if _FAKETIME_REQUIRED:
        pytest.fail("OWSLA_REQUIRE_FAKETIME=1, and no faketime is installed")
    pytest.skip("no faketime is installed")


@pytest.fixture(scope="session")
def require_chromium() -> None:
    """Skip the test if Debian's chromium is not installed; fail it if OWSLA_REQUIRE_CHROMIUM is set."""
    if shutil.which("chromium") is not None:
        return
    if _CHROMIUM_REQUIRED:
        pytest.fail("OWSLA_REQUIRE_CHROMIUM=1, and no chromium is installed")
    pytest.skip("no chromium is installed")


def _running(broker: B) -> Iterator[B]:
    try:
        block_on(broker.start())
        yield broker
    finally:
        block_on(broker.close())


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """Return the RabbitMQ node that all tests share. A test must leave it as it found it."""
    _require_rabbitmq()
    node = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), plugins=["rabbitmq_consistent_hash_exchange"])
    yield from _running(node)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBrokerProcess]:
    """Return the embedded broker that the tests share."""
    broker = EmbeddedBrokerProcess(tmp_path_factory.mktemp("embedded"))
    yield from _running(broker)


@pytest.fixture(scope="session", params=_BROKERS)
def broker(request: pytest.FixtureRequest) -> Broker:
    """Return each of the two brokers: the same tests hold for both."""
    found: Broker = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module", params=_BROKERS)
def own_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Return each of the two brokers, for the tests of one module. A test may kill it, if it starts it again."""
    folder = tmp_path_factory.mktemp("own")
    if request.param == "embedded":
        yield from _running(EmbeddedBrokerProcess(folder))
    else:
        _require_rabbitmq()
        yield from _running(RabbitMQ(folder))


@pytest.fixture(scope="module")
def own_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """Return a RabbitMQ node for the tests of one module, which may do anything to it."""
    _require_rabbitmq()
    node = RabbitMQ(tmp_path_factory.mktemp("own-rabbitmq"))
    yield from _running(node)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster of three RabbitMQ nodes for the tests of one module. A test may kill a node, if it starts it again."""
    _require_rabbitmq()
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        block_on(cluster.start())
        yield cluster
    finally:
        block_on(cluster.close())


@pytest.fixture(scope="session")
def certs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of development certificates that all Owslas of the tests share."""
    return tmp_path_factory.mktemp("certs")


@pytest.fixture
def batching(request: pytest.FixtureRequest) -> bool:
    """Return whether each Owsla of the lab publishes lines in batches: with `both_ways` both, and otherwise not."""
    return bool(getattr(request, "param", False))


@pytest.fixture
def lab(tmp_path: Path, certs_dir: Path, batching: bool) -> Iterator[Lab]:
    """Return a lab that ends everything it started with the test."""
    one = Lab(tmp_path, certs_dir, BATCHES if batching else None)
    yield one
    block_on(one.close())


@pytest.fixture(scope="module")
def module_lab(tmp_path_factory: pytest.TempPathFactory, certs_dir: Path) -> Iterator[Lab]:
    """Return a lab for fixtures that start what the tests of a module share."""
    one = Lab(tmp_path_factory.mktemp("module"), certs_dir)
    yield one
    block_on(one.close())


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    """Starter of commands, which end with the test and may not have shown a traceback."""
    one = Commands(tmp_path / "commands")
    yield one
    one.close()
