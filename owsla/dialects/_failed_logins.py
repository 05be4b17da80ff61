"""Limits on failed logins. Pure.

Without a limit the token of a device can be guessed at the rate of handshakes. But an attacker must not be able to lock out a
device by failed logins under its id, or from its address: ids are not secret, and thousands of devices share an address behind
a carrier's NAT. So failures are counted in three ways:

- for a device id at one address: this slows down a device with a wrong token, and guesses from one place;
- for a device id at all addresses, and for an address with all ids: these slow down many guesses from many places.

The last two are wide limits. They do not apply to a device at the address of its last login. The limit for an address does not
apply to an address from which several devices have logged in, either: it belongs to a NAT or a proxy. These exceptions are kept
in memory. They are unknown after a start, in another worker process, and at a new address. So beyond a wide limit each
device still has one attempt an hour at each address. A device with the right token needs no more, and this adds little to the
guesses within the limits.

Devices whose address is not known (an empty source) do not count as devices at one address: only the limit for a device id
applies to them. They come through a unix socket without a PROXY protocol header, for example.

A login beyond a limit is refused without a check, so a right guess looks like a wrong one.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from ..runtime.leaky_buckets import LeakyBuckets

PAIR: Final = (10, 6.0)
"""Failures in a row for one device at one address, and seconds until one more is allowed: ten a minute. A person who types a
token by hand makes a few mistakes; a thousand guesses take more than an hour."""

DEVICE: Final = (100, 0.6)
"""The same for one device at all addresses. It takes ten addresses at their own limit to reach it."""

ADDRESS: Final = (600, 0.1)
"""The same for one address with all ids. Sixty devices with wrong tokens behind one NAT do not reach it."""

ATTEMPT: Final = (1, 3600.0)
"""Attempts of one device at one address beyond the limits `DEVICE` and `ADDRESS`."""

SHARED: Final = 10
"""Number of devices with their last login from one address that makes it a shared one, to which `ADDRESS` does not apply."""

REMEMBERED: Final = 20_000
"""Number of pairs, of devices and of addresses with failures that are remembered: 4 MB at most. An attacker with more addresses
is slowed down by handshakes only."""

KNOWN: Final = 100_000
"""Number of devices whose last address is remembered (some 20 MB at most), and of attempts beyond a wide limit (50 MB at most).
An attacker with more addresses has more than one attempt an hour at each."""

LONGEST: Final = 255
"""Bytes of an id that are kept. No device has a longer id."""


class Attempt(NamedTuple):
    """A login whose check is in progress."""

    name: bytes
    source: str
    known: bool
    """True if the last login of the device was from this address."""
    extra: bool
    """True if this is the attempt of the hour beyond a wide limit."""


class FailedLogins:
    """Counter of failed logins, which decides whether another login may be tried."""

    __slots__ = ("_addresses", "_attempts", "_devices", "_devices_at", "_known", "_known_limit", "_pairs")

    def __init__(self, known: int = KNOWN) -> None:
        self._pairs: LeakyBuckets[tuple[bytes, str]] = LeakyBuckets(*PAIR, REMEMBERED)
        self._devices: LeakyBuckets[bytes] = LeakyBuckets(*DEVICE, REMEMBERED)
        self._addresses: LeakyBuckets[str] = LeakyBuckets(*ADDRESS, REMEMBERED)
        self._attempts: LeakyBuckets[tuple[bytes, str]] = LeakyBuckets(*ATTEMPT, known)
        self._known: dict[bytes, str] = {}
        self._devices_at: Counter[str] = Counter()  # number of the known devices at each address
        self._known_limit = known

    def begin(self, name: bytes, source: str, now: float) -> Attempt | str:
        """Begin the check of a login. Return the attempt, or the reason for refusing the login without a check."""
        name = name[:LONGEST]
        pair = name, source
        known = bool(source) and self._known.get(name) == source
        if source and self._pairs.full(pair, now):
            return "too many failed logins of this device from this address"
        limit = None
        if not known and self._devices.full(name, now):
            limit = "too many failed logins of this device"
        elif source and not known and self._devices_at[source] < SHARED and self._addresses.full(source, now):
            limit = "too many failed logins from this address"
        if limit is not None:
            if self._attempts.full(pair, now):
                return limit
            self._attempts.add(pair, now)
        # The login counts as failed until its result is known: otherwise many logins could be tried while a slow checker checks
        # the first. It does not count for the address, since all devices of a site log in at once when the site comes back.
        if source:
            self._pairs.add(pair, now)
        else:
            self._devices.add(name, now)
        return Attempt(name, source, known, limit is not None)

    def failed(self, attempt: Attempt, now: float) -> None:
        """Count a login that was denied."""
        if attempt.source and not attempt.known:
            self._devices.add(attempt.name, now)
            self._addresses.add(attempt.source, now)

    def unchecked(self, attempt: Attempt) -> None:
        """Forget a login that could not be checked."""
        pair = attempt.name, attempt.source
        if attempt.source:
            self._pairs.take_back(pair)
        else:
            self._devices.take_back(attempt.name)
        if attempt.extra:
            self._attempts.take_back(pair)

    def succeeded(self, attempt: Attempt) -> None:
        """Remember the address of a login that succeeded."""
        self.unchecked(attempt)
        name, source = attempt.name, attempt.source
        if not source:
            return
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
