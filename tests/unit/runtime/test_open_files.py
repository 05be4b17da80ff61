"""The number of devices that the limit of open files allows."""

from __future__ import annotations

import errno
import resource
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from owsla.errors import ConfigError
from owsla.runtime.open_files import (
    FOR_A_WORKER,
    RESERVE,
    allowed_connections,
    check_parent,
    describe_capacity,
    raise_open_files_limit,
)


class AllowedConnectionsTests(SynchronousTestCase):
    def test_not_asked(self) -> None:
        """By default the limit is the number of open files, less a reserve."""
        self.assertEqual(allowed_connections(None, 1024), (1024 - RESERVE, None))

    def test_few_files(self) -> None:
        """If not one device can be connected, an error says why, and how to raise the limit."""
        self.assertEqual(allowed_connections(None, RESERVE + 1), (1, None))
        for wanted in (None, 10):
            with self.assertRaises(ConfigError) as caught:
                allowed_connections(wanted, 64)
            for part in ("open 64 files", str(RESERVE), "LimitNOFILE=", "ulimit -n"):
                self.assertIn(part, str(caught.exception))

    def test_capacity(self) -> None:
        """One line says how many devices can be connected, and what limits their number."""
        self.assertEqual(describe_capacity(500, 500, 1024), "Up to 500 devices can be connected: --max-connections")
        for wanted in (None, 5000):
            self.assertEqual(
                describe_capacity(wanted, 924, 1024),
                "Up to 924 devices can be connected: this process may open 1024 files (LimitNOFILE=, ulimit -n) and keeps "
                "150 of them for itself",
            )
        self.assertIn("1 device can", describe_capacity(1, 1, 1024))

    def test_wish_granted(self) -> None:
        """A requested limit that is possible applies, without a warning."""
        self.assertEqual(allowed_connections(500, 1024), (500, None))
        self.assertEqual(allowed_connections(1024 - RESERVE, 1024), (1024 - RESERVE, None))

    def test_wish_too_large(self) -> None:
        """For one that is not possible the message says how many can connect, and how to raise which limit."""
        allowed, message = allowed_connections(50_000, 1024)
        self.assertEqual(allowed, 1024 - RESERVE)
        assert message is not None
        needed = 50_000 + RESERVE
        for part in ("--max-connections 50000", "1024", str(1024 - RESERVE), f"LimitNOFILE={needed}", f"ulimit -n {needed}"):
            self.assertIn(part, message)


class ParentTests(SynchronousTestCase):
    def test_enough(self) -> None:
        """The parent of workers needs some open files for each of them, and none for devices."""
        check_parent(2, RESERVE + 2 * FOR_A_WORKER)

    def test_too_few(self) -> None:
        """With fewer an error says how many are needed, and how to raise the limit."""
        with self.assertRaises(ConfigError) as caught:
            check_parent(2, RESERVE + 2 * FOR_A_WORKER - 1)
        for part in ("open 157 files", "needs 158", "2 workers", "LimitNOFILE=", "ulimit -n"):
            self.assertIn(part, str(caught.exception))


class RaiseTests(SynchronousTestCase):
    def set_limits(self, soft: int, hard: int) -> mock.Mock:
        self.patch(resource, "getrlimit", lambda what: (soft, hard))
        setrlimit = mock.Mock()
        self.patch(resource, "setrlimit", setrlimit)
        return setrlimit

    def test_raised(self) -> None:
        """The soft limit is raised to the hard limit."""
        setrlimit = self.set_limits(1024, 4096)
        self.assertEqual(raise_open_files_limit(), 4096)
        setrlimit.assert_called_once_with(resource.RLIMIT_NOFILE, (4096, 4096))

    def test_nothing_to_raise(self) -> None:
        """A soft limit that equals the hard limit is left alone."""
        setrlimit = self.set_limits(4096, 4096)
        self.assertEqual(raise_open_files_limit(), 4096)
        setrlimit.assert_not_called()

    def test_refused(self) -> None:
        """If the system refuses, the soft limit stays as it was."""
        for error in (OSError(errno.EPERM, "no"), ValueError("no")):
            self.set_limits(1024, 4096).side_effect = error
            self.assertEqual(raise_open_files_limit(), 1024)
