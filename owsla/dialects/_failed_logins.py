"""Limits on failed logins. Pure.

Without a limit a device's token can be guessed as fast as handshakes go. But nobody may keep a device out by failing in its
name, or from its address: ids are no secret, and addresses are shared by thousands behind a carrier's NAT. So failures are
counted three times:

- for a device id at one address: this is what slows a device with a wrong token, and a guess from one place;
- for a device id at all addresses, and for an address with all ids: against many guesses from many places.

The last two are wide limits. They do not apply to a device at the address of its last login. The limit for an address does
not apply where several devices have logged in, either: such an address is a NAT's or a proxy's. These exceptions are in
memory. They are unknown after a start, in another worker process, and at a new address. So past a wide limit each device
still has one attempt an hour at each address. A device with the right token needs no more, and it adds little to the guesses
within the limits.

A login that is refused for a count is not checked, so a right guess looks like a wrong one.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from ..runtime.leaky_buckets import Buckets

PAIR: Final = (10, 6.0)
"""Failures in a row for one device at one address, and the seconds after which there may be another one: ten a minute. A person
who types a token by hand has a few; a thousand guesses take more than an hour."""

DEVICE: Final = (100, 0.6)
"""The same for one device at all addresses: it takes ten of them to get there."""

ADDRESS: Final = (600, 0.1)
"""The same for one address with all ids: sixty devices with wrong tokens behind one NAT do not get there."""

ATTEMPT: Final = (1, 3600.0)
"""The attempts of one device at one address past the limits of `DEVICE` and `ADDRESS`."""

SHARED: Final = 10
"""Devices whose last login was from one address, from which on it is a shared one, and `ADDRESS` does not apply."""

REMEMBERED: Final = 20_000
"""Pairs, devices and addresses with failures, each: 4 MB at most. Whoever has more addresses than that is slowed by handshakes
alone."""

KNOWN: Final = 100_000
"""Devices whose last address is remembered, some 20 MB at most, and attempts past a wide limit, 50 MB at most. Whoever has more
addresses than that has more than one attempt an hour at each."""

LONGEST: Final = 255
"""Bytes of an id that are kept. A longer one is nobody's."""


class Attempt(NamedTuple):
    """A login that is being checked."""

    name: bytes
    source: str
    known: bool
    """Whether the device's last login was from this address."""
    extra: bool
    """Whether this is its attempt past a wide limit."""


class FailedLogins:
    """Counts failed logins, and says whether another one may be tried."""

    __slots__ = ("_addresses", "_attempts", "_devices", "_devices_at", "_known", "_known_limit", "_pairs")

    def __init__(self, known: int = KNOWN) -> None:
        self._pairs: Buckets[tuple[bytes, str]] = Buckets(*PAIR, REMEMBERED)
        self._devices: Buckets[bytes] = Buckets(*DEVICE, REMEMBERED)
        self._addresses: Buckets[str] = Buckets(*ADDRESS, REMEMBERED)
        self._attempts: Buckets[tuple[bytes, str]] = Buckets(*ATTEMPT, known)
        self._known: dict[bytes, str] = {}
        self._devices_at: Counter[str] = Counter()  # how many of the known devices
        self._known_limit = known

    def begin(self, name: bytes, source: str, now: float) -> Attempt | str:
        """Begin to check a login of this id from this address; or return why it is not to be checked."""
        name = name[:LONGEST]
        pair = name, source
        known = self._known.get(name) == source
        if self._pairs.full(pair, now):
            return "too many failed logins of this device from this address"
        limit = None
        if not known and self._devices.full(name, now):
            limit = "too many failed logins of this device"
        elif not known and self._devices_at[source] < SHARED and self._addresses.full(source, now):
            limit = "too many failed logins from this address"
        if limit is not None:
            if self._attempts.full(pair, now):
                return limit
            self._attempts.add(pair, now)
        # It counts as failed until it is known otherwise: what is tried while a checker takes its time must not get past the
        # limit. For an address it does not: when a site comes back all its devices log in at once.
        self._pairs.add(pair, now)
        return Attempt(name, source, known, limit is not None)

    def failed(self, attempt: Attempt, now: float) -> None:
        """Note that the login was denied."""
        if not attempt.known:
            self._devices.add(attempt.name, now)
            self._addresses.add(attempt.source, now)

    def unchecked(self, attempt: Attempt) -> None:
        """Note that the login could not be checked."""
        pair = attempt.name, attempt.source
        self._pairs.take_back(pair)
        if attempt.extra:
            self._attempts.take_back(pair)

    def succeeded(self, attempt: Attempt) -> None:
        """Note that the device has logged in, and from where."""
        self.unchecked(attempt)
        name, source = attempt.name, attempt.source
        self._forget(name)
        self._known[name] = source
        self._devices_at[source] += 1
        if len(self._known) > self._known_limit:
            self._forget(next(iter(self._known)))

    def _forget(self, name: bytes) -> None:
        source = self._known.pop(name, None)
        if source is not None:
            self._devices_at[source] -= 1
            if not self._devices_at[source]:
                del self._devices_at[source]
