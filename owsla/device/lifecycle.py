"""The life of a connection, as a state machine.

Inputs are what happened; states are where that leaves the connection; what is to be done at each step is the socket's
(`Effects`). An input that a state does not declare cannot come in it. The diagram in docs/lifecycle.md is made from here:

    python -m owsla.device.lifecycle

A connection pays some 250 bytes for its machine and a microsecond for a step, and nothing for a line.
"""

from __future__ import annotations

from typing import Protocol

from automat import TypeMachineBuilder


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
        """It is to be closed in order: on the back end's word, after a line too long, or when it is drained."""

    def abort(self) -> None:
        """It is to be closed at once: a write failed, or something of ours did."""

    def handshake_overdue(self) -> None:
        """It had its time for the handshake (`--handshake-timeout`)."""

    def idle_overdue(self) -> None:
        """There was no line for too long (`--idle-timeout`)."""

    def write_overdue(self) -> None:
        """It did not take what was written for too long, or too much waits for it (`--write-timeout`, `--write-buffer`)."""

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
        """Send what was written, then our end of the stream; wait for the peer's."""

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
def stop_reading(life: Life, socket: Effects) -> None:
    socket.stop_reading()


@paused.upon(Life.resume).to(open_)
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
@open_.upon(Life.write_overdue).to(closed)
@paused.upon(Life.abort).to(closed)
@paused.upon(Life.write_overdue).to(closed)
@draining.upon(Life.abort).to(closed)
@draining.upon(Life.write_overdue).to(closed)
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
for _input in (Life.pause, Life.resume, Life.drain, Life.close, Life.idle_overdue, Life.write_overdue):
    closing.upon(_input).loop().returns(None)
for _input in (
    Life.pause,
    Life.resume,
    Life.drain,
    Life.close,
    Life.abort,
    Life.handshake_overdue,
    Life.idle_overdue,
    Life.write_overdue,
    Life.goodbye_overdue,
    Life.ended,
):
    closed.upon(_input).loop().returns(None)

Lifecycle = builder.build()
"""Makes the machine of one connection: `Lifecycle(effects)`."""


def diagram() -> str:
    """The machine as a Mermaid state diagram. Inputs that change nothing are left out."""
    steps: dict[tuple[str, str], list[str]] = {}
    for state, what, next_state, _ in Lifecycle.__automat_automaton__.allTransitions():
        if state is not next_state:
            steps.setdefault((state.name, next_state.name), []).append(what)
    order = [state.name for state in (accepted, handshaking, open_, paused, draining, closing, closed)]
    lines = ["stateDiagram-v2", f"    [*] --> {accepted.name}"]
    for before, after in sorted(steps, key=lambda step: (order.index(step[0]), order.index(step[1]))):
        lines.append(f"    {before} --> {after}: {', '.join(sorted(steps[before, after]))}")
    lines.append(f"    {closed.name} --> [*]")
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
