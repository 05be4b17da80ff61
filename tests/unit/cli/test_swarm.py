"""The parts of `owsla swarm` that need no socket."""

from __future__ import annotations

import argparse
import io
import ipaddress
import json
import math
import resource
import socket
import xml.etree.ElementTree as ElementTree
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from owsla.cli._arguments import parser
from owsla.cli.swarm import _process, _sources, _tls
from owsla.cli.swarm._answers import AnswerCounts, AnswerMatcher
from owsla.cli.swarm._conversation import Conversation
from owsla.cli.swarm._device import Device
from owsla.cli.swarm._errors import REFUSED, UNEXPECTED_END
from owsla.cli.swarm._frames import LONGEST, Frames
from owsla.cli.swarm._histogram import LARGEST, LatencyHistogram, bounds, bucket
from owsla.cli.swarm._lines import LineTemplate, ack_pattern
from owsla.cli.swarm._measurements import HISTOGRAMS, Measurements
from owsla.cli.swarm._plan import Plan
from owsla.cli.swarm._planning import check_files, check_ports, plan
from owsla.cli.swarm._proxy import ProxyHeaders, source_of
from owsla.cli.swarm._report import Report
from owsla.cli.swarm._run import hint
from owsla.cli.swarm._schedule import Schedule
from owsla.cli.swarm._svg import draw
from owsla.device.proxy_header import ProxyHeader, parse
from owsla.errors import ConfigError


def typed(*arguments: str) -> Plan:
    """Return the plan of a command line."""
    return plan(parser().parse_args(["swarm", *arguments]))


class HistogramTests(SynchronousTestCase):
    """Histograms of durations."""

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
        histogram = LatencyHistogram()
        for value in values:
            histogram.add(value)
        exact = sorted(min(value, LARGEST) for value in values)[max(1, math.ceil(len(values) * percent / 100 - 1e-6)) - 1]
        found = histogram.percentile(percent)
        assert found is not None
        self.assertTrue(exact <= found <= exact + exact / 128)

    def test_nothing(self) -> None:
        """Without values there is neither a percentile nor a mean."""
        self.assertEqual(
            (LatencyHistogram().percentile(50), LatencyHistogram().mean(), list(LatencyHistogram().buckets())), (None, None, [])
        )

    def test_backwards(self) -> None:
        """A negative duration counts as 0."""
        histogram = LatencyHistogram()
        histogram.add(-5)
        self.assertEqual((histogram.percentile(100), histogram.total), (0, 0))

    @given(st.lists(st.integers(0, LARGEST)), st.lists(st.integers(0, LARGEST)))
    def test_merge(self, one: list[int], other: list[int]) -> None:
        """Merging two histograms, one of them by way of JSON, equals counting all values in one."""
        whole, first, second = LatencyHistogram(), LatencyHistogram(), LatencyHistogram()
        for value in one:
            whole.add(value)
            first.add(value)
        for value in other:
            whole.add(value)
            second.add(value)
        first.merge(LatencyHistogram.load(json.loads(json.dumps(second.dump()))))
        self.assertEqual(first.dump(), whole.dump())
        self.assertEqual(first.count, len(one) + len(other))


