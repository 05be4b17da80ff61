"""The whole check, in the order in which an operator would mend what it finds: settings, files, broker."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..config.sources import load_settings
from ..runtime.clock import use_monotonic_clock
from ..runtime.files import Files
from ..runtime.resolver import resolve_in_daemon_threads
from .broker import check_brokers
from .certificates import find_root_of_system
from .files import BROKER_FILES, check_doors, check_files
from .findings import Level, Report, ok, skip, warn


def check(reactor: Any, arguments: Sequence[str], environ: Mapping[str, str] = os.environ, *, broker: bool) -> int:
    """Check the settings, the files and, with `broker`, the broker. Print a line for each check, and return the exit status.

    Raise `ConfigError` if the settings cannot be used: then there is nothing else to check.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    report = Report(_print)
    files = Files()
    settings = load_settings(arguments, environ, lambda text: report.add(warn("settings", text)), files, certificates="left")
    report.add(ok("settings", "can be used"))
    for finding in check_doors(settings, files):
        report.add(finding)
    findings = list(check_files(settings, files, datetime.now(UTC), find_root_of_system))
    for finding in findings:
        report.add(finding)
    if not settings.brokers:
        report.add(skip("broker", "the embedded broker is started with Owsla"))
    elif not broker:
        report.add(skip("broker", "not checked (--check=offline)"))
    elif any(finding.level is Level.FAIL and finding.subject in BROKER_FILES for finding in findings):
        report.add(skip("broker", "not checked, since a file for its connections cannot be used"))
    else:
        _run(reactor, lambda: check_brokers(reactor, settings, files, report))
    return int(report.failed)


def _end(number: int, frame: FrameType | None) -> None:
    """End the process by a signal at once: there is nothing to tidy up. Status 0 would say that nothing is wrong."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # process 1: the kernel drops the signal


def _run(reactor: Any, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the reactor until `work` is done. An exception is raised here."""
    use_monotonic_clock(reactor)
    resolve_in_daemon_threads(reactor)
    defects: list[Failure] = []

    def start() -> None:
        Deferred.fromCoroutine(work()).addErrback(defects.append).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(start)
    reactor.run(installSignalHandlers=False)
    for defect in defects:
        defect.raiseException()


def _print(text: str) -> None:
    """Print a line. A reader of a pipe may have gone, as in `twistd owsla --check | head`: the status still counts."""
    try:
        print(text, end="", flush=True)
    except OSError:
        # The interpreter flushes standard output once more when it exits, and would report the same error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
