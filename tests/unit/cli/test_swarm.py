"""The parts of `owsla swarm` that decide: no socket in any of them."""

from __future__ import annotations

import argparse
import io
import json
import math
import resource
import xml.etree.ElementTree as ElementTree
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from owsla.cli._arguments import parser
from owsla.cli.swarm import _arguments, _process, _sources, _tls
from owsla.cli.swarm._books import Book, Pace, Tally
from owsla.cli.swarm._devices import Counts
from owsla.cli.swarm._histogram import LARGEST, Histogram, bounds, bucket
from owsla.cli.swarm._lines import LineTemplate, ack_pattern
from owsla.cli.swarm._plan import Plan
from owsla.cli.swarm._report import Report
from owsla.cli.swarm._svg import draw
from owsla.errors import ConfigError


def typed(*arguments: str) -> Plan:
    """The plan of a command line."""
    return _arguments.plan(parser().parse_args(["swarm", *arguments]))


class HistogramTests(SynchronousTestCase):
    """How long things took."""

    @given(st.integers(0, LARGEST))
    def test_every_value_has_a_bucket(self, value: int) -> None:
        """A value is within its bucket, which is no wider than a 128th of it, or 1."""
        low, after = bounds(bucket(value))
        self.assertTrue(low <= value < after)
        self.assertTrue(after - low == 1 or (after - low) * 128 <= low)

    def test_no_value_between_buckets(self) -> None:
        """Each bucket begins where the one before it ends."""
        edges = [bounds(number) for number in range(bucket(LARGEST) + 1)]
        self.assertEqual([after for _, after in edges[:-1]], [low for low, _ in edges[1:]])

    @given(st.lists(st.integers(0, 2 * LARGEST), min_size=1), st.floats(0.1, 100))
    def test_percentile(self, values: list[int], percent: float) -> None:
        """A percentile is that of the sorted values, at most a 128th too high, and never too low."""
        histogram = Histogram()
        for value in values:
            histogram.add(value)
        exact = sorted(min(value, LARGEST) for value in values)[max(1, math.ceil(len(values) * percent / 100 - 1e-6)) - 1]
        found = histogram.percentile(percent)
        assert found is not None
        self.assertTrue(exact <= found <= exact + exact / 128)

    def test_nothing(self) -> None:
        """Where nothing was counted there is neither a percentile nor a mean."""
        self.assertEqual((Histogram().percentile(50), Histogram().mean(), list(Histogram().buckets())), (None, None, []))

    def test_backwards(self) -> None:
        """A clock that went back counts as no time at all."""
        histogram = Histogram()
        histogram.add(-5)
        self.assertEqual((histogram.percentile(100), histogram.total), (0, 0))

    @given(st.lists(st.integers(0, LARGEST)), st.lists(st.integers(0, LARGEST)))
    def test_merge(self, one: list[int], other: list[int]) -> None:
        """Merged, and by way of JSON, it is as if one had counted all of it."""
        whole, first, second = Histogram(), Histogram(), Histogram()
        for value in one:
            whole.add(value)
            first.add(value)
        for value in other:
            whole.add(value)
            second.add(value)
        first.merge(Histogram.load(json.loads(json.dumps(second.dump()))))
        self.assertEqual(first.dump(), whole.dump())
        self.assertEqual(first.count, len(one) + len(other))