class LineTests(SynchronousTestCase):
    """Lines, and the recognition of answers."""

    def test_fields(self) -> None:
        """Number, device and time are filled in; other braces and percent signs stay."""
        template = LineTemplate('{"n":{n},"d":{device},"t":{time},"load":"5%d"}')
        self.assertEqual(template.line(7, 3, 1000), b'{"n":7,"d":3,"t":1000,"load":"5%d"}')

    def test_size(self) -> None:
        """Lines are padded to a size in bytes, at {pad} or at the end; longer ones stay."""
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
        """A line that comes back with a prefix and a carriage return is recognized by its number."""
        text = " {n} " + "".join(pieces)
        template = LineTemplate(text, size)
        line = template.line(n, device, 1_700_000_000_000)
        self.assertTrue(len(line) >= size)
        found = template.pattern().search(b"answer 17: " + line + b"\r")
        assert found is not None
        self.assertEqual(int(found["n"]), n)

    def test_others_are_not(self) -> None:
        """Other lines do not match."""
        search = LineTemplate("{device} {n} end").pattern().search
        for line in (b"", b"1 end", b"1 x end", b"1 2 en", b"1 two end"):
            self.assertIsNone(search(line), line)

    def test_refused(self) -> None:
        """An end of line in a template and a second {pad} are refused."""
        for text in ("a\nb", "{pad}{pad}"):
            self.assertRaises(ValueError, LineTemplate, text)

    def test_acknowledgement(self) -> None:
        """The number is found with the template of the gateway."""
        found = ack_pattern("ACK {seq}!").fullmatch(b"ACK 12!")
        assert found is not None
        self.assertEqual(found[1], b"12")
        self.assertIsNone(ack_pattern("ACK {seq}!").fullmatch(b"ACK 12"))
        for text in ("ACK", "{seq} {seq}"):
            self.assertRaises(ValueError, ack_pattern, text)


class AnswerTests(SynchronousTestCase):
    """Matching of answers to lines."""

    def counted(self, sent: int, *answers: int) -> tuple[int, int, int, int, int]:
        """Send lines and match answers: the numbers of answered, duplicate, disordered, strange and outstanding ones."""
        counts = AnswerCounts()
        lines = AnswerMatcher(counts)
        for number in range(sent):
            lines.sent(number, number + 1)
        for answer in answers:
            lines.answered(answer)
        return counts.answers, counts.duplicates, counts.disordered, counts.strange, len(lines.outstanding)

    def test_kinds(self) -> None:
        """An answer is the first to its line, in order or not, a duplicate, or an answer to a line that was never sent."""
        self.assertEqual(self.counted(3, 0, 1, 2), (3, 0, 0, 0, 0))
        self.assertEqual(self.counted(3, 0, 2), (2, 0, 0, 0, 1))
        self.assertEqual(self.counted(3, 2, 0, 1), (3, 0, 2, 0, 0))
        self.assertEqual(self.counted(3, 0, 0, 1), (2, 1, 0, 0, 1))
        self.assertEqual(self.counted(1, 1, 5), (0, 0, 0, 2, 1))

    def test_times(self) -> None:
        """The first answer returns the times of its line, a duplicate returns none."""
        lines = AnswerMatcher(AnswerCounts())
        lines.sent(5, 8)
        self.assertEqual((lines.answered(0), lines.answered(0)), ((5, 8), None))


class ScheduleTests(SynchronousTestCase):
    """Lines at a rate."""

    @given(st.floats(0.1, 1e5), st.floats(0.1, 100), st.integers(0, 10**11))
    def test_due(self, rate: float, seconds: float, now: int) -> None:
        """Lines become due evenly, and never more than were requested."""
        schedule = Schedule(1000, rate, seconds)
        due = schedule.due(1000 + now)
        self.assertTrue(0 <= due <= schedule.total)
        self.assertTrue(due == schedule.total or abs(due - 1 - now / 1e9 * rate) <= 1)

    @given(st.floats(0.1, 1000), st.floats(0.1, 1), st.integers(0, 10**9))
    def test_take(self, rate: float, seconds: float, now: int) -> None:
        """Each line that is due was due at or before now; the next one is due later."""
        schedule = Schedule(1000, rate, seconds)
        for _ in range(schedule.due(1000 + now)):
            self.assertTrue(schedule.take() <= 1000 + now + 1)
        self.assertTrue(schedule.finished or schedule.next >= 1000 + now - 1)


    @given(st.floats(0.1, 1e5), st.floats(0.1, 100), st.integers(0, 10**11), st.integers(1, 50))
    def test_bursts(self, rate: float, seconds: float, now: int, burst: int) -> None:
        """The lines of a burst are due together, when the first one is; the last burst is what is left of the total."""
        single, schedule = Schedule(1000, rate, seconds), Schedule(1000, rate, seconds, burst)
        self.assertEqual(schedule.total, single.total)
        due = schedule.due(1000 + now)
        self.assertTrue(due == schedule.total or due % burst == 0)
        self.assertTrue(single.due(1000 + now) <= due + 1 <= single.due(1000 + now) + burst + 1)

    def test_times_of_bursts(self) -> None:
        """Each line of a burst has the time of its first one."""
        schedule = Schedule(0, 10, 1, 4)
        self.assertEqual([(schedule.take(count), schedule.next) for count in (4, 4, 2)], [(0, 4e8), (4e8, 8e8), (8e8, 8e8)])
        self.assertTrue(schedule.finished)


