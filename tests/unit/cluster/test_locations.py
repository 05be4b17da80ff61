"""Tests of the way of messages to devices: questions, answers, returns and fences."""

from __future__ import annotations

import math
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from owsla.cluster.device_notices import MOST
from owsla.cluster.locations import CATCH_UP, FENCE_TIMEOUT, HURRY, HURRY_UNASKED, LONGEST, RECENT, ExchangeState

from .device_world import Copy, Fence, World

DEVICES = ("x", "y")


class RoutingTests(SynchronousTestCase):
    def test_here(self) -> None:
        """A message for a device of this node is handed over at once, without a question."""
        world = World(2)
        world.connect("x", 0)
        message = world.publish("x", 0)
        self.assertEqual((message.delivered, world.nodes[world.names[0]].questions), (1, []))

    def test_elsewhere(self) -> None:
        """A message for a device of another node is forwarded there after a question; the next ones without a question."""
        world = World(3)
        world.connect("x", 2)
        messages = [world.publish("x", 0) for _ in range(3)]
        world.run()
        messages += [world.publish("x", 0) for _ in range(3)]
        world.run()
        self.assertEqual([message.delivered for message in messages], [1] * 6)
        asker = world.nodes[world.names[0]]
        self.assertEqual([number for _, number in asker.questions], [1])
        self.assertEqual((asker.locations.questions, asker.locations.answered, asker.locations.remembered), (1, 1, 1))
        self.assertEqual(world.delivered[asker.name, "x"], messages)

    def test_nowhere(self) -> None:
        """A message for a device that nobody has is recorded after the time-out."""
        world = World(2, device_timeout=1.5)
        message = world.publish("x", 0)
        world.run()
        world.advance(1.0)
        world.run()
        world.advance(0.4)
        self.assertEqual((message.recorded, world.nodes[world.names[0]].locations.waiting), (0, 1))
        world.advance(0.2)
        self.assertEqual((message.recorded, world.nodes[world.names[0]].locations.waiting), (1, 0))
        self.assertEqual(world.nodes[world.names[0]].locations.unanswered, 1)
        self.assertEqual(len(world.nodes[world.names[0]].questions), 2)

    def test_connects_meanwhile(self) -> None:
        """A device that connects to this node while it is asked for gets its messages at the time-out, or when this node hears
        of itself."""
        for announced in (False, True):
            world = World(2)
            message = world.publish("x", 0)
            world.run()
            world.connect("x", 0)
            if announced:
                world.announce("x", 0)
                world.run()
            else:
                world.advance(1.0)
            self.assertEqual((message.delivered, message.recorded), (1, 0))

    def test_moved(self) -> None:
        """A message that finds its device gone is returned, and forwarded to the node that has the device now."""
        world = World(3)
        world.connect("x", 1)
        world.publish("x", 0)
        world.run()
        world.disconnect("x", 1)
        world.connect("x", 2)
        messages = [world.publish("x", 0) for _ in range(4)]
        world.run()
        self.assertEqual([message.delivered for message in messages], [1] * 4)
        self.assertEqual(world.delivered[world.names[0], "x"], world.messages)
        self.assertEqual(world.nodes[world.names[0]].locations.returned_messages, 4)

    def test_announced_move(self) -> None:
        """Messages that were forwarded before a device moves, and come back, go before those that are forwarded afterwards."""
        world = World(3)
        world.connect("x", 1)
        world.publish("x", 0)
        world.run()
        world.publish("x", 0)  # on its way to the former node
        world.disconnect("x", 1)
        world.connect("x", 2)
        world.announce("x", 2)
        self.hear(world)
        world.publish("x", 0)
        self.assertEqual(len(world.delivered[world.names[0], "x"]), 1)
        world.run()
        self.assertEqual(world.delivered[world.names[0], "x"], world.messages)

    def test_moved_here(self) -> None:
        """The same if the device moves to the node that forwards its messages."""
        world = World(2)
        world.connect("x", 1)
        world.publish("x", 0)
        world.run()
        world.publish("x", 0)
        world.disconnect("x", 1)
        world.connect("x", 0)
        world.publish("x", 0)
        world.publish("x", 0)
        world.run()
        self.assertEqual(world.delivered[world.names[0], "x"], world.messages)
        world.advance(RECENT)
        world.publish("x", 0)
        self.assertEqual(world.delivered[world.names[0], "x"], world.messages)

    def test_gone_and_back(self) -> None:
        """A node that has returned a message returns those that follow, although the device has connected again."""
        world = World(2)
        world.connect("x", 1)
        world.publish("x", 0)
        world.run()
        world.publish("x", 0)
        world.publish("x", 0)
        link = world.names[0], world.names[1]
        world.disconnect("x", 1)
        world.transmit(link)
        world.deliver(world.names[1])
        world.connect("x", 1)
        world.run()
        self.assertEqual(world.delivered[world.names[0], "x"], world.messages)

    def test_returned_in_parts(self) -> None:
        """A newer message waits for all that were forwarded before, although the first of them has found the new node."""
        world = World(3)
        world.connect("x", 1)
        world.publish("x", 0)
        world.run()
        world.publish("x", 0)
        world.publish("x", 0)
        there, back = (world.names[0], world.names[1]), (world.names[1], world.names[0])
        world.disconnect("x", 1)
        world.connect("x", 2)
        for link in (there, back):
            world.transmit(link)
            world.deliver(link[1])
        world.advance(0.02)
        self.hear(world)
        self.hear(world)
        world.publish("x", 0)
        self.assertFalse(world.links[world.names[0], world.names[2]], "the second one is not back")
        world.run()
        self.assertEqual(world.delivered[world.names[0], "x"], world.messages)

    def test_lost_fence(self) -> None:
        """A fence that does not come back, as of a dead node, holds messages up for a second."""
        world = World(3)
        world.connect("x", 1)
        world.publish("x", 0)
        world.run()
        world.connect("x", 2)
        world.announce("x", 2)
        self.hear(world)
        message = world.publish("x", 0)
        world.advance(0.0)
        world.links.clear()
        world.advance(FENCE_TIMEOUT - 0.1)
        world.run()
        self.assertEqual(message.delivered, 0)
        world.advance(0.2)
        world.run()
        self.assertEqual(message.delivered, 1)

    def test_old_forwards_need_no_fence(self) -> None:
        """A device that moves without recent messages gets the next one without a fence."""
        world = World(3)
        world.connect("x", 1)
        world.publish("x", 0)
        world.run()
        world.advance(RECENT)
        world.connect("x", 2)
        world.announce("x", 2)
        self.hear(world)
        world.publish("x", 0)
        ((link, (publication,)),) = [each for each in world.links.items() if each[1]]
        self.assertEqual(link, (world.names[0], world.names[2]))
        self.assertIsInstance(publication.item, Copy)

    def test_third_return(self) -> None:
        """A message that is returned for the third time is recorded: a device that wanders faster than its messages."""
        world = World(2)
        world.connect("x", 1)
        world.publish("x", 0)
        world.run()
        message = world.publish("x", 0)
        for _ in range(3):
            world.disconnect("x", 1)
            for _ in range(4):
                self.step(world)
            self.assertEqual(message.delivered, 0)
            world.connect("x", 1)
            self.hear(world)
            self.hear(world)
            world.advance(0.02)
            for _ in range(10):
                if any(isinstance(one.item, Copy) for each in world.links.values() for one in each):
                    break
                self.step(world)
                self.hear(world)
        self.assertEqual((message.delivered, message.recorded), (0, 1))

    def test_newest_answer(self) -> None:
        """With two connections of a device, the first answer wins; later messages go to the newest connection."""
        world = World(3)
        world.connect("x", 1)
        world.connect("x", 2)
        world.publish("x", 0)
        world.advance(0.0)
        world.nodes[world.names[1]].heard(next(each for each in world.notices if each.to == world.names[1]))
        world.nodes[world.names[0]].heard(world.notices[-1])
        self.assertTrue(world.links[world.names[0], world.names[1]])
        world.run()
        world.advance(RECENT)
        world.publish("x", 0)
        self.assertTrue(world.links[world.names[0], world.names[2]])

    def test_unasked_claims(self) -> None:
        """A claim of a device that nobody has asked for displaces nothing that is remembered."""
        world = World(2)
        world.connect("x", 1)
        world.announce("x", 1)
        self.hear(world)
        self.assertEqual(world.nodes[world.names[0]].locations.remembered, 0)

    def test_remembered(self) -> None:
        """The most recently used locations are remembered, within the limit."""
        world = World(2, remembered=10)
        for number in range(20):
            world.connect(f"device {number}", 1)
            world.publish(f"device {number}", 0)
            world.run()
            world.publish("device 0", 0)
            world.run()
        locations = world.nodes[world.names[0]].locations
        self.assertEqual((locations.remembered, locations.questions), (10, 20))

    def test_forget(self) -> None:
        """Waiting messages of a consumer that ended are dropped: the broker delivers them again."""
        world = World(2)
        message = world.publish("x", 0)
        world.end_sources(0)
        self.assertEqual(world.nodes[world.names[0]].locations.waiting, 0)
        world.settle()
        self.assertEqual((message.delivered, message.recorded), (0, 1))

    def hear(self, world: World) -> None:
        """Let the notices arrive that are on their way."""
        notices, world.notices = world.notices, []
        for notice in notices:
            world.nodes[notice.to].heard(notice)

    def step(self, world: World) -> None:
        """Let one message arrive from each node at each other, and be consumed."""
        for link in [link for link, publications in world.links.items() if publications]:
            world.transmit(link)
        for name in world.names:
            if world.queues[name]:
                world.deliver(name)


