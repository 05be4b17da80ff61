"""What is behind the broker: the C program (`ceiling.c`) where it can be built, or else the back end in Python.

Built into a temporary folder, each time: it takes a second, and nothing of it is left in the checkout.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pika

from .backend import BackEnd

SOURCE = Path(__file__).with_name("ceiling.c")

WINDOW = 10000
"""Lines of the bare publisher that may be unconfirmed: as many as Owsla's by default."""


class Failed(Exception):
    """Something cannot be measured; the text says why in one line."""


def build(folder: Path) -> Path:
    """The C program. `Failed` where there is no compiler, or no librabbitmq."""
    program = folder / "ceiling"
    compiler = shutil.which("cc")
    if compiler is None:
        raise Failed("no compiler/librabbitmq: there is no cc")
    made = subprocess.run(
        [compiler, "-O2", "-o", str(program), str(SOURCE), "-lrabbitmq"], capture_output=True, text=True, check=False
    )
    if made.returncode:
        first = next((line for line in made.stderr.splitlines() if "error" in line), made.stderr[:200])
        raise Failed(f"no compiler/librabbitmq: {first.strip()}")
    return program


class Ceiling:
    """The C program at one of its works. A context manager: it ends with its block."""

    def __init__(self, program: Path, broker: str, work: str, from_device: str, to_device: str, *more: int) -> None:
        at = pika.URLParameters(broker)
        if at.ssl_options is not None:
            raise Failed("the C program speaks amqp:// only")
        self._process = subprocess.Popen(
            [str(program), work, from_device, to_device, *map(str, more)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is ours to deal with
        )
        self.pid = self._process.pid
        where = (at.host, at.port, at.credentials.username, at.credentials.password, at.virtual_host)
        try:
            # Not as arguments: there is a password among them.
            self._say("".join(f"{part}\n" for part in where))
            self._answer()
        except BaseException:
            self._end()
            raise

    def _say(self, text: str) -> None:
        try:
            _pipe(self._process.stdin).write(text.encode())
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:
            raise Failed("the C program has ended") from None

    def _answer(self) -> int:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise Failed("the C program has ended")
        return int(json.loads(line)["lines"])

    def lines(self) -> int:
        """How many it has taken so far."""
        self._say("\n")
        return self._answer()

    def _end(self) -> None:
        try:
            _pipe(self._process.stdin).close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _pipe(self._process.stdout).close()

    def __enter__(self) -> Ceiling:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()


class Books(BackEnd):
    """The back end in Python, which knows a line that comes twice."""

    def lines(self) -> int:
        """How many have come so far, each counted once."""
        return int(self.call("stats")["lines"])

    def stats(self) -> dict[str, Any]:
        """All of its books."""
        return self.call("stats")


def behind(program: Path | None, broker: str, echoes: bool, queues: Sequence[str], by_reply_to: bool) -> Ceiling | Books:
    """A back end, the fast one where there is one."""
    from_device, to_device = queues
    if program is not None:
        return Ceiling(program, broker, "echo" if echoes else "drain", from_device, to_device)
    books = Books(broker, from_device, to_device)
    books.call("begin", answers="" if not echoes else "reply_to" if by_reply_to else "to_device", numbered=False)
    return books


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