class SourceTests(SynchronousTestCase):
    """Source addresses."""

    def test_read(self) -> None:
        """Addresses, ranges, and networks without network and broadcast addresses are read."""
        self.assertEqual(_sources.read("127.0.0.1"), ["127.0.0.1"])
        self.assertEqual(_sources.read("127.0.0.254-127.0.1.1"), ["127.0.0.254", "127.0.0.255", "127.0.1.0", "127.0.1.1"])
        self.assertEqual(_sources.read("127.1.0.0/30, 127.0.0.9"), ["127.1.0.1", "127.1.0.2", "127.0.0.9"])
        self.assertEqual(len(_sources.read("fd00::/120")), 255)

    def test_refused(self) -> None:
        """Nonsense, reversed ranges, too many addresses, and both families at once are refused."""
        for text in ("", "here", "127.0.0.2-127.0.0.1", "10.0.0.0/8", "10.0.0.1-10.9.0.1", "127.0.0.1,::1", "1.1.1.1-::1"):
            self.assertRaises(ValueError, _sources.read, text)


class PlanTests(SynchronousTestCase):
    """The plan made from the command line."""

    def refused(self, *arguments: str) -> str:
        """Return the error of a mistake."""
        with self.assertRaises(ConfigError) as caught:
            typed(*arguments)
        self.assertNotIn("\n", str(caught.exception))
        return str(caught.exception)

    def test_defaults(self) -> None:
        """Each mode has its own default rate and limit of lines in flight."""
        found = {mode: typed("--mode", mode) for mode in ("echo", "flood", "hold", "storm")}
        self.assertEqual({mode: plan.in_flight for mode, plan in found.items()}, {"echo": 1, "flood": 0, "hold": 0, "storm": 0})
        self.assertEqual(found["hold"].rate, 100 / 60)
        self.assertEqual((found["storm"].connections, found["echo"].connections), (0, 100))
        self.assertEqual(typed("--rate", "5").in_flight, 64)
        self.assertEqual((typed("--burst", "9").in_flight, typed("--rate", "5", "--burst", "99").in_flight), (9, 99))

    def test_contradictions(self) -> None:
        """Contradictory options are refused with the name of the option."""
        for option, arguments in {
            "--rate": ["--mode", "storm", "--rate", "5"],
            "--in-flight": ["--in-flight", "0"],
            "--line": ["--line", "hello"],
            "--device-ack": ["--device-ack", "ok"],
            "--source": ["--source", "nowhere"],
            "--insecure": ["--insecure", "--ca", "x"],
            "--tick": ["--tick", "1"],
            "--wait": ["--mode", "storm", "--wait"],
            "--server-name": ["--plain", "--server-name", "x"],
            "--resume": ["--plain", "--resume"],
            "--proxy-cn": ["--proxy", "v1", "--proxy-cn", "x"],
            "--delimiter": ["--delimiter", ";", "--framing", "netstring"],
        }.items():
            self.assertTrue(self.refused(*arguments).startswith(option), option)
        self.assertIn("--device-ack", self.refused("--mode", "flood", "--in-flight", "3"))
        self.assertIn("--burst", self.refused("--burst", "4", "--in-flight", "3"))
        self.assertIn("--burst", self.refused("--burst", "4", "--mode", "storm"))

    def test_too_few_files(self) -> None:
        """With more connections than files, the error says how many processes are needed."""
        made = typed("--connections", "100")
        check_files(made, 164)
        with self.assertRaises(ConfigError) as caught:
            check_files(made, 163)
        self.assertIn("--processes 2", str(caught.exception))
        check_files(replace(made, processes=2), 114)

    def test_too_few_ports(self) -> None:
        """With more connections than ports, the error says how many addresses are needed. A storm reuses its ports."""
        made = typed("--connections", "100")
        check_ports(made, "1000\t1099\n")
        with self.assertRaises(ConfigError) as caught:
            check_ports(made, "1000\t1098\n")
        self.assertIn("127.0.0.1-127.0.0.2", str(caught.exception))
        check_ports(replace(made, sources=("127.0.0.1", "127.0.0.2")), "1000 1098")
        check_ports(replace(made, mode="storm"), "1000 1098")

    @given(st.integers(1, 1000), st.integers(1, 20))
    def test_shares(self, connections: int, processes: int) -> None:
        """The shares of the processes add up to the plan, without a device twice, and survive JSON."""
        whole = typed("--connections", str(connections), "--rate", "50", "--processes", str(processes))
        shares = list(whole.shares())
        numbers = [share.first + index for share in shares for index in range(share.connections)]
        self.assertEqual(numbers, list(range(connections)))
        self.assertAlmostEqual(sum(share.rate for share in shares), 50)
        self.assertTrue(max(share.connections for share in shares) <= whole.files())
        self.assertEqual([Plan.load(share.dump()) for share in shares], shares)

    def test_no_idle_process(self) -> None:
        """There are at most as many processes as connections, or as connects in progress in a storm."""
        self.assertEqual(typed("--connections", "2", "--processes", "5").processes, 2)
        self.assertEqual(typed("--mode", "storm", "--connecting", "3", "--processes", "5").processes, 3)

    def test_help_fits(self) -> None:
        """The help fits a terminal's 80 columns."""
        actions = parser()._actions
        commands = next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
        self.assertEqual([line for line in commands["swarm"].format_help().splitlines() if len(line) > 80], [])

    def test_bad_numbers(self) -> None:
        """A malformed number is an error in one line, with status 1."""
        for arguments in (["--port", "0"], ["--port", "x"], ["--rate", "-1"], ["--seconds", "0"], ["--connections", "nan"]):
            err = io.StringIO()
            with redirect_stderr(err), self.assertRaises(SystemExit) as caught:
                parser().parse_args(["swarm", *arguments])
            self.assertEqual((caught.exception.code, err.getvalue().count("\n")), (1, 1))
            self.assertIn(arguments[0], err.getvalue())


