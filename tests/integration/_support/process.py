"""Child processes with their output in a file, waits with a deadline, and a certain end."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import SystemRandom

from .fork_server import ForkedProcess, ForkServer
from .waiting import PATIENCE, until

#: Ports below Linux's range for outgoing connections (32768 …): otherwise such a connection could use a port between the moment
#: it is found free and the moment it is used.
_PORTS = range(20000, 32000)


def free_port() -> int:
    """Return a TCP port that is not in use on this machine."""
    for _ in range(1000):
        port = SystemRandom().choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port found")


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a process listens on a port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


class ChildProcess:
    """Child process in a session of its own; `output` (a file) gets its stdout and its stderr. `stdin` is a descriptor.

    The kernel ends it if the tests are killed (where util-linux's `setpriv` is installed). With `server` it is forked from that
    process, which knows `twistd` and `owsla`, and has no further descriptors.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        output: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        errors: Path | None = None,
        pass_fds: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
        server: ForkServer | None = None,
    ) -> None:
        self.argv = list(argv)
        self.path = output
        self._popen: subprocess.Popen[bytes] | ForkedProcess
        env = dict(os.environ if env is None else env)
        with output.open("ab") as out, (errors or output).open("ab") as err:
            if server is not None:
                self._popen = server.start(self.argv, stdout=out.fileno(), stderr=err.fileno(), env=env, cwd=cwd or Path.cwd())
            else:
                setpriv = shutil.which("setpriv")
                guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
                self._popen = subprocess.Popen(
                    [*guard, *self.argv],
                    stdin=stdin,
                    stdout=out,
                    stderr=err,
                    env=env,
                    cwd=cwd,
                    start_new_session=True,
                    pass_fds=pass_fds,
                )
        self.pid = self._popen.pid
        atexit.register(self.kill)

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs. It is negative for a signal."""
        return self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it still runs."""
        if self.poll() is None:
            self._popen.send_signal(number)

    def kill(self) -> None:
        """End the process and its own children at once, and wait for it."""
        atexit.unregister(self.kill)
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()

    async def wait(self, timeout: float = PATIENCE) -> int:
        """Wait until the process has ended and return its exit status."""
        await until(lambda: self.poll() is not None, timeout, lambda: f"the end of {self}")
        atexit.unregister(self.kill)
        status = self.poll()
        assert status is not None
        return status

    async def stop(self, timeout: float = PATIENCE) -> int:
        """Send SIGTERM, kill the process if it does not end, and return its exit status."""
        self.signal(signal.SIGTERM)
        try:
            return await self.wait(timeout)
        finally:
            self.kill()

    def output(self) -> str:
        """Return all output so far."""
        return self.path.read_text("utf-8", "replace")

    async def wait_for_line(self, pattern: str, timeout: float = PATIENCE, *, start: int = 0) -> re.Match[str]:
        """Wait for a line of its output that matches `pattern` (a regular expression), from character `start` on."""
        regex = re.compile(pattern)

        def look() -> re.Match[str] | None:
            ended = self.poll() is not None
            for line in self.output()[start:].splitlines():
                match = regex.search(line)
                if match:
                    return match
            if ended:
                raise AssertionError(f"{self} ended without a line like {pattern!r}:\n{self.output()}")
            return None

        match = await until(look, timeout, lambda: f"a line like {pattern!r} of {self}:\n{self.output()}")
        assert match is not None
        return match

    def __str__(self) -> str:
        return f"process {self.pid} ({' '.join(self.argv)[:200]})"
