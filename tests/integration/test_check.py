"""Tests of `twistd owsla --check` against real brokers: what it finds, and that it changes nothing."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from ._support.certificates import Authority
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Lab
from ._support.owsla import Option, command_line
from ._support.process import free_port
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import block_on, pause, reactor_test, until, within

_PASSWORD = "let-me-in"

_EVERYTHING = ".*"


class Checks:
    """Runs of `twistd owsla --check`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    async def __call__(self, *, status: int, flag: str = "--check", **options: Option) -> str:
        """Run a check that ends with this status. Return its output, and check that it left nothing behind."""
        owsla = self._lab.new_owsla(argv=["owsla", flag, *command_line(options)])
        owsla.launch()
        assert await owsla.exited(60) == status, owsla.output()
        assert sorted(os.listdir(owsla.folder)) == ["errors.1", "output.1"]
        assert owsla.errors() == ""
        return owsla.process.output()


@pytest.fixture
def check(lab: Lab) -> Checks:
    return Checks(lab)


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, Any]:
    """Return the options of a certificate that has nothing wrong with it."""
    authority = Authority(tmp_path / "pki", days=90)
    cert, key = authority.issue("gw.example.com")
    cert.write_bytes(cert.read_bytes() + authority.ca.read_bytes())
    return {"cert": cert, "key": key}


_CONTENTS = """
    V = <<"{vhost}">>,
    Of = [name, durable, auto_delete, arguments, messages_ready, messages_unacknowledged, consumers],
    {{lists:sort(rabbit_amqqueue:info_all(V, Of)), lists:sort(rabbit_exchange:info_all(V)),
      lists:sort(rabbit_binding:info_all(V)), lists:sort(rabbit_auth_backend_internal:list_vhost_permissions(V)),
      rabbit_policy:list(V)}}.
"""
"""Everything of a vhost that a check could change, in one command: each takes seconds on a busy machine."""

_NAMES = ("from_device", "to_device", "to_device.nodes", "to_device.undeliverable", "connection_events", "bound", "lines")
"""Queues and exchanges of the tests."""


class Vhost:
    """A vhost of RabbitMQ, with a user that has every permission at the beginning of a test."""

    def __init__(self, broker: RabbitMQ) -> None:
        self.broker = broker
        self.name = f"check-{secrets.token_hex(4)}"
        self.user = f"user-{secrets.token_hex(4)}"
        self.restricted = True

    @property
    def url(self) -> str:
        return f"amqp://{self.user}:{_PASSWORD}@127.0.0.1:{self.broker.port}/{self.name}"

    @property
    def address(self) -> str:
        """Address as Owsla shows it."""
        return f"amqp://{self.user}@127.0.0.1:{self.broker.port}/{self.name}"

    async def make(self) -> None:
        await self.broker.ctl("add_vhost", self.name)
        await self.broker.ctl("add_user", self.user, _PASSWORD)
        await self.allow()

    async def allow(self, configure: str = _EVERYTHING, write: str = _EVERYTHING, read: str = _EVERYTHING) -> None:
        self.restricted = {configure, write, read} != {_EVERYTHING}
        await self.broker.ctl("set_permissions", "-p", self.name, self.user, configure, write, read)

    async def contents(self) -> str:
        """Return everything that a check could change."""
        return await self.broker.ctl("eval", _CONTENTS.format(vhost=self.name))

    async def counts(self, queue: str, messages: int) -> None:
        """Wait until RabbitMQ lists a queue with this number of messages: it counts those of quorum queues now and then."""
        while f"{queue}\t{messages}\n" not in await self.broker.ctl("list_queues", "-p", self.name, "name", "messages"):
            await pause(0.1)

    async def remove(self) -> None:
        await self.broker.ctl("delete_vhost", self.name)
        await self.broker.ctl("delete_user", self.user)


@pytest.fixture(scope="module")
def shared_vhost(rabbitmq: RabbitMQ) -> Iterator[Vhost]:
    one = Vhost(rabbitmq)
    block_on(one.make())
    yield one
    block_on(one.remove())


@pytest.fixture
def vhost(shared_vhost: Vhost, lab: Lab) -> Iterator[Vhost]:
    """Return a vhost that has nothing in it, except queues of nodes that expire."""

    def delete(channel: Any) -> None:
        for name in _NAMES:
            channel.queue_delete(name)
            channel.exchange_delete(name)

    yield shared_vhost
    block_on(do(lab, shared_vhost, delete))


