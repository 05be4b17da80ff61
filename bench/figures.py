"""Cost and throughput of Owsla, compared with other systems and with the limits that the machine and RabbitMQ set.

    python -m bench.figures --runs 5 --beside 'NAME=COMMAND'

Everything runs on one machine. The systems take turns within each run, so that other load on the machine affects all of them
alike. Devices are `owsla swarm`. The back end is a small C program, or the one in Python if there is no compiler. A table,
plots and all raw numbers are written to `bench/results/figures*`. `--beside` names another system: a shell command that runs in
the foreground and serves TLS lines on {port} with {cert} and {key}. It publishes each line to the queue `from_device`, and
sends each message of `to_device` to the connection in its header `connection_id`.
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

from owsla.tls.development import development_certificates

from . import proc
from .c_program import WINDOW, CProgram, MeasurementError, PythonBackEnd, build, start_back_end
from .figures_report import CEILINGS, PUBLISHER, TRIPS, Results, write
from .harness import BROKER, RESULTS, delete_queues, settled
from .systems import DEVICES, RunningSystem, SwarmCommand, System, owsla

WARM = 1.0
"""Time in seconds that lines flow before the measurement starts."""
LINE = ("--line", "{device} {n} ", "--size", "50")
SPARE_FILES = 200
"""Approximate number of open files of a process besides its connections."""
PORTS = 20000
"""Number of connections from one source address: it has some 28,000 ports, of which some may be in use."""
BARE = "owsla-bench-from", "owsla-bench-to"

Step = Callable[[RunningSystem], dict[str, float]]


class Bench:
    """Measurements of all systems."""

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
                raise MeasurementError("the C program speaks amqp:// only")
            self.program = build(folder)
        except MeasurementError as error:
            self.no_program = str(error)
            progress(f"{error}: using the back end in Python, without ceilings")
        results.back_end = "the C program" if self.program else "Python"
        self.systems = [owsla(1)]
        if options.workers > 1:
            self.systems.append(owsla(options.workers))
        self.systems += [System(*pair.split("=", 1)) for pair in options.beside]
        self.steps: dict[str, Step] = {
            # Memory first, of a process that has done nothing yet. The flood last: some systems take long to work it off.
            "memory": self.memory,
            "handshakes": self.handshakes,
            "line": self.line,
            "trips": self.trips,
            "latency": self.latency,
            "ingest": self.ingest,
        }

    # -- taking turns --------------------------------------------------------------------------------------------------------

    def run(self, number: int) -> None:
        """Measure each system in turn, beginning with a different one in each run."""
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
        """Measure all requested parts of one system."""
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
                        self.results.failed(system.name, name, f"it ended: {running.last_log_line()}")
            if not started:
                return  # it would not start for the next step either

    def start(self, system: System) -> RunningSystem:
        return RunningSystem(system, self.broker, self.made.cert, self.made.key)

    @contextlib.contextmanager
    def failing(self, system: str, part: str) -> Any:
        """Record a failure and continue with the rest."""
        try:
            yield
        except (MeasurementError, SystemExit, OSError, ValueError, pika.exceptions.AMQPError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            progress(f"  {system}: {part} failed: {reason}")
            self.results.failed(system, part, reason)

    def keep(self, system: str, step: str, figures: dict[str, float]) -> None:
        self.results.keep(system, figures)
        progress(f"  {system}: {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    # -- what is measured ----------------------------------------------------------------------------------------------------

    def swarm(self, running: RunningSystem, *options: str, waits: bool = False) -> SwarmCommand:
        return SwarmCommand(running.port, self.made.ca, self.openssl, *options, waits=waits)

    def back_end(self, running: RunningSystem, echoes: bool) -> CProgram | PythonBackEnd:
        return start_back_end(self.program, self.broker, echoes, running.system.queues, running.system.ours)

    def window(self, pids: dict[str, int], lines: Callable[[], int]) -> dict[str, float]:
        """Measure the CPU of each process, and the lines that arrive, for `--seconds`."""
        if self.broker_pid is not None:
            pids = {**pids, "broker": self.broker_pid}

        def sample() -> dict[str, float]:
            taken = {name: proc.cpu(pid) for name, pid in pids.items()}
            return {**taken, "lines": lines(), "seconds": time.monotonic()}

        before = sample()
        time.sleep(self.options.seconds)
        after = sample()
        return {name: after[name] - before[name] for name in after}

    def memory(self, running: RunningSystem) -> dict[str, float]:
        """Measure the memory that an idle connection adds."""
        # A first hundred connections, since allocations that are made once for all are not the cost of one.
        with self.hold(running, 100) as swarm:
            swarm.ready()
            swarm.interrupt()
        empty = settled(running)
        with self.hold(running, self.options.connections) as swarm:
            connected = swarm.ready()
            time.sleep(6)  # some systems release memory when a connection has been idle for a while
            added = settled(running) - empty
            swarm.interrupt()
        return {"idle_kb": added / connected, "empty_mb": empty / 1024}

    def hold(self, running: RunningSystem, connections: int) -> SwarmCommand:
        """Open connections that send nothing."""
        return self.swarm(running, "--mode", "hold", "--connections", str(connections), waits=True)

    def handshakes(self, running: RunningSystem) -> dict[str, float]:
        """Measure full handshakes at the rate that the swarm reaches."""
        with self.swarm(running, "--mode", "storm", "--seconds", f"{WARM:g}") as swarm:
            swarm.summary(60)
        before = running.cpu()
        with self.swarm(running, "--mode", "storm", "--seconds", f"{self.options.seconds:g}") as swarm:
            done = swarm.summary(60 + self.options.seconds)
        time.sleep(0.3)  # until the last connections have ended
        spent = running.cpu() - before
        self.note(running, "handshakes", done)
        count = done["connections"]["connected"]
        if not count:
            raise MeasurementError("no handshake")
        return {"handshakes_per_cpu_s": count / spent, "handshakes_per_s": done["connections"]["per_second"]}

    def measure_lines(self, running: RunningSystem, name: str, *options: str) -> dict[str, float]:
        """Let the swarm send lines, and measure a window of them."""
        echoes = name == "trips"
        with self.back_end(running, echoes) as back_end, self.swarm(running, *self.lasting(), *options, waits=True) as swarm:
            swarm.ready()
            first = back_end.lines()
            swarm.begin()
            time.sleep(WARM)
            found = self.window({"server": running.pid, "swarm": swarm.pid, "back_end": back_end.pid}, back_end.lines)
            if name != "ingest":  # after a flood some systems take minutes to work off their lines
                done = swarm.summary(60)
                self.note(running, name, done)
                written = done["lines"]["written"]
                arrived = self.arrived(back_end, written + first) - first
                if arrived != written:
                    self.results.note(running.system.name, f"{name}: {arrived} lines arrived of {written} that were written")
        self.results.record(running.system.name, name, window=found)
        if found["lines"] <= 0:
            raise MeasurementError("no line arrived")
        return found

    def lasting(self) -> tuple[str, ...]:
        """Return the options for a swarm that outlasts the window."""
        return ("--seconds", f"{WARM + self.options.seconds + 0.7:g}", *LINE)

    @staticmethod
    def arrived(back_end: CProgram | PythonBackEnd, expected: int, patience: float = 20) -> int:
        end = time.monotonic() + patience
        while (lines := back_end.lines()) < expected and time.monotonic() < end:
            time.sleep(0.05)
        return lines

    def note(self, running: RunningSystem, what: str, summary: dict[str, Any]) -> None:
        """Record the summary of a swarm, and note its problems."""
        self.results.record(running.system.name, what, swarm=summary)
        if summary["problems"]:
            self.results.note(running.system.name, f"{what}: {'; '.join(summary['problems'])}")

    def line(self, running: RunningSystem) -> dict[str, float]:
        """Measure CPU per line to RabbitMQ at a fixed rate: with the lines of each millisecond together, and each by itself."""
        options = "--mode", "flood", "--connections", str(self.options.devices), "--rate", f"{self.options.rate:g}"
        figures: dict[str, float] = {}
        for name, tick in (("line", "1"), ("even", "0")):
            found = self.measure_lines(running, "line", *options, "--tick", tick)
            lines = found["lines"]
            for part in ("server", "swarm", "back_end", "broker"):
                if part in found:
                    figures[f"{name}_{part}_us"] = found[part] / lines * 1e6
            figures[f"{name}_per_s"] = lines / found["seconds"]
        return figures

    def ingest(self, running: RunningSystem) -> dict[str, float]:
        """Measure lines at the highest rate that the system accepts."""
        found = self.measure_lines(running, "ingest", "--mode", "flood", "--connections", str(self.options.devices))
        return {"ingest_per_s": found["lines"] / found["seconds"], **shares("ingest", found)}

    def trips(self, running: RunningSystem) -> dict[str, float]:
        """Measure round trips: each device sends its next line when the last one was answered."""
        found = self.measure_lines(running, "trips", "--mode", "echo", "--connections", str(self.options.trip_devices))
        return {"trips_per_s": found["lines"] / found["seconds"], **shares("trips", found)}

    def latency(self, running: RunningSystem) -> dict[str, float]:
        """Measure the latency of round trips at a low rate: quiet, and while other devices connect."""
        figures: dict[str, float] = {}
        for name in ("quiet", "storm"):
            with contextlib.ExitStack() as stack:
                stack.enter_context(self.back_end(running, True))
                rate = "--connections", str(self.options.devices), "--rate", f"{self.options.latency_rate:g}"
                swarm = stack.enter_context(self.swarm(running, "--mode", "echo", *self.lasting(), *rate, waits=True))
                swarm.ready()
                storm = None
                if name == "storm":
                    seconds = str(600 + self.options.seconds)
                    stormy = "--mode", "storm", "--connect-rate", f"{self.options.connects:g}", "--seconds", seconds
                    storm = stack.enter_context(self.swarm(running, *stormy))
                    time.sleep(1.5)  # until the storm has started
                swarm.begin()
                done = swarm.summary(90 + self.options.seconds)
                self.note(running, f"latency, {name}", done)
                times = done["answers"]["ms_since_due"]
                if times is None:
                    raise MeasurementError("no line was answered")
                figures[f"{name}_p50_ms"], figures[f"{name}_p99_ms"] = times["p50"], times["p99"]
                if storm is not None:
                    connects = storm.interrupt()
                    self.note(running, "connects beside", connects)
                    figures["storm_per_s"] = connects["connections"]["per_second"]
        return figures

    # -- the ceilings --------------------------------------------------------------------------------------------------------

    def ceiling(self, name: str, measure: Callable[[Path], dict[str, float]]) -> None:
        """Measure the C program by itself."""
        with self.failing(name, CEILINGS[name]):
            if self.program is None:
                raise MeasurementError(self.no_program)
            delete_queues(self.broker, *BARE)
            try:
                self.keep(name, CEILINGS[name], measure(self.program))
            finally:
                delete_queues(self.broker, *BARE)

    def publisher(self, program: Path) -> dict[str, float]:
        """Measure a bare publisher with confirms, whose lines are consumed as with the other systems."""
        with (
            CProgram(program, self.broker, "drain", *BARE) as drain,
            CProgram(program, self.broker, "publish", *BARE, WINDOW) as publisher,
        ):
            time.sleep(WARM)
            found = self.window({"server": publisher.pid, "back_end": drain.pid}, publisher.lines)
        self.results.record(PUBLISHER, "ingest", window=found)
        return {"ingest_per_s": found["lines"] / found["seconds"], **shares("ingest", found)}

    def both_queues(self, program: Path) -> dict[str, float]:
        """Measure round trips of a bare producer through both queues and an echo, with a line in flight per device."""
        with (
            CProgram(program, self.broker, "echo", *BARE) as echo,
            CProgram(program, self.broker, "trips", *BARE, self.options.trip_devices) as producer,
        ):
            time.sleep(WARM)
            found = self.window({"server": producer.pid, "back_end": echo.pid}, producer.lines)
        self.results.record(TRIPS, "trips", window=found)
        return {"trips_per_s": found["lines"] / found["seconds"], **shares("trips", found)}

    # -- holding -------------------------------------------------------------------------------------------------------------

    def held(self, system: System) -> None:
        """Hold connections for minutes, with a line per minute from each. Measured once: a system holds them or not."""
        options = self.options
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES
        with self.failing(system.name, "held"):
            if system.ours and options.held > files * system.processes:
                raise MeasurementError(
                    f"needs {-(-options.held // files)} workers: a process may have about {files} open files"
                )
            with self.start(system) as running, PythonBackEnd(self.broker, *system.queues) as back_end:
                back_end.call("begin", answers="", numbered=False)
                with self.hold(running, 100) as swarm:
                    swarm.ready()
                    swarm.interrupt()
                empty = settled(running)
                sources = -(-options.held // PORTS)
                seconds = options.held_minutes * 60
                more = ["--source", f"127.0.0.1-127.0.0.{sources}"] if sources > 1 else []
                more += ["--processes", str(-(-options.held // min(files, 15000))), "--seconds", f"{seconds:g}", *LINE]
                first = back_end.lines()
                with self.swarm(running, "--mode", "hold", "--connections", str(options.held), *more, waits=True) as swarm:
                    swarm.ready(120 + options.held / 50)
                    before = running.cpu()
                    swarm.begin()
                    time.sleep(seconds - 1)
                    memory, spent = running.pss() - empty, running.cpu() - before
                    done = swarm.summary(120 + options.held / 100)
                written = done["lines"]["written"]
                arrived = self.arrived(back_end, written + first, 60) - first
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
                        "twice": back_end.stats()["duplicates"],
                        "kb": memory / max(1, connections["connected"]),
                        "cpu": spent / max(1, seconds - 1),
                    },
                )
                progress(f"  {system.name}: held: {connections['connected']} connections, {arrived} of {written} lines")


def shares(name: str, found: dict[str, float]) -> dict[str, float]:
    """Return CPU per line, and the share of a core that each process used."""
    figures = {f"{name}_server_us": found["server"] / found["lines"] * 1e6}
    for part in ("server", "swarm", "back_end", "broker"):
        if part in found:
            figures[f"{name}_{part}_share"] = found[part] / found["seconds"]
    return figures


def progress(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def command_line() -> str:
    """Return the command that reproduces the figures, without passwords and without the paths of other systems."""
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
        prog="python -m bench.figures", description="Measure cost and throughput of Owsla, compared with other systems."
    )
    parts = ("memory", "handshakes", "line", "trips", "latency", "ingest", "held")
    parser.add_argument("--broker", metavar="URL", default=BROKER, help="a RabbitMQ (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=5, help="runs, in each of which the systems take turns (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=5, help="length of each measurement (default: %(default)s)")
    parser.add_argument("--only", metavar="NAMES", default=",".join(parts), help="parts to measure (default: %(default)s)")
    parser.add_argument(
        "--beside", metavar="NAME=COMMAND", action="append", default=[], help="another system; may be given several times"
    )
    parser.add_argument("--workers", type=int, default=2, help="workers of a second Owsla; 1 for none (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=200, help="devices for lines and latency (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=5000, help="lines per second for CPU per line (default: %(default)s)")
    parser.add_argument("--trip-devices", type=int, default=500, help="devices for round trips (default: %(default)s)")
    parser.add_argument("--latency-rate", type=float, default=500, help="lines per second for latency (default: %(default)s)")
    parser.add_argument("--connects", type=float, default=500, help="connects per second during latency (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=5000, help="connections for memory (default: %(default)s)")
    # Current devices would offer X25519MLKEM768 first, which costs any gateway 7 KB per connection and a fifth more CPU.
    parser.add_argument("--groups", default="X25519", help="key exchange groups of the devices (default: %(default)s)")
    parser.add_argument("--held", type=int, default=10000, help="connections to hold (default: %(default)s)")
    parser.add_argument("--held-minutes", type=float, default=1, help="how long to hold them (default: %(default)s)")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=RESULTS, help="folder of figures* (default: bench/results)"
    )
    options = parser.parse_args()
    options.only = options.only.split(",")
    for name in options.only:
        if name not in parts:
            parser.error(f"--only: {name!r} is not one of {', '.join(parts)}")
    for pair in options.beside:
        name, given, command = pair.partition("=")
        if not name or not given or "{port}" not in command:
            parser.error(f"--beside: {pair!r} is not NAME=COMMAND with {{port}} in the command")
    if min(options.runs, options.seconds, options.held, options.held_minutes, options.connections) <= 0:
        parser.error("--runs, --seconds, --connections, --held and --held-minutes must be above 0")
    return options


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    options = read_arguments()
    # SIGINT too: a shell starts background jobs with SIGINT ignored, and the swarms, which inherit that, are ended with it.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupted)
    results = Results(command_line(), options)
    status = 0
    try:
        with tempfile.TemporaryDirectory(prefix="owsla-bench-") as folder:
            bench = Bench(options, Path(folder), results)
            results.systems = [system.name for system in bench.systems]
            results.beside = [system.name for system in bench.systems if not system.ours]
            if set(options.only) - {"held"}:
                for number in range(options.runs):
                    progress(f"run {number + 1} of {options.runs}, load average {os.getloadavg()[0]:.1f}")
                    results.begin()
                    bench.run(number)
            if "held" in options.only:
                progress(f"holding {options.held} connections")
                for system in bench.systems:
                    bench.held(system)
    except KeyboardInterrupt:
        results.interrupted = True
        status = 130
    if results.anything:
        for path in write(results, options.output):
            progress(f"written: {path}")
        print((options.output / "figures.md").read_text())
    elif not status:
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