class LineTests(SynchronousTestCase):
    """What is said, and how an answer is known."""

    def test_fields(self) -> None:
        """Number, device and time are filled in; other braces, and a percent sign, stand for themselves."""
        template = LineTemplate('{"n":{n},"d":{device},"t":{time},"load":"5%d"}')
        self.assertEqual(template.line(7, 3, 1000), b'{"n":7,"d":3,"t":1000,"load":"5%d"}')

    def test_size(self) -> None:
        """Lines are filled up at the end, or where it is asked for, to a size in bytes; what is longer stays."""
        self.assertEqual(LineTemplate("{n}", 5).line(12, 0, 0), b"12...")
        self.assertEqual(LineTemplate("<{n} {pad}>", 9).line(12, 0, 0), b"<12 ....>")
        self.assertEqual(LineTemplate("\N{EURO SIGN}{n}", 6).line(1, 0, 0), b"\xe2\x82\xac1..")
        self.assertEqual(LineTemplate("{n}{pad}!", 2).line(123, 0, 0), b"123!")

    @given(
        st.lists(st.sampled_from(["{n}", "{device}", "{time}", " ", "x", "%d", "%", "{", "}", "[", "."]), max_size=8),
        st.integers(0, 10**9),
        st.integers(0, 10**6),
        st.integers(0, 60),
    )
    def test_answers_are_known(self, pieces: list[str], n: int, device: int, size: int) -> None:
        """A line that comes back, with something before it and a carriage return after, is known by its number."""
        text = " {n} " + "".join(pieces)
        template = LineTemplate(text, size)
        line = template.line(n, device, 1_700_000_000_000)
        self.assertTrue(len(line) >= size)
        found = template.pattern().search(b"answer 17: " + line + b"\r")
        assert found is not None
        self.assertEqual(int(found["n"]), n)

    def test_others_are_not(self) -> None:
        """A line that is no answer to one of ours is told apart."""
        search = LineTemplate("{device} {n} end").pattern().search
        for line in (b"", b"1 end", b"1 x end", b"1 2 en", b"1 two end"):
            self.assertIsNone(search(line), line)

    def test_refused(self) -> None:
        """A line within a line, and two places to fill up, are mistakes."""
        for text in ("a\nb", "{pad}{pad}"):
            self.assertRaises(ValueError, LineTemplate, text)

    def test_acknowledgement(self) -> None:
        """The gateway's own template says where the number is."""
        found = ack_pattern("ACK {seq}!").fullmatch(b"ACK 12!")
        assert found is not None
        self.assertEqual(found[1], b"12")
        self.assertIsNone(ack_pattern("ACK {seq}!").fullmatch(b"ACK 12"))
        for text in ("ACK", "{seq} {seq}"):
            self.assertRaises(ValueError, ack_pattern, text)


class BookTests(SynchronousTestCase):
    """What an answer is."""

    def heard(self, said: int, *answers: int) -> tuple[int, int, int, int, int]:
        """After so many lines and these answers: answered, twice, out of order, strange, still waiting."""
        tally = Tally()
        book = Book(tally)
        for number in range(said):
            book.say(number, number + 1)
        for answer in answers:
            book.hear(answer)
        return tally.answers, tally.duplicates, tally.disordered, tally.strange, len(book.waiting)

    def test_answers(self) -> None:
        """Each answer is one of: the first to its line, in order or not; another one; or to nothing that was said."""
        self.assertEqual(self.heard(3, 0, 1, 2), (3, 0, 0, 0, 0))
        self.assertEqual(self.heard(3, 0, 2), (2, 0, 0, 0, 1))
        self.assertEqual(self.heard(3, 2, 0, 1), (3, 0, 2, 0, 0))
        self.assertEqual(self.heard(3, 0, 0, 1), (2, 1, 0, 0, 1))
        self.assertEqual(self.heard(1, 1, 5), (0, 0, 0, 2, 1))

    def test_times(self) -> None:
        """The first answer gives the times of its line, another one none."""
        book = Book(Tally())
        book.say(5, 8)
        self.assertEqual((book.hear(0), book.hear(0)), ((5, 8), None))

    @given(st.floats(0.1, 1e5), st.floats(0.1, 100), st.integers(0, 10**11))
    def test_pace(self, rate: float, seconds: float, now: int) -> None:
        """Lines become due one after the other, evenly; never more than were asked for."""
        pace = Pace(1000, rate, seconds)
        due = pace.due(1000 + now)
        self.assertTrue(0 <= due <= pace.total)
        self.assertTrue(due == pace.total or abs(due - 1 - now / 1e9 * rate) <= 1)
        pace.said = max(0, due - 1)
        if due:
            self.assertTrue(pace.next <= 1000 + now + 1)


