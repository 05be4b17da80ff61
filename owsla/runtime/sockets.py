"""Listening sockets."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path

from ..errors import ConfigError, os_reason


def bind(port: int, interface: str, option: str = "--port") -> socket.socket:
    """Return a TCP socket that is bound and does not listen yet. An empty interface means all interfaces, IPv4 and IPv6.

    Raise `ConfigError`, with the name of the option, if the port cannot be used.
    """
    family, host = _family(interface)
    sock = socket.socket(family, socket.SOCK_STREAM)
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


def is_loopback(interface: str) -> bool:
    """Return whether an IP address is of the loopback interface only. An empty one is that of all interfaces."""
    return interface != "" and ipaddress.ip_address(interface).is_loopback


class UnixSocket(socket.socket):
    """Unix socket that was bound to a path, which `close` removes, unless another process has it by now.

    Another process that inherits the descriptor closes it without removing the path.
    """

    def __init__(self) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path: Path | None = None
        self._inode = 0

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


def bind_unix(path: Path, mode: int, option: str = "--port") -> UnixSocket:
    """Return a unix socket that is bound to a path, with these permissions, and does not listen yet.

    A socket that a process left behind which does not exist any more is replaced. Raise `ConfigError`, with the name of the
    option, if the path cannot be used.
    """
    absolute = Path.cwd() / path
    sock = UnixSocket()
    before = os.umask(0o777 & ~mode)
    try:
        _remove_stale(absolute, option, path)
        sock.bind_path(absolute)
        absolute.chmod(mode)
    except OSError as error:
        sock.close()
        reason = os_reason(error) if error.errno is not None else str(error)  # a path of more than 107 bytes
        raise ConfigError(f"{option}: {path} cannot be used: {reason}") from None
    except ConfigError:
        sock.close()
        raise
    finally:
        os.umask(before)
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
