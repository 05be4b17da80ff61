"""Listening sockets."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import stat
from functools import cached_property
from pathlib import Path

from ..errors import ConfigError, os_reason


class ListeningSocket(socket.socket):
    """Socket that makes the enumerations of its family and type once.

    `socket.accept` asks for both. `socket.socket` would make them again for each connection: 6 calls in Python.
    """

    @cached_property
    def family(self) -> socket.AddressFamily:
        return super().family

    @cached_property
    def type(self) -> socket.SocketKind:
        return super().type


def bind(port: int, interface: str, option: str = "--port") -> socket.socket:
    """Return a TCP socket that is bound and does not listen yet. An empty interface means all interfaces, IPv4 and IPv6.

    Raise `ConfigError`, with the name of the option, if the port cannot be used.
    """
    family, host = _family(interface)
    sock = ListeningSocket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(interface != ""))
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        where = f"port {port}" + (f" on {interface}" if interface else "")
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{option}: {where} is in use by another process") from None
        raise ConfigError(f"{option}: {where} cannot be used: {os_reason(error)}") from None
    sock.setblocking(False)
    return sock


def loopback() -> str:
    """Return the address by which programs on this machine reach each other: 127.0.0.1, or ::1 where only that is there."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.bind((address, 0))
        except OSError:
            continue
        return address
    return "127.0.0.1"


def is_loopback(interface: str) -> bool:
    """Return whether an IP address is of the loopback interface only. An empty one is that of all interfaces."""
    return interface != "" and ipaddress.ip_address(interface).is_loopback


class UnixSocket(ListeningSocket):
    """Unix socket that was bound to a path, which `close` removes, unless another process has it by now.

    Another process that inherits the descriptor closes it without removing the path. Until `close`, a lock on the file
    `PATH.lock` keeps other processes of Owsla from the path: a connect cannot tell a socket that does not listen yet from one
    that was left behind.
    """

    def __init__(self) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path: Path | None = None
        self._inode = 0
        self._lock: tuple[int, Path] | None = None

    def lock(self, path: Path) -> bool:
        """Lock an absolute path, and return `True`; `False` if another process has done that."""
        lock = path.with_name(f"{path.name}.lock")
        while True:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), lock.lstat()):
                    self._lock = descriptor, lock
                    return True
            os.close(descriptor)  # its owner has removed the file between the two calls

    def bind_path(self, path: Path) -> None:
        """Bind to an absolute path that does not exist."""
        self.bind(os.fspath(path))
        self._path, self._inode = path, path.lstat().st_ino

    def close(self) -> None:
        super().close()
        path, self._path = self._path, None
        if path is not None:
            with contextlib.suppress(OSError):
                if path.lstat().st_ino == self._inode:
                    path.unlink()
        locked, self._lock = self._lock, None
        if locked is not None:
            descriptor, lock = locked
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(descriptor)


def bind_unix(path: Path, mode: int, option: str = "--port") -> UnixSocket:
    """Return a unix socket that is bound to a path, with these permissions, and does not listen yet.

    A socket that a process left behind which does not exist any more is replaced. Raise `ConfigError`, with the name of the
    option, if the path cannot be used.
    """
    absolute = Path.cwd() / path
    sock = UnixSocket()
    try:
        if not sock.lock(absolute):
            raise ConfigError(f"{option}: {path} is in use by another process")
        _remove_stale(absolute, option, path)
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind_path(absolute)
        finally:
            os.umask(before)
        absolute.chmod(mode)
    except OSError as error:
        sock.close()
        reason = os_reason(error) if error.errno is not None else str(error)  # a path of more than 107 bytes
        raise ConfigError(f"{option}: {path} cannot be used: {reason}") from None
    except ConfigError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _remove_stale(absolute: Path, option: str, path: Path) -> None:
    """Remove a socket on which no process listens."""
    try:
        kind = absolute.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(f"{option}: {path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full accept queue would block
        if probe.connect_ex(os.fspath(absolute)) != errno.ECONNREFUSED:
            raise ConfigError(f"{option}: {path} is in use by another process")
    absolute.unlink(missing_ok=True)


def _family(interface: str) -> tuple[socket.AddressFamily, str]:
    if interface == "":
        return (socket.AF_INET6, "::") if _has_ipv6() else (socket.AF_INET, "0.0.0.0")
    return (socket.AF_INET6 if ":" in interface else socket.AF_INET), interface


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::", 0))
    except OSError:
        return False
    return True
