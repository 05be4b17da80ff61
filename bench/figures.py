"""The figures: what Owsla costs a unit, beside other systems and beside what the machine and RabbitMQ give at best.

    python -m bench.figures --runs 5 --beside 'NAME=COMMAND'

All of it on one machine in one run: the systems take turns within each of the runs, so that what the machine does meanwhile is
the same for all. Devices are `owsla swarm`; behind the broker is a small C program, or the back end in Python where there is no
compiler. A table, plots and all raw numbers go to `bench/results/figures*`. `--beside` names another system: a shell command
that runs in the foreground and serves TLS lines on {port} with {cert} and {key}; it publishes each line to the queue
`from_device` and sends what comes on `to_device` to the connection of its header `connection_id`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika

from owsla.tls.certificates import development_certificates

from . import proc
from .behind import WINDOW, Books, Ceiling, Failed, behind, build
from .figures_report import CEILINGS, PUBLISHER, TRIPS, Results, write
from .harness import BROKER, RESULTS, delete_queues, settled
from .systems import DEVICES, Running, Swarm, System, owsla

WARM = 1.0
"""Seconds of lines before it counts."""
LINE = ("--line", "{device} {n} ", "--size", "50")
SPARE_FILES = 200
"""Open files of a process, about, that are not its connections."""
PORTS = 20000
"""Connections from one address: it has some 28,000 ports, and some of them may be in use."""
BARE = "owsla-bench-from", "owsla-bench-to"

Step = Callable[[Running], dict[str, float]]


class Bench:
    """Everything that is measured."""

    def __init__(self, options: argparse.Namespace, folder: Path, results: Results) -> None:
        self.options = options
        self.results = results
        self.made = development_certificates(folder, "localhost")
        self.openssl = folder / "devices.cnf"
        self.openssl.write_text(DEVICES.format(groups=options.groups))
        self.broker: str = options.broker
        at = pika.URLParameters(self.broker)
        local = at.host in ("127.0.0.1", "localhost", "::1")
        self.broker_pid = proc.listener(at.port) if local else None
        self.program: Path | None = None
        self.no_program = ""
        try:
            if at.ssl_options is not None:
                raise Failed("the C program speaks amqp:// only")
            self.program = build(folder)
        except Failed as error:
            self.no_program = str(error)
            say(f"{error}: the back end is the one in Python, and there are no ceilings")
        results.back_end = "the C program" if self.program else "Python"
        self.systems = [owsla(1)]
        if options.workers > 1:
            self.systems.append(owsla(options.workers))
        self.systems += [System(*pair.split("=", 1)) for pair in options.beside]
        self.steps: dict[str, Step] = {
            # Memory is of a process that has done nothing yet; the flood is last, for some are long busy with it.
            "memory": self.memory,
            "handshakes": self.handshakes,
            "line": self.line,
            "trips": self.trips,
            "latency": self.latency,
            "ingest": self.ingest,
        }

    # -- taking turns --------------------------------------------------------------------------------------------------------

    def run(self, number: int) -> None:
        """Each system's turn, beginning with another one each time."""
        turns: list[Callable[[], None]] = [self._turn_of(system) for system in self.systems]
        if "ingest" in self.options.only:
            turns.append(lambda: self.ceiling(PUBLISHER, self.publisher))
        if "trips" in self.options.only:
            turns.append(lambda: self.ceiling(TRIPS, self.both_queues))
        start = number % len(turns)
        for turn in turns[start:] + turns[:start]:
            turn()

    def _turn_of(self, system: System) -> Callable[[], None]:
        return lambda: self.turn(system)

    def turn(self, system: System) -> None:
        """All that is asked for, of one system."""
        steps = [name for name in self.steps if name in self.options.only]
        while steps:
            started = False
            with self.failing(system.name, ", ".join(steps)), self.start(system) as running:
                started = True
                while steps and running.alive:
                    name = steps.pop(0)
                    with self.failing(system.name, name):
                        self.keep(system.name, name, self.steps[name](running))
                    if not running.alive:
                        self.results.failed(system.name, name, f"it ended: {running.said()}")
            if not started:
                return  # nor would it with the next step

    def start(self, system: System) -> Running:
        return Running(system, self.broker, self.made.cert, self.made.key)

    @contextlib.contextmanager
    def failing(self, system: str, part: str) -> Any:
        """What fails is said, and the rest goes on."""
        try:
            yield
        except (Failed, SystemExit, OSError, ValueError, pika.exceptions.AMQPError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"  {system}: {part} failed: {reason}")
            self.results.failed(system, part, reason)

    def keep(self, system: str, step: str, figures: dict[str, float]) -> None:
        self.results.keep(system, figures)
        say(f"  {system}: {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    # -- what is measured ----------------------------------------------------------------------------------------------------

    def swarm(self, running: Running, *options: str, waits: bool = False) -> Swarm:
        return Swarm(running.port, self.made.ca, self.openssl, *options, waits=waits)

    def behind(self, running: Running, echoes: bool) -> Ceiling | Books:
        return behind(self.program, self.broker, echoes, running.system.queues, running.system.ours)

    def window(self, pids: dict[str, int], lines: Callable[[], int]) -> dict[str, float]:
        """What each of the processes spends in the seconds to come, and how many lines arrive meanwhile."""
        if self.broker_pid is not None:
            pids = {**pids, "broker": self.broker_pid}

        def sample() -> dict[str, float]:
            taken = {name: proc.cpu(pid) for name, pid in pids.items()}
            return {**taken, "lines": lines(), "seconds": time.monotonic()}

        before = sample()
        time.sleep(self.options.seconds)
        after = sample()
        return {name: after[name] - before[name] for name in after}

    def memory(self, running: Running) -> dict[str, float]:
        """What an idle connection adds."""
        # What is made once for all connections is no part of one's cost.
        with self.hold(running, 100) as swarm:
            swarm.ready()
            swarm.interrupt()
        empty = settled(running)
        with self.hold(running, self.options.connections) as swarm:
            connected = swarm.ready()
            time.sleep(6)  # some tidy a connection up when it has been idle for a while
            added = settled(running) - empty
            swarm.interrupt()
        return {"idle_kb": added / connected, "empty_mb": empty / 1024}

    def hold(self, running: Running, connections: int) -> Swarm:
        """Connections that say nothing."""
        return self.swarm(running, "--mode", "hold", "--connections", str(connections), waits=True)

    def handshakes(self, running: Running) -> dict[str, float]:
        """Full handshakes, as many as the swarm can do."""
        with self.swarm(running, "--mode", "storm", "--seconds", f"{WARM:g}") as swarm:
            swarm.summary(60)
        before = running.cpu()
        with self.swarm(running, "--mode", "storm", "--seconds", f"{self.options.seconds:g}") as swarm:
            done = swarm.summary(60 + self.options.seconds)
        time.sleep(0.3)  # the ends of the last ones
        spent = running.cpu() - before
        self.note(running, "handshakes", done)
        count = done["connections"]["connected"]
        if not count:
            raise Failed("no handshake")
        return {"handshakes_per_cpu_s": count / spent, "handshakes_per_s": done["connections"]["per_second"]}

    def talk(self, running: Running, name: str, *options: str) -> dict[str, float]:
        """Lines as the swarm is told to say them; what a window in the midst of them shows."""
        echoes = name == "trips"
        with self.behind(running, echoes) as back_end, self.swarm(running, *self.lasting(), *options, waits=True) as swarm:
            swarm.ready()
            first = back_end.lines()
            swarm.begin()
            time.sleep(WARM)
            found = self.window({"server": running.pid, "swarm": swarm.pid, "back_end": back_end.pid}, back_end.lines)
            if name != "ingest":  # some have minutes of lines before them then
                done = swarm.summary(60)
                self.note(running, name, done)
                written = done["lines"]["written"]
                arrived = self.arrived(back_end, written + first) - first
                if arrived != written:
                    self.results.note(running.system.name, f"{name}: {arrived} lines arrived of {written} that were written")
        self.results.record(running.system.name, name, window=found)
        if found["lines"] <= 0:
            raise Failed("no line arrived")
        return found

    def lasting(self) -> tuple[str, ...]:
        """Longer than the window and what comes before it."""
        return ("--seconds", f"{WARM + self.options.seconds + 0.7:g}", *LINE)

    @staticmethod
    def arrived(back_end: Ceiling | Books, expected: int, patience: float = 20) -> int:
        end = time.monotonic() + patience
        while (lines := back_end.lines()) < expected and time.monotonic() < end:
            time.sleep(0.05)
        return lines

    def note(self, running: Running, what: str, summary: dict[str, Any]) -> None:
        """Keep what a swarm said, and show what did not hold."""
        self.results.record(running.system.name, what, swarm=summary)
        if summary["problems"]:
            self.results.note(running.system.name, f"{what}: {'; '.join(summary['problems'])}")

    def line(self, running: Running) -> dict[str, float]:
        """CPU a line from the device to RabbitMQ, at a fixed rate: some lines each millisecond, and each by itself."""
        options = "--mode", "flood", "--connections", str(self.options.devices), "--rate", f"{self.options.rate:g}"
        figures: dict[str, float] = {}
        for name, tick in (("line", "1"), ("even", "0")):
            found = self.talk(running, "line", *options, "--tick", tick)
            lines = found["lines"]
            for part in ("server", "swarm", "back_end", "broker"):
                if part in found:
                    figures[f"{name}_{part}_us"] = found[part] / lines * 1e6
            figures[f"{name}_per_s"] = lines / found["seconds"]
        return figures

    def ingest(self, running: Running) -> dict[str, float]:
        """Lines as fast as they are taken."""
        found = self.talk(running, "ingest", "--mode", "flood", "--connections", str(self.options.devices))
        return {"ingest_per_s": found["lines"] / found["seconds"], **shares("ingest", found)}

    def trips(self, running: Running) -> dict[str, float]:
        """Each device says its next line when the last one was answered."""
        found = self.talk(running, "trips", "--mode", "echo", "--connections", str(self.options.trip_devices))
        return {"trips_per_s": found["lines"] / found["seconds"], **shares("trips", found)}

    def latency(self, running: Running) -> dict[str, float]:
        """Round trips at a low rate: quiet, and while others connect."""
        figures: dict[str, float] = {}
        for name in ("quiet", "storm"):
            with contextlib.ExitStack() as stack:
                stack.enter_context(self.behind(running, True))
                rate = "--connections", str(self.options.devices), "--rate", f"{self.options.latency_rate:g}"
                swarm = stack.enter_context(self.swarm(running, "--mode", "echo", *self.lasting(), *rate, waits=True))
                swarm.ready()
                storm = None
                if name == "storm":
                    seconds = str(600 + self.options.seconds)
                    stormy = "--mode", "storm", "--connect-rate", f"{self.options.connects:g}", "--seconds", seconds
                    storm = stack.enter_context(self.swarm(running, *stormy))
                    time.sleep(1.5)  # until it is under way
                swarm.begin()
                done = swarm.summary(90 + self.options.seconds)
                self.note(running, f"latency, {name}", done)
                times = done["answers"]["ms_since_due"]
                if times is None:
                    raise Failed("no line was answered")
                figures[f"{name}_p50_ms"], figures[f"{name}_p99_ms"] = times["p50"], times["p99"]
                if storm is not None:
                    connects = storm.interrupt()
                    self.note(running, "connects beside", connects)
                    figures["storm_per_s"] = connects["connections"]["per_second"]
        return figures

    # -- the ceilings --------------------------------------------------------------------------------------------------------

    def ceiling(self, name: str, measure: Callable[[Path], dict[str, float]]) -> None:
        """What the C program does by itself."""
        with self.failing(name, CEILINGS[name]):
            if self.program is None:
                raise Failed(self.no_program)
            delete_queues(self.broker, *BARE)
            try:
                self.keep(name, CEILINGS[name], measure(self.program))
            finally:
                delete_queues(self.broker, *BARE)

    def publisher(self, program: Path) -> dict[str, float]:
        """A bare publisher with confirms; what it publishes is taken, as with the others."""
        with (
            Ceiling(program, self.broker, "drain", *BARE) as drain,
            Ceiling(program, self.broker, "publish", *BARE, WINDOW) as publisher,
        ):
            time.sleep(WARM)
            found = self.window({"server": publisher.pid, "back_end": drain.pid}, publisher.lines)
        self.results.record(PUBLISHER, "ingest", window=found)
        return {"ingest_per_s": found["lines"] / found["seconds"], **shares("ingest", found)}

    def both_queues(self, program: Path) -> dict[str, float]:
        """As many lines under way as there would be devices: a producer, the echo, and the producer takes them."""
        with (
            Ceiling(program, self.broker, "echo", *BARE) as echo,
            Ceiling(program, self.broker, "trips", *BARE, self.options.trip_devices) as producer,
        ):
            time.sleep(WARM)
            found = self.window({"server": producer.pid, "back_end": echo.pid}, producer.lines)
        self.results.record(TRIPS, "trips", window=found)
        return {"trips_per_s": found["lines"] / found["seconds"], **shares("trips", found)}

    # -- holding -------------------------------------------------------------------------------------------------------------

    def held(self, system: System) -> None:
        """Connections that are there for minutes, with a line a minute from each. Once: it holds, or it does not."""
        options = self.options
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES
        with self.failing(system.name, "held"):
            if system.ours and options.held > files * system.processes:
                raise Failed(f"needs {-(-options.held // files)} workers: a process may have {files} files open, about")
            with self.start(system) as running, Books(self.broker, *system.queues) as books:
                books.call("begin", answers="", numbered=False)
                with self.hold(running, 100) as swarm:
                    swarm.ready()
                    swarm.interrupt()
                empty = settled(running)
                sources = -(-options.held // PORTS)
                seconds = options.held_minutes * 60
                more = ["--source", f"127.0.0.1-127.0.0.{sources}"] if sources > 1 else []
                more += ["--processes", str(-(-options.held // min(files, 15000))), "--seconds", f"{seconds:g}", *LINE]
                first = books.lines()
                with self.swarm(running, "--mode", "hold", "--connections", str(options.held), *more, waits=True) as swarm:
                    swarm.ready(120 + options.held / 50)
                    before = running.cpu()
                    swarm.begin()
                    time.sleep(seconds - 1)
                    memory, spent = running.pss() - empty, running.cpu() - before
                    done = swarm.summary(120 + options.held / 100)
                written = done["lines"]["written"]
                arrived = self.arrived(books, written + first, 60) - first
                self.note(running, "held", done)
                connections = done["connections"]
                self.results.hold(
                    system.name,
                    {
                        "connected": connections["connected"],
                        "dropped": connections["dropped"] + connections["failed"],
                        "connect_s": connections["seconds"],
                        "minutes": options.held_minutes,
                        "written": written,
                        "arrived": arrived,
                        "twice": books.stats()["duplicates"],
                        "kb": memory / max(1, connections["connected"]),
                        "cpu": spent / max(1, seconds - 1),
                    },
                )
                say(f"  {system.name}: held: {connections['connected']} connections, {arrived} of {written} lines")


def shares(name: str, found: dict[str, float]) -> dict[str, float]:
    """CPU a line, and how much of a core each had."""
    figures = {f"{name}_server_us": found["server"] / found["lines"] * 1e6}
    for part in ("server", "swarm", "back_end", "broker"):
        if part in found:
            figures[f"{name}_{part}_share"] = found[part] / found["seconds"]
    return figures


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def command_line() -> str:
    """The command that makes the same figures again; a password, and where another system is, are not for all to see."""
    words: list[str] = []
    arguments = iter(sys.argv[1:])
    for word in arguments:
        name, given, value = word.partition("=")
        if name not in ("--beside", "--broker", "--output"):
            words.append(word)
            continue
        value = value if given else next(arguments, "")
        if name == "--beside":
            words += [name, f"{value.partition('=')[0]}=…"]
        elif name == "--broker":
            words += [name, f"…{value[value.rfind('@') + 1 :]}"]
    return " ".join(["python", "-m", "bench.figures", *map(quoted, words)])


def quoted(word: str) -> str:
    return word if word.endswith("=…") and " " not in word else shlex.quote(word)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.figures", description="Measure what Owsla costs a unit, beside others."
    )
    parts = ("memory", "handshakes", "line", "trips", "latency", "ingest", "held")
    parser.add_argument("--broker", metavar="URL", default=BROKER, help="a RabbitMQ (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="the systems take turns in each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--only", metavar="NAMES", default=",".join(parts), help="some of these (default: %(default)s)")
    parser.add_argument(
        "--beside", metavar="NAME=COMMAND", action="append", default=[], help="another system, see above; may be given again"
    )
    parser.add_argument("--workers", type=int, default=2, help="of the second Owsla; 1: there is none (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=200, help="for lines and latency (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=5000, help="lines a second, for CPU a line (default: %(default)s)")
    parser.add_argument("--trip-devices", type=int, default=500, help="for round trips (default: %(default)s)")
    parser.add_argument("--latency-rate", type=float, default=500, help="lines a second, for latency (default: %(default)s)")
    parser.add_argument("--connects", type=float, default=500, help="a second, beside the latency (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=5000, help="for memory (default: %(default)s)")
    # What a device of today's would offer first, X25519MLKEM768, costs any gateway 7 KB a connection and a fifth more CPU.
    parser.add_argument(
        "--groups", default="X25519", help="how devices agree on keys, as OpenSSL has it (default: %(default)s)"
    )
    parser.add_argument("--held", type=int, default=10000, help="connections to hold (default: %(default)s)")
    parser.add_argument("--held-minutes", type=float, default=1, help="for so long (default: %(default)s)")
    parser.add_argument("--output", metavar="DIR", type=Path, default=RESULTS, help="for figures* (default: bench/results)")
    options = parser.parse_args()
    options.only = options.only.split(",")
    for name in options.only:
        if name not in parts:
            parser.error(f"--only: {name!r} is none of {', '.join(parts)}")
    for pair in options.beside:
        name, given, command = pair.partition("=")
        if not name or not given or "{port}" not in command:
            parser.error(f"--beside: {pair!r} is not NAME=COMMAND with {{port}} in it")
    if min(options.runs, options.seconds, options.held, options.held_minutes, options.connections) <= 0:
        parser.error("--runs, --seconds, --connections and those of --held have to be above 0")
    return options


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    options = read_arguments()
    # Ctrl-C too, which a shell's background ignores: so would the swarms, that are ended with it.
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, interrupted)
    results = Results(command_line(), options)
    status = 0
    try:
        with tempfile.TemporaryDirectory(prefix="owsla-bench-") as folder:
            bench = Bench(options, Path(folder), results)
            results.systems = [system.name for system in bench.systems]
            results.beside = [system.name for system in bench.systems if not system.ours]
            if set(options.only) - {"held"}:
                for number in range(options.runs):
                    say(f"run {number + 1} of {options.runs}, load average {os.getloadavg()[0]:.1f}")
                    results.begin()
                    bench.run(number)
            if "held" in options.only:
                say(f"holding {options.held} connections")
                for system in bench.systems:
                    bench.held(system)
    except KeyboardInterrupt:
        results.interrupted = True
        status = 130
    if results.anything:
        for path in write(results, options.output):
            say(f"written: {path}")
        print((options.output / "figures.md").read_text())
    elif not status:
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
