"""Tests of logins at a real RabbitMQ: client certificates, SASL mechanisms, passwords and tokens that change."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from ._support.certificates import Authority, client_key
from ._support.lab import Gateway, Lab
from ._support.owsla import Option, command_line, environment
from ._support.process import ChildProcess, free_port
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import block_on, pause, reactor_test

#: Seconds for which a token is good that is meant to end during a test.
_SHORT = 15.0

_TOKEN_KEY = b"a key that only this test knows"

_ADVANCED = """[
  {rabbit, [{channel_tick_interval, 500}]},
  {rabbitmq_auth_backend_oauth2, [
    {resource_server_id, <<"rabbitmq">>},
    {key_config, [
      {default_key, <<"tests">>},
      {signing_keys, #{<<"tests">> =>
        {map, #{<<"alg">> => <<"HS256">>, <<"kty">> => <<"oct">>, <<"use">> => <<"sig">>, <<"kid">> => <<"tests">>,
                <<"k">> => <<"%s">>}}}}
    ]}
  ]}
].
"""


class LoginBroker:
    """RabbitMQ that asks for client certificates on its TLS port, and knows passwords and tokens."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "authority")
        cert, key = self.authority.issue("broker")
        self.tls_port = free_port()
        self.node = RabbitMQ(
            folder / "node",
            config=f"""listeners.ssl.default = 127.0.0.1:{self.tls_port}
ssl_options.cacertfile = {self.authority.ca}
ssl_options.certfile = {cert}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
auth_backends.1 = internal
auth_backends.2 = rabbit_auth_backend_oauth2
""",
            plugins=["rabbitmq_auth_mechanism_ssl", "rabbitmq_auth_backend_oauth2"],
        )
        (folder / "node" / "advanced.config").write_text(_ADVANCED % _base64(_TOKEN_KEY))

    async def add_user(self, name: str, password: str = "secret") -> None:
        """Add a user with all permissions."""
        await self.node.ctl("add_user", name, password)
        await self.node.ctl("set_permissions", name, ".*", ".*", ".*")

    async def set_env(self, name: str, value: str) -> None:
        """Set a parameter of RabbitMQ, in Erlang."""
        await self.node.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")

    async def users(self) -> set[str]:
        """Return the names of the users that are connected."""
        return set((await self.node.ctl("list_connections", "user")).split("\n")) - {""}

    async def connections(self, user: str) -> list[str]:
        """Return RabbitMQ's ids of a user's connections."""
        table = await self.node.ctl("list_connections", "user", "pid")
        return [row.split("\t")[1] for row in table.split("\n") if row.startswith(f"{user}\t")]

    async def gateway(self, lab: Lab, login: str = "", *, tls: bool = True, **options: Any) -> Gateway:
        """Start an Owsla that logs in with `login`, as in `user:password@`; with a back end that logs in as guest."""
        url = f"amqps://{login}localhost:{self.tls_port}" if tls else f"amqp://{login}localhost:{self.node.port}"
        if tls:
            options["broker_ca"] = self.authority.ca
        gateway = await lab.gateway(url, backend=False, **options)
        gateway.broker_url = self.node.url
        await gateway.connect_backend()
        return gateway

    async def believes(self, gateway: Gateway) -> None:
        """Wait until the node's notice is believed: the node itself holds it, unacknowledged."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            queues = await self.node.ctl("list_queues", "--timeout", "60", "name", "messages_unacknowledged")
            if f"{gateway.to_device}.nodes\t1" in queues.split("\n"):
                return
            await pause(0.1)
        raise AssertionError(f"no notice is held:\n{queues}")


@pytest.fixture(scope="module")
def login_broker(rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoginBroker]:
    """Return a broker for all kinds of logins. The fixture `rabbitmq` decides whether there is one."""
    broker = LoginBroker(tmp_path_factory.mktemp("login"))
    try:
        block_on(broker.node.start())
        yield broker
    finally:
        block_on(broker.node.close())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _token(subject: str, seconds: float) -> str:
    """Return a token (JWT, HS256) with all permissions that ends in some seconds."""
    header = {"alg": "HS256", "typ": "JWT", "kid": "tests"}
    scope = ["rabbitmq.configure:*/*", "rabbitmq.read:*/*", "rabbitmq.write:*/*"]
    claims = {"aud": ["rabbitmq"], "sub": subject, "scope": scope, "exp": int(time.time() + seconds)}
    signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
    return f"{signed}.{_base64(hmac.digest(_TOKEN_KEY, signed.encode(), hashlib.sha256))}"


# -- Certificates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kind"), [("common_name", "ecdsa"), ("common_name", "ed25519"), ("distinguished_name", "rsa")]
)
@reactor_test
async def test_external(
    login_broker: LoginBroker, lab: Lab, source: str, kind: Literal["ecdsa", "rsa", "ed25519"]
) -> None:
    """With a client certificate and no user in the URL the login is EXTERNAL. The notices of the node carry the name by which
    the broker knows its user, whatever it takes that from.
    """
    name = f"gateway-{secrets.token_hex(4)}"
    user = name if source == "common_name" else f"CN={name}"
    cert, key = login_broker.authority.issue(name, hosts=[], key=client_key(kind))
    await login_broker.add_user(user)
    await login_broker.set_env("ssl_cert_login_from", source)
    gateway = await login_broker.gateway(lab, broker_cert=cert, broker_key=key)
    await gateway.round_trip(await lab.device(gateway))
    assert user in await login_broker.users()
    await login_broker.believes(gateway)
    assert not gateway.owsla.lines(r"\bBroker: ")


@reactor_test
async def test_commands(login_broker: LoginBroker, lab: Lab) -> None:
    """The commands that connect to the broker log in with a certificate, too."""
    name = f"gateway-{secrets.token_hex(4)}"
    cert, key = login_broker.authority.issue(name, hosts=[])
    await login_broker.add_user(name)
    await login_broker.set_env("ssl_cert_login_from", "common_name")
    gateway = await login_broker.gateway(lab, broker_cert=cert, broker_key=key)
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    options: dict[str, Option] = {
        "broker": f"amqps://localhost:{login_broker.tls_port}",
        "broker_ca": login_broker.authority.ca,
        "broker_cert": cert,
        "broker_key": key,
        "to_device": gateway.to_device,
    }
    script = Path(sys.executable).with_name("owsla")
    command = ChildProcess(
        [str(script), "send", *command_line(options), connection_id, "hello"],
        output=lab.folder / "send",
        errors=lab.folder / "send.errors",
        env=environment(),
    )
    try:
        assert await command.wait(30) == 0, (lab.folder / "send.errors").read_text()
    finally:
        command.kill()
    assert await device.line() == b"hello"


@pytest.mark.parametrize("source", ["common_name", "distinguished_name"])
@reactor_test
async def test_certificate_is_replaced(login_broker: LoginBroker, lab: Lab, source: str) -> None:
    """After a reload, later connections use the new certificate and its user. Living connections keep the old one, until the
    broker closes them.
    """
    users = []
    files = []
    for _ in range(2):
        name = f"gateway-{secrets.token_hex(4)}"
        files.append(login_broker.authority.issue(name, hosts=[]))
        users.append(name if source == "common_name" else f"CN={name}")
        await login_broker.add_user(users[-1])
    await login_broker.set_env("ssl_cert_login_from", source)
    (cert, key), (new_cert, new_key) = files
    gateway = await login_broker.gateway(lab, broker_cert=cert, broker_key=key)
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    start = gateway.owsla.mark()
    cert.write_bytes(new_cert.read_bytes())
    key.write_bytes(new_key.read_bytes())
    gateway.owsla.process.signal(signal.SIGHUP)
    await gateway.owsla.wait_for_line("Configuration reloaded: broker-cert", start=start)
    await gateway.round_trip(device)
    assert not gateway.owsla.lines("Broker lost")
    await login_broker.node.ctl("close_all_user_connections", users[0], "the test cuts it")
    await gateway.round_trip(device)
    await login_broker.believes(gateway)
    assert users[0] not in await login_broker.users()
    assert users[1] in await login_broker.users()
    assert not gateway.owsla.lines(r"\bBroker: |Device disconnected")


@reactor_test
async def test_user_without_permissions(login_broker: LoginBroker, lab: Lab) -> None:
    """A certificate whose user the broker does not know is reported in one line, without a user in the address."""
    cert, key = login_broker.authority.issue("nobody", hosts=[])
    await login_broker.set_env("ssl_cert_login_from", "common_name")
    owsla = lab.new_owsla(
        broker=f"amqps://localhost:{login_broker.tls_port}",
        broker_ca=login_broker.authority.ca,
        broker_cert=cert,
        broker_key=key,
    )
    owsla.launch()
    await owsla.wait_for_line(r"Broker unavailable: amqps://localhost:\d+/%2F: ACCESS_REFUSED.*EXTERNAL")


@reactor_test
async def test_external_is_not_offered(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A broker without EXTERNAL is reported in one line that says what to do."""
    authority = Authority(lab.folder / "authority")
    proxy = await lab.proxy(rabbitmq.port, authority.issue("broker"))
    cert, key = authority.issue("gateway", hosts=[])
    owsla = lab.new_owsla(
        broker=f"amqps://localhost:{proxy.port}", broker_ca=authority.ca, broker_cert=cert, broker_key=key
    )
    owsla.launch()
    await owsla.wait_for_line(
        "Broker unavailable: .*does not offer the login by client certificate.*enable rabbitmq_auth_mechanism_ssl"
    )


