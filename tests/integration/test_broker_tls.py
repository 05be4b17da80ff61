"""Tests of amqps: the certificate of the broker is verified."""

from __future__ import annotations

import pytest
from cryptography import x509

from ._support.certificates import Authority
from ._support.lab import Broker, Lab
from ._support.waiting import reactor_test, until


@reactor_test
async def test_verified(broker: Broker, lab: Lab) -> None:
    """A broker is accepted if its certificate matches its name and is signed by a trusted authority."""
    authority = Authority(lab.folder / "authority")
    proxy = await lab.proxy(broker.port, authority.issue("broker"))
    for host in ("localhost", "127.0.0.1"):
        gateway = await lab.gateway(
            f"amqps://guest:guest@{host}:{proxy.port}", backend=False, broker_ca=str(authority.ca)
        )
        gateway.broker_url = broker.url
        await gateway.connect_backend()
        await gateway.round_trip(await lab.device(gateway))


@reactor_test
async def test_another_name(broker: Broker, lab: Lab) -> None:
    """A certificate for another name is refused, in one line. The device port stays closed, and Owsla retries."""
    authority = Authority(lab.folder / "authority")
    other = authority.issue("other", hosts=[x509.DNSName("other.example")])
    proxy = await lab.proxy(broker.port, other)
    owsla = lab.new_owsla(broker=f"amqps://guest:guest@localhost:{proxy.port}", broker_ca=str(authority.ca))
    owsla.launch()
    await owsla.wait_for_line(r"Broker unavailable: amqps://guest@localhost:\d+/%2F: TLS: .*not for this host name")
    before = proxy.count
    await until(lambda: proxy.count > before, what="another attempt")
    assert "Listening" not in owsla.output()


@pytest.mark.parametrize("hosts", [[], [x509.DNSName("*.local")]], ids=["no-name", "odd-wildcard"])
@reactor_test
async def test_no_name(broker: Broker, lab: Lab, hosts: list[x509.GeneralName]) -> None:
    """A certificate without a subjectAltName is refused, in one line that says so, before the password is sent. A stop during
    the retries is orderly.
    """
    authority = Authority(lab.folder / "authority")
    proxy = await lab.proxy(broker.port, authority.issue("localhost", hosts=hosts))
    owsla = lab.new_owsla(broker=f"amqps://guest:guest@localhost:{proxy.port}", broker_ca=str(authority.ca))
    owsla.launch()
    await owsla.wait_for_line(r"Broker unavailable: amqps://guest@localhost:\d+/%2F: TLS: .*'s certificate is refused: ")
    assert await owsla.terminate() == 0
    assert "Broker connected" not in owsla.output()
    assert "Traceback" not in owsla.output()


@reactor_test
async def test_another_authority(broker: Broker, lab: Lab) -> None:
    """A certificate of an untrusted authority is refused, in one line."""
    proxy = await lab.proxy(broker.port, Authority(lab.folder / "one").issue("broker"))
    trusted = Authority(lab.folder / "another")
    owsla = lab.new_owsla(broker=f"amqps://guest:guest@localhost:{proxy.port}", broker_ca=str(trusted.ca))
    owsla.launch()
    await owsla.wait_for_line(r"Broker unavailable: amqps://.*certificate is refused: its authority is not trusted")
    assert "Listening" not in owsla.output()


@reactor_test
async def test_no_tls_there(broker: Broker, lab: Lab) -> None:
    """A broker that does not speak TLS is reported in one line."""
    owsla = lab.new_owsla(broker=f"amqps://guest:guest@localhost:{broker.port}")
    owsla.launch()
    await owsla.wait_for_line(r"Broker unavailable: amqps://")