def part(**changes: Any) -> dict[str, Any]:
    """Return the report of a process with ten answered lines."""
    names = ["resumed", "failed", "dropped", "acked", "disordered", "duplicates", "strange", "lost", "held", "memory"]
    use = {"took": 1.0, "seconds": 1.0, "cpu": 0.1, "starved": 0.0}
    times = LatencyHistogram()
    for _ in range(10):
        times.add(1000)
    histograms = {name: times.dump() for name in HISTOGRAMS}
    counts = {**dict.fromkeys(names, 0), "up": 5, "said": 10, "written": 10, "answers": 10, "bytes": 100}
    return {**counts, "reasons": {}, "connecting": use, "talking": use, **histograms, **changes}


class DroppedAtTheEnd:
    """Devices of which one is dropped, and another one answered, while the connections are closed."""

    def __init__(self, plan: Plan, *_: object) -> None:
        self.measured = Measurements(scheduled=True)
        counts = self.measured.counts
        counts.up = counts.said = counts.written = 2

    def connect(self) -> float:
        return 1.0

    def wait(self) -> None:
        pass

    def send_lines(self) -> float:
        return 1.0

    def settle(self) -> None:
        self.measured.counts.lost += 2

    def close(self) -> None:
        counts = self.measured.counts
        counts.lost += 2
        counts.held += 1
        counts.dropped += 1
        counts.answers.answers += 1
        for name in HISTOGRAMS:
            getattr(self.measured, name).add(1000)