async def do(lab: Lab, vhost: Vhost, work: Callable[[Any], object]) -> None:
    """Run a function with a channel of pika, as a user who may do everything."""
    if vhost.restricted:
        await vhost.allow()
    backend = await lab.backend(vhost.url)
    await backend.call(work)
    await backend.close()


def levels(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines()]


def all_is_well(output: str) -> bool:
    """Return whether nothing is wrong. Policies are left out, without --broker-management."""
    return [line.split()[1] for line in output.splitlines() if not line.startswith("ok ")] == ["policies"]


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return what is in a folder: times of change and contents."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


# -- Nothing changes ---------------------------------------------------------------------------------------------------


@reactor_test
async def test_empty_broker(vhost: Vhost, check: Checks, certificate: dict[str, Any], tmp_path: Path) -> None:
    """On an empty broker all is well, and it stays empty."""
    before, files = await vhost.contents(), tree(tmp_path / "pki")
    output = await check(status=0, broker=vhost.url, events=["console", "amqp"], **certificate)
    assert all_is_well(output), output
    names = re.findall("^ok    queue         (.*): does not exist yet", output, re.MULTILINE)
    to_device = ["to_device", "to_device.<node>", "to_device.nodes", "to_device.undeliverable"]
    assert names == ["from_device", *to_device, "connection_events"]
    assert await vhost.contents() == before
    assert tree(tmp_path / "pki") == files
    assert _PASSWORD not in output
    assert vhost.user not in await vhost.broker.ctl("list_connections", "user")


@reactor_test
async def test_queues_in_use(vhost: Vhost, check: Checks, lab: Lab, certificate: dict[str, Any]) -> None:
    """Queues that a gateway has declared are found equal, and their messages are neither moved nor marked as redelivered."""
    owsla = lab.new_owsla(broker=vhost.url)
    await owsla.start()
    assert await owsla.terminate() == 0
    backend = await lab.backend(vhost.url)
    for queue in ("from_device", "to_device"):
        await backend.publish(queue, b"untouched")
    before = await vhost.contents()
    output = await check(status=0, broker=vhost.url, **certificate)
    assert all_is_well(output), output
    assert "from_device: exists with these arguments; 1 message ready, 0 consumers" in output
    assert await vhost.contents() == before
    for queue in ("from_device", "to_device"):
        message = await backend.fetch(queue)
        assert message is not None
        assert (message.body, message.redelivered) == (b"untouched", False)


@reactor_test
async def test_quorum_queues(vhost: Vhost, check: Checks, lab: Lab, certificate: dict[str, Any]) -> None:
    """The same with quorum queues, which count returns of messages."""
    arguments: dict[str, Any] = {
        f"{name}_argument": "x-queue-type=quorum" for name in ("from_device", "to_device", "undeliverable", "node_queue")
    }
    if await vhost.broker.version() >= (4, 0):
        arguments["to_device_argument"] = ["x-queue-type=quorum", "x-delivery-limit=-1"]
    owsla = lab.new_owsla(broker=vhost.url, **arguments)
    await owsla.start()
    assert await owsla.terminate() == 0
    backend = await lab.backend(vhost.url)
    await backend.publish("to_device", b"untouched")
    await within(vhost.counts("to_device", 1), what="the count of a quorum queue, which follows late")
    before = await vhost.contents()
    output = await check(status=0, broker=vhost.url, **arguments, **certificate)
    assert all_is_well(output), output
    assert await vhost.contents() == before
    message = await backend.fetch("to_device")
    assert message is not None
    assert not message.redelivered
    assert not message.headers.get("x-delivery-count")


@reactor_test
async def test_beside_a_gateway(check: Checks, lab: Lab, rabbitmq: RabbitMQ, embedded: EmbeddedBrokerProcess) -> None:
    """A check beside a running gateway does not disturb it, on either broker."""
    for broker in (rabbitmq, embedded):
        gateway = await lab.gateway(broker.url)
        device = await lab.device(gateway)
        await gateway.round_trip(device)
        await gateway.owsla.wait_for_line("Device connected")  # the log is written by a thread
        mark = gateway.owsla.mark()
        names: dict[str, Any] = {"from_device": gateway.from_device, "to_device": gateway.to_device}
        output = await check(status=0, broker=broker.url, certs_dir=lab.certs_dir, **names)
        assert all_is_well(output), output
        assert f"{gateway.to_device}: exists with these arguments; 0 messages ready, 8 consumers" in output
        await gateway.round_trip(device)
        assert gateway.owsla.process.output()[mark:] == ""


