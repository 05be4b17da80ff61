"""Tests of `owsla.runtime.systemd`: passed sockets, notifications and the watchdog."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from twisted.trial.unittest import SynchronousTestCase

from owsla.errors import ConfigError
from owsla.runtime.systemd import (
    NotifySocket,
    passed_sockets,
    sockets_of_doors,
    take_notify_socket,
    take_watchdog,
)


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def listening(family: int = socket.AF_INET, address: object = ("127.0.0.1", 0)) -> socket.socket:
    sock = socket.socket(family)
    sock.bind(address)  # type: ignore[arg-type]
    sock.listen()
    return sock


class PassedSocketsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)

    def passed(self, names: str, *files: HasFileno) -> dict[str, list[socket.socket]]:
        """Pass duplicates of these files with names."""
        descriptors = [os.dup(file.fileno()) for file in files]
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        self.environ = {"LISTEN_FDNAMES": names, "LISTEN_PIDFDID": "1", "HOME": "/root"}
        try:
            passed = passed_sockets(self.environ, descriptors)
        except ConfigError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        for sockets in passed.values():
            for sock in sockets:
                self.stack.enter_context(sock)
        return passed

    def test_by_name(self) -> None:
        """Sockets are returned by name, in order: of IPv4, IPv6 and unix, listening or only bound."""
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        first, second = listening(), listening()
        unix = listening(socket.AF_UNIX, f"{folder}/door")
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        with first, second, unix, bound:
            passed = self.passed("default:local:default:later", first, unix, second, bound)
            self.assertEqual(
                {name: [sock.getsockname() for sock in sockets] for name, sockets in passed.items()},
                {
                    "default": [first.getsockname(), second.getsockname()],
                    "local": [unix.getsockname()],
                    "later": [bound.getsockname()],
                },
            )

    def test_accepts(self) -> None:
        """A connection from before is accepted from the returned socket, which does not block and is not inherited."""
        with listening() as sock, socket.create_connection(sock.getsockname()) as client:
            (passed,) = self.passed("default", sock)["default"]
            self.assertEqual((passed.getblocking(), passed.get_inheritable()), (False, False))
            accepted, address = passed.accept()
            accepted.close()
            self.assertEqual(address, client.getsockname())

    def test_environment(self) -> None:
        """The variables are removed, so that a child process does not take the descriptors for its own."""
        with listening() as sock:
            self.passed("default", sock)
            self.assertEqual(self.environ, {"HOME": "/root"})

    def test_nothing_passed(self) -> None:
        """Without the variables there are no sockets. Neither are there if the variables are those of another process."""
        self.assertEqual(passed_sockets({"HOME": "/root"}), {})
        environ = {"LISTEN_FDNAMES": "default"}
        self.assertEqual(passed_sockets(environ), {})
        self.assertEqual(environ, {})

    def refused(self, file: HasFileno) -> str:
        error = self.assertRaises(ConfigError, self.passed, "door", file)
        text = str(error)
        self.assertTrue(text.startswith("descriptor "), text)
        self.assertIn(" from systemd (door) ", text)
        self.assertNotIn("\n", text)
        return text

    def test_not_a_socket(self) -> None:
        """A pipe (ListenFIFO=) is one clear line."""
        reading, writing = os.pipe()
        with open(reading) as file, open(writing, "wb"):
            self.assertTrue(self.refused(file).endswith(" is not a socket: only ListenStream= can be used"))

    def test_datagram(self) -> None:
        """A datagram socket is one clear line."""
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            self.assertTrue(self.refused(sock).endswith(" is not a stream socket: use ListenStream="))

    def test_connection(self) -> None:
        """A connection (Accept=yes) is one clear line."""
        with listening() as sock, socket.create_connection(sock.getsockname()) as client:
            self.assertTrue(self.refused(client).endswith(" is a connection: the socket unit needs Accept=no"))

    def test_unbound(self) -> None:
        """A socket without an address is one clear line."""
        for family in (socket.AF_INET, socket.AF_UNIX):
            with socket.socket(family) as sock:
                self.assertTrue(self.refused(sock).endswith(" is not bound to an address"))

    def test_other_family(self) -> None:
        """A socket of another address family is one clear line."""
        if hasattr(socket, "AF_NETLINK"):
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock:
                self.assertTrue(self.refused(sock).endswith(": only IPv4, IPv6 and unix sockets can be used"))

    def test_missing_descriptor(self) -> None:
        """A descriptor that is not open is one clear line."""
        error = self.assertRaises(ConfigError, passed_sockets, {"LISTEN_FDNAMES": "door"}, [100_000])
        self.assertEqual(str(error), "descriptor 100000 from systemd (door) cannot be used: bad file descriptor")


class SocketsOfDoorsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.one, self.two = listening(), listening()
        self.addCleanup(self.one.close)
        self.addCleanup(self.two.close)

    def test_by_door(self) -> None:
        """A socket belongs to the door of its name."""
        passed = {"default": [self.one], "meters": [self.two]}
        self.assertEqual(
            sockets_of_doors(passed, ["default", "trackers", "meters"]), {"default": self.one, "meters": self.two}
        )

    def test_first_door(self) -> None:
        """A socket of `owsla.socket` without FileDescriptorName=, and one without any name, are for the first door."""
        for name in ("default", "owsla", "owsla.socket", "unknown"):
            self.assertEqual(sockets_of_doors({name: [self.one]}, ["default", "meters"]), {"default": self.one}, name)

    def test_name_of_unit(self) -> None:
        """The socket of a unit `meters.socket` without FileDescriptorName= is for the door `meters`."""
        self.assertEqual(sockets_of_doors({"meters.socket": [self.one]}, ["default", "meters"]), {"meters": self.one})

    def test_door_named_like_the_program(self) -> None:
        """A door with the name `owsla` takes the socket of that name."""
        self.assertEqual(sockets_of_doors({"owsla.socket": [self.one]}, ["default", "owsla"]), {"owsla": self.one})

    def test_unknown_name(self) -> None:
        """The error for a socket that no door has says its name and those of the doors."""
        error = self.assertRaises(ConfigError, sockets_of_doors, {"metres": [self.one]}, ["default", "meters"])
        self.assertEqual(
            str(error),
            "systemd passes a socket with the name 'metres', and no door has that name: the doors are 'default', 'meters'. "
            "Set FileDescriptorName= in the socket unit to the name of a door",
        )

    def test_two_of_one_door(self) -> None:
        """The error for two sockets of one door says the name and the address of both."""
        port, other = self.one.getsockname()[1], self.two.getsockname()[1]
        for passed in ({"owsla": [self.one, self.two]}, {"owsla": [self.one], "default": [self.two]}):
            error = self.assertRaises(ConfigError, sockets_of_doors, passed, ["default"])
            self.assertIn("two sockets from systemd are for the door 'default': owsla (127.0.0.1:", str(error))
            self.assertIn(f"127.0.0.1:{port}) and ", str(error))
            self.assertIn(f"127.0.0.1:{other})", str(error))


class NotifySocketTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "notify")

    def manager(self, address: str | None = None) -> socket.socket:
        """Return the socket of a service manager."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.bind(address or str(self.path))
        sock.setblocking(False)
        return sock

    def notify_socket(self, address: str) -> NotifySocket:
        notify = NotifySocket(address)
        self.addCleanup(notify.close)
        return notify

    def test_path(self) -> None:
        """Assignments of one notification are the lines of one datagram."""
        manager = self.manager()
        self.assertTrue(self.notify_socket(str(self.path)).send("READY=1", "STATUS=3 devices, höchstens"))
        self.assertEqual(manager.recv(4096), "READY=1\nSTATUS=3 devices, höchstens".encode())

    def test_abstract(self) -> None:
        """An address with `@` is abstract."""
        name = f"owsla-test-{os.getpid()}"
        manager = self.manager(f"\0{name}")
        self.assertTrue(self.notify_socket(f"@{name}").send("READY=1"))
        self.assertEqual(manager.recv(4096), b"READY=1")

    def test_full(self) -> None:
        """A service manager that does not read blocks nothing: `False` says so, until it reads again."""
        manager = self.manager()
        notify = self.notify_socket(str(self.path))
        for _ in range(10_000):
            if not notify.send("STATUS=" + 1000 * "x"):
                break
        else:
            self.fail("the buffer is never full")
        self.assertFalse(notify.send("READY=1"))
        manager.recv(4096)
        self.assertTrue(notify.send("READY=1"))

    def test_restarted_manager(self) -> None:
        """A service manager that has started again gets notifications on its new socket; meanwhile there is an `OSError`."""
        self.manager().close()
        notify = self.notify_socket(str(self.path))
        self.assertRaises(ConnectionRefusedError, notify.send, "READY=1")
        self.path.unlink()
        self.assertRaises(FileNotFoundError, notify.send, "READY=1")
        manager = self.manager()
        self.assertTrue(notify.send("READY=1"))
        self.assertEqual(manager.recv(4096), b"READY=1")

    def test_bad_address(self) -> None:
        """An address of another kind is one clear line."""
        for address in ("vsock:2:1234", "notify"):
            error = self.assertRaises(ConfigError, NotifySocket, address)
            self.assertIn("NOTIFY_SOCKET: ", str(error))

    def test_environment(self) -> None:
        """The variable is removed, so that no child process notifies the manager of this process."""
        environ = {"NOTIFY_SOCKET": str(self.path), "HOME": "/root"}
        notify = take_notify_socket(environ)
        assert notify is not None
        notify.close()
        self.assertEqual(environ, {"HOME": "/root"})
        self.assertIsNone(take_notify_socket(environ))


class WatchdogTests(SynchronousTestCase):
    def test_for_this_process(self) -> None:
        """The time of the watchdog is in seconds, and its variables are removed."""
        for pid in ({}, {"WATCHDOG_PID": str(os.getpid())}):
            environ = {"WATCHDOG_USEC": "2500000", **pid}
            self.assertEqual(take_watchdog(environ), 2.5)
            self.assertEqual(environ, {})

    def test_for_another_process(self) -> None:
        """A watchdog for the parent process is not for this one."""
        environ = {"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getppid())}
        self.assertIsNone(take_watchdog(environ))
        self.assertEqual(environ, {})

    def test_none(self) -> None:
        """There is no watchdog without a time, or with a malformed one."""
        for environ in ({}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "-1"}):
            self.assertIsNone(take_watchdog(environ))