@reactor_test
async def test_no_certificate(login_broker: LoginBroker, lab: Lab) -> None:
    """A broker that insists on a client certificate (`fail_if_no_peer_cert`) is reported in one line."""
    owsla = lab.new_owsla(
        broker=f"amqps://guest:guest@localhost:{login_broker.tls_port}", broker_ca=login_broker.authority.ca
    )
    owsla.launch()
    await owsla.wait_for_line("Broker unavailable: amqps://guest@localhost.*TLS: .*certificate")
    assert "Listening" not in owsla.output()


@reactor_test
async def test_certificate_and_password(login_broker: LoginBroker, lab: Lab) -> None:
    """With a user in the URL the login is by password, although the broker is shown a certificate."""
    cert, key = login_broker.authority.issue("owsla", hosts=[])
    gateway = await login_broker.gateway(lab, "guest:guest@", broker_cert=cert, broker_key=key)
    await gateway.round_trip(await lab.device(gateway))


@reactor_test
async def test_amqplain(login_broker: LoginBroker, lab: Lab) -> None:
    """A broker that offers AMQPLAIN, and not PLAIN, is used."""
    await login_broker.set_env("auth_mechanisms", "['AMQPLAIN']")
    try:
        gateway = await lab.gateway(login_broker.node.url, backend=False)
    finally:
        await login_broker.set_env("auth_mechanisms", "['PLAIN', 'AMQPLAIN', 'EXTERNAL']")
    await gateway.connect_backend()
    await gateway.round_trip(await lab.device(gateway))


