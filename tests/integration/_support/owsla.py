"""A real `twistd -n owsla` as a child process."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .fork_server import can_fork, fork_server
from .process import ChildProcess
from .systemd import pass_sockets
from .waiting import PATIENCE, until

Option = str | int | float | bool | Path | Sequence[str] | None

#: Texts that must never be in the output, whatever fails outside: signs of an unhandled exception.
UNTIDY = re.compile(r"Traceback|Unhandled|unhandled error|Exception ignored|never awaited|ResourceWarning")


def twistd() -> list[str]:
    """Return the command of the `twistd` that belongs to this Python."""
    script = Path(sys.executable).with_name("twistd")
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]


def command_line(options: Mapping[str, Option]) -> list[str]:
    """Write options as arguments: `max_line=5` is `--max-line 5`, None is left out, True is a bare flag."""
    arguments = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            arguments.append(flag)
        elif isinstance(value, (str, int, float, Path)):
            arguments.append(f"{flag}={value}")
        else:
            arguments.extend(f"{flag}={one}" for one in value)
    return arguments


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without any OWSLA_ setting, plus `extra`.

    Left out are the name of the test, and the size of the terminal, which readline exports to the processes of pytest-xdist.
    """
    others = {"PYTEST_CURRENT_TEST", "COLUMNS", "LINES"}
    env = {name: value for name, value in os.environ.items() if not name.startswith("OWSLA_") and name not in others}
    env["PYTHONUNBUFFERED"] = "1"
    return env | dict(extra or {})


class Owsla:
    """One Owsla process in `folder`, with the given options; `port=0` unless another one is given.

    `certs_dir` is the folder of its development certificates (created at the first start: sharing it saves time), and `ca` the
    CA for devices. `redirect` is a shell redirection for the process, as in `> /dev/full`, and `twistd_options` are further
    options of twistd. `sockets` are passed to it by name, as systemd does. `through` is a command that becomes the process.
    `twistd` is the path of that command in another virtual environment.

    The process is forked by one that has imported everything, which saves a second, unless `program` is true or one of these
    options needs a program.
    """

    def __init__(
        self,
        folder: Path,
        certs_dir: Path,
        *,
        env: Mapping[str, str] | None = None,
        argv: Sequence[str] | None = None,
        redirect: str = "",
        twistd_options: Sequence[str] = (),
        sockets: Mapping[str, socket.socket] | None = None,
        through: Sequence[str] = (),
        program: bool = False,
        twistd: str | None = None,
        **options: Option,
    ) -> None:
        self.folder = folder
        self.ca = certs_dir / "ca.pem"
        self.port = 0
        settings: dict[str, Option] = {"port": 0, "interface": "127.0.0.1", "certs_dir": certs_dir, **options}
        self._argv = list(argv) if argv is not None else ["-n", "--pidfile=", *twistd_options, "owsla", *command_line(settings)]
        self._workers = int(workers) if (workers := str(options.get("workers", 1))).isdecimal() else 1
        self._env = environment(env)
        self._process: ChildProcess | None = None
        self._starts = 0
        self._shell = ["/bin/sh", "-c", f'exec "$@" {redirect}', "sh"] if redirect else []
        self._sockets = sockets or {}
        self._through = through
        self._twistd = [twistd] if twistd is not None else None
        self._forked = not program and twistd is None and can_fork(env or {})
        self.tracebacks = 0  # number of tracebacks that a test has provoked in code outside Owsla

    @property
    def process(self) -> ChildProcess:
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def launch(self) -> None:
        """Start the process, without waiting."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._starts += 1
        passing, descriptors = pass_sockets(self._sockets) if self._sockets else ([], [])
        before = [*self._shell, *self._through, *passing]
        self._process = ChildProcess(
            [*before, *(self._twistd or twistd()), *self._argv],
            output=self.folder / f"output.{self._starts}",
            errors=self.folder / f"errors.{self._starts}",
            env=self._env,
            cwd=self.folder,
            pass_fds=descriptors,
            server=fork_server(environment()) if self._forked and not before else None,
        )

    async def listening(self, timeout: float = 90) -> None:
        """Wait until the device port is open, and store its number: 0 for a unix socket."""
        match = await self.wait_for_line(r"[Ll]istening for devices (?:.*?port (\d+)|on unix:)", timeout)
        self.port = int(match[1] or 0)

    async def start(self) -> None:
        """Start the process and wait until devices can connect, with workers to each of them.

        A reload, say, does not wait for a worker that is still starting.
        """
        self.launch()
        await self.listening()
        if self._workers > 1:
            await until(self._all_listening, 90, f"{self._workers} workers that listen")

    def _all_listening(self) -> bool:
        pattern = r"worker-(\d+)(?:\.\d+)?#info\] [Ll]istening for devices"
        return len(set(re.findall(pattern, self.process.output()))) >= self._workers

    def output(self) -> str:
        """Return all output of the process, standard error last."""
        return self.process.output() + self.errors()

    def errors(self) -> str:
        """Return the standard error output of the process."""
        return (self.folder / f"errors.{self._starts}").read_text("utf-8", "replace")

    def mark(self) -> int:
        """Return the present position in the log, for `wait_for_line`."""
        return len(self.process.output())

    async def wait_for_line(self, pattern: str, timeout: float = PATIENCE, *, start: int = 0) -> re.Match[str]:
        """Wait for a matching line of the log."""
        try:
            return await self.process.wait_for_line(pattern, timeout, start=start)
        except AssertionError as failed:
            raise AssertionError(f"{failed}\n{self.errors()}") from None

    def lines(self, pattern: str, *, start: int = 0) -> list[str]:
        """Return the matching lines of the log so far."""
        return [line for line in self.process.output()[start:].splitlines() if re.search(pattern, line)]

    async def exited(self, timeout: float = PATIENCE) -> int:
        """Wait for the end of the process and return its status."""
        return await self.process.wait(timeout)

    async def terminate(self, timeout: float = 45) -> int:
        """Send SIGTERM, wait for the end, return the exit status."""
        self.process.signal(signal.SIGTERM)
        return await self.process.wait(timeout)

    def kill(self) -> None:
        """Kill the process, if it is still running."""
        if self._process is not None:
            self._process.kill()

    def assert_tidy(self) -> None:
        """Fail if the output shows an unhandled exception."""
        if self._process is None:
            return
        output = self.output()
        found = UNTIDY.search(output.replace("Traceback", "", self.tracebacks))
        assert not found, f"{found and found[0]!r} in the output of {self._process}:\n{output}"