class DoorTests(SynchronousTestCase):
    """What a port of a gateway expects: framings, PROXY protocol headers, and unix sockets."""

    def test_address(self) -> None:
        """A port is a number or the path of a unix socket, which has neither ports nor source addresses."""
        plan = typed("--port", "unix:run/owsla.sock", "--connections", "100000", "--processes", "9")
        self.assertEqual((plan.unix, plan.target), ("run/owsla.sock", "run/owsla.sock"))
        check_ports(plan, "32768 60999")
        self.assertEqual((typed("--port", "9000").unix, typed("--port", "9000").target), (None, "127.0.0.1 port 9000"))
        with self.assertRaises(ConfigError) as caught:
            typed("--port", "unix:x", "--source", "127.0.0.1")
        self.assertEqual(str(caught.exception), "--source: connections to a unix socket have no source address")
        for text in ("unix:", "unix:" + 108 * "x", "unix", "0"):
            with redirect_stderr(io.StringIO()):
                self.assertRaises((ConfigError, SystemExit), typed, "--port", text)

    def test_whole_plan(self) -> None:
        """A process gets all that a port expects."""
        arguments = ["--plain", "--framing=length:2:little", "--proxy=v2", "--proxy-cn=dev-{device}", "--port=unix:x"]
        plan = typed(*arguments)
        self.assertEqual(Plan.load(plan.dump()), plan)
        self.assertEqual((plan.plain, plan.framing, plan.proxy, plan.proxy_cn), (True, "length:2:little", "v2", "dev-{device}"))
        self.assertEqual(typed("--delimiter", r"\xff\n").delimiter, "\xff\n")

    def test_lines_fit(self) -> None:
        """A line that a framing cannot carry is refused."""
        self.assertEqual(typed("--framing", "fixed:40").size, 40)
        for line, framing in (
            ("{device} {n} {time}", "fixed:8"),
            ("{n}" + 300 * "x", "length:1"),
            ("{n}", "between:31:32"),  # digits
            ("<{n}>", "between:3c:3e"),
        ):
            with self.assertRaises(ConfigError) as caught:
                typed("--line", line, "--framing", framing)
            self.assertTrue(str(caught.exception).startswith("--line: "), caught.exception)
            self.assertIn(framing, str(caught.exception))
        with self.assertRaises(ConfigError) as caught:
            typed("--line", "{n};", "--delimiter", ";")
        self.assertIn("--delimiter", str(caught.exception))

    def test_frames(self) -> None:
        """What one side frames, the other splits; with lines, the delimiter is at the end and a carriage return is ignored."""
        for framing in ("lines", "length:4:inclusive", "netstring", "octet-counting", "fixed:3", "between:02:03"):
            frames = Frames(framing, b"\n")
            self.assertEqual(frames.split(frames.frame(b"one") + frames.frame(b"two")), ([b"one", b"two"], b""), framing)
        self.assertEqual(Frames("lines", b";").frame(b"one"), b"one;")
        self.assertEqual(Frames("lines", b"\n").split(b"one\r\ntw"), ([b"one"], b"tw"))

    def test_not_in_this_framing(self) -> None:
        """Bytes that are not in the framing, and frames without an end, are told apart from incomplete ones."""
        for framing, rest, problem in (
            ("length:2", b"\0", None),
            ("length:4", b"\x7f\xff\xff\xff", "no end of frame in what it sends"),
            ("netstring", b"hello", "malformed frames in what it sends: "),
            ("lines", b"hello", None),
            ("lines", b"x" * (LONGEST + 2), "no end of line in what it sends"),
        ):
            found = Frames(framing, b"\n").problem(rest)
            self.assertTrue(found == problem or (problem and found and found.startswith(problem)), found)

    def test_conversation(self) -> None:
        """Lines, answers and acknowledgements are in the framing of the port."""
        measured = Measurements(scheduled=False)
        conversation = Conversation(typed("--framing", "length:2", "--line", "{n}", "--device-ack", "ACK {seq}"), measured)
        with socket.socket() as sock:
            device = Device(0, sock, measured.counts.answers, 0)
            self.assertEqual(conversation.next_lines(device, None, 1), b"\0\1" b"0")
            self.assertIsNone(conversation.received(device, b"\0\5ACK 0\0"))
            self.assertIsNone(conversation.received(device, b"\1" b"0\0"))
        self.assertEqual((measured.counts.acked, measured.counts.answers.answers, device.rest), (1, 1, b"\0"))

    def test_proxy_addresses(self) -> None:
        """Devices have addresses of their own, none of them a real one, and then other ports."""
        found = {source_of(device, ipv6=False) for device in range(200_000)}
        self.assertEqual(len(found), 200_000)
        self.assertTrue(all(host.startswith(("198.18.", "198.19.")) for host, _ in found))
        sixes = {ipaddress.IPv6Network(f"{source_of(device, ipv6=True)[0]}/64", strict=False) for device in range(100_000)}
        self.assertEqual(len(sixes), 100_000)
        self.assertTrue(all(one.subnet_of(ipaddress.IPv6Network("2001:db8::/32")) for one in sixes))

    def test_proxy_headers(self) -> None:
        """A header has the address of its device, and with version 2 the name of its certificate."""
        with socket.socket() as listening, socket.socket() as client:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            client.connect(listening.getsockname())
            first = parse(ProxyHeaders("v1", None).header(3, client))
            second = parse(ProxyHeaders("v2", "dev-{device}").header(3, client))
        one, other = socket.socketpair()
        with one, other:
            third = parse(ProxyHeaders("v2", None).header(3, one))
        assert isinstance(first, ProxyHeader)
        assert isinstance(second, ProxyHeader)
        assert isinstance(third, ProxyHeader)
        self.assertEqual({header.source for header in (first, second, third)}, {("198.18.0.3", 1024)})
        self.assertEqual([header.common_name for header in (first, second, third)], [None, "dev-3", None])

    def test_hints(self) -> None:
        """A port that expects something else is a reason with a hint."""
        for arguments, reason, says in (
            ([], UNEXPECTED_END, "; a port without TLS needs --plain, and one behind a load balancer --proxy"),
            ([], "connection refused", ""),
            (["--plain"], "connection reset by peer", ""),
            (["--proxy=v1"], REFUSED + "handshake failure", "; a port that devices connect to themselves is without --proxy"),
        ):
            self.assertEqual(hint(typed(*arguments), reason), says)