class SourceTests(SynchronousTestCase):
    """Where connections come from."""

    def test_read(self) -> None:
        """Addresses, ranges, and networks without their own and broadcast addresses."""
        self.assertEqual(_sources.read("127.0.0.1"), ["127.0.0.1"])
        self.assertEqual(_sources.read("127.0.0.254-127.0.1.1"), ["127.0.0.254", "127.0.0.255", "127.0.1.0", "127.0.1.1"])
        self.assertEqual(_sources.read("127.1.0.0/30, 127.0.0.9"), ["127.1.0.1", "127.1.0.2", "127.0.0.9"])
        self.assertEqual(len(_sources.read("fd00::/120")), 255)

    def test_refused(self) -> None:
        """Nonsense, ranges backwards, far too many, and both families at once."""
        for text in ("", "here", "127.0.0.2-127.0.0.1", "10.0.0.0/8", "10.0.0.1-10.9.0.1", "127.0.0.1,::1", "1.1.1.1-::1"):
            self.assertRaises(ValueError, _sources.read, text)


class PlanTests(SynchronousTestCase):
    """What is typed becomes a plan."""

    def refused(self, *arguments: str) -> str:
        """What is said of a mistake."""
        with self.assertRaises(ConfigError) as caught:
            typed(*arguments)
        self.assertNotIn("\n", str(caught.exception))
        return str(caught.exception)

    def test_defaults(self) -> None:
        """Each mode has its own rate and limit of lines in flight."""
        found = {mode: typed("--mode", mode) for mode in ("echo", "flood", "hold", "storm")}
        self.assertEqual({mode: plan.in_flight for mode, plan in found.items()}, {"echo": 1, "flood": 0, "hold": 0, "storm": 0})
        self.assertEqual(found["hold"].rate, 100 / 60)
        self.assertEqual((found["storm"].connections, found["echo"].connections), (0, 100))
        self.assertEqual(typed("--rate", "5").in_flight, 64)

    def test_contradictions(self) -> None:
        """What cannot be meant is said to be so, naming the option."""
        for option, arguments in {
            "--rate": ["--mode", "storm", "--rate", "5"],
            "--in-flight": ["--in-flight", "0"],
            "--line": ["--line", "hello"],
            "--device-ack": ["--device-ack", "ok"],
            "--source": ["--source", "nowhere"],
            "--insecure": ["--insecure", "--ca", "x"],
            "--tick": ["--tick", "1"],
            "--wait": ["--mode", "storm", "--wait"],
        }.items():
            self.assertTrue(self.refused(*arguments).startswith(option), option)
        self.assertIn("--device-ack", self.refused("--mode", "flood", "--in-flight", "3"))

    def test_too_few_files(self) -> None:
        """More connections than files: how many processes it takes."""
        made = typed("--connections", "100")
        _arguments.check_files(made, 164)
        with self.assertRaises(ConfigError) as caught:
            _arguments.check_files(made, 163)
        self.assertIn("--processes 2", str(caught.exception))
        _arguments.check_files(replace(made, processes=2), 114)

    def test_too_few_ports(self) -> None:
        """More connections than ports: how many addresses it takes. A storm has them one after the other."""
        made = typed("--connections", "100")
        _arguments.check_ports(made, "1000\t1099\n")
        with self.assertRaises(ConfigError) as caught:
            _arguments.check_ports(made, "1000\t1098\n")
        self.assertIn("127.0.0.1-127.0.0.2", str(caught.exception))
        _arguments.check_ports(replace(made, sources=("127.0.0.1", "127.0.0.2")), "1000 1098")
        _arguments.check_ports(replace(made, mode="storm"), "1000 1098")

    @given(st.integers(1, 1000), st.integers(1, 20))
    def test_shares(self, connections: int, processes: int) -> None:
        """The processes' shares are all of it, no device twice, and each survives its way through JSON."""
        whole = typed("--connections", str(connections), "--rate", "50", "--processes", str(processes))
        shares = list(whole.shares())
        numbers = [share.first + index for share in shares for index in range(share.connections)]
        self.assertEqual(numbers, list(range(connections)))
        self.assertAlmostEqual(sum(share.rate for share in shares), 50)
        self.assertTrue(max(share.connections for share in shares) <= whole.files())
        self.assertEqual([Plan.load(share.dump()) for share in shares], shares)

    def test_no_idle_process(self) -> None:
        """There are not more processes than connections, or than a storm has under way."""
        self.assertEqual(typed("--connections", "2", "--processes", "5").processes, 2)
        self.assertEqual(typed("--mode", "storm", "--connecting", "3", "--processes", "5").processes, 3)

    def test_help_fits(self) -> None:
        """The help fits a terminal's 80 columns."""
        actions = parser()._actions
        commands = next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
        self.assertEqual([line for line in commands["swarm"].format_help().splitlines() if len(line) > 80], [])

    def test_bad_numbers(self) -> None:
        """A number that is none is one line, and status 1."""
        for arguments in (["--port", "0"], ["--port", "x"], ["--rate", "-1"], ["--seconds", "0"], ["--connections", "nan"]):
            err = io.StringIO()
            with redirect_stderr(err), self.assertRaises(SystemExit) as caught:
                parser().parse_args(["swarm", *arguments])
            self.assertEqual((caught.exception.code, err.getvalue().count("\n")), (1, 1))
            self.assertIn(arguments[0], err.getvalue())