@reactor_test
async def test_development_certificate(check: Checks, tmp_path: Path) -> None:
    """Without --cert the check says what the start will make, and makes nothing."""
    output = await check(status=0)
    assert "ok    certificate   certs: the start will make a development certificate there" in output
    assert "skip  broker" in output
    (tmp_path / "file").write_text("")
    output = await check(status=1, certs_dir=tmp_path / "file")
    assert re.search(r"^FAIL  certificate .*not a folder", output, re.MULTILINE), output


# -- Settings and files ------------------------------------------------------------------------------------------------


@reactor_test
async def test_settings(lab: Lab) -> None:
    """A setting that cannot be used is one line on standard error, as at a start."""
    owsla = lab.new_owsla(argv=["owsla", "--check", "--port=-1"])
    owsla.launch()
    assert await owsla.exited(30) == 1
    assert owsla.output() == "owsla: --port: '-1' is not a port number (0 to 65535)\n"


@reactor_test
async def test_every_fault_of_files(check: Checks, certificate: dict[str, Any], tmp_path: Path) -> None:
    """Every file that cannot be used has its line, and then the broker, which needs one of them, is left out."""
    (tmp_path / "garbage.pem").write_text("not a certificate\n")
    output = await check(
        status=1,
        cert=certificate["cert"],
        key=Authority(tmp_path / "other").issue("other")[1],
        client_ca=tmp_path / "garbage.pem",
        broker_ca=tmp_path / "missing.pem",
        broker="amqps://localhost:1",
    )
    for line in (
        r"FAIL  key           .*/other.key: this is not the private key of the certificate in .*/gw.example.com.pem",
        r"ok    chain         .*: complete, up to the self-signed CN=Owsla tests",
        r"ok    dates         .*: valid until 20..-..-.., for 89 days",
        r"FAIL  client-ca     .*/garbage.pem: there is no certificate in PEM format in this file",
        r"FAIL  broker-ca     .*/missing.pem: no such file or directory",
        r"skip  broker        not checked, since a file for its connections cannot be used",
    ):
        assert re.search(f"^{line}$", output, re.MULTILINE), output


@reactor_test
async def test_login_file(check: Checks, certificate: dict[str, Any], tmp_path: Path) -> None:
    """A dialect that needs a checker, or one whose file is missing, is a fault."""
    tokens = tmp_path / "tokens"
    output = await check(status=1, dialect="login", **certificate)
    assert re.search("^FAIL  dialect .*--login-checker", output, re.MULTILINE), output
    tokens.write_text("door-7:secret\n")
    tokens.chmod(0o600)
    output = await check(status=0, dialect="login", login_checker=f"file:{tokens}", **certificate)
    assert re.search("^ok    dialect ", output, re.MULTILINE), output


@reactor_test
async def test_offline(check: Checks, lab: Lab, embedded: EmbeddedBrokerProcess, certificate: dict[str, Any]) -> None:
    """--check=offline leaves the broker out: no connection is made."""
    proxy = await lab.proxy(embedded.port)
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}"
    output = await check(status=0, flag="--check=offline", broker=url, **certificate)
    assert output.splitlines()[-1] == "skip  broker        not checked (--check=offline)"
    assert proxy.count == 0
    await check(status=0, broker=url, **certificate)
    assert proxy.count == 1


# -- The broker --------------------------------------------------------------------------------------------------------


