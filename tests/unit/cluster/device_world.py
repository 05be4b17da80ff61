"""A cluster in memory for `Locations`: queues, a broker that delays, and devices that move."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass, field

from owsla.cluster.device_notices import MOST
from owsla.cluster.locations import FENCE_TIMEOUT, QUESTION_INTERVAL, RECENT, Locations
from owsla.letter import Hop, Letter


@dataclass(eq=False)
class Message:
    """A message of a back end."""

    device: str
    number: int
    delivered: int = 0
    recorded: int = 0
    redelivered: bool = False
    sent_at: float = math.inf


class Source:
    """Consumer of a node."""

    def __init__(self, node: Node, *, own: bool, prefetch: int = 1000) -> None:
        self.node = node
        self.own = own
        self.prefetch = prefetch
        self.open = True
        self.unacknowledged: dict[int, Copy] = {}
        self._tags = 0

    def take(self, copy: Copy) -> Letter:
        """Deliver a message."""
        self._tags += 1
        self.unacknowledged[self._tags] = copy
        letter = Letter(self, self._tags, b"", b"", None, None)
        letter.to_device_id = copy.message.device
        letter.hop = copy.hop
        return letter

    def done(self, tag: int) -> None:
        del self.unacknowledged[tag]

    def written(self, header: bytes, body: bytes) -> None: ...

    def copy_of(self, letter: Letter) -> Copy:
        return self.unacknowledged[letter.tag]

    def end(self) -> list[Copy]:
        """Close the channel. Return what the broker delivers again, in order."""
        self.open = False
        copies = list(self.unacknowledged.values())
        for copy in copies:
            copy.message.redelivered = True
        self.unacknowledged = {}
        return copies


@dataclass(frozen=True)
class Copy:
    """A message in a queue."""

    message: Message
    hop: Hop | None = None


@dataclass(frozen=True)
class Fence:
    """A fence in a queue."""

    by: bytes
    token: str
    back: bool = False


@dataclass
class Publication:
    """Something that a node has published to the queue of another, and that the broker has not taken yet."""

    item: Copy | Fence
    letter: Letter | None = None


@dataclass(frozen=True)
class Notice:
    """A notice that is on its way to a node."""

    to: bytes
    asker: bytes | None
    device: str
    claim: tuple[bytes, int] | None


class Node:
    """A node, and the effects of its decisions."""

    def __init__(self, world: World, name: bytes, *, device_timeout: float, remembered: int, prefetch: int) -> None:
        self.world = world
        self.name = name
        self.prefetch = prefetch
        self.here: dict[str, int] = {}  # when they were identified, by device
        self.wake: float = math.inf
        self.busy = False
        """Whether the last question has not arrived yet, so that the next one cannot go."""
        self.questions: list[tuple[float, int]] = []
        self.locations = Locations(
            lambda: world.now, self, node=lambda: name, device_timeout=device_timeout, remembered=remembered
        )
        self.shared = Source(self, own=False, prefetch=prefetch)
        self.own = Source(self, own=True, prefetch=prefetch)

    # -- effects ---------------------------------------------------------------------------------------------------------

    def is_here(self, device_id: str) -> bool:
        return device_id in self.here

    def hand_over(self, letter: Letter) -> bool:
        if letter.to_device_id not in self.here:
            return False
        message = self._settled(letter)
        message.delivered += 1
        assert message.device == letter.to_device_id
        asker = self.name if letter.hop is None or letter.hop.asker == self.name else letter.hop.asker
        self.world.delivered[asker, message.device].append(message)
        return True

    def _settled(self, letter: Letter) -> Message:
        source = letter.source
        assert isinstance(source, Source)
        assert source.open, "a message of a source that has ended"
        message = source.copy_of(letter).message
        source.done(letter.tag)
        return message

    def _publish(self, letter: Letter, node: bytes, hop: Hop) -> None:
        source = letter.source
        assert isinstance(source, Source)
        assert source.open, "a message of a source that has ended"
        key = id(source), letter.tag
        assert key not in self.world.on_the_way, "a message was published twice"
        self.world.on_the_way.add(key)
        message = source.copy_of(letter).message
        message.sent_at = self.world.now
        self.world.links[self.name, node].append(Publication(Copy(message, hop), letter))

    def forward(self, letter: Letter, node: bytes) -> None:
        assert node != self.name
        self._publish(letter, node, Hop(self.name, 0 if letter.hop is None else letter.hop.returns, None))

    def give_back(self, letter: Letter) -> None:
        assert letter.hop is not None
        assert letter.hop.asker != self.name
        self._publish(letter, letter.hop.asker, Hop(letter.hop.asker, letter.hop.returns, self.name))

    def give_up(self, letter: Letter) -> None:
        self._settled(letter).recorded += 1

    def ask(self, device_ids: list[str]) -> bool:
        now = self.world.now
        assert 0 < len(device_ids) == len(set(device_ids)) <= MOST
        if self.busy:
            return False
        assert not self.questions or now - self.questions[-1][0] >= QUESTION_INTERVAL - 1e-9
        self.questions.append((now, len(device_ids)))
        for node in self.world.nodes:
            self.world.notices.extend(Notice(node, self.name, device, None) for device in device_ids)
        return True

    def fence(self, node: bytes, token: str) -> None:
        self.world.fences[self.name, token] = self.world.now
        self.world.links[self.name, node].append(Publication(Fence(self.name, token)))

    def wake_at(self, time: float) -> None:
        assert time < self.wake or self.wake <= self.world.now
        self.wake = time

    # -- inputs ----------------------------------------------------------------------------------------------------------

    def heard(self, notice: Notice) -> None:
        if notice.asker == self.name:
            self.locations.question_is_back(notice.device)
        elif notice.claim is not None:
            self.locations.learn(notice.device, *notice.claim)
        elif notice.asker is not None and notice.device in self.here:
            claim = self.name, self.here[notice.device]
            self.world.notices.append(Notice(notice.asker, None, notice.device, claim))

    def got(self, item: Copy | Fence) -> None:
        """Handle a message of the own queue."""
        if isinstance(item, Copy):
            self.locations.route(self.own.take(item))
        elif item.back:
            self.world.fences.pop((self.name, item.token), None)
            self.locations.fenced(item.token)
        else:
            back = Fence(item.by, item.token, back=True)
            self.world.links[self.name, item.by].append(Publication(back))


@dataclass
class World:
    """Nodes with their queues, and what is on its way between them."""

    count: int
    device_timeout: float = 1.0
    remembered: int = 1000
    prefetch: int = 1000
    now: float = 100.0
    since: int = 0
    shared: deque[Copy] = field(default_factory=deque)
    messages: list[Message] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    links: defaultdict[tuple[bytes, bytes], deque[Publication]] = field(default_factory=lambda: defaultdict(deque))
    queues: dict[bytes, deque[Copy | Fence]] = field(default_factory=dict)
    nodes: dict[bytes, Node] = field(default_factory=dict)
    delivered: defaultdict[tuple[bytes, str], list[Message]] = field(default_factory=lambda: defaultdict(list))
    on_the_way: set[tuple[int, int]] = field(default_factory=set)
    fences: dict[tuple[bytes, str], float] = field(default_factory=dict)
    disturbed: bool = False
    """Whether something happened after which messages need not keep their order."""
    kept: list[Source] = field(default_factory=list)  # so that their ids stay unique

    def __post_init__(self) -> None:
        for number in range(self.count):
            name = b"%08x" % number
            self.nodes[name] = Node(
                self, name, device_timeout=self.device_timeout, remembered=self.remembered, prefetch=self.prefetch
            )
            self.queues[name] = deque()
            self.nodes[name].locations.exchange_is("up")
        self.names = list(self.nodes)

    # -- devices and back ends -------------------------------------------------------------------------------------------

    def connect(self, device: str, number: int) -> None:
        """Connect a device to a node. Its other connections stay."""
        self.since += 1
        self.nodes[self.names[number]].here[device] = self.since

    def disconnect(self, device: str, number: int) -> None:
        self.nodes[self.names[number]].here.pop(device, None)

    def announce(self, device: str, number: int) -> None:
        """Announce that a node has a device."""
        node = self.nodes[self.names[number]]
        if device in node.here:
            self.notices.extend(Notice(each, None, device, (node.name, node.here[device])) for each in self.names)

    def publish(self, device: str, number: int) -> Message:
        """Publish a message, and let a node consume it, and all before it."""
        message = Message(device, len(self.messages))
        self.messages.append(message)
        self.shared.append(Copy(message))
        self.consume(number)
        return message

    def publish_to_node(self, device: str, number: int) -> Message:
        """Publish a message to the queue of a node, which takes it at once."""
        message = Message(device, len(self.messages))
        self.messages.append(message)
        node = self.nodes[self.names[number]]
        node.locations.route(node.own.take(Copy(message)))
        return message

    def consume(self, number: int) -> None:
        """Let a node take the messages of the shared queue, as many as its prefetch allows."""
        node = self.nodes[self.names[number]]
        while self.shared and len(node.shared.unacknowledged) < self.prefetch:
            node.locations.route(node.shared.take(self.shared.popleft()))

    # -- the broker ------------------------------------------------------------------------------------------------------

    def transmit(self, link: tuple[bytes, bytes]) -> None:
        """Let the broker take the first message on its way between two nodes, and confirm it."""
        publication = self.links[link].popleft()
        self.queues[link[1]].append(publication.item)
        letter = publication.letter
        if letter is not None and letter.source.open:
            letter.source.done(letter.tag)

    def deliver(self, name: bytes) -> None:
        """Deliver the first message of the queue of a node."""
        self.nodes[name].got(self.queues[name].popleft())

    def end_sources(self, number: int) -> None:
        """Break the connection of the consumers of a node, and let it return."""
        node = self.nodes[self.names[number]]
        self.disturbed = True
        self.kept += [node.shared, node.own]
        for copy in reversed(node.shared.end()):
            self.shared.appendleft(copy)
        self.queues[node.name].extendleft(reversed(node.own.end()))
        node.locations.forget(node.shared)
        node.locations.forget(node.own)
        node.shared = Source(node, own=False, prefetch=self.prefetch)
        node.own = Source(node, own=True, prefetch=self.prefetch)

    # -- time ------------------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass, with the calls that are due meanwhile."""
        end = self.now + seconds
        while True:
            node = min(self.nodes.values(), key=lambda each: each.wake)
            if node.wake > end:
                break
            self.now = max(self.now, node.wake)
            self._note_late()
            node.wake = math.inf
            node.locations.tick()
        self.now = end
        self._note_late()

    def _note_late(self) -> None:
        if any(self.now >= since + FENCE_TIMEOUT - 0.01 for since in self.fences.values()):
            self.disturbed = True
        items = [one.item for publications in self.links.values() for one in publications]
        items += [item for queue in self.queues.values() for item in queue]
        if any(isinstance(item, Copy) and self.now >= item.message.sent_at + RECENT - 0.01 for item in items):
            self.disturbed = True

    def run(self, *, quiet: float = 0.001) -> None:
        """Let everything arrive that is on its way, in order and at once, until nothing happens any more."""
        while True:
            links = [link for link, publications in self.links.items() for _ in publications]
            queues = [name for name, queue in self.queues.items() for _ in queue]
            for link in links:
                self.transmit(link)
            for name in queues:
                self.deliver(name)
            notices, self.notices = self.notices, []
            for notice in notices:
                self.nodes[notice.to].heard(notice)
            due = [node for node in self.nodes.values() if node.wake <= self.now + QUESTION_INTERVAL]
            if not (links or queues or notices or due):
                return
            self.consume(0)
            self.advance(quiet)

    def settle(self) -> None:
        """Let everything arrive, and let all time-outs pass."""
        self.run()
        while self.shared or any(node.locations.waiting for node in self.nodes.values()):
            self.advance(0.05)
            self.consume(0)
            self.run()
