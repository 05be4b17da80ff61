"""Reloads of the configuration of a process while it runs.

Theory of operation
-------------------

    WAITING ──request, or a file has changed──▶ LOADING ──loaded──▶ ADOPTING ──adopted──▶ WAITING
                                                  └──fault──▶ WAITING   └──refused──▶ WAITING

A reload loads the whole configuration from all its sources, in a thread, because a file server that does not answer must not
stop the reactor. Whatever can fail is done there. Then the new configuration is adopted as a whole: a node assigns it to its
parts, which cannot fail; a parent has all of its workers load it first, and any of them may refuse. After a fault or a refusal
the present configuration stays in force.

A reload begins

- for a request: a signal;
- when the watch finds that a file has changed. It reads all files again every `--watch` seconds. A program that
  changes one file often changes another one next, such as the key of a certificate, so the watch waits until nothing has
  changed for `SETTLE` seconds;
- after a failed reload, when a file has changed again, which is checked every `SETTLE` seconds, and every `RETRY` seconds in
  any case: the cause of the failure may be something else than a file.

A thread whose file cannot be read in time is given up after `SLOW` seconds, and the reload has failed. Such a thread ends when
the file server answers. As long as there are `STUCK` of them, no reload begins without a request.

A request during a reload starts another one after it, because the files may have changed after they were read. The same fault
is reported once, unless somebody requests the reload again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import ConfigError, ReloadRefused
from ..events import ConfigurationReloaded, Event, ReloadFailed
from ..interfaces import Clock, DelayedCall
from ..runtime.files import Files
from ..supervision import Worker
from .configuration import Configuration, CurrentConfiguration

SETTLE: Final = 1.0
"""Seconds without a change after which the watch takes the files for complete. ACME clients write certificate and key within
milliseconds of each other."""

RETRY: Final = 60.0
"""Seconds after a failed reload until the next one, if no file changes before."""

SLOW: Final = 10.0
"""Seconds after which a thread that reads a file is given up."""

STUCK: Final = 4
"""Threads that may be left behind because a file server does not answer."""

_STOPPED: Final = "the gateway stops, or has not started yet"

T = TypeVar("T")


class _GivenUp(ConfigError):
    """A file could not be read in time. The thread may still read it."""


class RunInThread(Protocol):
    """A function that makes a call in a thread."""

    def __call__(self, name: str, call: Callable[[], T], /) -> Deferred[T]: ...


class Changes(Protocol):
    """Names of the options that a new configuration changes."""

    @property
    def applied(self) -> tuple[str, ...]:
        """Names of the options whose change a reload applies."""

    @property
    def rolling_restart(self) -> tuple[str, ...]:
        """Names of the options whose change new workers follow."""

    @property
    def restart(self) -> tuple[str, ...]:
        """Names of the options whose change takes a restart of the process."""


class Reloads(Worker):
    """Service that reloads the configuration of a process."""

    _log = Logger(namespace="owsla")

    def __init__(
        self,
        clock: Clock,
        run: RunInThread,
        current: CurrentConfiguration,
        *,
        load: Callable[[Files], Configuration],
        adopt: Callable[[Configuration, Configuration], Deferred[Changes]],
        emit: Callable[[Event], None],
        now: Callable[[], float],
    ) -> None:
        """`load` loads another configuration than the `current` one from files, in a thread. `adopt` makes the second of two
        configurations the current one; its Deferred fails with `ReloadRefused` if that is not possible. `now` is in seconds
        since the epoch.
        """
        super().__init__(clock)
        self.setName("reload")
        self._clock = clock
        self._run = run
        self._load = load
        self._adopt = adopt
        self._emit = emit
        self._now = now
        self._current = current
        self._seen = current.files
        self._poll_call: DelayedCall | None = None
        self._running = False
        self._stuck = 0
        self._waiters: list[Deferred[bool]] = []
        self._requesters: list[str] = []
        self._fault = ""
        self._retry_at = 0.0
        self.success_time = now()
        """Time of the last successful reload, or of the start, in seconds since the epoch."""
        self.result = ""
        """Result of the last reload as one sentence: the changes, or the fault."""

    @property
    def successful(self) -> bool:
        """True unless the last reload failed."""
        return not self._fault

    def startService(self) -> None:
        super().startService()
        self._running = False
        self._schedule()

    def stopService(self) -> Any:
        waiters, self._waiters = self._waiters, []
        self._requesters = []
        self.result = _STOPPED
        for waiter in waiters:
            waiter.callback(False)
        return super().stopService()

    def request(self, by: str | None = None) -> Deferred[bool]:
        """Reload now, or once more after the present reload, at the request of `by`; `None` is a signal.

        The Deferred fires with the success when `result` is that of this reload, and never fails.
        """
        waiter: Deferred[bool] = Deferred()
        if not self.running:
            self.result = _STOPPED
            waiter.callback(False)
            return waiter
        self._waiters.append(waiter)
        if by is not None and by not in self._requesters:
            self._requesters.append(by)
        if not self._running:
            self.watch(self._reload_for_requests())
        return waiter

    async def _reload_for_requests(self) -> None:
        while self._waiters and self.running:
            waiters, self._waiters = self._waiters, []
            requesters, self._requesters = self._requesters, []
            success = False
            try:
                success = await self._reload(requested=True, by=" and ".join(requesters) or None)
            finally:
                for waiter in waiters:
                    waiter.callback(success)

    # -- watching ----------------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Schedule the next look at the files."""
        if self._poll_call is not None and self._poll_call.active():
            self._poll_call.cancel()
        interval = SETTLE if self._fault else self._current.settings.watch
        if interval and self.running:
            self._poll_call = self.later(interval, self._poll)

    async def _poll(self) -> None:
        seen = self._seen
        due = False
        if self._stuck < STUCK:
            try:
                due = await self._settled(seen) or (bool(self._fault) and self._clock.seconds() >= self._retry_at)
            except ConfigError as error:
                self._failed(str(error), requested=False)
            except CancelledError:
                raise  # the service stops
            except Exception as error:
                # For example: no more threads. A look at the files must not end the gateway.
                self._failed(f"the files cannot be checked: {error}", requested=False)
        if self._running or seen is not self._seen:
            return  # a reload meanwhile has seen the change, and has scheduled the next look
        if due:
            await self._reload(requested=False)
            await self._reload_for_requests()
        else:
            self._schedule()

    async def _settled(self, seen: Files) -> bool:
        """Return whether files have changed. If so, wait first until they do not change any longer."""
        files = await self._read_again(seen)
        changed = not files.same_as(seen)
        settled = not changed
        while not settled:
            await self._wait(SETTLE)
            again = await self._read_again(files)
            settled, files = again.same_as(files), again
        return changed

    async def _read_again(self, seen: Files) -> Files:
        """Return what is in the files now. Raise `ConfigError` if one of them cannot be read in time."""
        files = seen.again()
        await self._in_time("watch", files, lambda: files.read_all_of(seen))
        return files

    async def _wait(self, seconds: float) -> None:
        waiting: Deferred[None] = Deferred()
        self.later(seconds, waiting.callback, None)
        await waiting

    async def _in_time(self, name: str, files: Files, call: Callable[[], T]) -> T:
        """Make a call in a thread that reads `files`. Raise `ConfigError` if it is still reading one after `SLOW` seconds."""
        result: Deferred[T] = Deferred()
        given_up = False
        late: DelayedCall | None = None

        def finished(value: Any) -> None:
            if given_up:
                self._stuck -= 1
            elif not result.called:
                result.callback(value)

        def check() -> None:
            nonlocal given_up, late
            path = files.reading
            if path is None:
                late = self.later(SLOW, check)  # it works on what it has read
            elif not result.called:
                given_up = True
                self._stuck += 1
                result.errback(_GivenUp(f"{path}: reading takes more than {SLOW:g} s"))

        late = self.later(SLOW, check)
        try:
            self._run(name, call).addBoth(finished)
            return await result
        finally:
            if late is not None and late.active():
                late.cancel()  # it refers to the result, which is large

    # -- a reload ----------------------------------------------------------------------------------------------------------

    async def _reload(self, *, requested: bool, by: str | None = None) -> bool:
        self._running = True
        files = self._current.files.again()
        changes: Changes | None = None
        fault = ""
        try:
            new = await self._in_time("reload", files, lambda: self._load(files))
            if requested or self._fault or not new.files.same_as(self._current.files):
                changes = await self._adopt(self._current.configuration, new)
        except CancelledError:
            raise  # the service stops
        except _GivenUp as error:
            fault = str(error)
            files = self._current.files  # the thread still changes those that it was to read
        except (ConfigError, ReloadRefused) as error:
            fault = str(error)
        except Exception:
            fault = "an internal error, which the log describes"
            self._log.failure("A reload of the configuration failed", Failure())
        finally:
            self._running = False
        self._seen = files
        if fault:
            self._failed(fault, requested, by)
        elif changes is not None:
            self._fault = ""
            self.success_time = self._now()
            self._emit(ConfigurationReloaded(changes.applied, changes.rolling_restart, changes.restart, by))
            self.result = str(ConfigurationReloaded(changes.applied, changes.rolling_restart, changes.restart))
        self._schedule()
        return not fault

    def _failed(self, fault: str, requested: bool, by: str | None = None) -> None:
        self._retry_at = self._clock.seconds() + RETRY
        self.result = fault
        if requested or fault != self._fault:
            self._fault = fault
            self._emit(ReloadFailed(fault, by))