class LimitTests(SynchronousTestCase):
    def test_unknown_ids(self) -> None:
        """Ten thousand messages a second for different unknown devices cost some questions, and none delays a known device."""
        world = World(2, prefetch=4000)
        world.connect("x", 1)
        node = world.nodes[world.names[0]]
        start = world.now
        known = []
        for number in range(1000):
            for each in range(10):
                world.publish(f"device {number} {each}", 0)
            known.append(world.publish("x", 0))
            world.run(quiet=0.0005)
            world.advance(start + (number + 1) / 1000 - world.now if start + (number + 1) / 1000 > world.now else 0.0)
            self.assertLessEqual(node.locations.waiting, 2010)
            self.assertFalse(world.shared)
        seconds = world.now - start
        self.assertTrue(all(message.delivered for message in known))
        self.assertLessEqual(len(node.questions), 1 + seconds / 0.01)
        self.assertEqual(sum(number for _, number in node.questions), 10_001)
        world.settle()
        self.assertTrue(all(message.delivered + message.recorded == 1 for message in world.messages))

    def test_burst(self) -> None:
        """A burst for devices that are all connected elsewhere, as large as the prefetch, makes none of them unknown."""
        world = World(2, prefetch=2000)
        for number in range(2000):
            world.connect(f"device {number}", 1)
        for number in range(2000):
            world.publish(f"device {number}", 0)
        world.run()
        self.assertTrue(all(message.delivered for message in world.messages))
        self.assertEqual([number for _, number in world.nodes[world.names[0]].questions], [MOST] * 4)

    def test_oldest_first(self) -> None:
        """Past a quarter of the prefetch the device that was asked for first gives up, when it had time for an answer."""
        world = World(2, prefetch=10)
        for number in range(4):
            world.publish(f"device {number}", 0)
            world.publish(f"device {number}", 0)
        world.run()
        self.assertEqual([message.recorded for message in world.messages], [0] * 8)
        world.advance(HURRY)
        self.assertEqual([message.recorded for message in world.messages], [1] * 6 + [0] * 2)

    def test_own_queue(self) -> None:
        """Answers come through the own queue: past half of its prefetch the oldest device gives up at once."""
        world = World(2, prefetch=16)
        node = world.nodes[world.names[0]]
        letters = [world.publish_to_node(f"device {number}", 0) for number in range(10)]
        self.assertEqual([message.recorded for message in letters], [1] * 2 + [0] * 8)
        world.run()
        world.advance(HURRY)
        self.assertEqual([message.recorded for message in letters], [1] * 8 + [0] * 2)
        self.assertEqual(node.locations.waiting, 2)

    def test_slow_broker(self) -> None:
        """While questions do not come back, the time-out stands still, and no search gives up early. Then it goes on."""
        for prefetch in (1000, 4):
            world = World(2, prefetch=prefetch)
            messages = [world.publish(device, 0) for device in ("x", "y", "z")]
            world.advance(5.0)
            self.assertEqual([message.recorded for message in messages], [0, 0, 0])
            world.connect("x", 1)
            world.connect("y", 1)
            world.run()
            self.assertEqual([message.delivered for message in messages], [1, 1, 0])
            world.advance(1.0)
            world.run()
            self.assertEqual([message.recorded for message in messages], [0, 0, 1])

    def test_questions_are_dropped(self) -> None:
        """The time-out goes on when a later question is back."""
        world = World(2)
        first, second = world.publish("x", 0), world.publish("y", 0)
        world.advance(0.5)
        self.assertEqual(len(world.nodes[world.names[0]].questions), 1)
        world.notices.clear()
        world.advance(0.5)
        world.run()
        world.advance(1.0)
        self.assertEqual((first.recorded, second.recorded), (1, 1))

    def test_late_process(self) -> None:
        """A process that was late reads what has arrived meanwhile before a search times out."""
        world = World(2)
        node = world.nodes[world.names[0]]
        known, unknown = world.publish("x", 0), world.publish("y", 0)
        world.connect("x", 1)
        world.advance(0.01)
        world.now += 3.0
        node.wake = math.inf
        node.locations.tick()
        self.assertEqual((known.recorded, unknown.recorded), (0, 0))
        world.run()
        self.assertEqual((known.delivered, unknown.recorded), (1, 0))
        world.advance(CATCH_UP - 0.01)
        self.assertEqual(unknown.recorded, 0)
        world.run()
        world.advance(0.02)
        self.assertEqual(unknown.recorded, 1)

    def test_away(self) -> None:
        """While questions cannot be asked, the time-out stands still; afterwards all devices are asked for."""
        world = World(2)
        node = world.nodes[world.names[0]]
        message = world.publish("x", 0)
        world.run()
        states: tuple[ExchangeState, ...] = ("away", "blocked")
        for state in states:
            node.locations.exchange_is(state)
            world.advance(30.0)
        self.assertEqual((message.recorded, len(node.questions)), (0, 1))
        world.connect("x", 1)
        node.locations.exchange_is("up")
        world.run()
        self.assertEqual((message.delivered, len(node.questions)), (1, 2))

    def test_questions_that_wait(self) -> None:
        """The time-out counts from the first question: a question waits for the one before, however long that takes."""
        world = World(2)
        node = world.nodes[world.names[0]]
        node.busy = True
        messages = [world.publish(device, 0) for device in ("x", "y")]
        world.connect("x", 1)
        world.advance(5.0)
        self.assertEqual(([message.recorded for message in messages], node.questions), ([0, 0], []))
        node.busy = False
        world.run()
        world.advance(0.9)
        self.assertEqual([(message.delivered, message.recorded) for message in messages], [(1, 0), (0, 0)])
        world.advance(0.2)
        self.assertEqual([(message.delivered, message.recorded) for message in messages], [(1, 0), (0, 1)])
        node.busy = True
        last = world.publish("z", 0)
        world.advance(LONGEST)
        self.assertEqual(last.recorded, 1)

    def test_away_for_long(self) -> None:
        """Nothing waits for ever: not for an exchange that stays away, nor with too many messages."""
        world = World(2, prefetch=10)
        world.nodes[world.names[0]].locations.exchange_is("away")
        messages = [world.publish(f"device {number}", 0) for number in range(6)]
        world.advance(HURRY_UNASKED - 0.1)
        self.assertEqual([message.recorded for message in messages], [0] * 6)
        world.advance(0.2)
        self.assertEqual([message.recorded for message in messages], [1] * 4 + [0] * 2)
        world.advance(LONGEST)
        self.assertEqual([message.recorded for message in messages], [1] * 6)

    def test_refused(self) -> None:
        """Without permission to ask, messages for unknown devices are recorded at the time-out."""
        world = World(2)
        node = world.nodes[world.names[0]]
        node.locations.exchange_is("refused")
        message = world.publish("x", 0)
        world.advance(1.0)
        self.assertEqual((message.recorded, node.questions), (1, []))

    def test_reload(self) -> None:
        """Another time-out applies at once, also to searches that have begun."""
        world = World(2)
        node = world.nodes[world.names[0]]
        node.locations.configure(60.0)
        first = world.publish("x", 0)
        for _ in range(5):
            world.run()
            world.advance(1.0)
        world.run()
        self.assertEqual((first.recorded, len(node.questions)), (0, 6))
        node.locations.configure(2.0)
        world.advance(0.0)
        self.assertEqual(first.recorded, 1)

    def test_fences_of_a_turn(self) -> None:
        """One fence to a node serves all devices that need one."""
        world = World(3)
        for number in range(100):
            world.connect(f"device {number}", 1)
            world.publish(f"device {number}", 0)
        world.run()
        for number in range(100):
            world.disconnect(f"device {number}", 1)
            world.connect(f"device {number}", 2)
            world.announce(f"device {number}", 2)
        world.run()
        for number in range(100):
            world.publish(f"device {number}", 0)
        world.advance(0.0)
        on_the_way = [one.item for each in world.links.values() for one in each]
        self.assertEqual(len([item for item in on_the_way if isinstance(item, Fence)]), 1)
        world.run()
        self.assertTrue(all(message.delivered for message in world.messages))


