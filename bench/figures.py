"""Cost and throughput of Owsla, compared with other systems and with the limits that the machine and RabbitMQ set.

    python -m bench.figures --runs 5 --mqtt --beside 'NAME=COMMAND'

Everything runs on one machine. The systems take turns within each run, so that other load on the machine affects all of them
alike. Devices are `owsla swarm`. The back end is a small C program, or the one in Python if there is no compiler. A table,
plots and all raw numbers are written to `bench/results/figures*`. `--beside` names another system: a shell command that runs in
the foreground and serves TLS lines on {port} with {cert} and {key}. It publishes each line to the queue `from_device`, and
sends each message of `to_device` to the connection in its header `connection_id`. The URL of RabbitMQ is in its environment, as
AMQP_URL. `--mqtt` adds the MQTT plugin of a RabbitMQ that is started for it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pika

from owsla.tls.development import development_certificates

from . import own_broker, proc
from .c_program import WINDOW, CProgram, MeasurementError, PythonBackEnd, build, start_back_end
from .figures_arguments import OWN, command_line, read_arguments
from .figures_report import CEILINGS, PUBLISHER, TRIPS, Results, write
from .harness import broker_version, delete_queues, settled
from .systems import DEVICES, RunningSystem, SwarmCommand, System, mqtt, owsla

FIRST = 100
"""Number of connections before those whose memory is measured."""

WARM = 1.0
"""Time in seconds that lines flow before the measurement starts."""
LINE = ("--line", "{device} {n} ", "--size", "50")
SPARE_FILES = 200
"""Approximate number of open files of a process besides its connections."""
PORTS = 20000
"""Number of connections from one source address: it has some 28,000 ports, of which some may be in use."""
BARE = "owsla-bench-from", "owsla-bench-to"

FLOODS = {"ingest", "bursts"}
"""Parts in which lines are sent as fast as the system accepts them. Some systems take minutes afterwards to work off theirs."""

Step = Callable[[RunningSystem], dict[str, float]]


class Bench:
    """Measurements of all systems."""

    def __init__(
        self, options: argparse.Namespace, broker: str, folder: Path, results: Results, systems: Sequence[System]
    ) -> None:
        """Prepare the measurements with the RabbitMQ at the URL `broker`."""
        self.options = options
        self.results = results
        self.made = development_certificates(folder, "localhost")
        self.openssl = folder / "devices.cnf"
        self.openssl.write_text(DEVICES.format(groups=options.groups))
        self.broker = broker
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
        results.broker = broker_version(broker)
        self.systems = systems
        results.systems = [system.name for system in systems]
        results.beside = [system.name for system in systems if not system.ours]
        self.steps: dict[str, Step] = {
            # Memory first, of a process that has done nothing yet. The flood last: some systems take long to work it off.
            "memory": self.memory,
            "handshakes": self.handshakes,
            "line": self.line,
            "trips": self.trips,
            "latency": self.latency,
            "ingest": self.ingest,
            "bursts": self.bursts,
        }

    # -- taking turns --------------------------------------------------------------------------------------------------------

    def run(self, number: int) -> None:
        """Measure each system in turn, beginning with a different one in each run."""
        turns: list[Callable[[], None]] = []
        if FLOODS & set(self.options.only):
            turns.append(lambda: self.ceiling(PUBLISHER, self.publisher))
        if "trips" in self.options.only:
            turns.append(lambda: self.ceiling(TRIPS, self.both_queues))
        turns += [self._turn_of(system) for system in self.systems]
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
                    began = time.monotonic()
                    with self.failing(system.name, name):
                        self.keep(system.name, name, self.steps[name](running))
                    self.results.record(system.name, name, seconds=round(time.monotonic() - began, 1))
                    if not running.alive:
                        self.results.failed(system.name, name, f"it ended: {running.last_log_line()}")
                    if name in FLOODS:
                        break  # the next part begins with a new process, and with empty queues
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
        protocol = ("--protocol", running.system.protocol)
        return SwarmCommand(running.port, self.made.ca, self.openssl, *protocol, *options, waits=waits)

    def back_end(self, running: RunningSystem, echoes: bool) -> CProgram | PythonBackEnd:
        system = running.system
        if system.protocol != "lines" and self.program is None:
            raise MeasurementError(f"{self.no_program}, whose back end can answer by topic")
        return start_back_end(self.program, running.broker, echoes, system.queues, system.ours)

    def window(self, pids: dict[str, int], lines: Callable[[], int], broker: str) -> dict[str, float]:
        """Measure the CPU of each process, and the lines that arrive, for `--seconds`.

        A system with a RabbitMQ of its own, at the URL `broker`, is gateway and RabbitMQ in one: the other RabbitMQ is idle.
        """
        if self.broker_pid is not None and broker == self.broker:
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
        # A first hundred connections, since allocations that are made once for all are not the cost of one. They stay open:
        # some systems would use the memory of closed ones again, which is up to a KB of each of 2,000.
        with self.hold(running, FIRST) as first:
            opened = first.ready()
            before = settled(running)
            with self.hold(running, self.options.connections) as swarm:
                connected = swarm.ready()
                time.sleep(3)  # with the next three: some systems release memory when a connection has been idle for 5 s
                each = (settled(running) - before) / connected
                swarm.interrupt()
            first.interrupt()
        return {"idle_kb": each, "empty_mb": (before - opened * each) / 1024}

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
            pids = {"server": running.pid, "swarm": swarm.pid, "back_end": back_end.pid}
            found = self.window(pids, back_end.lines, running.broker)
            if name not in FLOODS:  # after a flood some systems take minutes to work off their lines
                done = swarm.summary(60)
                self.note(running, name, done)
                written = done["lines"]["written"]
                arrived = self.arrived(back_end, written + first) - first
                if arrived != written:
                    self.results.note(running.system.name, f"{name}: {arrived} lines arrived of {written} that were written")
            self.check(running, name, back_end)
        self.results.record(running.system.name, name, window=found)
        if found["lines"] <= 0:
            raise MeasurementError("no line arrived")
        return found

    def check(self, running: RunningSystem, name: str, back_end: CProgram | PythonBackEnd) -> None:
        """Note lines that are missing or repeated by their numbers."""
        counts = back_end.counts()
        wrong = [f"{counts[what]} lines {what}" for what in ("missing", "repeated") if counts[what]]
        if wrong:
            self.results.note(running.system.name, f"{name}: {', '.join(wrong)}")

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
                if part in found and not (part == "server" and running.is_broker):
                    figures[f"{name}_{part}_us"] = found[part] / lines * 1e6
            figures.update(self.together(name, found, running.broker))
            figures[f"{name}_per_s"] = lines / found["seconds"]
        return figures

    def ingest(self, running: RunningSystem) -> dict[str, float]:
        """Measure lines at the highest rate that the system accepts. A device writes each by itself."""
        return self.flood(running, "ingest")

    def bursts(self, running: RunningSystem) -> dict[str, float]:
        """Measure lines at the highest rate that the system accepts. A device writes several together."""
        return self.flood(running, "bursts", "--burst", str(self.options.burst))

    def flood(self, running: RunningSystem, name: str, *options: str) -> dict[str, float]:
        found = self.measure_lines(running, name, "--mode", "flood", "--connections", str(self.options.devices), *options)
        return self.full_speed(name, found, running.broker)

    def full_speed(self, name: str, found: dict[str, float], broker: str) -> dict[str, float]:
        return {f"{name}_per_s": found["lines"] / found["seconds"], **shares(name, found), **self.together(name, found, broker)}

    def together(self, name: str, found: dict[str, float], broker: str) -> dict[str, float]:
        """Return CPU per line of the server and RabbitMQ together, unless RabbitMQ is on another machine."""
        if "broker" not in found and broker == self.broker:
            return {}
        return {f"{name}_together_us": (found["server"] + found.get("broker", 0.0)) / found["lines"] * 1e6}

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
                echo = "--mode", "echo", "--seconds", f"{self.options.latency_seconds:g}", *LINE
                swarm = stack.enter_context(self.swarm(running, *echo, *rate, waits=True))
                swarm.ready()
                storm = None
                if name == "storm":
                    seconds = str(600 + self.options.latency_seconds)
                    stormy = "--mode", "storm", "--connect-rate", f"{self.options.connects:g}", "--seconds", seconds
                    storm = stack.enter_context(self.swarm(running, *stormy))
                    time.sleep(1.5)  # until the storm has started
                swarm.begin()
                done = swarm.summary(90 + self.options.latency_seconds)
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
            found = self.window({"server": publisher.pid, "back_end": drain.pid}, drain.lines, self.broker)
        self.results.record(PUBLISHER, "ingest", window=found)
        # It publishes a line in a message, and knows no devices: the same is the ceiling of lines in bursts.
        return {
            figure: value
            for name in sorted(FLOODS & set(self.options.only))
            for figure, value in self.full_speed(name, found, self.broker).items()
        }

    def both_queues(self, program: Path) -> dict[str, float]:
        """Measure round trips of a bare producer through both queues and an echo, with a line in flight per device."""
        with (
            CProgram(program, self.broker, "echo", *BARE) as echo,
            CProgram(program, self.broker, "trips", *BARE, self.options.trip_devices) as producer,
        ):
            time.sleep(WARM)
            found = self.window({"server": producer.pid, "back_end": echo.pid}, producer.lines, self.broker)
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
            with self.start(system) as running, self.back_end(running, False) as back_end:
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
                        "twice": back_end.counts()["repeated"],
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


def systems(options: argparse.Namespace) -> list[System]:
    """Return the systems to measure."""
    found = []
    for variant in options.variants:
        words = variant.split("-")
        found.append(owsla(options.workers if "workers" in words else 1, options.batch if "batch" in words else 1))
    found += [System(*pair.split("=", 1)) for pair in options.beside]
    return [*found, mqtt()] if options.mqtt else found


def measure(bench: Bench, options: argparse.Namespace, results: Results) -> None:
    """Take all turns."""
    if set(options.only) - {"held"}:
        for number in range(options.runs):
            progress(f"run {number + 1} of {options.runs}, load average {os.getloadavg()[0]:.1f}")
            results.begin()
            began = time.monotonic()
            bench.run(number)
            progress(f"run {number + 1} took {time.monotonic() - began:.0f} s")
    if "held" in options.only:
        progress(f"holding {options.held} connections")
        for system in bench.systems:
            bench.held(system)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    options = read_arguments()
    # SIGINT too: a shell starts background jobs with SIGINT ignored, and the swarms, which inherit that, are ended with it.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupted)
    results = Results(command_line(sys.argv[1:]), options)
    status = 0
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="owsla-bench-"))
            broker = stack.enter_context(own_broker.running()) if options.broker == OWN else options.broker
            measure(Bench(options, broker, Path(folder), results, systems(options)), options, results)
    except MeasurementError as error:
        progress(str(error))
        status = 1
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
