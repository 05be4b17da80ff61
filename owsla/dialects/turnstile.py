"""A coin-operated turnstile, the worked example of docs/dialects.md.

    device   COIN                   a coin was inserted
    device   PUSH                   a person pushes the arm
    Owsla    UNLOCKED | LOCKED      the new state of the arm
    Owsla    RETURN                 return the coin: the arm was unlocked already
    Owsla    WHAT                   the line was neither

After a coin the arm stays unlocked for 30 seconds. Back ends receive `paid`, `passed`, `pushed` (while the arm was locked) and
`expired`. They may send `UNLOCK`, to let a person in without a coin.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from automat import TypeMachineBuilder

from ._interfaces import REFUSED, Conversation, Dialect, Refused

PATIENCE: Final = 30.0
"""Seconds for which the arm stays unlocked."""


class Inputs(Protocol):
    """Inputs of the state machine."""

    def coin(self) -> None:
        """A coin was inserted."""

    def push(self) -> None:
        """A person pushes the arm."""

    def unlock(self) -> None:
        """A back end lets a person in."""

    def too_late(self) -> None:
        """The time for passing is over."""


class Arm(Protocol):
    """Outputs of the state machine."""

    def say(self, line: bytes) -> None:
        """Send a line to the turnstile."""

    def report(self, line: bytes) -> None:
        """Publish a line to the back ends."""

    def begin_waiting(self) -> None: ...

    def stop_waiting(self) -> None: ...


builder = TypeMachineBuilder(Inputs, Arm)  # type: ignore[type-abstract]

locked = builder.state("locked")
unlocked = builder.state("unlocked")


@locked.upon(Inputs.coin).to(unlocked)
def pay(turnstile: Inputs, arm: Arm) -> None:
    arm.report(b"paid")
    arm.say(b"UNLOCKED")
    arm.begin_waiting()


@locked.upon(Inputs.unlock).to(unlocked)
def let_in(turnstile: Inputs, arm: Arm) -> None:
    arm.say(b"UNLOCKED")
    arm.begin_waiting()


@unlocked.upon(Inputs.push).to(locked)
def go_through(turnstile: Inputs, arm: Arm) -> None:
    arm.stop_waiting()
    arm.report(b"passed")
    arm.say(b"LOCKED")


@unlocked.upon(Inputs.too_late).to(locked)
def expire(turnstile: Inputs, arm: Arm) -> None:
    arm.report(b"expired")
    arm.say(b"LOCKED")


@locked.upon(Inputs.push).loop()
def rattle(turnstile: Inputs, arm: Arm) -> None:
    arm.report(b"pushed")
    arm.say(b"LOCKED")


@unlocked.upon(Inputs.coin).loop()
def return_coin(turnstile: Inputs, arm: Arm) -> None:
    arm.say(b"RETURN")


unlocked.upon(Inputs.unlock).loop().returns(None)

Machine = builder.build()


class Turnstile(Dialect):
    """The dialect: turns lines into inputs of the machine, and its outputs into lines."""

    __slots__ = ("_machine",)

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        self._machine: Inputs = Machine(self)

    def line(self, line: bytes) -> None:
        if line == b"COIN":
            self._machine.coin()
        elif line == b"PUSH":
            self._machine.push()
        else:
            self.conversation.answer(b"WHAT")

    def outgoing(self, line: bytes) -> Iterable[bytes] | Refused:
        if line != b"UNLOCK":
            return REFUSED
        self._machine.unlock()
        return ()

    def redact(self, line: bytes) -> str | None:
        return None  # a turnstile has no secrets

    def timed_out(self) -> None:
        self._machine.too_late()

    # -- Outputs of the machine ------------------------------------------------------------------------------------------

    def say(self, line: bytes) -> None:
        self.conversation.answer(line)

    def report(self, line: bytes) -> None:
        self.conversation.publish(line)

    def begin_waiting(self) -> None:
        self.conversation.set_timeout(PATIENCE)

    def stop_waiting(self) -> None:
        self.conversation.clear_timeout()
