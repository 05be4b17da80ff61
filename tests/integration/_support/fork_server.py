"""Starts of `twistd` and `owsla` without the second that their imports take: a process that has done them forks for each start.

A forked process has the arguments, environment, folder, streams, session, parent-death signal and exit status of one that was
started as a program; `test_fork_server` compares both. A start that tests what happens before the imports are done, or what
Python or the loader reads from the environment, has to be one of a program.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("forking.py")
_ROOT = Path(__file__).parents[3]
_MESSAGE = 1 << 16


class ForkedProcess:
    """Process that the server has forked, with the methods of `subprocess.Popen` that `ChildProcess` needs."""

    def __init__(self, server: ForkServer, pid: int, pidfd: int) -> None:
        self._server = server
        self.pid = pid
        self._pidfd = pidfd
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs. It is negative for a signal."""
        if self._status is None and select.select([self._pidfd], [], [], 0)[0]:
            self._reap()
        return self._status

    def wait(self) -> int:
        """Wait for the end of the process."""
        if self._status is None:
            self._reap()
        assert self._status is not None
        return self._status

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def _reap(self) -> None:
        self._status = self._server.reap(self.pid)
        os.close(self._pidfd)


class ForkServer:
    """The process that forks."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """`env` is the environment of the server; variables that Python reads cannot be set for a single start."""
        self.env = dict(env)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=self.env,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        atexit.register(self.close)
        self._receive()

    def start(self, argv: Sequence[str], *, stdout: int, stderr: int, env: Mapping[str, str], cwd: Path) -> ForkedProcess:
        """Start a script, `twistd` or `owsla`, with these arguments (the first is its path), streams, environment and folder.

        Its standard input is empty.
        """
        request = json.dumps({"argv": list(argv), "env": dict(env), "cwd": str(cwd)}).encode()
        socket.send_fds(self._control, [request], [stdout, stderr])
        answer, descriptors = self._receive()
        return ForkedProcess(self, answer["pid"], descriptors[0])

    def reap(self, pid: int) -> int:
        """Wait for the end of a process, and return its exit status."""
        self._control.send(json.dumps({"reap": pid}).encode())
        status: int = self._receive()[0]["status"]
        return status

    def close(self) -> None:
        """End the server, and so all that it has forked."""
        self._control.close()
        self._popen.wait()

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        data, descriptors, _, _ = socket.recv_fds(self._control, _MESSAGE, 1)
        if not data:
            raise RuntimeError(f"the fork server has ended with status {self._popen.wait()}")
        return json.loads(data), descriptors


_servers: list[ForkServer] = []


def fork_server(env: Mapping[str, str]) -> ForkServer | None:
    """Return the server of this test process, which the first call starts, or `None` for another environment than its own.

    There is never more than one: a server takes 60 MB and a second of CPU time.
    """
    if not _servers:
        _servers.append(ForkServer(env))
    (server,) = _servers
    return server if server.env == env else None


def can_fork(env: Mapping[str, str]) -> bool:
    """Return whether a start adds only variables to the environment that Owsla reads, or folders of modules."""
    return all(name.startswith("OWSLA_") or (name == "PYTHONPATH" and _only_modules(text)) for name, text in env.items())


def _only_modules(path: str) -> bool:
    """Return whether the server can add these folders after the start of Python.

    They must have no customization, and no plug-ins of Twisted or other modules of Owsla than the server has loaded.
    """
    folders = [Path(folder) for folder in path.split(os.pathsep)]
    taken = ("sitecustomize.py", "usercustomize.py", "owsla", "twisted")
    return all(folder == _ROOT or not any((folder / name).exists() for name in taken) for folder in folders)