@reactor_test
async def test_login(vhost: Vhost, check: Checks, certificate: dict[str, Any]) -> None:
    """A wrong password, a vhost that does not exist, and one that the user may not use, are told apart."""
    wrong = vhost.url.replace(_PASSWORD, "wrong")
    nowhere = vhost.url.replace(vhost.name, "nowhere")
    forbidden = vhost.url.replace(vhost.name, "%2f")
    output = await check(status=1, broker=[wrong, nowhere, forbidden], **certificate)
    found = re.findall("^FAIL  (.*)$", output, re.MULTILINE)
    assert len(found) == 3, output
    assert re.match(r"login         amqp://.*: ACCESS_REFUSED - Login was refused", found[0])
    assert re.match(r"login         amqp://.*/nowhere: NOT_ALLOWED - vhost nowhere not found", found[1])
    assert re.match(r"login         amqp://.*/%2F: .*access to vhost '/' refused for user", found[2])
    assert output.splitlines()[-1].startswith("skip  queues        ")
    assert "wrong" not in output


@reactor_test
async def test_several_brokers(vhost: Vhost, check: Checks, certificate: dict[str, Any]) -> None:
    """Each address has its line. Permissions and queues are those of the first one that accepts the login."""
    addresses = [f"amqp://127.0.0.1:{free_port()}", "amqp://missing.invalid", vhost.url]
    output = await check(status=1, broker=addresses, **certificate)
    found = re.findall("^FAIL  (.*)$", output, re.MULTILINE)
    assert len(found) == 2, output
    assert re.match(r"broker        amqp://guest@127.0.0.1:\d+/%2F: Connection refused", found[0])
    assert re.match(r"broker        amqp://guest@missing.invalid:5672/%2F: the host name cannot be resolved", found[1])
    assert f"ok    login         {vhost.address}: accepted" in output
    assert "ok    queue         to_device: does not exist yet" in output


@reactor_test
async def test_tls(check: Checks, lab: Lab, embedded: EmbeddedBrokerProcess, certificate: dict[str, Any]) -> None:
    """The certificate of the broker is for its name, and of a trusted authority; its end is shown."""
    authority, another = Authority(lab.folder / "authority"), Authority(lab.folder / "another")
    good = await lab.proxy(embedded.port, authority.issue("broker"))
    misnamed = await lab.proxy(embedded.port, authority.issue("other", hosts=[x509.DNSName("other.example")]))
    untrusted = await lab.proxy(embedded.port, another.issue("broker"))
    addresses = [f"amqps://guest:guest@localhost:{proxy.port}" for proxy in (good, misnamed, untrusted)]
    addresses.append(f"amqps://localhost:{embedded.port}")
    output = await check(status=1, broker=addresses, broker_ca=authority.ca, **certificate)
    found = re.findall("^FAIL  (.*)$", output, re.MULTILINE)
    assert len(found) == 3, output
    assert re.match("broker        .*: TLS: the broker's certificate is not for this host name", found[0])
    assert re.match("broker        .*: TLS: .*its authority is not trusted", found[1])
    assert re.match("broker        .*: TLS: ", found[2])
    assert re.search(r"^ok    broker        .*, TLSv1.3, its certificate is valid until 20", output, re.MULTILINE), output
    assert re.search(r"^warn  dates         amqps://.*: the certificate of the broker expires on 20", output, re.MULTILINE)


@reactor_test
async def test_silent_broker(check: Checks, certificate: dict[str, Any]) -> None:
    """A broker that accepts connections and says nothing is one line, after its time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"amqp://127.0.0.1:{silent.getsockname()[1]}"
        output = await check(status=1, broker=[address, address], **certificate)
    assert len(re.findall(r"^FAIL  broker        .*: no login within 15 s", output, re.MULTILINE)) == 2, output


@reactor_test
async def test_blocked_broker(rabbitmq: RabbitMQ, vhost: Vhost, check: Checks, certificate: dict[str, Any]) -> None:
    """A broker that is short of memory is a warning, and what it does not answer then is left out."""
    await rabbitmq.ctl("set_vm_memory_high_watermark", "absolute", "1MiB")
    try:
        output = await check(status=0, broker=vhost.url, publish_exchange="amq.topic", **certificate)
    finally:
        await rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    assert f"warn  broker        {vhost.address}: takes no messages from anybody now, so devices would wait: low on" in output
    assert "skip  permission    write to amq.topic: not checked" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@reactor_test
async def test_interrupted(number: signal.Signals, lab: Lab, certificate: dict[str, Any]) -> None:
    """SIGINT and SIGTERM end a check at once, without a traceback, and not with the status of a check without faults."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        options = {"broker": f"amqp://127.0.0.1:{silent.getsockname()[1]}", **certificate}
        owsla = lab.new_owsla(argv=["owsla", "--check", *command_line(options)])
        owsla.launch()

        def accepted() -> socket.socket | None:
            try:
                return silent.accept()[0]
            except BlockingIOError:
                return None

        connection = await until(accepted, 30, "the connection of the check")
        assert connection is not None
        with connection:
            owsla.process.signal(number)
            assert await owsla.exited(5) == -number
    assert owsla.errors() == ""


