"""State machine of a connection.

Inputs are events; states are where they leave the connection; the action of a transition is carried out by the transport
(`Actions`). `TRANSITIONS` is the whole machine. An input that a state does not list is impossible there: it raises
`automat.NoTransition`, and changes nothing.

The table is walked by `Lifecycle`, and the tests check it against a machine that Automat builds and runs. An instance of
Automat takes 209 bytes for each connection where a `Lifecycle` takes 73, and its search for a transition was 6 % of the CPU of
a handshake (sampled over 20,000 of them). A line costs nothing for either.

The diagram in docs/lifecycle.md is generated from the table:

    python -m owsla.device.lifecycle
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from automat import NoTransition


class Life(Protocol):
    """Inputs of the state machine of a connection."""

    def hello_received(self) -> None:
        """Note that the first bytes of the peer arrived."""

    def secured(self) -> None:
        """Note that the TLS handshake is complete."""

    def opened(self) -> None:
        """Note that a connection without TLS is open: its first bytes arrived, or it is silent longer than a health check."""

    def pause(self) -> None:
        """Stop reading for a while: lines cannot be published, or the device exceeds its rate."""

    def resume(self) -> None:
        """Read again."""

    def drain(self) -> None:
        """Stop reading permanently. The connection is closed when everything that it sent is settled."""

    def close(self) -> None:
        """Close in order, after what was written: for a back end, a line too long, the end of draining, or a device that does
        not take what is written (`--write-timeout`, `--write-buffer`).
        """

    def abort(self) -> None:
        """Close at once: a write failed, or our own code did."""

    def handshake_overdue(self) -> None:
        """Close after the handshake time-out (`--handshake-timeout`)."""

    def idle_overdue(self) -> None:
        """Close after the idle time-out (`--idle-timeout`)."""

    def close_overdue(self) -> None:
        """Close a socket whose peer does not close its side."""

    def ended(self) -> None:
        """Note that the peer has closed, or is gone."""


class Actions(Protocol):
    """Actions of the transitions, which the transport carries out."""

    def begin_handshake(self) -> None:
        """Treat what arrives as TLS from now on."""

    def begin_data(self) -> None:
        """Treat what arrives as application data from now on."""

    def stop_reading(self) -> None: ...

    def start_reading(self) -> None: ...

    def begin_close(self) -> None:
        """Send what was written, then close our side. Read until the peer closes its side."""

    def close_socket(self) -> None:
        """Close the socket."""

    def close_socket_soon(self) -> None:
        """Close the socket once its caller has returned."""


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
    """State machine of one connection. An input that arrives during an action is taken after it."""

    __slots__ = ("_actions", "_in_action", "_pending", "state")

    def __init__(self, actions: Actions) -> None:
        self.state = "accepted"
        self._actions = actions
        self._in_action = False
        self._pending: tuple[str, ...] = ()

    def _take(self, event: str) -> None:
        if self._in_action:
            self._pending += (event,)
            return
        transition = TRANSITIONS[self.state].get(event)
        if transition is None:
            raise NoTransition(state=self.state, symbol=event)
        self.state, action = transition
        if action is None:
            return
        self._in_action = True
        try:
            getattr(self._actions, action)()
        finally:
            self._in_action = False
            pending, self._pending = self._pending, ()
        for each in pending:
            self._take(each)

    def hello_received(self) -> None:
        self._take("hello_received")

    def secured(self) -> None:
        self._take("secured")

    def opened(self) -> None:
        self._take("opened")

    def pause(self) -> None:
        self._take("pause")

    def resume(self) -> None:
        self._take("resume")

    def drain(self) -> None:
        self._take("drain")

    def close(self) -> None:
        self._take("close")

    def abort(self) -> None:
        self._take("abort")

    def handshake_overdue(self) -> None:
        self._take("handshake_overdue")

    def idle_overdue(self) -> None:
        self._take("idle_overdue")

    def close_overdue(self) -> None:
        self._take("close_overdue")

    def ended(self) -> None:
        self._take("ended")


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
