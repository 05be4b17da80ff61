"""Limits on failed logins. Pure.

Without a limit a device's token can be guessed as fast as handshakes go. But nobody may keep a device out by failing in its
name, or from its address: ids are no secret, and addresses are shared by thousands behind a carrier's NAT. So failures are
counted three times:

- for a device id at one address: this is what slows a device with a wrong token, and a guess from one place;
- for a device id at all addresses, and for an address with all ids: against many guesses from many places. These two do not
  concern a device that has logged in from its address before.

A login that is refused for a count is not checked, so a right guess looks like a wrong one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ..buckets import Buckets

PAIR: Final = (10, 6.0)
"""Failures in a row for one device at one address, and the seconds after which there may be another one: ten a minute. A person
who types a token by hand has a few; a thousand guesses take more than an hour."""

DEVICE: Final = (100, 0.6)
"""The same for one device at all addresses: it takes ten of them to get there."""

ADDRESS: Final = (600, 0.1)
"""The same for one address with all ids: sixty devices with wrong tokens behind one NAT do not get there."""

REMEMBERED: Final = 20_000
"""Pairs, devices and addresses with failures, each: 4 MB at most. Whoever has more addresses than that is slowed by handshakes
alone."""

KNOWN: Final = 100_000
"""Devices whose last address is remembered: some 20 MB at most."""

LONGEST: Final = 255
"""Bytes of an id that are kept. A longer one is nobody's."""


class Attempt(NamedTuple):
    """A login that is being checked."""

    name: bytes
    source: str
    known: bool
    """Whether this device had logged in from this address before."""


class FailedLogins:
    """Counts failed logins, and says whether another one may be tried."""

    __slots__ = ("_addresses", "_devices", "_known", "_known_limit", "_pairs")

    def __init__(self, known: int = KNOWN) -> None:
        self._pairs: Buckets[tuple[bytes, str]] = Buckets(*PAIR, REMEMBERED)
        self._devices: Buckets[bytes] = Buckets(*DEVICE, REMEMBERED)
        self._addresses: Buckets[str] = Buckets(*ADDRESS, REMEMBERED)
        self._known: dict[bytes, str] = {}
        self._known_limit = known

    def begin(self, name: bytes, source: str, now: float) -> Attempt | str:
        """Begin to check a login of this id from this address; or return why it is not to be checked."""
        name = name[:LONGEST]
        known = self._known.get(name) == source
        if self._pairs.full((name, source), now):
            return "too many failed logins of this device from this address"
        if not known and self._devices.full(name, now):
            return "too many failed logins of this device"
        if not known and self._addresses.full(source, now):
            return "too many failed logins from this address"
        # It counts as failed until it is known otherwise: what is tried while a checker takes its time must not get past the
        # limit. For an address it does not: when a site comes back all its devices log in at once.
        self._pairs.add((name, source), now)
        return Attempt(name, source, known)

    def failed(self, attempt: Attempt, now: float) -> None:
        """Note that the login was denied."""
        if not attempt.known:
            self._devices.add(attempt.name, now)
            self._addresses.add(attempt.source, now)

    def unchecked(self, attempt: Attempt) -> None:
        """Note that the login could not be checked."""
        self._pairs.take_back((attempt.name, attempt.source))

    def succeeded(self, attempt: Attempt) -> None:
        """Note that the device has logged in, and from where."""
        name, source, _ = attempt
        self._pairs.take_back((name, source))
        self._known.pop(name, None)
        self._known[name] = source
        if len(self._known) > self._known_limit:
            del self._known[next(iter(self._known))]
