"""A real HAProxy, in master-worker mode, so that it can be reloaded."""

from __future__ import annotations

import csv
import shutil
import signal
import socket
from pathlib import Path

from .process import ChildProcess
from .waiting import until

#: Debian's package puts it into /usr/sbin, which is not on everybody's PATH.
_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


def installed() -> bool:
    """Return whether HAProxy is installed."""
    return shutil.which("haproxy", path=_PATH) is not None


class HAProxy:
    """One HAProxy in `folder` with a configuration. It has a control socket besides."""

    def __init__(self, folder: Path, config: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._config = folder / "haproxy.cfg"
        self._control = folder / "control"
        self._process: ChildProcess | None = None
        self.write(config)

    def write(self, config: str) -> None:
        """Write another configuration: for the next start, or for `reload`."""
        control = f"    stats socket {self._control} mode 600 level admin\n"
        self._config.write_text(config.replace("global\n", f"global\n{control}", 1))
        assert control in self._config.read_text(), "the configuration has no section `global`"

    async def start(self) -> HAProxy:
        """Start it, and wait until it accepts connections."""
        program = shutil.which("haproxy", path=_PATH)
        assert program is not None
        self._process = ChildProcess(
            [program, "-W", "-db", "-f", str(self._config)], output=self._folder / "log", cwd=self._folder
        )
        await self._process.wait_for_line("Loading success")
        return self

    async def reload(self) -> None:
        """Reload it: a new worker process takes new connections, the old one keeps those that it has."""
        assert self._process is not None
        mark = len(self._process.output())
        self._process.signal(signal.SIGUSR2)
        await self._process.wait_for_line("Loading success", start=mark)

    async def shows(self, server: str, status: str) -> None:
        """Wait until the health checks have given a server this status, as in `UP`."""
        await until(lambda: self.server(server)["status"] == status, what=lambda: f"{server} {status}: {self.server(server)}")

    def server(self, name: str) -> dict[str, str]:
        """Return the statistics of a server."""
        text = self.command("show stat").removeprefix("# ")
        (row,) = (row for row in csv.DictReader(text.splitlines()) if row["svname"] == name)
        return row

    def command(self, line: str) -> str:
        """Send a command to the control socket. Return the answer."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(5)
            control.connect(str(self._control))
            control.sendall(line.encode() + b"\n")
            answer = b""
            while piece := control.recv(65536):
                answer += piece
        return answer.decode()

    def log(self) -> str:
        """Return the output so far."""
        assert self._process is not None
        return self._process.output()

    async def close(self) -> None:
        """End it, with all its connections."""
        if self._process is not None:
            self._process.kill()
