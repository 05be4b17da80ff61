"""How a node stops: in which order, in whose turn, by when, and what its last line says."""

from __future__ import annotations

from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from txamqp.client import Closed

from owsla.broker.client import BrokerError
from owsla.events import Event, NodeStopped
from owsla.routing import Registry
from owsla.supervision import ChildSpec, Supervisor
from owsla.wiring.shutdown import HAND_BACK, HANDSHAKES, SILENCE, STEP, DeviceDrain, NodeParts, NodeService, StopDeadline


class Wire:
    """The transport of a connection."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def abortConnection(self) -> None:
        self.device.aborted = True
        self.device.world.clock.callLater(0, self.device.gone)


class Device:
    """A connection that is settled when the test says so, and gone when it was closed."""

    def __init__(self, world: World, name: bytes) -> None:
        self.world = world
        self.name = name
        self.transport: Wire | None = Wire(self)
        self.aborted = False
        self.acknowledges = True
        """Whether it is told what is safe."""
        self.backlog = False
        self.settled = True
        self.stubborn = False
        """Whether it does not go when it is closed."""
        self.defect = ""
        """Name of the method that raises an exception of our own code."""
        self.failures: list[Failure] = []
        self.drained: list[float] = []
        self.closed: list[float] = []

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)
        self.world.clock.callLater(0, self.gone)

    def drain(self) -> None:
        if self.defect == "drain":
            raise ZeroDivisionError
        self.drained.append(self.world.clock.seconds())

    def close(self, reason: str) -> None:
        if self.defect == "close":
            raise ZeroDivisionError
        assert self.world.reason in (reason, None)
        if not self.closed:
            self.closed.append(self.world.clock.seconds())
            if not self.stubborn:
                self.world.clock.callLater(0.01, self.gone)

    def gone(self) -> None:
        self.transport = None
        self.world.registry.remove(self.name)


def _spec(child: Child) -> ChildSpec:
    return ChildSpec(child.name or "child", lambda: child)


class Child(Service):
    """A service that notes when it stops, and may take a while for it."""

    def __init__(self, world: World, name: str, takes: float = 0.0) -> None:
        self.world = world
        self.setName(name)
        self.takes = takes
        self.close_timeout = 5.0
        """For a connection to the broker: how long its goodbye may take."""
        self.hurried = False

    def startService(self) -> None:
        super().startService()
        self.world.log.append(f"{self.name} started")

    def stopListening(self) -> None:
        self.world.log.append("port closed")

    def close_within(self, seconds: float) -> None:
        self.close_timeout = min(self.close_timeout, seconds)

    def hurry(self) -> None:
        self.hurried = True
        self.close_timeout = 0.0

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        if not self.takes:
            self.world.log.append(f"{self.name} stopped")
            return None
        waiting: Deferred[None] = Deferred()
        self.world.clock.callLater(self.takes, waiting.callback, None)
        return waiting.addCallback(lambda _: self.world.log.append(f"{self.name} stopped"))


class Parcels:
    """The producer, the courier: so much is not confirmed."""

    def __init__(self) -> None:
        self.unconfirmed = 0

    def stop_waiting(self) -> None:
        """Take lines as they come."""

    def settled(self, source: Any) -> bool:
        assert isinstance(source, Device)
        return source.settled


class Arrivals:
    """Connections that have not completed their handshake: so many are silent, and so many wait or are in it."""

    def __init__(self) -> None:
        self.silent = self.waiting = self.handshaking = 0
        self.open = 5

    @property
    def connections(self) -> int:
        return self.open + self.silent + self.waiting + self.handshaking


class Losses:
    """What was thrown away of devices: so many lines, and bytes that were not read."""

    def __init__(self) -> None:
        self.discards = (0, 0)

    def take_discards(self) -> tuple[int, int]:
        return self.discards


class Groups:
    """Messages for many devices."""

    spreading = 0


class Consumers:
    """The consumers. `silent` are the calls that the broker does not answer, and `errors` those that it refuses."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.connected = True
        self.handled = 0
        self.empty = True
        self.silent: set[str] = set()
        self.errors: dict[str, Exception] = {}

    async def _call(self, name: str) -> None:
        if name in self.silent:
            await Deferred()
        if name in self.errors:
            raise self.errors[name]

    async def stop_consuming(self, *, own: bool) -> None:
        name = "own queue left" if own else "consuming stopped"
        await self._call(name)
        self.world.log.append(name)

    async def unbind_own_queue(self) -> None:
        await self._call("own queue unbound")
        self.world.log.append("own queue unbound")

    async def delete_own_queue(self) -> bool:
        await self._call("own queue gone")
        if self.empty:
            self.world.log.append("own queue gone")
            self.world.roster.listed = False
        return self.empty


