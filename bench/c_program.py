"""Back end of the figures: the C program `ceiling.c` if it can be built, or else the one in Python.

The program is built into a temporary folder each time: that takes a second, and leaves nothing in the checkout.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pika

from .backend import BackEnd

SOURCE = Path(__file__).with_name("ceiling.c")

WINDOW = 10000
"""Number of unconfirmed lines of the bare publisher: the default of Owsla."""


class MeasurementError(Exception):
    """Error of a measurement that cannot be made, with the reason in one line."""


def build(folder: Path) -> Path:
    """Build the C program. Raise `MeasurementError` without a compiler or librabbitmq."""
    program = folder / "ceiling"
    compiler = shutil.which("cc")
    if compiler is None:
        raise MeasurementError("no compiler/librabbitmq: cc not found")
    made = subprocess.run(
        [compiler, "-O2", "-o", str(program), str(SOURCE), "-lrabbitmq"], capture_output=True, text=True, check=False
    )
    if made.returncode:
        first = next((line for line in made.stderr.splitlines() if "error" in line), made.stderr[:200])
        raise MeasurementError(f"no compiler/librabbitmq: {first.strip()}")
    return program


class CProgram:
    """Running C program in one of its modes. As a context manager, it ends with its block."""

    def __init__(self, program: Path, broker: str, mode: str, from_device: str, to_device: str, *more: int) -> None:
        at = pika.URLParameters(broker)
        if at.ssl_options is not None:
            raise MeasurementError("the C program speaks amqp:// only")
        self._process = subprocess.Popen(
            [str(program), mode, from_device, to_device, *map(str, more)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C does not reach it: this process ends it
        )
        self.pid = self._process.pid
        where = (at.host, at.port, at.credentials.username, at.credentials.password, at.virtual_host)
        try:
            # Through its input, since arguments would show the password in the process list.
            self._send("".join(f"{part}\n" for part in where))
            self._read_counts()
        except BaseException:
            self._end()
            raise

    def _send(self, text: str) -> None:
        try:
            _pipe(self._process.stdin).write(text.encode())
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:
            raise MeasurementError("the C program has ended") from None

    def _read_counts(self) -> dict[str, int]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise MeasurementError("the C program has ended")
        counts: dict[str, int] = json.loads(line)
        return counts

    def counts(self) -> dict[str, int]:
        """Return the number of lines consumed so far, their bytes, and how many are missing or repeated by their numbers."""
        self._send("\n")
        return self._read_counts()

    def lines(self) -> int:
        """Return the number of lines that it has consumed or had confirmed so far."""
        return self.counts()["lines"]

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

    def __enter__(self) -> CProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()


class PythonBackEnd(BackEnd):
    """Back end in Python, which recognizes duplicate lines."""

    def lines(self) -> int:
        """Return the number of distinct lines that have arrived so far."""
        return int(self.call("stats")["lines"])

    def counts(self) -> dict[str, int]:
        """Return the number of lines so far, and those missing or repeated by number."""
        stats = self.call("stats")
        return {"lines": stats["lines"], "missing": stats["missing"], "repeated": stats["duplicates"]}


def start_back_end(
    program: Path | None, broker: str, echoes: bool, queues: Sequence[str], by_reply_to: bool
) -> CProgram | PythonBackEnd:
    """Start a back end: the C program, if there is one."""
    from_device, to_device = queues
    if program is not None:
        return CProgram(program, broker, "echo" if echoes else "drain", from_device, to_device)
    back_end = PythonBackEnd(broker, from_device, to_device)
    back_end.call("begin", answers="" if not echoes else "reply_to" if by_reply_to else "to_device", numbered=False)
    return back_end


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
