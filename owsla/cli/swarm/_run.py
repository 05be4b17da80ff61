"""The parent of a swarm's processes: starts them, lets them begin together, shows how far they are, and sums up."""

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
from ._plan import Plan
from ._report import PERCENTS, Report
from ._svg import draw

INTERRUPTED: Final = 130
"""As in `owsla.cli`."""

BAR: Final = 30
"""Characters of the bar: with the words beside it less than 80."""


class Failed(Exception):
    """There is nothing to report; the text says why in one line."""


class _Child:
    """One process, as seen from here."""

    def __init__(self, share: Plan) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "owsla.cli.swarm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.counts: dict[str, Any] = {}
        self.ready = False
        self.hopeless = False
        """So many of its connections have failed, and not one succeeded, that it would have given up."""
        self.report: dict[str, Any] | None = None
        self._rest = b""
        self.tell(share.dump())

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def tell(self, word: str) -> None:
        """Say something to it; that it is gone is seen elsewhere."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(word.encode() + b"\n")
        except BrokenPipeError:
            pass

    def read(self) -> bool:
        """Take what it says; `False` at its end. `Failed`."""
        data = os.read(self.output.fileno(), 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            for word, value in json.loads(line).items():
                if word == "fatal":
                    raise Failed(value)
                if word == "report":
                    self.report = value
                self.ready = self.ready or word == "ready"
                self.hopeless = self.hopeless or word == "hopeless"
                self.counts = value
        return bool(data)

    def end(self) -> None:
        """Make it end, if it has not; its connections are reset then."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.output.close()


class _Bar:
    """A line on the terminal that is written over and over."""

    def __init__(self, plan: Plan) -> None:
        # The bar is on standard error, so that nothing of it gets into what is kept.
        self._shown = sys.stdout.isatty() and sys.stderr.isatty()
        self._plan = plan
        self._began = time.monotonic()

    def begin(self) -> None:
        """The time from here on is that of the lines."""
        self._began = time.monotonic()

    def show(self, children: list[_Child], *, talking: bool) -> None:
        if not self._shown:
            return
        plan = self._plan
        sums = {name: sum(child.counts.get(name, 0) for child in children) for name in ("up", "failed", "written", "answers")}
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
        if self._shown:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            self._shown = False  # nobody looks


def run(plan: Plan, *, as_json: bool, histogram: str | None) -> int:
    """Do it; the exit status."""
    try:
        if histogram is not None:
            _check_writable(Path(histogram))
        report = _collect(plan)
        if histogram is not None:
            _draw(report, Path(histogram))
    except (Failed, ConfigError) as error:
        sys.stderr.write(f"owsla swarm: {' '.join(str(error).split())}\n")
        return 1
    put(json.dumps(report.summary(), indent=2) + "\n" if as_json else report.table())
    return INTERRUPTED if report.interrupted else report.status()


def _collect(plan: Plan) -> Report:
    bar = _Bar(plan)
    children: list[_Child] = []
    interrupted = False
    waits = plan.wait
    # Not epoll, which refuses a file: standard input may be one.
    selector = selectors.PollSelector()
    try:
        try:
            with _ctrl_c_later():
                for share in plan.shares():
                    child = _Child(share)
                    children.append(child)
                    selector.register(child.output, selectors.EVENT_READ, child)
        except KeyboardInterrupt:
            interrupted = True
            for child in children:
                child.tell("stop")
        talking = asked = False
        while selector.get_map():
            try:
                for key, _ in selector.select():
                    if key.data is None:
                        asked = False
                        selector.unregister(key.fileobj)
                        os.read(0, 4096)
                    elif not key.data.read():
                        selector.unregister(key.fileobj)
                        if key.data.report is None:
                            raise Failed("one of its processes ended early; what it said of it is above, if it could")
                if not interrupted:
                    _give_up_where_hopeless(plan, children)
                if not talking and not asked and all(child.ready for child in children):
                    if waits and not interrupted:
                        waits, asked = False, True
                        bar.clear()
                        sys.stderr.write(f"{sum(child.counts['up'] for child in children)} connected; Enter begins\n")
                        sys.stderr.flush()
                        selector.register(0, selectors.EVENT_READ)
                        continue
                    talking = True
                    bar.begin()
                    for child in children:
                        child.tell("go")
                bar.show(children, talking=talking)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                if 0 in selector.get_map():
                    selector.unregister(0)
                for child in children:
                    child.tell("stop")
        return Report(plan, [child.report for child in children if child.report is not None], interrupted=interrupted)
    finally:
        bar.clear()
        selector.close()
        for child in children:
            child.end()


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Within the block Ctrl-C waits, to come as KeyboardInterrupt at its end; in processes that are started in it, for ever.

    Those get it from the terminal too, and Python would end one that is still loading with a traceback. Ignored it would not be
    theirs either, but lost for us.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _give_up_where_hopeless(plan: Plan, children: list[_Child]) -> None:
    """`Failed`, where no process gets a connection: with one anywhere, failures are results."""
    if all(child.hopeless for child in children) and not any(child.counts["up"] for child in children):
        reasons: Counter[str] = Counter()
        for child in children:
            reasons.update(child.counts["reasons"])
        raise Failed(f"{plan.host} port {plan.port}: {reasons.most_common(1)[0][0]}")


def _check_writable(path: Path) -> None:
    """Before minutes are spent on what is to be drawn there. `ConfigError`."""
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