# -- Permissions -------------------------------------------------------------------------------------------------------


@reactor_test
async def test_no_permission_to_configure(vhost: Vhost, check: Checks, lab: Lab, certificate: dict[str, Any]) -> None:
    """Queues that exist are used as they are; the others cannot be declared."""
    await do(lab, vhost, lambda channel: channel.queue_declare("from_device", durable=True))
    await vhost.allow(configure=r"^to_device(\.undeliverable)?$")
    before = await vhost.contents()
    output = await check(status=1, broker=vhost.url, **certificate)
    assert "FAIL  permission    no permission to configure, and not there either: to_device.<node>, to_device.nodes\n" in output
    assert "warn  permission    no permission to configure, so used as found: from_device\n" in output
    assert levels(output).count("FAIL") == 1
    assert await vhost.contents() == before
    await vhost.allow(configure=r"^(to_device.*)$")
    assert "FAIL" not in await check(status=0, broker=vhost.url, **certificate)


@reactor_test
async def test_no_permission_to_read(vhost: Vhost, check: Checks, certificate: dict[str, Any]) -> None:
    """Owsla reads three of its queues. It needs no permission to read the others."""
    await vhost.allow(read="^(from_device|to_device.undeliverable|to_device.nodes)$")
    output = await check(status=1, broker=vhost.url, **certificate)
    assert "FAIL  permission    no permission to read: to_device, to_device.<node>\n" in output
    assert levels(output).count("FAIL") == 1
    await vhost.allow(read="^to_device(.nodes|.[0-9a-f]{8})?$")
    assert "FAIL" not in await check(status=0, broker=vhost.url, **certificate)


@reactor_test
async def test_no_permission_to_write(vhost: Vhost, check: Checks, lab: Lab, certificate: dict[str, Any]) -> None:
    """Owsla writes to the default exchange, and to that for lines: no message is routed to find out."""

    def declare(channel: Any) -> None:
        channel.exchange_declare("lines", "fanout", durable=True)
        channel.queue_declare("bound", durable=True)
        channel.queue_bind("bound", "lines")

    await do(lab, vhost, declare)
    await vhost.allow(write="^$")
    before = await vhost.contents()
    output = await check(status=1, broker=vhost.url, publish_exchange="lines", **certificate)
    assert "FAIL  permission    no permission to write: amq.default\n" in output
    assert "FAIL  permission    no permission to write: lines\n" in output
    await vhost.allow(write="^(amq.default|lines)$")
    output = await check(status=0, broker=vhost.url, publish_exchange="lines", **certificate)
    assert "ok    permission    write to lines\n" in output
    alone = "so devices of other nodes are not found by their names"
    assert f"warn  permission    no permission to write: to_device.all; write: the queues of nodes; {alone}\n" in output
    await vhost.allow(write=r"^(amq\.default|lines|to_device\..*)$")
    output = await check(status=0, broker=vhost.url, publish_exchange="lines", **certificate)
    assert "ok    permission    configure, read, write to_device.all\n" in output
    await vhost.allow(write="^$")
    assert await vhost.contents() == before


@reactor_test
async def test_impersonator(vhost: Vhost, check: Checks, lab: Lab, certificate: dict[str, Any]) -> None:
    """Nothing is routed either if the user may publish in the name of others."""

    def declare(channel: Any) -> None:
        channel.exchange_declare("lines", "fanout", durable=True)
        channel.queue_declare("bound", durable=True)
        channel.queue_bind("bound", "lines")

    await do(lab, vhost, declare)
    await vhost.broker.ctl("set_user_tags", vhost.user, "impersonator")
    before = await vhost.contents()
    await check(status=0, broker=vhost.url, publish_exchange="lines", **certificate)
    assert await vhost.contents() == before
    await vhost.broker.ctl("set_user_tags", vhost.user)


