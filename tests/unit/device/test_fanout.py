"""Tests of the spreading of a message over many connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.config.framings import read_framing
from owsla.device.fanout import BURST, INTERVAL, LOOK, SLICE_WRITES, Fanout, Group
from owsla.device.framing import make_framing
from owsla.device.protocol import DeviceProtocol
from owsla.device.selectors import Selector
from owsla.events import SlowDevice
from owsla.letter import Letter

from ._fakes import Source, Wire, World

ALL = Selector()


class Spread(World):
    """Connections, and a fan-out over them."""

    def __init__(self, rate: float = 1e6, **options: Any) -> None:
        super().__init__(**options)
        self.fanout = Fanout(self.clock, rate, self.services.deliveries.expired, self._ended)
        self.ended: list[tuple[Group, bool]] = []
        self.source = Source()

    def _ended(self, group: Group, late: bool) -> None:
        self.ended.append((group, late))

    def begin(self, body: bytes = b"now", selector: Selector = ALL, *, seconds: float = 60.0, close: bool = False) -> Group:
        """Begin to spread a message that expires in some seconds."""
        deadline = self.clock.seconds() + seconds
        letter = Letter(self.source, self.source.next(), b"header", body, None, None, close=close, deadline=deadline)
        group = Group(letter, selector, self.registry)
        self.fanout.begin(group)
        return group

    def counts(self, group: Group) -> tuple[int, int, int]:
        """Return the numbers of devices, of missed ones, and of unsettled ones."""
        return group.devices, group.missed, group.unsettled

    def many(self, count: int, **options: Any) -> list[tuple[DeviceProtocol, Wire]]:
        return [self.connect(**options) for _ in range(count)]


def got(wires: list[tuple[DeviceProtocol, Wire]]) -> list[bytes]:
    return [wire.data for _, wire in wires]


class SelectionTests(SynchronousTestCase):
    def test_all(self) -> None:
        """A message for all is written once to each connection. Nothing is recorded or reported for one device."""
        world = Spread()
        devices = world.many(3)
        group = world.begin()
        world.turns()
        self.assertEqual(got(devices), [b"now\r\n"] * 3)
        self.assertEqual((world.ended, world.counts(group)), ([(group, False)], (3, 0, 0)))
        self.assertEqual((world.courier.records, world.courier.reports, world.source.acked), ([], [], []))
        self.assertEqual((len(world.fanout), world.clock.getDelayedCalls()), (0, []))

    def test_door(self) -> None:
        """A message for a door reaches the connections of that door only; one for an unknown door ends with no devices."""
        world = Spread()
        meters = world.door("meters")
        other, own = world.connect(), world.connect(factory=meters)
        world.begin(selector=Selector(door="meters"))
        nobody = world.begin(selector=Selector(door="nowhere"))
        world.turns()
        self.assertEqual(got([other, own]), [b"", b"now\r\n"])
        self.assertEqual((len(world.ended), world.counts(nobody)), (2, (0, 0, 0)))

    def test_prefix(self) -> None:
        """A message for a prefix reaches the devices whose id begins with it."""
        world = Spread()
        devices = [world.connect(device_id=one) for one in ("m-1", "m-2", "n-1", None)]
        group = world.begin(selector=Selector(prefix="m-"))
        world.turns()
        self.assertEqual(got(devices), [b"now\r\n", b"now\r\n", b"", b""])
        self.assertEqual(world.counts(group), (2, 0, 0))

    def test_nobody(self) -> None:
        """Without connections a message ends at once."""
        world = Spread()
        group = world.begin()
        world.turns()
        self.assertEqual((world.ended, world.counts(group)), ([(group, False)], (0, 0, 0)))

    def test_connections_that_come_and_go(self) -> None:
        """The connections at the beginning count. One that closes before its turn is missed; one that opens later gets nothing
        and does not count."""
        world = Spread(rate=1.0)
        first, gone, closing = world.many(3)
        group = world.begin()
        world.turns()
        late = world.connect()
        world.end(gone[0])
        closing[0].close("test")
        world.later(10.0)
        self.assertEqual(got([first, gone, closing, late]), [b"now\r\n", b"", b"", b""])
        self.assertEqual((world.ended, world.counts(group)), ([(group, False)], (1, 2, 0)))

    def test_closing_connections_are_not_selected(self) -> None:
        """A connection that closes already when the message comes is none of its devices."""
        world = Spread()
        world.connect()[0].close("test")
        group = world.begin()
        world.turns()
        self.assertEqual(world.counts(group), (0, 0, 0))


class RateTests(SynchronousTestCase):
    def test_rate(self) -> None:
        """Devices are written to at the rate, without a burst at the beginning."""
        world = Spread(rate=100.0)
        world.many(300)
        group = world.begin()
        for tenth in range(1, 11):
            for _ in range(10):
                world.clock.advance(INTERVAL)
            self.assertLessEqual(abs(group.devices - 10 * tenth), 2)

    def test_low_rate(self) -> None:
        """A rate below one device a second is kept."""
        world = Spread(rate=0.5)
        world.many(3)
        group = world.begin()
        seen = []
        for _ in range(6):
            seen.append(group.devices)
            world.later(1.0)
        self.assertEqual(seen, [0, 1, 2, 2, 3, 3])

    def test_rate_is_changed(self) -> None:
        """Another rate applies to messages that are being spread."""
        world = Spread(rate=10.0)
        world.many(100)
        group = world.begin()
        world.later(1.0)
        world.fanout.configure(1000.0)
        world.later(0.5)
        self.assertEqual(world.counts(group), (100, 0, 0))

    def test_idle_time_is_no_credit(self) -> None:
        """Time without a message, or in which the reactor was busy, does not allow a burst."""
        world = Spread(rate=100.0)
        world.many(100)
        world.clock.advance(100.0)
        group = world.begin(seconds=1000.0)
        world.turns()
        self.assertLessEqual(group.devices, 2)
        world.clock.advance(100.0)  # the reactor was busy
        self.assertLessEqual(group.devices, 100 * BURST + 3)

    def test_closed_connections_take_no_time(self) -> None:
        """Connections that have closed are missed without waiting for the rate."""
        world = Spread(rate=1.0)
        devices = world.many(500)
        group = world.begin()
        world.turns()
        for number, (endpoint, _) in enumerate(devices):
            if number % 2:
                world.end(endpoint)
            else:
                endpoint.close("test")
        world.clock.advance(LOOK)
        world.clock.advance(LOOK)
        self.assertEqual(group.devices + group.missed, 500)
        self.assertEqual(world.ended, [(group, False)])

    def test_several_take_turns(self) -> None:
        """Several messages share the rate: a short one does not wait for a long one before it."""
        world = Spread(rate=100.0)
        world.many(90)
        world.many(10, device_id="m-1")
        long = world.begin(b"long")
        short = world.begin(b"short", Selector(prefix="m-"))
        world.later(0.3)
        self.assertEqual([group for group, _ in world.ended], [short])
        self.assertLessEqual(abs(long.devices - 20), 2)
        world.later(1.0)
        self.assertEqual(world.counts(long), (100, 0, 0))

    def test_writes_in_a_turn(self) -> None:
        """However high the rate, the writes of one reactor turn are limited; the next turn goes on at once."""
        world = Spread(rate=1e9)
        world.many(3 * SLICE_WRITES)
        group = world.begin()
        seen: list[int] = []

        def look() -> None:
            seen.append(group.devices)
            if len(seen) < 4:
                world.clock.callLater(0, look)  # behind the slice of the next turn

        world.clock.callLater(0, look)
        world.turns()
        self.assertEqual(seen, [SLICE_WRITES, 2 * SLICE_WRITES, 3 * SLICE_WRITES, 3 * SLICE_WRITES])
        self.assertEqual(len(world.ended), 1)


class OutcomeTests(SynchronousTestCase):
    def test_body_that_some_cannot_be_sent(self) -> None:
        """A body that the framing of one door cannot send is missed there, and handed over at the others."""
        world = Spread()
        frames = world.door("frames", framing=make_framing(read_framing("length:2"), b"\n", 100))
        lines, framed = world.connect(), world.connect(factory=frames)
        group = world.begin(b"two\nlines")
        world.turns()
        self.assertEqual(got([lines, framed]), [b"", b"\0\x09two\nlines"])
        self.assertEqual(world.counts(group), (1, 1, 0))
        self.assertTrue(lines[1].reading)

    def test_empty_body(self) -> None:
        """An empty body that the framing cannot send is missed, unless the message only closes the connection."""
        for close, counts in ((False, (0, 1, 0)), (True, (1, 0, 0))):
            world = Spread()
            _, wire = world.connect(factory=world.door("fixed", framing=make_framing(read_framing("fixed:4"), b"\n", 100)))
            group = world.begin(b"", close=close)
            world.turns()
            self.assertEqual((world.counts(group), wire.data), (counts, b""))

    def test_close(self) -> None:
        """`owsla_close` closes each connection behind the line; with an empty body it closes only."""
        for body, written in ((b"bye", b"bye\r\n"), (b"", b"")):
            world = Spread()
            devices = world.many(2)
            group = world.begin(body, close=True)
            world.turns()
            self.assertEqual(got(devices), [written] * 2)
            self.assertEqual([wire.closed for _, wire in devices], ["lost"] * 2)
            self.assertEqual(world.counts(group), (2, 0, 0))

    def test_slow_device(self) -> None:
        """A device whose socket takes no more gets the message later. The group waits for it, the others do not."""
        world = Spread()
        slow, quick = world.connect(room=1), world.connect()
        world.send(slow[0], world.source, b"fills the socket")
        world.turns()
        group = world.begin()
        world.turns()
        self.assertEqual((world.counts(group), world.ended, quick[1].data), ((1, 0, 1), [], b"now\r\n"))
        slow[1].drained()
        world.later(LOOK)
        self.assertEqual((world.counts(group), world.ended), ((2, 0, 0), [(group, False)]))
        self.assertEqual(slow[1].data, b"fills the socket\r\nnow\r\n")

    def test_slow_device_that_takes_nothing(self) -> None:
        """A device that takes nothing for the write time-out is closed, and missed."""
        world = Spread(write_timeout=5.0)
        slow, _ = world.connect(room=1)
        world.send(slow, world.source, b"fills the socket")
        world.turns()
        group = world.begin()
        world.later(6.0)
        self.assertEqual((world.counts(group), world.ended), ((0, 1, 0), [(group, False)]))
        self.assertEqual(len(world.of_type(SlowDevice)), 1)
        self.assertEqual(world.courier.records, [])

    def test_many_slow_devices(self) -> None:
        """A message that waits for many slow devices closes none of them: it uses nothing of the prefetch of a queue."""
        world = Spread()
        for endpoint, _ in (devices := world.many(600, room=1)):
            world.send(endpoint, world.source, b"fills the socket")
        world.turns()
        group = world.begin()
        world.later(0.1)
        self.assertEqual((world.counts(group), world.of_type(SlowDevice)), ((0, 0, 600), []))
        for _, wire in devices:
            wire.drained()
        world.later(LOOK)
        self.assertEqual(world.counts(group), (600, 0, 0))

    def test_expiry_while_spreading(self) -> None:
        """At the expiry all connections that were not served are missed, and the group ends late."""
        world = Spread(rate=10.0)
        world.many(100)
        group = world.begin(seconds=2.0)
        world.later(3.0)
        self.assertEqual(world.ended, [(group, True)])
        self.assertLessEqual(abs(group.devices - 20), 2)
        self.assertEqual(group.devices + group.missed, 100)

    def test_expiry_while_a_slow_device_holds_it(self) -> None:
        """A message that waits for a slow device at its expiry is missed, counted once, and not written afterwards."""
        world = Spread()
        slow, _ = world.connect(room=1)
        world.send(slow, world.source, b"fills the socket")
        world.turns()
        group = world.begin(seconds=2.0)
        world.later(3.0)
        self.assertEqual((world.ended, world.counts(group)), ([(group, True)], (0, 1, 0)))
        slow.transport.drained()
        world.later(1.0)
        self.assertEqual((slow.transport.data, world.counts(group)), (b"fills the socket\r\n", (0, 1, 0)))
        self.assertEqual(world.courier.records, [])

    def test_connection_with_an_error(self) -> None:
        """An exception of our own code closes its connection, counts it as missed, and stops nothing else."""
        world = Spread()
        (broken, wire), other = world.connect(), world.connect()
        broken._deliver = None  # type: ignore[method-assign, assignment]
        group = world.begin()
        world.turns()
        self.assertEqual((wire.closed, other[1].data, world.counts(group)), ("aborted", b"now\r\n", (1, 1, 0)))


class Books(Spread):
    """A world in which everything that can happen to a connection happens."""

    def do(self, action: tuple[str, int]) -> None:
        what, number = action
        open_now = list(self.registry)
        if what == "connect":
            self.connect(device_id=f"{'mn'[number % 2]}-{number}", room=float("inf") if number % 3 else 1)
        elif what == "begin":
            selector = (ALL, Selector(prefix="m-"), Selector(door="default"), Selector(door="x"))[number % 4]
            self.begin((b"now", b"two\nlines", b"")[number % 3], selector, seconds=number / 10, close=number % 5 == 0)
        elif what == "wait":
            self.later(number / 10)
        elif open_now:
            one: Any = open_now[number % len(open_now)]
            actions: dict[str, Callable[[], object]] = {
                "end": lambda: self.end(one),
                "close": lambda: one.close("test"),
                "slow": lambda: one.close_slow("test"),
                "drained": lambda: one.transport.drained(number),
                "break": lambda: setattr(one, "_deliver", None),
            }
            actions[what]()


ACTIONS = st.tuples(
    st.sampled_from(["connect", "connect", "begin", "wait", "end", "close", "slow", "drained", "break"]), st.integers(0, 30)
)


class BooksTests(SynchronousTestCase):
    @settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(st.integers(0, 20), st.sampled_from([1.0, 7.0, 1e6]), st.lists(ACTIONS, max_size=30))
    def test_books(self, devices: int, rate: float, actions: list[tuple[str, int]]) -> None:
        """Each selected connection of the snapshot is counted exactly once, as handed over or as missed, whatever happens. A
        connection that counts as handed over was written to, at most once by each message. Each group ends once."""
        world = Books(rate)
        for number in range(devices):
            world.do(("connect", number))
        groups: list[tuple[Group, int]] = []
        begin = world.begin

        def noted(body: bytes = b"now", selector: Selector = ALL, **options: Any) -> Group:
            selected = [one for one in world.registry if not one.closing and selector.selects(one.device_id, one.factory.door)]
            group = begin(body, selector, **options)
            world.clock.advance(0)  # the snapshot is looked at before anything else happens
            groups.append((group, len(selected)))
            return group

        world.begin = noted  # type: ignore[method-assign]
        for action in actions:
            world.do(action)
            for group, selected in groups:
                self.assertEqual(sum(world.counts(group)), selected)
        world.later(10.0)
        self.assertEqual(len(world.fanout), 0)
        self.assertCountEqual([group for group, _ in world.ended], [group for group, _ in groups])
        for group, selected in groups:
            self.assertEqual((group.devices + group.missed, group.unsettled), (selected, 0))
        self.assertEqual(world.courier.records, [])
