"""The interface of systemd to a service: passed sockets, notifications and the watchdog.

The protocols are those of sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3). Other service managers speak them as well,
for example supervisors of containers. The variables are removed from the environment, so that no child process takes them.

The passed descriptors are those that Twisted has found (`twisted.python.systemd`, 26.10): the import of
`twisted.internet.endpoints` takes LISTEN_PID and LISTEN_FDS out of the environment. Its own endpoints (`systemd:name=…`) are
not used, because they know one socket of each name, check nothing and leave LISTEN_FDNAMES in the environment.

Notifications are sent without a library (looked at in November 2026). `systemd-python` and `cysystemd` wrap libsystemd, whose
sd_notify(3) blocks while nobody reads the socket. `sdnotify`, `sd-notify` and `systemd-watchdog` send with a blocking socket as
well; the first ignores all errors, so that a READY=1 may be lost, and the second knows no abstract addresses.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Final

from twisted.internet.endpoints import serverFromString

from ..errors import ConfigError, os_reason
from .process import UNNAMED_SOCKET
from .sockets import ListeningSocket

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)

FIRST_DOOR_NAMES: Final = frozenset({"owsla", UNNAMED_SOCKET})
"""Names that mean the first door, besides its own. A socket of the unit `owsla.socket` has the name of the unit by default."""


# -- passed sockets ----------------------------------------------------------------------------------------------------------


def passed_descriptors() -> list[int]:
    """Return the descriptors that a service manager has passed to this process, as Twisted has found them."""
    descriptors: list[int] = []
    while True:
        try:
            endpoint: Any = serverFromString(None, f"systemd:domain=INET:index={len(descriptors)}")
        except IndexError:
            return descriptors
        descriptors.append(endpoint.fileno)


def passed_sockets(
    environ: MutableMapping[str, str], descriptors: Sequence[int] | None = None
) -> dict[str, list[socket.socket]]:
    """Return the sockets that a service manager has passed to this process, by name (FileDescriptorName=, systemd.socket(5)).

    All are bound stream sockets, which mostly listen already, and no child process inherits them. `descriptors` are those of
    `passed_descriptors`, and their names are in the environment. Raise `ConfigError` for a descriptor that devices cannot
    connect to.
    """
    names = environ.pop("LISTEN_FDNAMES", "")
    environ.pop("LISTEN_PIDFDID", None)
    if not names:
        return {}
    passed: dict[str, list[socket.socket]] = {}
    for name, descriptor in zip(names.split(":"), passed_descriptors() if descriptors is None else descriptors, strict=False):
        passed.setdefault(name, []).append(_passed_socket(descriptor, name))
    return passed


def _passed_socket(descriptor: int, name: str) -> socket.socket:
    """Return the socket of a passed descriptor, if devices can connect to it."""
    where = f"descriptor {descriptor} from systemd ({name})"
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise ConfigError(f"{where} is not a socket: only ListenStream= can be used")
        os.set_inheritable(descriptor, False)
        sock = ListeningSocket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"{where} cannot be used: {os_reason(error)}") from None
    fault = _fault(sock)
    if fault:
        sock.detach()
        raise ConfigError(f"{where} {fault}")
    sock.setblocking(False)
    return sock


def _fault(sock: socket.socket) -> str:
    """Return why devices cannot connect to a socket; an empty text if they can, once it listens."""
    if sock.family not in FAMILIES:
        return "has an address family that devices cannot use: only IPv4, IPv6 and unix sockets can be used"
    if sock.type != socket.SOCK_STREAM:
        return "is not a stream socket: use ListenStream="
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return ""
    try:
        sock.getpeername()
    except OSError:
        pass
    else:
        return "is a connection: the socket unit needs Accept=no"
    address = sock.getsockname()
    bound = address[1] if isinstance(address, tuple) else address
    return "" if bound else "is not bound to an address"


def sockets_of_doors(passed: Mapping[str, Sequence[socket.socket]], doors: Sequence[str]) -> dict[str, socket.socket]:
    """Return the passed socket of each door that has one. `doors` are the names of all doors, the first one first.

    A socket belongs to the door of its name, with or without `.socket`, with which systemd names the sockets of a unit by
    default; the names of `FIRST_DOOR_NAMES` are those of the first door. Raise `ConfigError` for a name that no door has, and
    for two sockets of one door.
    """
    of_doors: dict[str, tuple[str, socket.socket]] = {}
    for name, sockets in passed.items():
        door = _door(name, doors)
        for sock in sockets:
            if door in of_doors:
                before, other = of_doors[door]
                raise ConfigError(
                    f"two sockets from systemd are for the door {door!r}: {before} ({_address(other)}) and {name} "
                    f"({_address(sock)}). A door has one socket: use two socket units with FileDescriptorName=, and a door for "
                    "each name. On [::] one socket accepts IPv4 and IPv6"
                )
            of_doors[door] = name, sock
    return {door: sock for door, (_, sock) in of_doors.items()}


def _door(name: str, doors: Sequence[str]) -> str:
    """Return the door of a passed socket with this name."""
    for known in (name, name.removesuffix(".socket")):
        if known in doors:
            return known
        if known in FIRST_DOOR_NAMES:
            return doors[0]
    raise ConfigError(
        f"systemd passes a socket with the name {name!r}, and no door has that name: the doors are {_listed(doors)}. Set "
        "FileDescriptorName= in the socket unit to the name of a door"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _address(sock: socket.socket) -> str:
    """Return the address of a bound socket for a message."""
    address = sock.getsockname()
    if not isinstance(address, tuple):
        return os.fsdecode(address) if address else "unix"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# -- notifications and watchdog ----------------------------------------------------------------------------------------------


class NotifySocket:
    """The socket on which a service manager takes the notifications of this process (sd_notify(3))."""

    def __init__(self, address: str) -> None:
        """`address` is the value of NOTIFY_SOCKET: a path, or `@` and an abstract name (unix(7))."""
        if address[:1] not in ("/", "@"):
            raise ConfigError(f"NOTIFY_SOCKET: {address!r} is neither a path nor an abstract address")
        self._address = b"\0" + os.fsencode(address[1:]) if address[0] == "@" else os.fsencode(address)
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)  # close-on-exec
        except OSError as error:
            raise ConfigError(f"NOTIFY_SOCKET: {os_reason(error)}; RestrictAddressFamilies= needs AF_UNIX") from None
        self._socket.setblocking(False)

    def send(self, *assignments: str) -> bool:
        """Send assignments such as `READY=1` in one datagram, without blocking. Return whether they can be forgotten.

        That is not so while the service manager is too busy to read. `OSError` says that it cannot be reached.
        """
        try:
            # By address each time, since a service manager that starts again has another socket there.
            self._socket.sendto("\n".join(assignments).encode("utf-8", "replace"), socket.MSG_NOSIGNAL, self._address)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return False
            raise
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def take_notify_socket(environ: MutableMapping[str, str]) -> NotifySocket | None:
    """Return the socket for notifications, or `None` if this process has no service manager that takes them."""
    address = environ.pop("NOTIFY_SOCKET", "")
    return NotifySocket(address) if address else None


def take_watchdog(environ: MutableMapping[str, str]) -> float | None:
    """Return the seconds within which the service manager expects WATCHDOG=1 each time, or `None` without a watchdog."""
    microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if pid not in ("", str(os.getpid())):
        return None  # for another process, which has started this one
    if not (microseconds.isascii() and microseconds.isdigit()) or int(microseconds) == 0:
        return None
    return int(microseconds) / 1_000_000