class ProcessTests(SynchronousTestCase):
    """The report of a process."""

    def test_events_after_the_measurement(self) -> None:
        """The report covers the time before the connections are closed: a lost line is counted once."""
        self.patch(_process, "SimulatedDevices", DroppedAtTheEnd)
        # The process raises its limit of open files.
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        told: list[dict[str, Any]] = []
        _process._run(typed("--mode", "echo"), lambda **what: told.append(what))
        report = told[-1]["report"]
        found = {name: report[name] for name in ("said", "lost", "held", "dropped", "answers")}
        self.assertEqual(found, {"said": 2, "lost": 2, "held": 0, "dropped": 0, "answers": 0})
        for name in HISTOGRAMS:
            self.assertEqual(LatencyHistogram.load(report[name]).count, 0, name)


class ReportTests(SynchronousTestCase):
    """The result of a swarm."""

    def report(self, *parts: dict[str, Any], mode: str = "echo", **changes: Any) -> Report:
        """Return the report of two processes that were to send ten lines per second each."""
        arguments = ["--mode", mode, "--connections", "10", "--processes", "2", "--seconds", "1"]
        return Report(replace(typed(*arguments), **changes), parts)

    def test_held(self) -> None:
        """If nothing is missing the status is 0, and counts are added up over the processes."""
        report = self.report(part(), part(), rate=20.0)
        self.assertEqual((report.status(), report.problems(), report.limits()), (0, [], []))
        summary = json.loads(json.dumps(report.summary()))
        self.assertEqual(summary["answers"]["answered"], 20)
        self.assertEqual(summary["answers"]["ms_since_due"]["p99.9"], 1.0)
        self.assertIn("It held.", report.table())

    def test_not_held(self) -> None:
        """Each requirement that did not hold is named, and makes the status 2."""
        for name in ("failed", "dropped", "lost", "duplicates", "disordered", "strange"):
            report = self.report(part(**{name: 3}), part())
            self.assertEqual((report.status(), len(report.problems())), (2, 1), name)
            self.assertIn("3", report.problems()[0])
            self.assertIn(report.problems()[0], report.table())
        self.assertEqual(self.report(part(written=9), part()).status(), 2)
        self.assertEqual(self.report(part(acked=10), part(acked=9), mode="flood", device_ack="{seq}").status(), 2)
        self.assertEqual(self.report(part(), part(), rate=30.0).problems(), ["20 of 30 lines sent in time"])

    def test_bottleneck(self) -> None:
        """A swarm that was short of CPU, or late, says so without changing the status, which is about the gateway."""
        busy = {"took": 1.0, "seconds": 1.0, "cpu": 0.95, "starved": 0.0}
        starved = {"took": 1.0, "seconds": 1.0, "cpu": 0.5, "starved": 0.45}
        late = LatencyHistogram()
        late.add(50_000)
        for changes in ({"talking": busy}, {"connecting": starved}, {"lateness": late.dump()}):
            report = self.report(part(**changes), part(), rate=20.0)
            self.assertEqual((len(report.limits()), report.status()), (1, 0), changes)
            self.assertIn("Limited by the swarm or its machine", report.table())

    def test_storm(self) -> None:
        """A storm reports connections only, and fails without any."""
        report = self.report(part(talking={}), mode="storm")
        self.assertNotIn("lines", report.summary())
        self.assertEqual(self.report(part(talking={}, up=0), mode="storm").status(), 2)

    def test_drawing(self) -> None:
        """The image is well-formed XML with a bar for each value, and none for an empty histogram."""
        histogram = LatencyHistogram()
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
        self.assertNotIn('"bar"', draw(LatencyHistogram(), "nothing", (50,)))