# -- Passwords ---------------------------------------------------------------------------------------------------------


@reactor_test
async def test_password_changed(login_broker: LoginBroker, lab: Lab) -> None:
    """A new password in --broker-password-file is used at the next login, without a restart. The old one does not cut a living
    connection.
    """
    user = f"gateway-{secrets.token_hex(4)}"
    await login_broker.add_user(user, "old")
    password_file = lab.folder / "password"
    password_file.write_text("old\n")
    gateway = await login_broker.gateway(lab, f"{user}@", tls=False, broker_password_file=password_file)
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    await login_broker.node.ctl("change_password", user, "new")
    password_file.write_text("new\n")
    await gateway.round_trip(device)
    assert not gateway.owsla.lines("Broker lost")
    await login_broker.node.ctl("close_all_user_connections", user, "the test cuts it")
    await gateway.owsla.wait_for_line("Broker lost")
    await gateway.round_trip(device)
    assert not gateway.owsla.lines("Broker unavailable")


@pytest.mark.parametrize(("pipe", "words"), [(False, "no such file"), (True, "within 3 s")], ids=["missing", "pipe"])
@reactor_test
async def test_password_file_out_of_order(login_broker: LoginBroker, lab: Lab, pipe: bool, words: str) -> None:
    """A password file that has vanished, or was replaced by a named pipe that nobody writes to, is reported once. The last
    password is used, and the event loop does not wait for the file.
    """
    user = f"gateway-{secrets.token_hex(4)}"
    await login_broker.add_user(user, "old")
    password_file = lab.folder / "password"
    password_file.write_text("old\n")
    gateway = await login_broker.gateway(lab, f"{user}@", tls=False, broker_password_file=password_file)
    device = await lab.device(gateway)
    password_file.unlink()
    if pipe:
        os.mkfifo(password_file)
    await login_broker.node.ctl("close_all_user_connections", user, "the test cuts it")
    await gateway.owsla.wait_for_line(f"{words}.*the last password is used")
    await gateway.round_trip(device)
    assert len(gateway.owsla.lines("the last password is used")) == 1


# -- Tokens ------------------------------------------------------------------------------------------------------------