def part(**changes: Any) -> dict[str, Any]:
    """What a process reports of ten lines that were answered."""
    names = ["resumed", "failed", "dropped", "acked", "disordered", "duplicates", "strange", "lost", "held", "memory"]
    use = {"took": 1.0, "seconds": 1.0, "cpu": 0.1, "starved": 0.0}
    times = Histogram()
    for _ in range(10):
        times.add(1000)
    histograms = {name: times.dump() for name in ("connect_times", "latency", "service", "lateness")}
    counts = {**dict.fromkeys(names, 0), "up": 5, "said": 10, "written": 10, "answers": 10, "bytes": 100}
    return {**counts, "reasons": {}, "connecting": use, "talking": use, **histograms, **changes}


class DroppedAtTheEnd:
    """Devices of which one that waits for two answers is dropped, with an answer still read, while the others say goodbye."""

    def __init__(self, plan: Plan, *_: object) -> None:
        self.counts = Counts()
        self.counts.up = self.counts.said = self.counts.written = 2
        self.held = self.lost = 0
        self.connect_times, self.latency, self.service, self.lateness = (Histogram() for _ in range(4))

    def connect(self) -> float:
        return 1.0

    def wait(self) -> None:
        pass

    def talk(self) -> float:
        return 1.0

    def settle(self) -> None:
        self.lost += 2

    def close(self) -> None:
        self.lost += 2
        self.held += 1
        self.counts.dropped += 1
        self.counts.tally.answers += 1
        for histogram in (self.connect_times, self.latency, self.service, self.lateness):
            histogram.add(1000)


class ProcessTests(SynchronousTestCase):
    """What a process reports."""

    def test_goodbyes_do_not_count(self) -> None:
        """What is lost is counted once: the report is of what there was before the connections were closed."""
        self.patch(_process, "Devices", DroppedAtTheEnd)
        # It takes as many open files as it may.
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        told: list[dict[str, Any]] = []
        _process._run(typed("--mode", "echo"), lambda **what: told.append(what))
        report = told[-1]["report"]
        found = {name: report[name] for name in ("said", "lost", "held", "dropped", "answers")}
        self.assertEqual(found, {"said": 2, "lost": 2, "held": 0, "dropped": 0, "answers": 0})
        for name in ("connect_times", "latency", "service", "lateness"):
            self.assertEqual(Histogram.load(report[name]).count, 0, name)


