"""Limits on failed logins, and their exceptions."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.dialects import _failed_logins
from owsla.dialects._failed_logins import ADDRESS, DEVICE, PAIR, SHARED, Attempt, FailedLogins


class FailedLoginsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.limits = FailedLogins()

    def fails(self, name: bytes, source: str, now: float = 0.0) -> bool:
        """Try a wrong token. Return whether it was checked."""
        attempt = self.limits.begin(name, source, now)
        if isinstance(attempt, str):
            return False
        self.limits.failed(attempt, now)
        return True

    def succeeds(self, name: bytes, source: str, now: float = 0.0) -> bool:
        """Try the right token. Return whether the login succeeded."""
        attempt = self.limits.begin(name, source, now)
        if isinstance(attempt, str):
            return False
        self.limits.succeeded(attempt)
        return True

    def test_rate(self) -> None:
        """A device at one address may fail some times in a row, and then at a steady rate."""
        burst, interval = PAIR
        self.assertEqual(sum(self.fails(b"d1", "a") for _ in range(100)), burst)
        minutes = sum(self.fails(b"d1", "a", second / 10) for second in range(36_000))
        self.assertLess(abs(minutes - 3600 / interval), 2)

    def test_one_device_from_everywhere(self) -> None:
        """Guesses at one device from many addresses are limited. The device at its last address is not affected."""
        self.assertTrue(self.succeeds(b"d1", "home"))
        tried = sum(self.fails(b"d1", f"host {number}") for _ in range(10) for number in range(200))
        self.assertEqual(tried, DEVICE[0] + 200)
        self.assertFalse(self.succeeds(b"d1", "host 0"))
        self.assertTrue(self.succeeds(b"d1", "home"))

    def test_roaming(self) -> None:
        """However many addresses fail with its id, a device can log in at a new address, and again from there."""
        for number in range(1000):
            self.fails(b"d1", f"host {number % 20}")
        for source in ("hotel", "train", "hotel"):
            self.assertTrue(self.succeeds(b"d1", source))
        self.assertFalse(self.fails(b"d1", "host 0"))

    def test_many_devices_from_one_address(self) -> None:
        """Guesses at many devices from one address are limited. Devices that have logged in there are not affected."""
        self.assertTrue(self.succeeds(b"d1", "nat"))
        tried = sum(self.fails(b"x %d" % (number % 1000), "nat") for number in range(9000))
        self.assertEqual(tried, ADDRESS[0] + 1000)
        self.assertFalse(self.succeeds(b"x 0", "nat"))
        self.assertTrue(self.succeeds(b"d1", "nat"))
        self.assertTrue(self.succeeds(b"x 0", "home"))

    def test_behind_a_proxy(self) -> None:
        """If all devices share an address, failures do not lock out a device with the right token, even after a start."""
        for number in range(5000):
            self.fails(b"x %d" % number, "proxy")
        self.assertTrue(all(self.succeeds(b"d %d" % number, "proxy") for number in range(100)))
        self.assertTrue(self.fails(b"x 0", "proxy"))  # it is known to be shared: each device has only a limit of its own
        self.assertTrue(self.fails(b"x 0", "proxy"))

    def test_shared_no_longer(self) -> None:
        """An address is shared while it is the last address of enough devices."""
        for source in ("nat", "home"):
            for number in range(SHARED):
                self.assertTrue(self.succeeds(b"d %d" % number, source))
        for number in range(ADDRESS[0]):
            self.fails(b"x %d" % number, "nat")
        self.assertEqual([self.fails(b"y", "nat") for _ in range(3)], [True, False, False])

    def test_the_attempt_past_a_limit(self) -> None:
        """Beyond a wide limit there is one attempt an hour. One that could not be checked does not count."""
        for number in range(ADDRESS[0]):
            self.fails(b"x %d" % number, "nat")
        attempt = self.limits.begin(b"d1", "nat", 0.0)
        assert isinstance(attempt, Attempt)
        self.limits.unchecked(attempt)
        self.assertTrue(self.fails(b"d1", "nat"))
        for hour, expected in ((0.9, [False]), (1.1, [True, False])):
            for number in range(ADDRESS[0]):
                self.fails(b"z %d %d" % (hour * 10, number), "nat", hour * 3600)
            self.assertEqual([self.fails(b"d1", "nat", hour * 3600) for _ in expected], expected)

    def test_known_device(self) -> None:
        """A device at its last address still has the limit for a device at an address."""
        self.assertTrue(self.succeeds(b"d1", "home"))
        self.assertEqual(sum(self.fails(b"d1", "home") for _ in range(100)), PAIR[0])

    def test_unknown_address(self) -> None:
        """Devices without a known address share no limit for an address. That for a device id holds."""
        self.assertEqual(sum(self.fails(b"d1", "") for _ in range(200)), DEVICE[0] + 1)
        for number in range(2 * ADDRESS[0]):
            self.assertTrue(self.fails(b"x %d" % number, ""))
        self.assertTrue(self.succeeds(b"d2", ""))
        self.assertEqual(sum(self.fails(b"d2", "") for _ in range(200)), DEVICE[0] + 1)
        self.assertEqual(sum(self.fails(b"d3", "") for _ in range(PAIR[0] + 1)), PAIR[0] + 1)

    def test_unknown_address_at_once(self) -> None:
        """Logins that are being checked count, and are forgotten if they succeed or could not be checked."""
        attempts = [self.limits.begin(b"d1", "", 0.0) for _ in range(DEVICE[0] + 2)]
        checked = [attempt for attempt in attempts if isinstance(attempt, Attempt)]
        self.assertEqual(len(checked), DEVICE[0] + 1)
        self.limits.unchecked(checked[0])
        self.limits.succeeded(checked[1])
        self.assertTrue(self.fails(b"d1", ""))
        self.assertEqual((len(self.limits._known), len(self.limits._pairs)), (0, 0))

    def test_bounded(self) -> None:
        """Memory is bounded for any sequence of logins, and so is the kept part of an id."""
        self.patch(_failed_logins, "REMEMBERED", 100)
        limits = self.limits = FailedLogins(known=50)
        for number in range(1000):
            self.fails(b"x %d" % number, f"host {number}")
            self.succeeds(b"y %d" % number, f"host {number}")
        self.assertEqual([len(each) for each in (limits._pairs, limits._devices, limits._addresses)], [100] * 3)
        self.assertEqual((len(limits._known), limits._devices_at.total()), (50, 50))
        self.assertLessEqual(max(len(limits._devices_at), len(limits._attempts)), 50)
        attempt = limits.begin(b"x" * 60_000, "host", 0.0)
        assert isinstance(attempt, Attempt)
        self.assertEqual(len(attempt.name), 255)
