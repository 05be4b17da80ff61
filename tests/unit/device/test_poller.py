"""Tests of an epoll set inside that of a reactor, on real sockets."""

from __future__ import annotations

import os
import select
import socket
import tracemalloc
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.poller import (
    BUSY,
    HANDSHAKE_TURN,
    LOOK,
    SLICE,
    SLICES,
    TURN,
    UNINTERRUPTED,
    HandshakePoller,
    Poller,
    SocketSet,
)
from owsla.runtime.end_of_turn import EndOfTurn

from ._sockets import Loop, reset, tcp_pair, unix_pair


class Descriptor:
    """Descriptor that counts its callbacks."""

    def __init__(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self.socket, self.peer = pair
        self.reads = self.writes = 0
        self.lost: list[Failure] = []
        self.after_reading: Callable[[], None] = lambda: None

    def fileno(self) -> int:
        return self.socket.fileno()

    def doRead(self) -> None:
        self.reads += 1
        try:
            self.socket.recv(1)
        except ConnectionResetError:
            pass
        self.after_reading()

    def doWrite(self) -> None:
        self.writes += 1

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason)


class PollerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.descriptors = set(os.listdir("/proc/self/fd"))
        self.loop = cast(Any, Loop())
        self.turn = EndOfTurn(self.loop)
        self.poller = Poller(self.loop, self.turn)
        self.made: list[Descriptor] = []

    def tearDown(self) -> None:
        for one in self.made:
            if one.fileno() >= 0:
                self.poller.removeReader(one)
                self.poller.removeWriter(one)
                one.socket.close()
            one.peer.close()
        self.assertEqual(self.loop.readers, set(), "the set goes with the last socket in it")
        self.assertEqual(set(os.listdir("/proc/self/fd")) - self.descriptors, set())

    def descriptor(self) -> Descriptor:
        self.made.append(Descriptor(unix_pair()))
        return self.made[-1]

    def test_reading(self) -> None:
        """Only a reading descriptor is called, until its data has been read."""
        one, other = self.descriptor(), self.descriptor()
        self.poller.addReader(one)
        self.poller.addReader(one)
        self.poller.addReader(other)
        one.peer.send(b"ab")
        self.loop.settle()
        self.assertEqual((one.reads, one.writes, other.reads), (2, 0, 0))
        self.poller.removeReader(one)
        self.poller.removeReader(one)
        one.peer.send(b"c")
        other.peer.send(b"c")
        self.loop.settle()
        self.assertEqual((one.reads, other.reads), (2, 1))
        self.poller.addReader(one)
        self.loop.settle()
        self.assertEqual(one.reads, 3)

    def test_crowded(self) -> None:
        """A poller is crowded while a poll returns as many ready sockets as it can, also between two handshakes."""
        seen: list[bool] = []
        for _ in range(SLICE):
            one = self.descriptor()
            one.after_reading = lambda: seen.append(self.poller.crowded)
            self.poller.addReader(one)
        for read in (self.poller.doRead, self.poller.serve):
            for some in (self.made, self.made[:1], self.made):
                seen.clear()
                for one in some:
                    one.peer.send(b"a")
                read()
                self.assertEqual(seen, [some is self.made] * len(some))

    def test_memory(self) -> None:
        """A socket takes no more than 16 bytes of a poller that has some thousands."""
        pair = unix_pair()
        for end in pair:
            self.addCleanup(end.close)
        many = [Descriptor((pair[0].dup(), pair[1])) for _ in range(500)]
        self.poller.addReader(self.descriptor())
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for one in many:
                self.poller.addReader(one)
            each = (tracemalloc.get_traced_memory()[0] - before) / len(many)
        finally:
            tracemalloc.stop()
            for one in many:
                self.poller.removeReader(one)
                one.socket.close()
        self.assertLess(each, 16)

    def test_turn_begins(self) -> None:
        """The time is read once for a turn, before its descriptors, however many of them are ready."""
        calls: list[str] = []
        self.patch(self.turn, "_now", lambda: calls.append("turn"))
        for _ in range(3):
            one = self.descriptor()
            one.after_reading = lambda: calls.append("read")
            self.poller.addReader(one)
            one.peer.send(b"a")
        self.loop.turn()
        self.assertEqual(calls, ["turn", "read", "read", "read"])

    def test_lines_are_sent_on(self) -> None:
        """Lines are written to the broker when the ready devices have been read, before the reactor calls other descriptors."""
        calls: list[str] = []

        def publish() -> None:
            calls.append("publish")

        def read() -> None:
            if not calls:
                self.turn.call_last(publish)
            calls.append("read")

        for _ in range(2):
            one = self.descriptor()
            one.after_reading = read
            self.poller.addReader(one)
            one.peer.send(b"a")
        self.poller.doRead()
        self.assertEqual(calls, ["read", "read", "publish"])

    def test_writing(self) -> None:
        """Reading and writing are requested and cancelled separately."""
        one = self.descriptor()
        self.poller.addReader(one)
        self.poller.addWriter(one)
        one.peer.send(b"a")
        self.loop.turn()
        self.assertEqual((one.reads, one.writes), (1, 1))
        self.poller.removeReader(one)
        one.peer.send(b"a")
        self.loop.turn()
        self.assertEqual((one.reads, one.writes), (1, 2))
        self.poller.addReader(one)
        self.poller.removeWriter(one)
        self.loop.turn()
        self.assertEqual((one.reads, one.writes), (2, 2))

    def test_closed_in_the_same_turn(self) -> None:
        """A descriptor that is closed in the callback of another one, or in its own, is not called for events of that turn."""
        one, other = self.descriptor(), self.descriptor()

        def close(*which: Descriptor) -> None:
            for each in which:
                if each.fileno() >= 0:
                    self.poller.removeReader(each)
                    self.poller.removeWriter(each)
                    each.socket.close()

        for each in (one, other):
            each.after_reading = lambda: close(one, other)
            self.poller.addReader(each)
            self.poller.addWriter(each)
            each.peer.send(b"a")
        self.loop.settle()
        self.assertEqual((one.reads + other.reads, one.writes + other.writes), (1, 0))

    def test_dead(self) -> None:
        """A reading descriptor reads a reset. A writing one finds it by writing."""
        reading, writing = self.descriptor(), self.descriptor()
        self.poller.addReader(reading)
        self.poller.addWriter(writing)
        for each in (reading, writing):
            each.peer.close()
        self.loop.turn()
        self.assertEqual((reading.reads, reading.lost), (1, []))
        self.assertEqual((writing.writes, writing.lost), (1, []))

    def test_dead_and_not_ready(self) -> None:
        """An error alone ends a connection: a refused connect, for example, or an unanswered keepalive."""
        one = self.descriptor()
        self.poller.addReader(one)

        class Set:
            """Epoll set with an error that no system can be made to report alone."""

            def __init__(self, real: Any) -> None:
                self.real = real

            def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
                return [(one.fileno(), select.EPOLLERR)]

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

        self.patch(self.poller, "_epoll", Set(self.poller._epoll))
        self.poller.doRead()
        self.assertEqual([failure.type for failure in one.lost], [ConnectionLost])

    def test_a_fault_costs_one(self) -> None:
        """An exception of one descriptor is logged, and the others are called."""

        def fail() -> None:
            raise RuntimeError("no good")

        bad, good = self.descriptor(), self.descriptor()
        bad.after_reading = fail
        for each in (bad, good):
            self.poller.addReader(each)
            each.peer.send(b"a")
        self.loop.turn()
        self.assertEqual((bad.reads, good.reads), (1, 1))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def many(self, count: int) -> list[Descriptor]:
        """Return this many descriptors with more data than is read in a turn."""
        many = [self.descriptor() for _ in range(count)]
        for each in many:
            self.poller.addReader(each)
            each.peer.send(b"aaaaaa")
        return many

    def test_a_turn_has_its_measure(self) -> None:
        """The number of ready descriptors per turn is limited, and the others are next: none waits for a busy one."""
        most = SLICE * SLICES
        many = self.many(most + most // 2)
        self.loop.turn()
        self.assertEqual(sum(each.reads for each in many), most)
        self.loop.turn()
        self.assertEqual({each.reads for each in many}, {1, 2})

    def test_a_turn_has_its_time(self) -> None:
        """The time per turn is limited. The others are next: no descriptor is called twice before them."""
        many = self.many(4 * SLICE)
        for each in many:
            each.after_reading = lambda: self.loop.advance(TURN / SLICE)
        for turn in range(1, 9):
            self.loop.turn()
            self.assertEqual(sum(each.reads for each in many), turn * SLICE)
            if turn % 4 == 0:
                self.assertEqual({each.reads for each in many}, {turn // 4})

    def test_the_end_of_the_reactor(self) -> None:
        """When the reactor stops, its descriptors are called, and the set is empty."""
        one = self.descriptor()
        self.poller.addReader(one)
        self.poller.connectionLost(Failure(ConnectionLost()))
        self.assertEqual((self.poller.fileno(), self.loop.readers), (-1, set()))
        self.assertEqual([failure.type for failure in one.lost], [ConnectionLost])

    def test_a_fault_at_the_end(self) -> None:
        """An exception of one descriptor at the end of the reactor is logged, and the others are told."""
        bad, good = self.descriptor(), self.descriptor()
        self.patch(bad, "connectionLost", lambda reason: 1 / 0)
        for each in (bad, good):
            self.poller.addReader(each)
        self.poller.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(len(good.lost), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_reset_in_tcp(self) -> None:
        """With a TCP reset EPOLLERR and EPOLLHUP arrive together with data: a reading descriptor finds out by reading, once."""
        one = Descriptor(tcp_pair())
        self.made.append(one)
        one.after_reading = lambda: self.poller.removeReader(one)
        self.poller.addReader(one)
        reset(one.peer)
        self.loop.settle()
        self.assertEqual((one.reads, one.lost), (1, []))


LINGER = 0.002


class LingerTests(PollerTests):
    """Tests of lingering: the set behaves as before, and waits a moment to collect more events."""

    def setUp(self) -> None:
        super().setUp()
        self.poller = Poller(self.loop, self.turn, LINGER)

    def talk(self, rate: float, seconds: float) -> tuple[int, int]:
        """Send a byte to one descriptor at a steady rate. Return the number of turns, and the number of waiting bytes."""
        one = self.descriptor()
        self.poller.addReader(one)
        turns: list[int] = []
        said = waiting = 0
        read = one.reads

        def turn() -> None:
            nonlocal read
            while self.loop.turn():
                pass
            if one.reads > read:
                turns.append(one.reads - read)
                read = one.reads

        for _ in range(round(rate * seconds)):
            one.peer.send(b"a")
            said += 1
            turn()
            waiting = max(waiting, said - one.reads)
            self.loop.advance(1 / rate)
        self.loop.advance(LINGER)
        turn()
        self.assertEqual(one.reads, said)
        self.poller.removeReader(one)
        return len(turns), waiting

    def test_few_do_not_wait(self) -> None:
        rate = BUSY * 0.9
        turns, waiting = self.talk(rate, 1.0)
        self.assertEqual((turns, waiting), (round(rate), 0))

    def test_many_wait_for_each_other(self) -> None:
        """With many events the set lingers, and no event waits longer than that."""
        rate = BUSY * 2
        self.talk(rate, 2 * LOOK)
        turns, waiting = self.talk(rate, 1.0)
        self.assertLess(turns, 1.1 / LINGER + rate * LOOK)
        self.assertGreater(waiting, 1)
        self.assertLessEqual(waiting, rate * LINGER + 1)

    def test_the_last_does_not_wait_long(self) -> None:
        """When many become few, the set stops lingering."""
        self.talk(BUSY * 2, 1.0)
        self.loop.advance(LOOK)
        turns, waiting = self.talk(100, 1.0)
        self.assertGreaterEqual(turns, 99)
        self.assertLessEqual(waiting, 1)

    def test_one_that_talks_on(self) -> None:
        """Data that is there already is not delayed, however many turns a socket needs."""
        one = self.descriptor()
        self.poller.addReader(one)
        self.talk(BUSY * 2, 4 * LOOK)
        self.assertNotIn(self.poller, self.loop.readers, "it does not linger")
        one.peer.send(b"a" * 200)
        self.loop.advance(LINGER)
        self.assertEqual(one.reads, 200)

    def test_failed_while_it_lingers(self) -> None:
        """If an epoll set fails, its sockets are closed, as by a reactor. None is dropped silently."""
        one = self.descriptor()
        self.poller.addReader(one)
        self.talk(BUSY * 2, 4 * LOOK)
        self.patch(self.poller, "_take", lambda end: 1 / 0)
        self.loop.advance(LINGER)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((len(one.lost), self.poller.fileno(), self.loop.getDelayedCalls()), (1, -1, []))

    def test_closed_while_it_lingers(self) -> None:
        """A set that is closed while it lingers leaves nothing behind."""
        one = self.descriptor()
        self.poller.addReader(one)
        for _ in range(round(BUSY)):
            one.peer.send(b"a")
            self.loop.advance(0.5 / BUSY)
            self.loop.turn()
            if self.poller not in self.loop.readers:
                break
        self.assertEqual(len(self.loop.getDelayedCalls()), 1, "it does not linger")
        self.poller.removeReader(one)
        self.assertEqual(self.loop.getDelayedCalls(), [])

    def test_changed_while_it_lingers(self) -> None:
        """A set that is to linger no longer serves its sockets at once, also those that were waiting."""
        one = self.descriptor()
        self.poller.addReader(one)
        self.talk(BUSY * 2, 4 * LOOK)
        self.assertNotIn(self.poller, self.loop.readers, "it does not linger")
        one.peer.send(b"a")
        reads = one.reads
        self.poller.configure(0.0)
        self.assertEqual(self.loop.getDelayedCalls(), [])
        self.loop.turn()
        self.assertEqual(one.reads, reads + 1)
        turns, waiting = self.talk(BUSY * 2, 4 * LOOK)
        self.assertEqual((turns, waiting), (round(BUSY * 2 * 4 * LOOK), 0))
        self.poller.configure(LINGER)
        self.talk(BUSY * 2, 4 * LOOK)
        self.assertNotIn(self.poller, self.loop.readers, "it does not linger again")

    def test_changed_when_it_is_closed(self) -> None:
        """A set without sockets does not watch anything after a change."""
        self.poller.configure(0.0)
        self.poller.configure(LINGER)
        self.assertEqual((self.loop.readers, self.loop.getDelayedCalls()), (set(), []))


class HandshakePollerTests(SynchronousTestCase):
    """Tests of connections in their handshake, beside an established one."""

    def setUp(self) -> None:
        self.loop = cast(Any, Loop())
        self.turn = EndOfTurn(self.loop, self.loop.seconds)
        self.established = Poller(self.loop, self.turn)
        self.handshakes = HandshakePoller(self.loop, self.turn, self.established)
        self.calls: list[str] = []
        self.made: list[tuple[SocketSet, Descriptor]] = []
        self.device = self.descriptor(self.established, "line")

    def tearDown(self) -> None:
        for poller, one in self.made:
            poller.removeReader(one)
            one.socket.close()
            one.peer.close()
        self.assertEqual((self.loop.readers, self.loop.getDelayedCalls()), (set(), []))
        self.assertFalse(self.turn.urgent())

    def descriptor(self, poller: SocketSet, name: str) -> Descriptor:
        one = Descriptor(unix_pair())
        one.after_reading = lambda: self.work(name)
        poller.addReader(one)
        self.made.append((poller, one))
        return one

    def work(self, name: str, seconds: float = 2 * UNINTERRUPTED) -> None:
        """Note a call, which takes some time."""
        self.calls.append(name)
        self.loop.rightNow += seconds

    def from_first_handshake(self) -> list[str]:
        """Return the calls without the lines that came before, one or two: a reactor calls the two sets in any order."""
        first = self.calls.index("handshake")
        self.assertIn(first, (1, 2))
        return self.calls[first:]

    def many(self, count: int) -> list[Descriptor]:
        """Return this many connections, each of which has sent something."""
        many = [self.descriptor(self.handshakes, "handshake") for _ in range(count)]
        for each in many:
            each.peer.send(b"a")
        return many

    def test_stays(self) -> None:
        """On request the set stays with the reactor while no handshake is in progress, until that ends."""
        self.handshakes.stay(True)
        for _ in range(2):
            one = self.descriptor(self.handshakes, "handshake")
            descriptor = self.handshakes.fileno()
            self.handshakes.removeReader(one)
            self.assertEqual(self.handshakes.fileno(), descriptor)
            self.assertIn(self.handshakes, self.loop.readers)
        self.handshakes.stay(False)
        self.assertNotIn(self.handshakes, self.loop.readers)
        self.assertEqual(self.handshakes.fileno(), -1)

    def test_all_without_interruption(self) -> None:
        """While established devices are silent, a turn handles all handshakes that are ready."""
        for each in self.many(SLICE + 1):
            each.after_reading = lambda: self.work("handshake", HANDSHAKE_TURN / 100)
        self.loop.turn()
        self.assertEqual(self.calls, ["handshake"] * (SLICE + 1))

    def test_lines_first(self) -> None:
        """In one turn, lines come before handshakes, and are sent to the broker before them."""
        self.many(1)
        self.device.peer.send(b"a")
        self.device.after_reading = lambda: self.turn.call_last(lambda: self.calls.append("publish"))
        self.loop.turn()
        self.assertEqual(self.calls, ["publish", "handshake"])

    def test_in_any_order(self) -> None:
        """The same holds if the reactor reports the handshakes first."""
        self.many(1)
        self.device.peer.send(b"a")
        self.device.after_reading = lambda: self.turn.call_last(lambda: self.calls.append("publish"))
        self.handshakes.doRead()
        self.established.doRead()
        self.loop.advance(0)
        self.assertEqual(self.calls, ["publish", "handshake"])

    def test_time(self) -> None:
        """Lines and handshakes have the time at which they are handled, not that at which the turn began."""
        late: list[float] = []

        def handshake() -> None:
            late.append(self.loop.seconds() - self.turn.now)
            self.work("handshake", 0.001)
            self.device.peer.send(b"a")

        self.device.after_reading = lambda: late.append(self.loop.seconds() - self.turn.now)
        (one,) = self.many(1)
        one.after_reading = handshake
        self.loop.rightNow += 1.0
        self.handshakes.doRead()
        self.loop.advance(0)
        self.assertEqual(late, [0.0, 0.0])

    def test_failed(self) -> None:
        """If the epoll set fails, its sockets are closed, as by a reactor. None is dropped silently."""
        (one,) = self.many(1)
        self.patch(self.handshakes, "begin_turn", lambda: 1 / 0)
        self.loop.turn()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((len(one.lost), self.handshakes.fileno()), (1, -1))

    def test_a_line_interrupts(self) -> None:
        """A line that arrives during a handshake is handled before the next one. The others are not forgotten."""
        first, *_ = self.many(3)

        def interrupted() -> None:
            self.work("handshake")
            self.device.peer.send(b"a")

        first.after_reading = interrupted
        self.loop.settle()
        self.assertEqual(self.calls, ["handshake", "line", "handshake", "handshake"])

    def test_progress(self) -> None:
        """Established devices that talk without a pause do not stop handshakes: their lines and handshakes take turns."""
        self.many(3)
        self.device.peer.send(b"a" * 100)
        self.loop.turn()
        self.assertEqual(self.from_first_handshake()[:5], ["handshake", "line", "handshake", "line", "handshake"])

    def test_lines_between_are_sent_on(self) -> None:
        """Lines that come between two handshakes are written to the broker before the next one."""

        def handshake() -> None:
            self.work("handshake")
            self.device.peer.send(b"a")

        for each in self.many(2):
            each.after_reading = handshake
        self.device.after_reading = lambda: self.turn.call_last(lambda: self.calls.append("publish"))
        self.loop.turn()
        self.assertEqual(self.calls, ["handshake", "publish", "handshake", "publish"])

    def test_short_ones(self) -> None:
        """Connections that need little, such as those that have to wait for their handshake, are handled together."""
        for each in self.many(4):
            each.after_reading = lambda: self.work("handshake", UNINTERRUPTED * 0.6)
        self.device.peer.send(b"a" * 100)
        self.loop.turn()
        self.assertEqual(self.from_first_handshake()[:5], ["handshake", "handshake", "line", "handshake", "handshake"])

    def test_the_broker_interrupts(self) -> None:
        """Any watched descriptor interrupts handshakes."""
        ours, broker = unix_pair()
        self.addCleanup(ours.close)
        self.addCleanup(broker.close)
        self.turn.watch(ours.fileno())
        self.addCleanup(self.turn.unwatch, ours.fileno())
        broker.send(b"a")
        self.many(2)
        self.loop.turn()
        self.assertEqual(self.calls, ["handshake"])
        ours.recv(1)
        self.turn.unwatch(ours.fileno())
        self.loop.turn()
        self.assertEqual(self.calls, ["handshake", "handshake"])

    def test_a_broker_that_always_interrupts(self) -> None:
        """Handshakes have a quarter of the time since the broker has interrupted them, whatever it has to say then."""
        ours, broker = unix_pair()
        self.addCleanup(ours.close)
        self.addCleanup(broker.close)
        self.turn.watch(ours.fileno())
        self.addCleanup(self.turn.unwatch, ours.fileno())
        broker.send(b"a")
        self.many(SLICE)
        self.loop.turn()
        self.assertEqual(self.calls, ["handshake"])
        # Lines take eight times as long as a handshake: two more have begun when their time is over.
        self.loop.rightNow += 8 * 2 * UNINTERRUPTED
        self.loop.turn()
        self.assertEqual(len(self.calls), 3)
        # In a time without end they have no more than a turn.
        self.loop.rightNow += 1000 * HANDSHAKE_TURN
        self.loop.turn()
        self.assertIn(len(self.calls) - 3, (5, 6))

    def test_a_turn_has_its_time(self) -> None:
        """The time of a turn is limited also without an interruption, since the reactor has other work."""
        for each in self.many(4):
            each.after_reading = lambda: self.work("handshake", HANDSHAKE_TURN / 2)
        self.loop.turn()
        self.assertEqual(len(self.calls), 2)
        self.loop.turn()
        self.assertEqual(len(self.calls), 4)

    def test_closed_before_its_turn(self) -> None:
        """A set whose last socket goes before its turn leaves nothing behind."""
        (one,) = self.many(1)
        self.handshakes.doRead()
        self.handshakes.removeReader(one)
        self.assertEqual(self.loop.getDelayedCalls(), [])

    def test_lines_between_count(self) -> None:
        """Devices whose lines are handled between handshakes linger as others do when there are many."""
        self.established.configure(LINGER)
        self.device.after_reading = lambda: None
        for _ in range(round(2 * BUSY * LOOK)):
            self.device.peer.send(b"a")
            self.established.serve()
            self.loop.rightNow += 0.6 / BUSY
        self.device.peer.send(b"a")
        self.established.doRead()
        self.assertNotIn(self.established, self.loop.readers, "it does not linger")
        self.established.configure(0.0)

    def test_a_line_during_lingering(self) -> None:
        """While established devices linger, their lines wait for each other, also during handshakes."""
        self.established.configure(LINGER)
        self.device.after_reading = lambda: self.calls.append("line")
        for _ in range(round(BUSY)):
            self.device.peer.send(b"a")
            self.loop.turn()
            self.loop.rightNow += 0.5 / BUSY
            if self.established not in self.loop.readers:
                break
        self.assertNotIn(self.established, self.loop.readers, "it does not linger")
        self.calls.clear()
        self.device.peer.send(b"a")
        self.established.serve()
        self.assertEqual(self.calls, [])
        self.established.configure(0.0)
        self.established.serve()
        self.assertEqual(self.calls, ["line"])
