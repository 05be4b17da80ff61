"""Tests of a user, its permissions and its virtual host that are taken away and given back while Owsla runs."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

import pytest

from ._support.lab import Gateway, Lab
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test

#: Seconds for which something is taken away: long enough for several attempts, which are 5 s apart at most.
_OUTAGE = 8.0


class Tenant:
    """A user of RabbitMQ with a virtual host of its own, and an Owsla that uses both."""

    def __init__(self, rabbitmq: RabbitMQ) -> None:
        self.ctl = rabbitmq.ctl
        self.name = f"tenant-{secrets.token_hex(4)}"
        self.url = f"amqp://{self.name}:secret@127.0.0.1:{rabbitmq.port}/{self.name}"
        self._backend_url = f"amqp://guest:guest@127.0.0.1:{rabbitmq.port}/{self.name}"

    async def add(self) -> None:
        await self.ctl("add_user", self.name, "secret")
        await self.add_vhost()

    async def add_vhost(self) -> None:
        await self.ctl("add_vhost", self.name)
        await self.ctl("set_permissions", "-p", self.name, "guest", ".*", ".*", ".*")
        await self.permit()

    async def permit(self, configure: str = ".*", write: str = ".*", read: str = ".*") -> None:
        """Set the permissions. RabbitMQ caches them for each channel, so connections are closed."""
        await self.ctl("set_permissions", "-p", self.name, self.name, configure, write, read)

    async def gateway(self, lab: Lab) -> Gateway:
        gateway = await lab.gateway(self.url, backend=False)
        gateway.broker_url = self._backend_url
        await gateway.connect_backend()
        return gateway

    async def cut(self) -> None:
        """Close the connections of the user, so that new permissions are used."""
        await self.ctl("close_all_user_connections", self.name, "cut by the test")

    # -- what is taken away, and given back ----------------------------------------------------------------------------------

    async def change_password(self) -> None:
        await self.ctl("change_password", self.name, "another")
        await self.cut()

    async def restore_password(self) -> None:
        await self.ctl("change_password", self.name, "secret")

    async def delete_user(self) -> None:
        await self.ctl("delete_user", self.name)
        await self.cut()

    async def restore_user(self) -> None:
        await self.ctl("add_user", self.name, "secret")
        await self.permit()

    async def delete_vhost(self) -> None:
        await self.ctl("delete_vhost", self.name)

    async def clear_permissions(self) -> None:
        await self.ctl("clear_permissions", "-p", self.name, self.name)
        await self.cut()

    async def revoke_write(self) -> None:
        await self.permit(write="^$")
        await self.cut()

    async def revoke_read(self) -> None:
        await self.permit(read="^$")
        await self.cut()

    async def revoke_configure(self) -> None:
        await self.permit(configure="^$")
        await self.cut()


_TAKEN: dict[str, tuple[Callable[[Tenant], Awaitable[None]], Callable[[Tenant], Awaitable[None]]]] = {
    "password": (Tenant.change_password, Tenant.restore_password),
    "user": (Tenant.delete_user, Tenant.restore_user),
    "vhost": (Tenant.delete_vhost, Tenant.add_vhost),
    "permissions": (Tenant.clear_permissions, Tenant.permit),
    "write": (Tenant.revoke_write, Tenant.permit),
    "read": (Tenant.revoke_read, Tenant.permit),
    "configure": (Tenant.revoke_configure, Tenant.permit),
}


#: Lines of the log about it, at most: one for the loss of the connection, one that says why it does not come back. A role that
#: can do without the permission warns on its own, and one that can be missing if RabbitMQ has closed its connection first.
_LINES = {"password": 3, "user": 3, "vhost": 6, "permissions": 3, "write": 6, "read": 6, "configure": 9}


@pytest.mark.parametrize("what", _TAKEN)
@reactor_test
async def test_taken_away_for_a_while(own_rabbitmq: RabbitMQ, lab: Lab, what: str) -> None:
    """The device stays connected. The log has a line about it, and not one for each attempt. Once it is given back, everything
    works again within seconds, and no line of the device is lost.
    """
    take, give_back = _TAKEN[what]
    tenant = Tenant(own_rabbitmq)
    await tenant.add()
    gateway = await tenant.gateway(lab)
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    start = gateway.owsla.mark()
    await take(tenant)
    await gateway.owsla.wait_for_line("Broker lost", start=start)
    device.send_line(b"during the outage")
    if what == "vhost":
        await gateway.owsla.wait_for_line("Broker unavailable", start=start)
    else:
        assert gateway.backend.error is None
    await pause(_OUTAGE)
    during = gateway.owsla.lines(r"\bBroker\b", start=start)
    assert len(during) == len(set(map(_text, during))), during
    assert len(during) <= _LINES[what], during
    await give_back(tenant)
    if what == "vhost":
        await gateway.owsla.wait_for_line("Broker connected", start=start)
        await gateway.connect_backend()
    await gateway.backend.inbox[gateway.from_device].find(lambda message: message.body == b"during the outage")
    await gateway.round_trip(device)
    assert not gateway.owsla.lines("Device disconnected|Traceback", start=start)


def _text(line: str) -> str:
    """Return a line of the log without its time."""
    return line.partition("#")[2]