class Roster:
    """The other nodes, to whom this one says goodbye: there are some, if nothing else is said."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.unconfirmed = 0
        self.listed = self.alone = False

    def leave(self) -> None:
        self.world.log.append("left")


class World:
    """A gateway and what is around it."""

    def __init__(self, drain_timeout: float = 30.0, drain_spread: float | None = 10.0, embedded: bool = True) -> None:
        self.clock = cast(Any, Clock())
        self.clock.advance(1000)
        self.log: list[str] = []
        self.events: list[Event] = []
        self.reason: str | None = "the gateway stops"
        """Why devices are closed; `None`: there is more than one reason."""
        self.registry: Registry[Device] = Registry()
        self.producer, self.courier, self.presence, self.consumers = Parcels(), Parcels(), Parcels(), Consumers(self)
        self.broadcast = Parcels()
        self.groups = Groups()
        self.roster, self.losses, self.arrivals = Roster(self), Losses(), Arrivals()
        self.connections = [Child(self, "consumers", 0.2), Child(self, "producer", 0.2), Child(self, "courier")]
        self.failed: list[tuple[str, int]] = []
        listener = Child(self, "listener")
        self.deadline = StopDeadline(self.clock, drain_timeout)
        self.drain = DeviceDrain(self.clock, self.deadline, self.producer, drain_spread)
        self.node = NodeService(
            self.clock,
            NodeParts(
                ports=[cast(Any, listener)],
                handshakes=self.arrivals,
                registry=cast(Any, self.registry),
                lines=self.producer,
                discards=self.losses,
                courier=self.courier,
                broadcast=self.broadcast,
                presence=self.presence,
                groups=self.groups,
                consumers=self.consumers,
                membership=self.roster,
                connections=cast(Any, self.connections),
            ),
            deadline=self.deadline,
            drain=self.drain,
            emit=self.events.append,
            fail=lambda reason, status: self.failed.append((reason, status)),
        )
        children = [*([Child(self, "embedded")] if embedded else []), *self.connections, listener]
        self.node.supervise(Supervisor(self.clock, [_spec(child) for child in children], name="owsla"))
        self.node.startService()
        self.devices: list[Device] = []

    def connect(self, count: int) -> list[Device]:
        devices = [Device(self, b"%d" % (len(self.devices) + number)) for number in range(count)]
        for device in devices:
            self.registry.add(device.name, device)
        self.devices += devices
        return devices

    def be_alone(self) -> None:
        """This node is the only one."""
        self.roster.listed = self.roster.alone = True

    def stop(self) -> Deferred[Any]:
        self.log.clear()
        self.began = self.clock.seconds()
        return self.node.stopService()

    def let_go(self, reason: str) -> Deferred[None]:
        return self.drain.close_all(cast(Any, self.registry), reason)

    def later(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.01)):
            self.clock.advance(0.01)


class StoppingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.lines: list[str] = []

        def observe(event: LogEvent) -> None:
            if event.get("log_namespace") == "owsla":
                self.lines.append(formatEvent(event))

        publisher: Any = globalLogPublisher
        publisher.addObserver(observe)
        self.addCleanup(publisher.removeObserver, observe)

    def test_start_order(self) -> None:
        """The embedded broker starts first, then the connections to it, and the device port last."""
        self.assertEqual(
            World().log, [f"{name} started" for name in ("embedded", "consumers", "producer", "courier", "listener")]
        )

    def test_order(self) -> None:
        """The port closes first; then the devices, then nothing is consumed, the others are told, and the listener, the
        connections to the broker, and the embedded broker stop. The own queue is left to the others.
        """
        world = World()
        devices = world.connect(3)
        stopping = world.stop()
        self.assertEqual(world.log, ["port closed"])
        self.assertTrue(world.deadline.stopping)
        self.assertFalse(world.node.running)
        while len(world.registry):
            self.assertNoResult(stopping)
            self.assertEqual(world.log, ["port closed"])
            world.later(0.01)
        world.later(2)
        self.successResultOf(stopping)
        first = ["port closed", "consuming stopped", "own queue unbound", "left", "own queue left", "listener stopped"]
        self.assertEqual(world.log[:6], first)
        self.assertEqual(set(world.log[6:9]), {f"{name} stopped" for name in ("consumers", "producer", "courier")})
        self.assertEqual(world.log[9:], ["embedded stopped"])
        self.assertTrue(all(len(device.drained) == 1 for device in devices))
        self.assertEqual(self.lines[-1], "Stopped: 3 devices closed, everything confirmed")
        self.assertEqual(world.events, [NodeStopped(3)])
        self.assertEqual(world.clock.getDelayedCalls(), [])

    def test_handshakes(self) -> None:
        """Handshakes in progress may finish. One whose ClientHello is read in the next turn is one of them."""
        world = World()
        world.arrivals.silent = 1
        stopping = world.stop()
        world.later(STEP / 2)
        world.arrivals.silent, world.arrivals.handshaking = 0, 1
        world.later(HANDSHAKES - 1)
        self.assertEqual(world.log, ["port closed"])
        world.arrivals.handshaking = 0
        world.later(2)
        self.successResultOf(stopping)
        self.assertEqual(self.lines[-1], "Stopped: 0 devices closed, everything confirmed")

    def test_slow_handshakes(self) -> None:
        """Handshakes that take longer than a few seconds are not waited for, nor those beyond the deadline."""
        for timeout, longest in ((30.0, HANDSHAKES), (1.0, 1.0)):
            world = World(drain_timeout=timeout)
            world.arrivals.waiting = 1
            stopping = world.stop()
            world.later(longest - 0.1)
            self.assertEqual(world.log, ["port closed"])
            world.later(2)
            self.successResultOf(stopping)

    def test_changed_deadline(self) -> None:
        """Another --drain-timeout and --drain-spread are for a later stop. One that has begun keeps its deadline."""
        world = World(drain_timeout=30.0, drain_spread=10.0)
        world.connect(1)[0].stubborn = True
        world.deadline.configure(5.0)
        world.drain.configure(0.0)
        stopping = world.stop()
        world.deadline.configure(100.0)
        world.later(4.9)
        self.assertNoResult(stopping)
        world.later(1.5)
        self.successResultOf(stopping)

    def test_no_goodbye(self) -> None:
        """Where back ends have not been told of every connection it says no goodbye: others say that this node is lost."""
        world = World(drain_timeout=2.0)
        world.presence.unconfirmed = 1
        stopping = world.stop()
        world.later(3)
        self.successResultOf(stopping)
        self.assertNotIn("left", world.log)
        self.assertIn("1 message ", self.lines[-1])

    def test_the_goodbye_is_waited_for(self) -> None:
        """Until the broker has its goodbye, within the deadline."""
        world = World()
        world.roster.unconfirmed = 1
        stopping = world.stop()
        world.later(5)
        self.assertNoResult(stopping)
        world.roster.unconfirmed = 0
        world.later(1)
        self.successResultOf(stopping)

    def test_messages_for_many(self) -> None:
        """Messages for many devices have ended before the own queue is not consumed any more."""
        world = World()
        world.groups.spreading = 1
        stopping = world.stop()
        world.later(5)
        self.assertNoResult(stopping)
        self.assertNotIn("own queue left", world.log)
        world.groups.spreading = 0
        world.later(10)
        self.successResultOf(stopping)

    def test_records_that_are_not_confirmed(self) -> None:
        """Where other nodes clean up, messages of its own queue are given back before they may delete that."""
        for alone, stopped in ((False, True), (True, False)):
            world = World()
            world.roster.alone = alone
            world.courier.unconfirmed = 1
            stopping = world.stop()
            world.later(HAND_BACK + 1)
            self.assertIs(stopping.called, stopped)
            world.courier.unconfirmed = 0
            world.later(10)
            self.successResultOf(stopping)

    def test_let_go(self) -> None:
        """All devices that are connected then are closed as on a stop, spread out and settled; those that come later are not,
        and the gateway goes on.
        """
        world = World()
        world.reason = "another name"
        devices = world.connect(100)
        letting_go = world.let_go("another name")
        world.later(5)
        late = world.connect(1)
        self.assertTrue(20 < sum(bool(device.closed) for device in devices) < 80)
        world.later(6)
        self.successResultOf(letting_go)
        self.assertTrue(all(device.drained and device.closed for device in devices))
        self.assertEqual(late[0].drained, [])
        self.assertNotIn("port closed", world.log)
        self.assertFalse(world.deadline.stopping)

    def test_let_go_and_stopped(self) -> None:
        """A stop meanwhile takes over."""
        world = World(drain_timeout=4.0)
        world.reason = "another name"
        device, stubborn = world.connect(2)
        device.settled = False
        world.let_go("another name")
        world.later(1)
        world.reason = None
        stopping = world.stop()
        world.later(6)
        self.successResultOf(stopping)
        self.assertEqual((len(device.closed), len(stubborn.closed)), (1, 1))

    def test_nobody_connected(self) -> None:
        """Without devices, and without an embedded broker, there is nothing to wait for."""
        world = World(embedded=False)
        stopping = world.stop()
        world.later(0.5)
        self.successResultOf(stopping)
        self.assertEqual(self.lines[-1], "Stopped: 0 devices closed, everything confirmed")

    def test_turns_are_spread(self) -> None:
        """Each device has its turn once, and the turns are spread evenly over the time given; until then it is left alone."""
        world = World(drain_spread=10.0)
        world.connect(1000)
        stopping = world.stop()
        for second in range(1, 10):
            world.later(1)
            closed = sum(bool(device.closed) for device in world.devices)
            self.assertTrue(abs(closed - second * 100) <= 15, (second, closed))
            self.assertTrue(all(device.drained or not device.closed for device in world.devices))
        world.later(2)
        self.successResultOf(stopping)
        self.assertTrue(all(len(device.drained) == 1 for device in world.devices))

    def test_spread_by_number(self) -> None:
        """Unless told otherwise a few devices are closed soon, and many over ten seconds: one that comes back is no burst."""
        for devices, soonest, latest in ((1, 0.0, 0.2), (20, 0.8, 1.2), (1000, 9.5, 10.5)):
            world = World(drain_spread=None)
            world.connect(devices)
            began = world.clock.seconds()
            world.stop()
            world.later(12)
            last = max(device.closed[0] for device in world.devices) - began
            self.assertTrue(soonest <= last <= latest, (devices, last))

    def test_one_device(self) -> None:
        """What is one is said so."""
        world = World(drain_spread=None)
        world.connect(1)
        world.stop()
        world.later(2)
        self.assertIn("Stopping: 1 device is connected", self.lines)
        self.assertEqual(self.lines[-1], "Stopped: 1 device closed, everything confirmed")

    def test_few_devices_are_spread_too(self) -> None:
        """No two of a few go in the same instant where there is time."""
        world = World(drain_spread=10.0)
        world.connect(20)
        world.stop()
        world.later(12)
        instants = {device.closed[0] for device in world.devices}
        self.assertEqual(len(instants), 20)

    def test_spread_within_the_deadline(self) -> None:
        """However long the turns are to be spread, there is time left after them."""
        world = World(drain_timeout=4.0, drain_spread=60.0)
        world.connect(100)
        stopping = world.stop()
        world.later(2.2)
        self.assertEqual(len(world.registry), 0)
        world.later(1)
        self.successResultOf(stopping)
        self.assertEqual(self.lines[-1], "Stopped: 100 devices closed, everything confirmed")

    def test_a_device_is_closed_when_it_is_settled(self) -> None:
        """At its turn a device is drained, and closed when its lines are confirmed and nothing waits for it."""
        world = World(drain_spread=0.1)
        (device,) = world.connect(1)
        device.settled = False
        device.backlog = True
        stopping = world.stop()
        world.later(1)
        self.assertEqual((len(device.drained), device.closed), (1, []))
        device.settled = True
        world.later(1)
        self.assertEqual(device.closed, [])
        device.backlog = False
        world.later(2 * STEP)
        self.assertEqual(len(device.closed), 1)
        world.later(1)
        self.successResultOf(stopping)

    def test_a_device_that_is_not_told(self) -> None:
        """A device that is not told what is safe is closed at its turn, and read until it has closed."""
        world = World(drain_spread=0.1)
        (device,) = world.connect(1)
        device.acknowledges = device.settled = False
        device.backlog = True
        stopping = world.stop()
        world.later(1)
        self.assertEqual(device.closed, [])
        device.backlog = False
        world.later(2 * STEP)
        self.assertEqual(len(device.closed), 1)
        world.later(1)
        self.successResultOf(stopping)

    def test_one_does_not_hold_up_the_others(self) -> None:
        """A device that is not settled keeps none behind it from its turn."""
        world = World(drain_spread=1.0)
        devices = world.connect(5)
        devices[0].settled = False
        world.stop()
        world.later(2)
        self.assertEqual(len(world.registry), 1)

    def test_a_defect_of_one_device(self) -> None:
        """An exception while a device is closed ends its connection. The other devices are closed in order, and confirms are
        waited for.
        """
        for defect in ("drain", "close"):
            world = World(drain_spread=1.0)
            devices = world.connect(5)
            devices[1].defect = defect
            world.producer.unconfirmed = 1
            stopping = world.stop()
            world.later(3)
            self.assertEqual(len(devices[1].failures), 1)
            self.assertEqual([len(device.closed) for device in devices if not device.failures], [1] * 4)
            self.assertNoResult(stopping)
            world.producer.unconfirmed = 0
            world.later(5)
            self.successResultOf(stopping)

    def test_a_defect_of_a_step(self) -> None:
        """An exception in a step of the shutdown is logged, and the other steps are taken: confirms are waited for, and the
        services are stopped.
        """
        world = World()
        self.patch(world.arrivals.__class__, "connections", property(lambda _: 1 // 0))
        self.patch(world.roster, "leave", lambda: 1 // 0)
        world.producer.unconfirmed = 1
        stopping = world.stop()
        world.later(3)
        self.assertNoResult(stopping)
        world.producer.unconfirmed = 0
        world.later(5)
        self.successResultOf(stopping)
        self.assertIn("courier stopped", world.log)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_gone_by_themselves(self) -> None:
        """Devices that go before, or in, their turn are waited for no longer."""
        world = World(drain_spread=2.0)
        devices = world.connect(10)
        for device in devices:
            device.settled = False
        stopping = world.stop()
        world.later(1)
        for device in devices:
            device.gone()
        world.later(4)
        self.successResultOf(stopping)
        self.assertEqual([device.closed for device in devices], [[]] * 10)

    def test_confirms_are_waited_for(self) -> None:
        """It says goodbye when lines are confirmed and back ends are told, and the connections close when all records are. Its
        queue is bound until messages for many devices are confirmed.
        """
        world = World()
        world.producer.unconfirmed = 3
        world.courier.unconfirmed = 1
        stopping = world.stop()
        world.later(1)
        self.assertEqual(world.log, ["port closed", "consuming stopped"])
        world.producer.unconfirmed = 0
        world.presence.unconfirmed = 1
        world.later(1)
        self.assertEqual(world.log, ["port closed", "consuming stopped"])
        world.presence.unconfirmed = 0
        world.broadcast.unconfirmed = 1
        world.later(1)
        self.assertEqual(world.log, ["port closed", "consuming stopped"])
        world.broadcast.unconfirmed = 0
        world.later(1)
        self.assertEqual(world.log[3:], ["left", "own queue left"], "messages that still come do not hold it up")
        world.courier.unconfirmed = 0
        world.later(1)
        self.successResultOf(stopping)

    def test_own_queue_of_the_only_node(self) -> None:
        """A node that is alone deletes its own queue when nothing has come into it for a while, and strikes itself off."""
        world = World()
        world.be_alone()
        stopping = world.stop()
        for _ in range(5):
            world.later(SILENCE - 2 * STEP)
            world.consumers.handled += 1
            self.assertEqual(world.log, ["port closed", "consuming stopped", "own queue unbound", "left"])
        world.later(SILENCE - 2 * STEP)
        world.courier.unconfirmed = 1
        world.later(SILENCE)
        world.courier.unconfirmed = 0
        world.later(SILENCE - 2 * STEP)
        self.assertNotIn("own queue gone", world.log)
        world.later(1)
        self.assertIn("own queue gone", world.log)
        self.successResultOf(stopping)

    def test_own_queue_that_is_not_silent(self) -> None:
        """One that back ends go on filling is left to the next node that starts, within the deadline."""
        world = World(drain_timeout=2.0)
        world.be_alone()
        stopping = world.stop()
        for _ in range(25):
            world.consumers.handled += 1
            world.later(0.1)
        self.successResultOf(stopping)
        self.assertNotIn("own queue gone", world.log)
        self.assertIn("left", world.log)
        self.assertEqual(world.log[-1], "embedded stopped")

    def test_own_queue_that_fills_in_the_last_moment(self) -> None:
        """The same where there is something in it after all."""
        world = World()
        world.be_alone()
        world.consumers.empty = False
        stopping = world.stop()
        world.later(SILENCE + 1)
        self.successResultOf(stopping)
        self.assertNotIn("own queue gone", world.log)

    def test_a_broker_that_answers_nothing(self) -> None:
        """A broker that answers nothing of what a stop asks delays it by the deadline at most, and not at all in a hurry."""
        for call in ("consuming stopped", "own queue gone", "own queue left"):
            for hurry in (False, True):
                world = World(drain_timeout=4.0)
                world.be_alone()
                if call == "own queue left":
                    world.roster.alone = False
                world.consumers.silent.add(call)
                stopping = world.stop()
                world.later(2)
                self.assertNoResult(stopping)
                if hurry:
                    world.node.hurry()
                    self.assertTrue(all(connection.hurried for connection in world.connections))
                world.later(0.7 if hurry else 2.6)
                self.successResultOf(stopping)
                self.assertEqual(world.log[-1], "embedded stopped")

    def test_deadline(self) -> None:
        """At the deadline it stops all the same, in the same order, and its last line counts what it gave up."""
        world = World(drain_timeout=5.0, drain_spread=1.0)
        devices = world.connect(4)
        devices[0].settled = False
        devices[1].stubborn = True
        world.producer.unconfirmed = 7
        world.courier.unconfirmed = 2
        world.losses.discards = (3, 500)
        stopping = world.stop()
        world.later(4.9)
        self.assertNoResult(stopping)
        world.later(0.8)
        self.successResultOf(stopping)
        self.assertEqual(len(devices[0].closed), 1)
        self.assertEqual([device.aborted for device in devices], [True, True, False, False])
        self.assertEqual([world.log[0], world.log[-1]], ["port closed", "embedded stopped"])
        self.assertNotIn("left", world.log)
        self.assertEqual([connection.close_timeout for connection in world.connections], [0.0] * 3)
        (line,) = [line for line in self.lines if "deadline" in line]
        self.assertEqual(line, self.lines[-1])
        for part in ("10 lines", "2 messages", "500 bytes of devices unread", "2 devices"):
            self.assertIn(part, line)

    def test_the_broker_is_away(self) -> None:
        """Without a connection to the broker the own queue is left, and nothing is waited for."""
        world = World()
        world.be_alone()
        world.consumers.connected = False
        stopping = world.stop()
        world.later(0.6)
        self.successResultOf(stopping)
        self.assertNotIn("own queue gone", world.log)
        self.assertEqual(world.log[-1], "embedded stopped")

    def test_the_broker_objects(self) -> None:
        """Where the broker objects, or goes meanwhile, that is said, and the rest is stopped."""
        for error in (Closed("away"), BrokerError(404, "no such queue", scope="channel")):
            for call in ("consuming stopped", "own queue gone", "own queue left"):
                world = World()
                world.be_alone()
                world.consumers.errors[call] = error
                stopping = world.stop()
                world.later(2)
                self.successResultOf(stopping)
                self.assertEqual(world.log[-1], "embedded stopped")
                self.assertTrue([line for line in self.lines if "The broker refused" in line])
                self.lines.clear()

    def test_hurry(self) -> None:
        """Told to hurry, it waits for nothing more."""
        world = World()
        devices = world.connect(100)
        world.producer.unconfirmed = 1
        stopping = world.stop()
        world.later(1)
        left = len(world.registry)
        self.assertGreater(left, 50)
        world.node.hurry()
        world.later(0.6)
        self.successResultOf(stopping)
        self.assertTrue(all(device.closed for device in devices))
        self.assertIn("1 line ", self.lines[-1])
        self.assertEqual(world.log[-1], "embedded stopped")
