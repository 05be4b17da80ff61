"""The `owsla` command as a user runs it: a real process, with its output in files, or on a terminal."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from .fork_server import can_fork, fork_server
from .owsla import UNTIDY, environment
from .process import ChildProcess
from .waiting import PATIENCE, until


def owsla_command() -> list[str]:
    """Return the `owsla` command of this Python."""
    script = Path(sys.executable).with_name("owsla")
    return (
        [str(script)] if script.exists() else [sys.executable, "-c", "import sys; from owsla.cli import main; sys.exit(main())"]
    )


class Command:
    """A running command, with standard output and standard error each in a file. `forked` saves the time of its imports."""

    def __init__(self, folder: Path, argv: Sequence[str], env: dict[str, str], forked: bool) -> None:
        self.folder = folder
        self._errors = folder / "errors"
        folder.mkdir(parents=True)
        self.process = ChildProcess(
            argv,
            output=folder / "output",
            errors=self._errors,
            env=environment(env),
            cwd=folder,
            server=fork_server(environment()) if forked and can_fork(env) else None,
        )

    def output(self) -> str:
        return self.process.output()

    def errors(self) -> str:
        return self._errors.read_text("utf-8", "replace")

    async def said(self, what: str) -> None:
        """Wait for a text on standard error."""

        def look() -> bool:
            assert what in self.errors() or self.process.poll() is None, f"ended without {what!r}: {self.errors()}"
            return what in self.errors()

        await until(look, what=lambda: f"{what!r} from {self.process}: {self.errors()}")

    async def shown(self, count: int) -> list[str]:
        """Wait for `count` lines of standard output."""
        await until(lambda: self.output().count("\n") >= count, what=lambda: f"{count} lines: {self.output()}{self.errors()}")
        return self.output().splitlines()

    async def ended(self, timeout: float = PATIENCE) -> int:
        """Wait for the end, and return the exit status."""
        return await self.process.wait(timeout)

    async def interrupt(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal, as Ctrl-C does, and return the exit status."""
        self.process.signal(number)
        return await self.ended()


class Commands:
    """Starts commands in the folder of a test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[Command] = []
        self._terminals: list[Terminal] = []

    def start(self, *arguments: str, program: bool = False, **env: str) -> Command:
        """Start `owsla` with these arguments. `program`: as a program, for a test of the process list or the imports."""
        return self._start([*owsla_command(), *arguments], env, forked=not program)

    def shell(self, script: str, *arguments: str, **env: str) -> Command:
        """Start a shell script in which `@` stands for `owsla` and these arguments."""
        command = shlex.join([*owsla_command(), *arguments])
        return self._start(["/bin/sh", "-c", re.sub(r"(?<!\S)@(?!\S)", lambda _: command, script)], env, forked=False)

    def _start(self, argv: Sequence[str], env: dict[str, str], *, forked: bool) -> Command:
        command = Command(self._folder / f"command-{len(self._all)}", argv, env, forked)
        self._all.append(command)
        return command

    def terminal(self, *arguments: str, columns: int = 80, rows: int = 24, **env: str) -> Terminal:
        """Start `owsla` on a terminal of its own."""
        folder = self._folder / f"terminal-{len(self._terminals)}"
        folder.mkdir(parents=True)
        terminal = Terminal([*owsla_command(), *arguments], folder, env, columns=columns, rows=rows)
        self._terminals.append(terminal)
        return terminal

    def close(self) -> None:
        for terminal in self._terminals:
            terminal.close()
        for command in self._all:
            command.process.kill()
        for command in self._all:
            output = command.output() + command.errors()
            assert not UNTIDY.search(output), f"{command.process}:\n{output}"


class Terminal:
    """A command on a pseudo-terminal, whose keyboard and screen the test has."""

    def __init__(self, argv: Sequence[str], folder: Path, env: Mapping[str, str], *, columns: int = 80, rows: int = 24) -> None:
        """Start a command on a terminal of a size."""
        self._screen, child = os.openpty()
        os.set_blocking(self._screen, False)
        self._terminal = child  # kept open, so that what was shown can be read after the end, and the modes be looked at
        self._seen = b""
        self.resize(columns, rows)
        self.modes = termios.tcgetattr(child)
        """Modes of the terminal before the command."""
        self._popen = subprocess.Popen(
            argv,
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment({"TERM": "xterm", **env}),
            cwd=folder,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # the terminal that sends it signals
        )

    def resize(self, columns: int, rows: int) -> None:
        """Change the size, which sends SIGWINCH."""
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """Type a text; a control character does what it does on a keyboard."""
        os.write(self._screen, text.encode())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command alone."""
        self._popen.send_signal(number)

    def forget(self) -> None:
        """Forget all that was shown so far."""
        self.seen()
        self._seen = b""

    def seen(self) -> str:
        """Return all that was shown."""
        try:
            while part := os.read(self._screen, 65536):
                self._seen += part
        except BlockingIOError:
            pass
        return self._seen.decode("utf-8", "replace")

    async def shows(self, text: str) -> str:
        """Wait until a text is shown, and return all that was shown."""
        await until(lambda: text in self.seen(), what=lambda: f"{text!r} in {self.seen()!r}")
        return self.seen()

    async def ended(self) -> int:
        """Wait for the end, and return the exit status. The terminal has its modes of before."""
        await until(lambda: self._popen.poll() is not None, what=lambda: f"the end of a command: {self.seen()!r}")
        assert termios.tcgetattr(self._terminal) == self.modes
        return int(self._popen.returncode)

    def hang_up(self) -> None:
        """Close the screen, as the window of a terminal is closed."""
        os.close(self._screen)
        self._screen = -1

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def close(self) -> None:
        """End the command, and close the terminal."""
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()
        if self._screen >= 0:
            os.close(self._screen)
        os.close(self._terminal)
