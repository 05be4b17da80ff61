"""The words of the parent on standard input of a process of a swarm."""

from __future__ import annotations

import os


class ParentInput:
    """Standard input: the words `go` and `stop`, and its end, which means that the parent is gone."""

    fd = 0

    def __init__(self) -> None:
        self._received = b""
        self.stopped = False
        """True once the swarm must end, because the parent sent `stop` or is gone."""
        self.gone = False
        """True once the parent is gone."""

    @property
    def go(self) -> bool:
        """Return whether the parent has sent `go`: all processes have their connections."""
        return b"go\n" in self._received

    def read(self) -> None:
        """Take what can be read."""
        data = os.read(self.fd, 4096)
        self._received += data
        if not data or b"stop\n" in self._received:
            self.stopped = True
            self.gone = not data
