"""The parent of the processes of a demo: starts them, says what to try, and ends them.

Whatever ends the demo, nothing of it stays:

    Ctrl-C, SIGTERM, SIGHUP       are noted; the processes are terminated, and the folder is removed
    a closed pipe or terminal     the same: the parent watches its standard output
    an ended part                 the same, with the reason and status 1
    kill -9                       the kernel kills the processes (`__main__`); the folder stays
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from ...errors import ConfigError, os_reason
from .._control import JSON, at_socket
from .._print import put
from .._screen import full_screen
from .._table import terminal
from .._text import shortened
from .._top import summary
from ._ends import Ends
from ._guide import guide, own_command
from ._part import Part
from ._plan import Plan, Request, make_plan
from ._watch import GatewayWatch

START_TIMEOUT: Final = 60.0
"""Seconds for the gateway to be ready: far more than a slow machine needs."""

ATTEMPTS: Final = 3
"""Starts of the gateway. Another program, such as a second demo, may take a port between the look at it and the start."""

BROKER_TIMEOUT: Final = 10.0
"""Seconds with a RabbitMQ of the user, which may be out of reach, or refuse the login."""

DEVICES_TIMEOUT: Final = 15.0
"""Seconds to wait for all devices, before the person is told what to try."""

EXIT_TIMEOUT: Final = 6.0
"""Seconds for the processes to end: twice the --drain-timeout of the gateway."""

LONGEST_FOLDER: Final = 70
"""Bytes of the name of a folder in which a unix socket in a folder of ours has a path of 107 bytes at most."""

STEADY: Final = 4.0
"""Seconds after which the figures no longer show the start."""


class PartEnded(Exception):
    """A part of the demo has ended by itself. The text says which and why."""


class NotReady(Exception):
    """The gateway is not ready in time. The text says why."""


def run(request: Request) -> int:
    """Run a demo until something ends it. Return the exit status."""
    os.umask(0o077)
    with Ends() as ends:
        try:
            folder = make_folder()
            try:
                return Demo(request, folder, ends).run()
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        except (PartEnded, NotReady, ConfigError) as error:
            say(str(error))
            return 1


def make_folder() -> Path:
    """Return a new folder for temporary files, which only this user can enter. Raise `ConfigError`.

    Unlike that of `tempfile`, the search does not end in the working folder. A folder in which the path of the control socket
    is too long is passed over.
    """
    given = os.environ.get("TMPDIR", "")
    if not os.path.isabs(given):
        given = ""  # the processes have another working folder
    error = OSError("no folder for temporary files")
    for parent in (*([given] if given else []), "/tmp", "/var/tmp", "/dev/shm"):
        if len(os.fsencode(parent)) > LONGEST_FOLDER:
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="owsla-demo-", dir=parent))
        except OSError as problem:
            error = problem
    raise ConfigError(f"no folder for temporary files can be made in /tmp: {os_reason(error)}; TMPDIR names another place")


def say(text: str) -> None:
    """Write a text to standard error."""
    try:
        sys.stderr.write(f"owsla demo: {text}\n")
        sys.stderr.flush()
    except OSError:
        pass  # standard error is closed


class Demo:
    """A demo: its processes, and what is shown of them."""

    def __init__(self, request: Request, folder: Path, ends: Ends) -> None:
        self._request = request
        self._folder = folder
        self._ends = ends
        self._parts: list[Part] = []
        self._status = StatusLine()
        self._watch: GatewayWatch | None = None

    def run(self) -> int:
        """Run until something ends the demo."""
        try:
            self._run()
            return 0
        finally:
            self._status.clear()
            self._end()

    def _run(self) -> None:
        folder, token = self._folder, secrets.token_hex(16)
        plan, watch = self._start_gateway(token)
        if self._ends.come:
            return
        self._start("back end", "echo", *plan.echo(folder))
        self._start("devices", "devices", str(plan.port), str(folder / "certs" / "ca.pem"), str(plan.devices))
        if not self._devices_connect(watch, plan.devices):
            return
        put(guide(plan, folder, token, own_command()))
        shown = None
        while not self._ends.come:
            if watch.sample is not shown:
                shown = watch.sample
                self._status.show(shown)
            self._wait(60.0)

    def _start_gateway(self, token: str) -> tuple[Plan, GatewayWatch]:
        """Start the gateway, and wait until it is ready or the demo shall end. Raise `PartEnded`, and `ConfigError`."""
        folder, attempts = self._folder, ATTEMPTS
        plan = make_plan(self._request)
        where = "an in-memory broker" if plan.broker is None else plan.broker.url
        put(f"Starting a gateway with {where}, a back end, and {plan.devices} devices ...\n")
        for name, content in plan.files(token).items():
            (folder / name).write_text(content)
        watch = self._watch = GatewayWatch(at_socket(str(folder / "owsla.sock")), self._ends.wake)
        while True:
            self._start("gateway", "gateway", *plan.gateway(folder))
            attempts -= 1
            try:
                self._wait_until_ready(watch)
                return plan, watch
            except PartEnded:
                if not (attempts and plan.ports_taken()):
                    raise
                self._parts.clear()
                plan = make_plan(self._request)

    def _start(self, name: str, kind: str, *arguments: str) -> None:
        self._parts.append(Part(name, kind, arguments, self._folder))

    def _wait(self, seconds: float) -> None:
        """Wait for something new. Raise `PartEnded` if a part has ended by itself."""
        self._ends.wait(seconds)
        for part in self._parts:
            if not part.running and not self._ends.come:
                raise PartEnded(part.why())

    def _wait_until_ready(self, watch: GatewayWatch) -> None:
        """Wait for the gateway, or until the demo shall end. Raise `PartEnded`."""
        seconds = START_TIMEOUT if self._request.broker is None else BROKER_TIMEOUT
        deadline = time.monotonic() + seconds
        while not self._ends.come and not watch.ready:
            self._wait(1.0)
            if time.monotonic() > deadline:
                raise NotReady(
                    f"the gateway is not ready after {seconds:g} s: {watch.problem()}; the last lines of its log:\n"
                    f"{self._parts[0].last_lines()}"
                )

    def _devices_connect(self, watch: GatewayWatch, devices: int) -> bool:
        """Wait for the devices, for some time. Return false if the demo shall end. Raise `PartEnded`."""
        deadline = time.monotonic() + DEVICES_TIMEOUT
        while not self._ends.come and time.monotonic() < deadline:
            if watch.sample is not None and (watch.sample["devices"] or 0) >= devices:
                break
            self._wait(1.0)
        return not self._ends.come

    def _end(self) -> None:
        """End all processes: by SIGTERM, and by SIGKILL after some time or at a second signal."""
        for part in self._parts:
            part.terminate()
        signals = self._ends.signals
        deadline = time.monotonic() + EXIT_TIMEOUT
        while any(part.running for part in self._parts) and time.monotonic() < deadline and self._ends.signals == signals:
            self._ends.wait(0.5, watch_output=False)
        for part in self._parts:
            part.kill()
        broker = self._request.broker
        if broker is not None and self._watch is not None and self._watch.ready:
            self._remove_queues(broker.url, self._watch.state["node"] or "")

    def _remove_queues(self, url: str, node: str) -> None:
        """Remove the queues from a RabbitMQ of the user."""
        part = Part("removal of the queues", "queues", [url, str(self._folder / "broker-password"), node], self._folder)
        deadline = time.monotonic() + EXIT_TIMEOUT
        while part.running and time.monotonic() < deadline:
            self._ends.wait(0.5, watch_output=False)
        if part.running or not part.succeeded:
            part.kill()
            say(f"the queues stay at {url}; their names begin with owsla-demo.\n{part.last_lines()}")
        elif note := part.last_lines().strip():
            say(note.removeprefix("owsla demo: "))


class StatusLine:
    """The figures of the last second: refreshed in place on a terminal, and elsewhere printed once."""

    def __init__(self) -> None:
        self._in_place = full_screen()
        self._began: float | None = None
        self._shown = False

    def show(self, sample: JSON) -> None:
        """Show a sample."""
        if self._in_place:
            screen = terminal()
            text = summary(sample)
            put(f"\r{text if screen is None else shortened(text, max(1, screen.columns - 1))}\x1b[K")
            self._shown = True
            return
        now = time.monotonic()
        self._began = self._began or now
        if not self._shown and now - self._began >= STEADY:
            self._shown = True
            put(f"{summary(sample)}\n")

    def clear(self) -> None:
        """Remove the line from the terminal."""
        if self._in_place and self._shown:
            self._shown = False
            try:
                put("\r\x1b[K")
            except Exception:
                pass  # the terminal has gone
