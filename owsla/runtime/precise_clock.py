"""Delayed calls that are more precise than those of a reactor.

A reactor waits in epoll_wait(2), for whole milliseconds, rounded up. So a delayed call of 5 ms comes after 5 to 6 ms while
nothing else wakes the process. Here the kernel makes a descriptor readable at the time of the call (timerfd_create(2)).
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from ..interfaces import DelayedCall, Reactor

_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK
"""TFD_CLOEXEC and TFD_NONBLOCK, which have the same values (timerfd_create(2))."""
_NANOSECONDS: Final = 1_000_000_000


class PreciseClock:
    """Clock of a reactor, whose delayed calls come after their delay and not up to a millisecond later.

    A call takes a descriptor and six system calls. Where the system has no such timer, or no free descriptor, the reactor makes
    the call.
    """

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._timers = _SystemTimers()
        self.seconds: Final = reactor.seconds

    def callLater(self, delay: float, call: Callable[..., Any], /, *args: Any) -> DelayedCall:
        """Call a function after a delay in seconds. The delay is real time, whatever clock the reactor has."""
        timer = self._timers.start(delay)
        if timer is None:
            delayed: DelayedCall = self._reactor.callLater(delay, call, *args)
            return delayed
        return _PreciseCall(self._reactor, timer, call, args)


class _PreciseCall:
    """Delayed call, and descriptor of the reactor."""

    _log = Logger()

    __slots__ = ("_args", "_call", "_reactor", "_timer")

    def __init__(self, reactor: Reactor, timer: int, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """`timer` is the descriptor of a timer that was started. This object closes it."""
        self._reactor = reactor
        self._timer = timer
        self._call = call
        self._args = args
        reactor.addReader(self)

    def active(self) -> bool:
        """Return whether the call is still to be made."""
        return self._timer >= 0

    def cancel(self) -> None:
        """Do not make the call. Once it has been made or cancelled, this has no effect."""
        if self._timer >= 0:
            self._reactor.removeReader(self)
            timer, self._timer = self._timer, -1
            os.close(timer)

    # -- what the reactor wants of a descriptor ----------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._timer

    def logPrefix(self) -> str:
        return "timer"

    def doRead(self) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            return  # the event was that of an earlier timer, which had the same descriptor
        self.cancel()
        try:
            self._call(*self._args)
        except Exception:
            self._log.failure("A delayed call failed: {call}", call=self._call)

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing more, when the reactor ends."""
        self.cancel()


class _SystemTimers:
    """Timers of the kernel as descriptors: timerfd_create(2). Python itself has them since 3.13."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(None)
            self._functions: tuple[Any, Any] | None = library.timerfd_create, library.timerfd_settime
        except (OSError, AttributeError):
            self._functions = None
        else:
            library.timerfd_settime.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

    def start(self, delay: float) -> int | None:
        """Return the descriptor of a timer that expires once, after `delay` seconds; `None` if there is none."""
        if self._functions is None:
            return None
        create, set_time = self._functions
        timer: int = create(time.CLOCK_MONOTONIC, _FLAGS)
        if timer < 0:
            return None
        # A timer that is set to 0 never expires.
        seconds, nanoseconds = divmod(max(1, round(delay * _NANOSECONDS)), _NANOSECONDS)
        if set_time(timer, 0, (ctypes.c_long * 4)(0, 0, seconds, nanoseconds), None):
            os.close(timer)
            return None
        return timer