class Wandering(RuleBasedStateMachine):
    """Devices wander between nodes, back ends address them, and the broker and its network take their time."""

    lossy: ClassVar[bool] = False

    @initialize(count=st.integers(1, 3), timeout=st.sampled_from([0.05, 1.0, 3.0]), prefetch=st.sampled_from([1, 4, 1000]))
    def begin(self, count: int, timeout: float, prefetch: int) -> None:
        self.world = World(count, device_timeout=timeout, prefetch=prefetch if self.lossy else 1000, remembered=2)

    def number(self, node: int) -> int:
        return node % self.world.count

    @rule(device=st.sampled_from(DEVICES), node=st.integers(0, 2))
    def connect(self, device: str, node: int) -> None:
        self.world.connect(device, self.number(node))

    @rule(device=st.sampled_from(DEVICES), node=st.integers(0, 2), announced=st.booleans())
    def move(self, device: str, node: int, announced: bool) -> None:
        for each in range(self.world.count):
            self.world.disconnect(device, each)
        self.world.connect(device, self.number(node))
        if announced:
            self.world.announce(device, self.number(node))

    @rule(device=st.sampled_from(DEVICES), node=st.integers(0, 2))
    def disconnect(self, device: str, node: int) -> None:
        self.world.disconnect(device, self.number(node))

    @rule(device=st.sampled_from(DEVICES), node=st.integers(0, 2), count=st.integers(1, 3))
    def flap(self, device: str, node: int, count: int) -> None:
        """The node of a device gets some messages while the device is away for a moment."""
        number = self.number(node)
        self.world.disconnect(device, number)
        for _ in range(count):
            for link in [each for each in self.world.links if each[1] == self.world.names[number] and self.world.links[each]]:
                self.world.transmit(link)
            if self.world.queues[self.world.names[number]]:
                self.world.deliver(self.world.names[number])
        self.world.connect(device, number)

    @rule(device=st.sampled_from(DEVICES), node=st.integers(0, 2), count=st.integers(1, 3))
    def publish(self, device: str, node: int, count: int) -> None:
        for _ in range(count):
            self.world.publish(device, self.number(node))

    @rule(choice=st.integers(0, 20), count=st.integers(1, 3))
    def transmit(self, choice: int, count: int) -> None:
        for _ in range(count):
            links = [link for link, publications in self.world.links.items() if publications]
            if links:
                self.world.transmit(links[choice % len(links)])

    @rule(choice=st.integers(0, 20), count=st.integers(1, 3))
    def deliver(self, choice: int, count: int) -> None:
        for _ in range(count):
            queues = [name for name, queue in self.world.queues.items() if queue]
            if queues:
                self.world.deliver(queues[choice % len(queues)])

    @precondition(lambda self: self.world.notices)
    @rule(choice=st.integers(0, 20), fate=st.sampled_from(["arrives", "arrives", "arrives", "lost", "twice"]))
    def notice(self, choice: int, fate: str) -> None:
        notices = self.world.notices
        notice = notices[choice % len(notices)]
        if fate != "twice":
            notices.remove(notice)
        if fate != "lost":
            self.world.nodes[notice.to].heard(notice)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.2]))
    def advance(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule()
    def run(self) -> None:
        self.world.run()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        for node in world.nodes.values():
            node.locations.exchange_is("up")
        world.settle()
        world.advance(LONGEST + 10.0)
        world.run()
        for message in world.messages:
            outcomes = message.delivered + message.recorded
            assert outcomes == 1 or (message.redelivered and outcomes > 1), message
        for node in world.nodes.values():
            assert not node.shared.unacknowledged
            assert not node.own.unacknowledged
            assert node.locations.remembered <= 2
            assert node.wake == math.inf, "something is due for ever"

    def in_order(self) -> None:
        if not self.world.disturbed:
            for (asker, device), messages in self.world.delivered.items():
                numbers = [message.number for message in messages]
                assert numbers == sorted(numbers), (asker, device, numbers)


class Orderly(Wandering):
    """Fences and messages are neither lost nor late: messages for a device keep their order."""

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "world"):
            self.in_order()


