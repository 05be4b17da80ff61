"""A process of the demo: its start, its log, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

LAST_LINES: Final = 8
"""Lines of a log that tell why a process has ended."""

_LAST_BYTES: Final = 8192


class Part:
    """A process, which dies with this one."""

    def __init__(self, name: str, kind: str, arguments: Sequence[str], folder: Path) -> None:
        """Start a process of `__main__`, by its kind. Its output goes to the file `KIND.log` in the folder."""
        self.name = name
        self.log: Final = folder / f"{kind}.log"
        own = {name: value for name, value in os.environ.items() if not name.startswith("OWSLA_")}
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                # -P: no module is found in the working folder of the user.
                [sys.executable, "-P", "-m", "owsla.cli.demo", str(os.getpid()), kind, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=own,
                # Out of reach of the terminal: Ctrl-C is for the parent, which ends all of them in order.
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Return whether the process runs."""
        return self._process.poll() is None

    @property
    def succeeded(self) -> bool:
        """Return whether the process has ended with status 0."""
        return self._process.poll() == 0

    def terminate(self) -> None:
        """Ask the process to end."""
        self._process.terminate()

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        self._process.kill()
        self._process.wait()

    def why(self) -> str:
        """Return how the process ended, and the last lines of its log."""
        status = self._process.returncode
        how = f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
        lines = self.last_lines()
        return f"the {self.name} {how}" + (f"; the last lines of its log:\n{lines}" if lines else "")

    def last_lines(self) -> str:
        """Return the last lines of the log, indented."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()[-LAST_LINES:]
        except OSError:
            return ""
        return "".join(f"  {line}\n" for line in lines).rstrip("\n")
