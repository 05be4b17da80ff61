"""The life of a connection, as a state machine.

Inputs are what happened; states are where that leaves the connection; what is to be done at each step is the socket's
(`Effects`). An input that a state does not declare cannot come in it. The diagram in docs/lifecycle.md is made from here:

    python -m owsla.device.lifecycle

Automat says what the machine is, and refuses one that contradicts itself; a connection walks its table (`Lifecycle`). A line
costs nothing for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from automat import NoTransition, TypeMachineBuilder


class Life(Protocol):
    """What may happen to a connection."""

    def spoke(self) -> None:
        """Its first bytes came."""

    def secured(self) -> None:
        """Its TLS handshake is complete."""

    def pause(self) -> None:
        """It is not to be read for now: there is nowhere to publish to, or it talks too fast."""

    def resume(self) -> None:
        """It may be read again."""

    def drain(self) -> None:
        """Its turn to leave has come: it is read no more, and closed when what it said is settled."""

    def close(self) -> None:
        """It is to be closed in order: on the back end's word, after a line too long, when it is drained, or when it does not
        take what is written (`--write-timeout`, `--write-buffer`): what it was sent is still on its way to it.
        """

    def abort(self) -> None:
        """It is to be closed at once: a write failed, or something of ours did."""

    def handshake_overdue(self) -> None:
        """It had its time for the handshake (`--handshake-timeout`)."""

    def idle_overdue(self) -> None:
        """There was no line for too long (`--idle-timeout`)."""

    def goodbye_overdue(self) -> None:
        """It did not answer our goodbye."""

    def ended(self) -> None:
        """The peer has closed, or is gone."""


class Effects(Protocol):
    """What the machine has done, by the socket that it is for."""

    def begin_handshake(self) -> None:
        """From now on what comes is TLS."""

    def open_up(self) -> None:
        """From now on what comes is lines."""

    def stop_reading(self) -> None: ...

    def start_reading(self) -> None: ...

    def say_goodbye(self) -> None:
        """Send what was written, then our end of the stream. What the peer still says is read until it closes its side."""

    def let_go(self) -> None:
        """Close the socket."""

    def let_go_soon(self) -> None:
        """Close the socket when whoever is at work with it has returned."""


builder = TypeMachineBuilder(Life, Effects)  # type: ignore[type-abstract]

accepted = builder.state("accepted")
handshaking = builder.state("handshaking")
open_ = builder.state("open")
paused = builder.state("paused")
draining = builder.state("draining")
closing = builder.state("closing")
closed = builder.state("closed")


@accepted.upon(Life.spoke).to(handshaking)
def begin_handshake(life: Life, socket: Effects) -> None:
    socket.begin_handshake()


@handshaking.upon(Life.secured).to(open_)
def open_up(life: Life, socket: Effects) -> None:
    socket.open_up()


@open_.upon(Life.pause).to(paused)
@open_.upon(Life.drain).to(draining)
@closing.upon(Life.pause).loop()
def stop_reading(life: Life, socket: Effects) -> None:
    socket.stop_reading()


@paused.upon(Life.resume).to(open_)
@closing.upon(Life.resume).loop()
def start_reading(life: Life, socket: Effects) -> None:
    socket.start_reading()


paused.upon(Life.drain).to(draining).returns(None)


@open_.upon(Life.close).to(closing)
@paused.upon(Life.close).to(closing)
@draining.upon(Life.close).to(closing)
@open_.upon(Life.idle_overdue).to(closing)
@paused.upon(Life.idle_overdue).to(closing)
def say_goodbye(life: Life, socket: Effects) -> None:
    socket.say_goodbye()


@accepted.upon(Life.close).to(closed)
@accepted.upon(Life.abort).to(closed)
@accepted.upon(Life.handshake_overdue).to(closed)
@handshaking.upon(Life.close).to(closed)
@handshaking.upon(Life.abort).to(closed)
@handshaking.upon(Life.handshake_overdue).to(closed)
@open_.upon(Life.abort).to(closed)
@paused.upon(Life.abort).to(closed)
@draining.upon(Life.abort).to(closed)
@closing.upon(Life.abort).to(closed)
@closing.upon(Life.goodbye_overdue).to(closed)
def let_go_soon(life: Life, socket: Effects) -> None:
    socket.let_go_soon()


@accepted.upon(Life.ended).to(closed)
@handshaking.upon(Life.ended).to(closed)
@open_.upon(Life.ended).to(closed)
@paused.upon(Life.ended).to(closed)
@draining.upon(Life.ended).to(closed)
@closing.upon(Life.ended).to(closed)
def let_go(life: Life, socket: Effects) -> None:
    socket.let_go()


# What changes nothing: it is so already, or it is too late for it.
open_.upon(Life.resume).loop().returns(None)
paused.upon(Life.pause).loop().returns(None)
for _input in (Life.pause, Life.resume, Life.drain, Life.idle_overdue):
    draining.upon(_input).loop().returns(None)
for _input in (Life.drain, Life.close, Life.idle_overdue):
    closing.upon(_input).loop().returns(None)
for _input in (
    Life.pause,
    Life.resume,
    Life.drain,
    Life.close,
    Life.abort,
    Life.handshake_overdue,
    Life.idle_overdue,
    Life.goodbye_overdue,
    Life.ended,
):
    closed.upon(_input).loop().returns(None)

MACHINE: Final = builder.build().__automat_automaton__
"""Automat's own: all states, inputs and transitions."""


