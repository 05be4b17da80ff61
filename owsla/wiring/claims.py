"""Claims of a node about its devices, for `--on-duplicate replace` across nodes."""

from __future__ import annotations

from collections.abc import Sequence

from ..broker.broadcast import BroadcastRole, BroadcastState
from ..broker.presence import PresenceRole
from ..cluster.device_notices import pack_claims
from ..device.claims import Claim
from .devices import Devices


def announce_claims(devices: Devices, broadcast: BroadcastRole) -> None:
    """Announce the claims of devices to all nodes. Announce all of them again after each time in which notices were lost.

    While the broker blocks publishers, notices arrive, and those of this node go afterwards. All claims of all nodes at once
    would bring a broker back to its alarm that is short of memory.
    """
    identified = devices.services.devices
    missed = broadcast.state != "up"

    def changed(state: BroadcastState) -> None:
        nonlocal missed
        if state == "up" and missed:
            missed = False
            identified.announce_all()
        elif state in ("away", "refused"):
            missed = True

    def announce(claims: Sequence[Claim]) -> bool:
        return broadcast.state == "up" and broadcast.claim(pack_claims(claims))

    identified.announce_with(announce)
    broadcast.watch(changed)


def announce_again(devices: Devices, presence: PresenceRole | None) -> None:
    """Announce all connections again, to back ends and to the other nodes, which may have taken this node for dead."""
    devices.services.devices.announce_all()
    if presence is not None:
        presence.resync()
