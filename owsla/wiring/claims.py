"""Claims of a node about its devices, for `--on-duplicate replace` across nodes."""

from __future__ import annotations

from ..broker.broadcast import BroadcastRole, BroadcastState
from ..broker.presence import PresenceRole
from ..cluster.device_notices import pack_claims
from .devices import Devices


def announce_claims(devices: Devices, broadcast: BroadcastRole) -> None:
    """Announce the claims of devices to all nodes. Announce all of them again after each time in which notices could not go, or
    did not arrive.
    """
    identified = devices.services.devices

    def changed(state: BroadcastState) -> None:
        if state == "up":
            identified.announce_all()

    identified.announce_with(lambda claims: broadcast.claim(pack_claims(claims)))
    broadcast.watch(changed)


def announce_again(devices: Devices, presence: PresenceRole | None) -> None:
    """Announce all connections again, to back ends and to the other nodes, which may have taken this node for dead."""
    devices.services.devices.announce_all()
    if presence is not None:
        presence.resync()