class State:
    """A state as a connection sees it: what may happen in it, and what that leads to."""

    __slots__ = ("name", "steps")

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: dict[str, tuple[State, Callable[[Any, Any], object]]] = {}
        """For each input the next state, and what is done on the way there."""


def _table() -> dict[str, State]:
    states = {each.name: State(each.name) for each in MACHINE.states()}
    for before, what, after, (output,) in MACHINE.allTransitions():
        states[before.name].steps[what] = (states[after.name], output.method)  # type: ignore[attr-defined]
    return states


STATES: Final = _table()
"""All states, by their names."""

_INITIAL: Final = STATES[MACHINE.initialState.name]


class Lifecycle:
    """The machine of one connection.

    An input that comes while another is dealt with has its turn after it. One that cannot come in a state raises Automat's
    `NoTransition`, and changes nothing.

    Automat's own instances look at one transition after another until they find theirs, which was 6 % of what a handshake
    costs (sampled over 20,000 of them), and take 209 bytes where these take 73.
    """

    __slots__ = ("_at_work", "_next", "_socket", "state")

    def __init__(self, socket: Effects) -> None:
        self.state = _INITIAL
        self._socket = socket
        self._at_work = False
        self._next: tuple[str, ...] = ()

    def _happens(self, what: str) -> None:
        if self._at_work:
            self._next += (what,)
            return
        step = self.state.steps.get(what)
        if step is None:
            raise NoTransition(state=self.state.name, symbol=what)
        self.state, carry_out = step
        self._at_work = True
        try:
            carry_out(self, self._socket)
        finally:
            self._at_work = False
            waiting, self._next = self._next, ()
        for each in waiting:
            self._happens(each)

    def spoke(self) -> None:
        self._happens("spoke")

    def secured(self) -> None:
        self._happens("secured")

    def pause(self) -> None:
        self._happens("pause")

    def resume(self) -> None:
        self._happens("resume")

    def drain(self) -> None:
        self._happens("drain")

    def close(self) -> None:
        self._happens("close")

    def abort(self) -> None:
        self._happens("abort")

    def handshake_overdue(self) -> None:
        self._happens("handshake_overdue")

    def idle_overdue(self) -> None:
        self._happens("idle_overdue")

    def goodbye_overdue(self) -> None:
        self._happens("goodbye_overdue")

    def ended(self) -> None:
        self._happens("ended")


def diagram() -> str:
    """The machine as a Mermaid state diagram. Inputs that change nothing are left out."""
    inputs: dict[tuple[str, str], list[str]] = {}
    for state in STATES.values():
        for what, (after, _) in state.steps.items():
            if state is not after:
                inputs.setdefault((state.name, after.name), []).append(what)
    order = [state.name for state in (accepted, handshaking, open_, paused, draining, closing, closed)]
    lines = ["stateDiagram-v2", f"    [*] --> {accepted.name}"]
    for before, next_ in sorted(inputs, key=lambda step: (order.index(step[0]), order.index(step[1]))):
        lines.append(f"    {before} --> {next_}: {', '.join(sorted(inputs[before, next_]))}")
    lines.append(f"    {closed.name} --> [*]")
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
