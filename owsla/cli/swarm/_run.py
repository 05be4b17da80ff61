"""The parent of the processes of a swarm: starts them, leads them, shows progress, and adds up their reports."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from ...errors import ConfigError, os_reason
from .._print import put
from ._errors import CLOSED, REFUSED, SwarmError
from ._plan import Plan
from ._report import PERCENTS, Report
from ._svg import draw

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, as in `owsla.cli`."""

BAR: Final = 30
"""Characters of the bar: with the text beside it less than 80."""


class SwarmProcess:
    """Process of the swarm, as its parent sees it."""

    def __init__(self, share: Plan) -> None:
        self.process = subprocess.Popen(
            # -P: no module is found in the working folder of the user.
            [sys.executable, "-P", "-m", "owsla.cli.swarm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.counts: dict[str, Any] = {}
        """Counts so far, as the process reported them last."""
        self.ready = False
        """True once the process has its connections."""
        self.all_failed = False
        """True once the first connections of the process have failed without a success."""
        self.report: dict[str, Any] | None = None
        self._rest = b""
        self.tell(share.dump())

    @property
    def output(self) -> IO[bytes]:
        """Pipe from the standard output of the process."""
        assert self.process.stdout is not None
        return self.process.stdout

    def tell(self, word: str) -> None:
        """Send a word to the process. `read` notices if it is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(word.encode() + b"\n")
        except BrokenPipeError:
            pass

    def read(self) -> bool:
        """Read what the process reports. Return `False` at the end. Raise `SwarmError` if it cannot go on."""
        data = os.read(self.output.fileno(), 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            for word, value in json.loads(line).items():
                if word == "fatal":
                    raise SwarmError(value)
                if word == "report":
                    self.report = value
                self.ready = self.ready or word == "ready"
                self.all_failed = self.all_failed or word == "all_failed"
                self.counts = value
        return bool(data)

    def end(self) -> None:
        """Kill the process if it still runs, which resets its connections."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.output.close()


class ProgressBar:
    """A line on the terminal that is overwritten again and again."""

    def __init__(self, plan: Plan) -> None:
        # The bar goes to standard error, so that it is not in the output that users keep.
        self._shown = sys.stdout.isatty() and sys.stderr.isatty()
        self._plan = plan
        self._began = time.monotonic()

    def restart(self) -> None:
        """Measure the time from here on: lines are being sent."""
        self._began = time.monotonic()

    def show(self, processes: list[SwarmProcess], *, talking: bool) -> None:
        """Write the bar. `talking`: lines are being sent, in place of connections being opened."""
        if not self._shown:
            return
        plan = self._plan
        sums = {
            name: sum(process.counts.get(name, 0) for process in processes) for name in ("up", "failed", "written", "answers")
        }
        elapsed = time.monotonic() - self._began
        if talking or plan.mode == "storm":
            done = min(1.0, elapsed / plan.seconds)
        else:
            done = min(1.0, (sums["up"] + sums["failed"]) / plan.connections)
        text = f"{sums['up']} connected" + (f", {sums['failed']} failed" if sums["failed"] else "")
        if talking:
            text += f", {sums['written']} lines"
            if plan.mode == "echo":
                text += f", {sums['answers']} answers"
        filled = round(done * BAR)
        self._write(f"\r[{'#' * filled}{'.' * (BAR - filled)}] {text}\x1b[K")

    def clear(self) -> None:
        """Remove the bar."""
        if self._shown:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            self._shown = False  # the terminal is gone


def run(plan: Plan, *, as_json: bool, histogram: str | None) -> int:
    """Run a swarm and print its report. Return the exit status."""
    try:
        if histogram is not None:
            _check_writable(Path(histogram))
        report = Coordinator(plan).run()
        if histogram is not None:
            _draw(report, Path(histogram))
    except (SwarmError, ConfigError) as error:
        sys.stderr.write(f"owsla swarm: {' '.join(str(error).split())}\n")
        return 1
    put(json.dumps(report.summary(), indent=2) + "\n" if as_json else report.table())
    return INTERRUPTED if report.interrupted else report.status()


def hint(plan: Plan, reason: str) -> str:
    """Return what may be wrong with the command if connections fail for this reason, as the end of a message."""
    if not plan.plain and plan.proxy is None and reason in CLOSED:
        return "; a port without TLS needs --plain, and one behind a load balancer --proxy"
    if plan.proxy is not None and reason.startswith(REFUSED):
        return "; a port that devices connect to themselves is without --proxy"
    return ""


class Coordinator:
    """Leads the processes through their phases: connections, then Enter with `--wait`, then lines, then reports."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bar = ProgressBar(plan)
        self._processes: list[SwarmProcess] = []
        self._interrupted = False
        self._talking = False
        self._needs_enter = plan.wait
        self._prompted = False
        # Not epoll, which refuses files: standard input may be one.
        self._selector = selectors.PollSelector()

    def run(self) -> Report:
        """Run all processes to their end. Raise `SwarmError` without a result."""
        try:
            self._start()
            while self._selector.get_map():
                try:
                    self._read()
                    if not self._interrupted:
                        self._give_up_if_all_failed()
                    self._begin_lines_if_ready()
                    self._bar.show(self._processes, talking=self._talking)
                except KeyboardInterrupt:
                    if self._interrupted:
                        raise
                    self._interrupt()
            reports = [process.report for process in self._processes if process.report is not None]
            return Report(self._plan, reports, interrupted=self._interrupted)
        finally:
            self._bar.clear()
            self._selector.close()
            for process in self._processes:
                process.end()

    def _start(self) -> None:
        try:
            with _ctrl_c_later():
                for share in self._plan.shares():
                    process = SwarmProcess(share)
                    self._processes.append(process)
                    self._selector.register(process.output, selectors.EVENT_READ, process)
        except KeyboardInterrupt:
            self._interrupt()

    def _interrupt(self) -> None:
        """Stop the processes after Ctrl-C; they still report."""
        self._interrupted = True
        if 0 in self._selector.get_map():
            self._selector.unregister(0)
        for process in self._processes:
            process.tell("stop")

    def _read(self) -> None:
        for key, _ in self._selector.select():
            if key.data is None:  # Enter
                self._prompted = False
                self._selector.unregister(key.fileobj)
                os.read(0, 4096)
            elif not key.data.read():
                self._selector.unregister(key.fileobj)
                if key.data.report is None:
                    raise SwarmError("a process of the swarm ended early; its error, if any, is above")

    def _begin_lines_if_ready(self) -> None:
        if self._talking or self._prompted or not all(process.ready for process in self._processes):
            return
        if self._needs_enter and not self._interrupted:
            self._needs_enter, self._prompted = False, True
            self._bar.clear()
            sys.stderr.write(f"{sum(process.counts['up'] for process in self._processes)} connected; Enter begins\n")
            sys.stderr.flush()
            self._selector.register(0, selectors.EVENT_READ)
            return
        self._talking = True
        self._bar.restart()
        for process in self._processes:
            process.tell("go")

    def _give_up_if_all_failed(self) -> None:
        """Raise `SwarmError` if no process gets a connection. If one of them does, the failures are a result."""
        if all(process.all_failed for process in self._processes) and not any(
            process.counts["up"] for process in self._processes
        ):
            reasons: Counter[str] = Counter()
            for process in self._processes:
                reasons.update(process.counts["reasons"])
            reason = reasons.most_common(1)[0][0]
            raise SwarmError(f"{self._plan.target}: {reason}{hint(self._plan, reason)}")


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Block SIGINT. It comes as `KeyboardInterrupt` at the end of the block. Processes started in the block keep it blocked.

    The terminal sends Ctrl-C to them too, and Python would end one that is still loading with a traceback. If they inherited
    "ignore" in place of the mask, the parent would have to ignore the signal meanwhile, and lose it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_writable(path: Path) -> None:
    """Raise `ConfigError` if a file cannot be written, before minutes are spent on the measurement."""
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise ConfigError(f"--histogram: {path}: {os_reason(error)}") from None


def _draw(report: Report, path: Path) -> None:
    plan = report.plan
    if plan.mode == "echo":
        name, what = "latency", "Round trips, from when a line was due"
    else:
        name, what = "connect_times", "Connects with handshake"
    histogram = report.histograms[name]
    try:
        path.write_text(draw(histogram, f"{what}: {histogram.count:,}", PERCENTS))
    except OSError as error:
        raise ConfigError(f"--histogram: {path}: {os_reason(error)}") from None
