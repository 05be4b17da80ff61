"""Waits for a condition, with a deadline, while the reactor runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, Generic, ParamSpec, TypeVar

import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import deferLater

T = TypeVar("T")
P = ParamSpec("P")

#: Seconds between two checks of a condition: short compared with every wait, long compared with the cost of a check.
INTERVAL = 0.01

#: Default deadline of a wait in seconds. Far above the usual time (well under a second), because a test machine is sometimes
#: busy. A wait that ends by this deadline is a failure.
PATIENCE = 15.0


def current_reactor() -> Any:
    """Return the reactor, untyped: mypy does not understand zope interfaces."""
    from twisted.internet import reactor

    return reactor


def reactor_test(function: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """Mark an `async def` test to run in the reactor of pytest-twisted, which itself has no types."""
    marked: Callable[P, Coroutine[Any, Any, None]] = pytest_twisted.ensureDeferred(function)
    return marked


def block_on(awaitable: Coroutine[Any, Any, T]) -> T:
    """Wait for a coroutine from a synchronous fixture."""
    result: T = pytest_twisted.blockon(Deferred.fromCoroutine(awaitable))
    return result


async def within(awaitable: Awaitable[T], timeout: float = PATIENCE, what: str = "") -> T:
    """Wait for `awaitable`; raise AssertionError, naming `what`, when it takes longer than `timeout` seconds."""

    async def wait() -> T:
        return await awaitable

    waiting = Deferred.fromCoroutine(wait())
    waiting.addTimeout(timeout, current_reactor())
    try:
        return await waiting
    except DeferredTimeout:
        raise AssertionError(f"still waiting after {timeout} s for {what or awaitable}") from None


async def pause(seconds: float) -> None:
    """Let the reactor run for some time: to show that something does *not* happen, and between checks of a remote state."""
    await deferLater(current_reactor(), seconds, lambda: None)


async def until(condition: Callable[[], T], timeout: float = PATIENCE, what: str | Callable[[], str] = "") -> T:
    """Check `condition` until it is true and return its value; raise AssertionError after `timeout` seconds."""
    reactor = current_reactor()
    deadline = reactor.seconds() + timeout
    while True:
        value = condition()
        if value:
            return value
        if reactor.seconds() > deadline:
            said = what() if callable(what) else what
            raise AssertionError(f"still waiting after {timeout} s for {said or condition}")
        await deferLater(reactor, INTERVAL, lambda: None)


class Inbox(Generic[T]):
    """Queue of received items, in order of arrival."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._waiting: deque[Deferred[T]] = deque()
        self._arrived: deque[T] = deque()
        self._end: BaseException | None = None

    def put(self, item: T) -> None:
        """Add an item, or pass it to the waiting caller."""
        if self._waiting:
            self._waiting.popleft().callback(item)
        else:
            self._arrived.append(item)

    def finish(self, reason: BaseException) -> None:
        """End the queue: waiting callers fail at once rather than at their deadline."""
        self._end = reason
        while self._waiting:
            self._waiting.popleft().errback(reason)

    async def get(self, timeout: float = PATIENCE) -> T:
        """Take the oldest item, and wait for one if there is none."""
        if self._arrived:
            return self._arrived.popleft()
        if self._end is not None:
            raise self._end
        arrival: Deferred[T] = Deferred(self._forget)
        self._waiting.append(arrival)
        return await within(arrival, timeout, f"the next of {self.name}")

    async def take(self, count: int, timeout: float = PATIENCE) -> list[T]:
        """Take the oldest `count` items."""
        return [await self.get(timeout) for _ in range(count)]

    async def find(self, wanted: Callable[[T], bool], timeout: float = PATIENCE) -> T:
        """Take items up to a wanted one, and drop the others."""
        while True:
            item = await self.get(timeout)
            if wanted(item):
                return item

    def clear(self) -> list[T]:
        """Take everything that has arrived so far, without waiting."""
        items = list(self._arrived)
        self._arrived.clear()
        return items

    def __len__(self) -> int:
        return len(self._arrived)

    def _forget(self, arrival: Deferred[T]) -> None:
        if arrival in self._waiting:
            self._waiting.remove(arrival)


def in_thread_order(function: Callable[P, None]) -> Callable[P, None]:
    """Return a function for other threads that runs the given one in the reactor thread, in the order of the calls."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        current_reactor().callFromThread(function, *args, **kwargs)

    return call