class ReasonTests(SynchronousTestCase):
    """Reasons of failures, and client certificates."""

    def test_words(self) -> None:
        """Errors of OpenSSL and the kernel become a few words."""
        for error, words in (
            (SSL.ZeroReturnError(), "closed by the gateway"),
            (SSL.SysCallError(-1, "Unexpected EOF"), "closed without close_notify"),
            (SSL.SysCallError(104, "ECONNRESET"), "connection reset by peer"),
            (SSL.Error([("SSL routines", "", "wrong version number")]), "the server does not speak TLS"),
            (
                SSL.Error([("SSL routines", "", "tlsv13 alert certificate required")]),
                "the gateway refused: certificate required",
            ),
            (SSL.Error([]), "closed without close_notify"),
            (OSError(111, "Connection refused"), "connection refused"),
        ):
            self.assertEqual(_tls.failure(error), words)

    def test_key_without_certificate(self) -> None:
        """A key without a certificate is refused."""
        self.assertRaises(ConfigError, _tls.ClientCertificates, None, "key.pem")

    def test_pairs(self) -> None:
        """A template names a pair for each device, with the key in the same file unless --key names it."""
        pairs = _tls.ClientCertificates("certs/{device}.pem", None)
        self.assertEqual((pairs.many, pairs.one, pairs.of(3)), (True, None, (3, "certs/3.pem", "certs/3.pem")))
        self.assertEqual(_tls.ClientCertificates("a.pem", "a.key").one, ("a.pem", "a.key"))