@reactor_test
async def test_token(login_broker: LoginBroker, lab: Lab) -> None:
    """The password may be a token of OAuth 2. The notices of the node carry the name in the token."""
    password_file = lab.folder / "token"
    password_file.write_text(_token("gateway-7", 600))
    gateway = await login_broker.gateway(lab, "any@", tls=False, broker_password_file=password_file)
    await gateway.round_trip(await lab.device(gateway))
    assert "gateway-7" in await login_broker.users()
    await login_broker.believes(gateway)
    assert not gateway.owsla.lines(r"\bBroker: ")


@pytest.mark.parametrize("workers", [1, 2])
@reactor_test
async def test_token_is_renewed(login_broker: LoginBroker, lab: Lab, workers: int) -> None:
    """Connections outlive their token if --broker-password-file had a new one before, and the settings were reloaded: the new
    token is sent on the living connections.
    """
    password_file = lab.folder / "token"
    password_file.write_text(_token("gateway-8", _SHORT))
    end = time.monotonic() + _SHORT
    options = {"broker_password_file": password_file, "workers": workers}
    gateway = await login_broker.gateway(lab, "any@", tls=False, **options)
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    for _ in range(50):  # the last worker may connect later
        connections = await login_broker.connections("gateway-8")
        if len(connections) == 5 * workers:
            break
        await pause(0.1)
    start = gateway.owsla.mark()
    password_file.write_text(_token("gateway-8", 600))
    gateway.owsla.process.signal(signal.SIGHUP)
    await gateway.owsla.wait_for_line("Configuration reloaded: broker-password-file", start=start)
    await pause(end + 5 - time.monotonic())  # with the first token something would have been refused by now
    await gateway.round_trip(device)
    assert await login_broker.connections("gateway-8") == connections
    assert not gateway.owsla.lines("#warn", start=start)


@reactor_test
async def test_token_found_at_a_login(login_broker: LoginBroker, lab: Lab) -> None:
    """A token that one connection finds at its login is sent on the others, too."""
    password_file = lab.folder / "token"
    password_file.write_text(_token("gateway-9", _SHORT))
    end = time.monotonic() + _SHORT
    gateway = await login_broker.gateway(lab, "any@", tls=False, broker_password_file=password_file)
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    connections = await login_broker.connections("gateway-9")
    password_file.write_text(_token("gateway-9", 600))
    start = gateway.owsla.mark()
    await login_broker.node.ctl("close_connection", connections.pop(0), "the test cuts one")
    await gateway.owsla.wait_for_line("Broker connected", start=start)
    start = gateway.owsla.mark()
    await pause(end + 5 - time.monotonic())
    await gateway.round_trip(device)
    assert set(connections) < set(await login_broker.connections("gateway-9"))
    assert not gateway.owsla.lines("#warn", start=start)


@reactor_test
async def test_token_ends(login_broker: LoginBroker, lab: Lab) -> None:
    """Without a new token RabbitMQ refuses what the connections do (3.10), or closes them (4). The device stays connected. With
    a new token everything goes on by itself.
    """
    password_file = lab.folder / "token"
    password_file.write_text(_token("gateway-10", _SHORT))
    gateway = await login_broker.gateway(lab, "any@", tls=False, broker_password_file=password_file)
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    await gateway.owsla.wait_for_line("#warn.*(expired|ACCESS_REFUSED)", _SHORT + 30)
    password_file.write_text(_token("gateway-10", 600))
    gateway.owsla.process.signal(signal.SIGHUP)
    await gateway.round_trip(device)
    start = gateway.owsla.mark()
    await pause(12)  # more than the longest delay between two attempts
    assert not gateway.owsla.lines("#warn", start=start)
    assert not gateway.owsla.lines("Device disconnected")


@reactor_test
async def test_bad_token(login_broker: LoginBroker, lab: Lab) -> None:
    """A token that RabbitMQ does not accept closes the connection, with its reason. The device stays connected, and the next
    good token is used.
    """
    password_file = lab.folder / "token"
    password_file.write_text(_token("gateway-11", 600))
    gateway = await login_broker.gateway(lab, "any@", tls=False, broker_password_file=password_file)
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    start = gateway.owsla.mark()
    password_file.write_text(_token("gateway-11", 600)[:-2])
    gateway.owsla.process.signal(signal.SIGHUP)
    await gateway.owsla.wait_for_line("Broker lost.*the broker did not accept the new password", start=start)
    await gateway.owsla.wait_for_line("Broker unavailable.*ACCESS_REFUSED", start=start)
    password_file.write_text(_token("gateway-11", 600))
    await gateway.round_trip(device)
    assert not gateway.owsla.lines("Device disconnected")