@reactor_test
async def test_exchange(vhost: Vhost, check: Checks, lab: Lab, certificate: dict[str, Any]) -> None:
    """The exchange for lines exists, and is not an internal one."""
    output = await check(status=1, broker=vhost.url, publish_exchange="lines", **certificate)
    assert "FAIL  exchange      lines: it does not exist, and Owsla does not declare it\n" in output
    assert "from_device" not in output
    await do(lab, vhost, lambda channel: channel.exchange_declare("lines", "fanout", durable=True, internal=True))
    output = await check(status=1, broker=vhost.url, publish_exchange="lines", **certificate)
    assert "FAIL  exchange      lines: it is internal, so nobody can publish to it\n" in output


# -- Queues ------------------------------------------------------------------------------------------------------------


@reactor_test
async def test_other_arguments(vhost: Vhost, check: Checks, lab: Lab, certificate: dict[str, Any]) -> None:
    """Each argument that differs has a line. Only what Owsla cannot use is a fault."""

    def declare(channel: Any) -> None:
        channel.queue_declare("from_device", durable=True, arguments={"x-max-length": 5, "x-overflow": "reject-publish"})
        channel.queue_declare("to_device", durable=True, arguments={"x-max-length": 7})
        channel.queue_declare("to_device.undeliverable", durable=True)

    await do(lab, vhost, declare)
    before = await vhost.contents()
    options: dict[str, Any] = {"from_device_argument": "x-max-length=6", "broker": vhost.url, **certificate}
    output = await check(status=0, **options)
    undeliverable = "to_device.undeliverable"
    assert re.search(r"^warn  policies +to_device: its argument x-max-length=7: ", output, re.MULTILINE), output
    assert re.findall("^warn  (queue .*)$", output, re.MULTILINE) == [
        f"queue         {queue}: {name} is {there} there, and {here} in the settings of Owsla; the queue is used as it is"
        for queue, name, there, here in (
            ("from_device", "x-max-length", "5", "6"),
            ("from_device", "x-overflow", "reject-publish", "not set"),
            ("to_device", "x-max-length", "7", "not set"),
            (undeliverable, "x-max-length", "not set", "100000"),
            (undeliverable, "x-overflow", "not set", "reject-publish"),
        )
    ]
    assert await vhost.contents() == before


@reactor_test
async def test_unusable_queues(vhost: Vhost, check: Checks, lab: Lab, certificate: dict[str, Any]) -> None:
    """A stream does not forget what is consumed, and without a single active consumer there would be several registrars."""

    def declare(channel: Any) -> None:
        channel.queue_declare("to_device", durable=True, arguments={"x-queue-type": "stream"})
        channel.queue_declare("to_device.nodes", durable=True)

    await do(lab, vhost, declare)
    before = await vhost.contents()
    output = await check(status=1, broker=vhost.url, **certificate)
    found = re.findall("^FAIL  queue         (.*)$", output, re.MULTILINE)
    assert len(found) == 2, output
    assert found[0].startswith("to_device: x-queue-type is stream there, and not set in the settings")
    assert found[1].startswith("to_device.nodes: x-single-active-consumer is not set there, and true in the settings")
    assert await vhost.contents() == before


@reactor_test
async def test_refused_arguments(vhost: Vhost, check: Checks, certificate: dict[str, Any]) -> None:
    """Arguments that the broker would refuse at the first start are found before it."""
    before = await vhost.contents()
    output = await check(status=1, broker=vhost.url, from_device_argument="x-overflow=nonsense", **certificate)
    assert re.search("^FAIL  queue         from_device: the broker would refuse .*'x-overflow'", output, re.MULTILINE), output
    assert await vhost.contents() == before


@reactor_test
async def test_stream_for_lines(vhost: Vhost, check: Checks, lab: Lab, certificate: dict[str, Any]) -> None:
    """A stream as the queue for lines is checked as well, before and after it exists."""
    options: dict[str, Any] = {"from_device_argument": "x-queue-type=stream", "broker": vhost.url, **certificate}
    before = await vhost.contents()
    assert "from_device: does not exist yet" in await check(status=0, **options)
    assert await vhost.contents() == before
    stream = {"x-queue-type": "stream"}
    await do(lab, vhost, lambda channel: channel.queue_declare("from_device", durable=True, arguments=stream))
    assert "from_device: exists with these arguments" in await check(status=0, **options)
