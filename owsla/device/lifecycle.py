"""State machine of a connection.

Inputs are events (`Input`); states are where they leave the connection; the action of a transition is a method of the
transport, which is a subclass of `Lifecycle`. `TRANSITIONS` is the whole machine. An input that a state does not list is
impossible there: it raises `automat.NoTransition`, and changes nothing.

`Lifecycle` walks the table, and the tests check it against a machine that Automat builds and runs. An instance of Automat takes
209 bytes for each connection where a `Lifecycle` adds 16 to its transport, and its search for a transition was 6 % of the CPU
of a handshake (sampled over 20,000 of them). A line costs nothing for either.

The diagram in docs/lifecycle.md is generated from the table:

    python -m owsla.device.lifecycle
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from automat import NoTransition

Input: TypeAlias = Literal[
    "hello_received",  # The first bytes of the peer arrived.
    "secured",  # The TLS handshake is complete.
    "opened",  # A connection without TLS is open: its first bytes arrived, or it is silent longer than a health check.
    "pause",  # Stop reading for a while: lines cannot be published, or the device exceeds its rate.
    "resume",  # Read again.
    "drain",  # Stop reading permanently. The connection is closed when everything that it sent is settled.
    # Close in order, after what was written: for a back end, a line too long, the end of draining, or a device that does not
    # take what is written (`--write-timeout`, `--write-buffer`).
    "close",
    "abort",  # Close at once: a write failed, or our own code did.
    "handshake_overdue",  # Close after the handshake time-out (`--handshake-timeout`).
    "idle_overdue",  # Close after the idle time-out (`--idle-timeout`).
    "close_overdue",  # Close a socket whose peer does not close its side.
    "ended",  # The peer has closed, or is gone.
]
"""Inputs of the state machine of a connection."""

Transition = tuple[str, str | None]
"""The next state, and the name of the action, if any."""

_END: Final[Mapping[str, Transition]] = {
    "abort": ("closed", "close_socket_soon"),
    "ended": ("closed", "close_socket"),
}
_BEFORE_OPEN: Final[Mapping[str, Transition]] = {
    "close": ("closed", "close_socket_soon"),
    "handshake_overdue": ("closed", "close_socket_soon"),
    **_END,
}
_WHILE_OPEN: Final[Mapping[str, Transition]] = {
    "close": ("closing", "begin_close"),
    "idle_overdue": ("closing", "begin_close"),
    **_END,
}

TRANSITIONS: Final[Mapping[str, Mapping[str, Transition]]] = {
    "accepted": {
        "hello_received": ("handshaking", "begin_handshake"),
        "opened": ("open", "begin_data"),
        **_BEFORE_OPEN,
    },
    "handshaking": {"secured": ("open", "begin_data"), **_BEFORE_OPEN},
    "open": {
        "pause": ("paused", "stop_reading"),
        "resume": ("open", None),
        "drain": ("draining", "stop_reading"),
        **_WHILE_OPEN,
    },
    "paused": {
        "pause": ("paused", None),
        "resume": ("open", "start_reading"),
        "drain": ("draining", None),
        **_WHILE_OPEN,
    },
    "draining": {
        **dict.fromkeys(("pause", "resume", "drain", "idle_overdue"), ("draining", None)),
        "close": ("closing", "begin_close"),
        **_END,
    },
    # A protocol may still pause what its peer sends before it sees the close.
    "closing": {
        "pause": ("closing", "stop_reading"),
        "resume": ("closing", "start_reading"),
        **dict.fromkeys(("drain", "close", "idle_overdue"), ("closing", None)),
        "close_overdue": ("closed", "close_socket_soon"),
        **_END,
    },
    "closed": dict.fromkeys(
        ("pause", "resume", "drain", "close", "handshake_overdue", "idle_overdue", "close_overdue", *_END), ("closed", None)
    ),
}
"""For each state, in the order of the diagram, its inputs and their transitions."""


class Lifecycle:
    """State machine of one connection, and base class of its transport, whose methods are the actions.

    An input that arrives during an action is taken after it.
    """

    __slots__ = ("_pending", "_phase")

    def __init__(self) -> None:
        self._phase = "accepted"
        """Name of the state."""
        self._pending: tuple[Input, ...] | None = None
        """Inputs that wait for the end of an action; `None` while there is no action."""

    def _take(self, event: Input) -> None:
        """Take an input. Raise `NoTransition` if it is impossible in this state."""
        if self._pending is not None:
            self._pending += (event,)
            return
        transition = TRANSITIONS[self._phase].get(event)
        if transition is None:
            raise NoTransition(state=self._phase, symbol=event)
        self._phase, action = transition
        if action is None:
            return
        self._pending = ()
        try:
            getattr(self, action)()
        finally:
            pending: tuple[Input, ...] = self._pending
            self._pending = None
        for each in pending:
            self._take(each)

    # -- Actions -----------------------------------------------------------------------------------------------------------

    def begin_handshake(self) -> None:
        """Treat what arrives as TLS from now on."""
        raise NotImplementedError

    def begin_data(self) -> None:
        """Treat what arrives as application data from now on."""
        raise NotImplementedError

    def stop_reading(self) -> None:
        raise NotImplementedError

    def start_reading(self) -> None:
        raise NotImplementedError

    def begin_close(self) -> None:
        """Send what was written, then close our side. Read until the peer closes its side."""
        raise NotImplementedError

    def close_socket(self) -> None:
        """Close the socket."""
        raise NotImplementedError

    def close_socket_soon(self) -> None:
        """Close the socket once its caller has returned."""
        raise NotImplementedError


def diagram() -> str:
    """Return the machine as a Mermaid state diagram, without the inputs that change nothing."""
    lines = ["stateDiagram-v2", "    [*] --> accepted"]
    for state, transitions in TRANSITIONS.items():
        for target in TRANSITIONS:
            events = sorted(event for event, (after, _) in transitions.items() if after == target != state)
            if events:
                lines.append(f"    {state} --> {target}: {', '.join(events)}")
    lines.append("    closed --> [*]")
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