class Lossy(Wandering):
    """Fences are lost, connections break, and the exchange goes away: every message has an end all the same."""

    lossy = True

    @rule(choice=st.integers(0, 20))
    def lose_fence(self, choice: int) -> None:
        links = [each for each in self.world.links.values() if each and isinstance(each[0].item, Fence)]
        if links:
            links[choice % len(links)].popleft()

    @rule(node=st.integers(0, 2))
    def break_connection(self, node: int) -> None:
        self.world.end_sources(self.number(node))
        self.world.consume(self.number(node))

    @rule(node=st.integers(0, 2), state=st.sampled_from(["up", "away", "blocked", "refused"]))
    def exchange(self, node: int, state: ExchangeState) -> None:
        self.world.nodes[self.world.names[self.number(node)]].locations.exchange_is(state)

    @rule(node=st.integers(0, 2), timeout=st.sampled_from([0.01, 1.0, 10.0]))
    def configure(self, node: int, timeout: float) -> None:
        self.world.nodes[self.world.names[self.number(node)]].locations.configure(timeout)

    @rule(seconds=st.sampled_from([0.5, 2.0, 20.0]))
    def advance_far(self, seconds: float) -> None:
        self.world.advance(seconds)


_SETTINGS = settings(
    deadline=None,
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class PropertyTests(SynchronousTestCase):
    """Whatever happens, every message ends in exactly one way, nothing waits for ever, and the limits hold."""

    def test_orderly(self) -> None:
        """Messages of one device from one node keep their order while it moves, if no fence is lost or late."""
        run_state_machine_as_test(Orderly, settings=_SETTINGS)

    def test_lossy(self) -> None:
        """Every message is delivered or recorded, once for each time that the broker has delivered it."""
        run_state_machine_as_test(Lossy, settings=_SETTINGS)
