"""Calls that may block for long, in threads that cannot hold up the end of the process.

Twisted joins the threads of its pool when the reactor stops. A file on a file server that does not answer, or a pipe that
nobody writes to, would hold the stopped process. A daemon thread ends with the process.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


def in_daemon_thread(reactor: Any, name: str, call: Callable[[], T]) -> Deferred[T]:
    """Make a call in a thread of its own. The Deferred fires with its result or failure in the reactor's thread.

    `name` is that of the thread, for debuggers. The call cannot be cancelled: then its result is ignored.
    """
    called: Deferred[T] = Deferred()

    def run() -> None:
        try:
            result: Any = call()
        except BaseException:
            result = Failure()
        reactor.callFromThread(finish, result)

    def finish(result: Any) -> None:
        if not called.called:
            called.callback(result)

    Thread(target=run, name=name, daemon=True).start()
    return called