class ReportTests(SynchronousTestCase):
    """What it comes to."""

    def report(self, *parts: dict[str, Any], mode: str = "echo", **changes: Any) -> Report:
        """Of two processes that were asked for ten lines a second each."""
        arguments = ["--mode", mode, "--connections", "10", "--processes", "2", "--seconds", "1"]
        return Report(replace(typed(*arguments), **changes), parts)

    def test_held(self) -> None:
        """Where nothing is missing the status is 0, and sums are over all processes."""
        report = self.report(part(), part(), rate=20.0)
        self.assertEqual((report.status(), report.problems(), report.limits()), (0, [], []))
        summary = json.loads(json.dumps(report.summary()))
        self.assertEqual(summary["answers"]["answered"], 20)
        self.assertEqual(summary["answers"]["ms_since_due"]["p99.9"], 1.0)
        self.assertIn("It held.", report.table())

    def test_not_held(self) -> None:
        """Each thing that did not hold is a status of 2, and said."""
        for name in ("failed", "dropped", "lost", "duplicates", "disordered", "strange"):
            report = self.report(part(**{name: 3}), part())
            self.assertEqual((report.status(), len(report.problems())), (2, 1), name)
            self.assertIn("3", report.problems()[0])
            self.assertIn(report.problems()[0], report.table())
        self.assertEqual(self.report(part(written=9), part()).status(), 2)
        self.assertEqual(self.report(part(acked=10), part(acked=9), mode="flood", device_ack="{seq}").status(), 2)
        self.assertEqual(self.report(part(), part(), rate=30.0).problems(), ["20 of 30 lines said in time"])

    def test_bottleneck(self) -> None:
        """A swarm that had no time, or no CPU, or was late, says so; the status is about the gateway."""
        busy = {"took": 1.0, "seconds": 1.0, "cpu": 0.95, "starved": 0.0}
        starved = {"took": 1.0, "seconds": 1.0, "cpu": 0.5, "starved": 0.45}
        late = Histogram()
        late.add(50_000)
        for changes in ({"talking": busy}, {"connecting": starved}, {"lateness": late.dump()}):
            report = self.report(part(**changes), part(), rate=20.0)
            self.assertEqual((len(report.limits()), report.status()), (1, 0), changes)
            self.assertIn("Limited by the swarm or its machine", report.table())

    def test_storm(self) -> None:
        """A storm is of connections only; none is no success."""
        report = self.report(part(talking={}), mode="storm")
        self.assertNotIn("lines", report.summary())
        self.assertEqual(self.report(part(talking={}, up=0), mode="storm").status(), 2)

    def test_drawing(self) -> None:
        """The histogram is well-formed XML with a bar for what there is, and none for nothing."""
        histogram = Histogram()
        for value in (0, 1, 10, 1000, 1000, 10**6, LARGEST * 2):
            histogram.add(value)
        name = "{http://www.w3.org/2000/svg}rect"
        bars = [
            one
            for one in ElementTree.fromstring(draw(histogram, "a < b & c", (50, 99))).iter(name)
            if one.get("class") == "bar"
        ]
        self.assertTrue(4 <= len(bars) <= 6)
        self.assertTrue(all(float(one.get("height", "nan")) > 0 for one in bars))
        self.assertNotIn('"bar"', draw(Histogram(), "nothing", (50,)))


class ReasonTests(SynchronousTestCase):
    """Failures, in words."""

    def test_words(self) -> None:
        """What OpenSSL and the system say, for a person."""
        for error, words in (
            (SSL.ZeroReturnError(), "closed by the gateway"),
            (SSL.SysCallError(-1, "Unexpected EOF"), "closed without a goodbye"),
            (SSL.SysCallError(104, "ECONNRESET"), "connection reset by peer"),
            (SSL.Error([("SSL routines", "", "wrong version number")]), "what answers does not speak TLS"),
            (
                SSL.Error([("SSL routines", "", "tlsv13 alert certificate required")]),
                "the gateway refused: certificate required",
            ),
            (SSL.Error([]), "closed without a goodbye"),
            (OSError(111, "Connection refused"), "connection refused"),
        ):
            self.assertEqual(_tls.failure(error), words)

    def test_key_without_certificate(self) -> None:
        """A key alone is a mistake."""
        self.assertRaises(ConfigError, _tls.Pairs, None, "key.pem")

    def test_pairs(self) -> None:
        """A template names a pair for each device, and the key is in the same file unless it is named."""
        pairs = _tls.Pairs("certs/{device}.pem", None)
        self.assertEqual((pairs.many, pairs.one, pairs.of(3)), (True, None, (3, "certs/3.pem", "certs/3.pem")))
        self.assertEqual(_tls.Pairs("a.pem", "a.key").one, ("a.pem", "a.key"))
