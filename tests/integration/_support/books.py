"""Devices and a back end that record everything they sent and received, so that the books can be compared at the end.

A device numbers its messages over all its connections (the message id), and repeats unacknowledged ones after a reconnect; a
line is `DEVICE SESSION ID padding`. The back end drops duplicates as in docs/contract.md, and answers each line under the
number of the line (`to_device_seq`), shuffled, some of them twice, over `reply_to` and over `to_device`; an answer is `re
DEVICE SESSION SEQ`. Both record everything, and `Books.differences` compares the records.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pika
from pika.exceptions import AMQPError
from twisted.internet.defer import Deferred, gatherResults

from tests import variable

from .batches import lines_of
from .device import Device
from .lab import Lab
from .owsla import Owsla
from .waiting import pause, until

DEVICE_ACK: Final = "ACK {seq}"

UNACKNOWLEDGED: Final = 60
"""Maximum number of unacknowledged messages of a device. At that number it sends nothing new until some are acknowledged."""

Key = tuple[str, int]
"""Key of a message: the connection id, and the number on that connection."""


def chosen_seed() -> int:
    """Return the seed of this run: OWSLA_FAULT_SEED, or a random one. It is printed, so that a failure can be repeated."""
    seed = int(variable("FAULT_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"OWSLA_FAULT_SEED={seed}")
    return seed


class Seen:
    """Processed numbers of one connection: the class of the back end in docs/contract.md."""

    def __init__(self) -> None:
        self.below = 0
        self.above: set[int] = set()

    def first_time(self, seq: int) -> bool:
        if seq < self.below or seq in self.above:
            return False
        self.above.add(seq)
        while self.below in self.above:
            self.above.remove(self.below)
            self.below += 1
        return True


@dataclass
class Session:
    """One connection of a device, as the device saw it."""

    device: str
    number: int
    owsla: Owsla = field(repr=False)
    sent: list[int] = field(default_factory=list)
    """Ids of the sent messages. The index is the number of the line on this connection."""
    acknowledged: int = 0
    """Number of messages that Owsla has acknowledged."""
    received: list[int] = field(default_factory=list)
    """Numbers of the received answers."""
    open: bool = True
    uncertain: bool = False
    """True if delivered answers may not have been read, because of the way in which the connection ended."""
    killed: bool = False
    """True if the connection ended with the sudden death of Owsla."""
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> tuple[str, int]:
        return self.device, self.number


class TalkingDevice:
    """Device that sends, reconnects whenever its connection ends, and keeps unacknowledged messages."""

    def __init__(self, lab: Lab, owsla: Owsla, name: str, rng: random.Random, *, moody: float) -> None:
        """Reset the connection with probability `moody` at each check."""
        self._lab = lab
        self._owsla = owsla
        self._rng = rng
        self.moody = moody
        self._next = 0
        self._kept: deque[int] = deque()
        self._device: Device | None = None
        self.name = name
        self.sessions: list[Session] = []
        self.acknowledged: set[int] = set()
        self.quiet = False
        """True while the device sends nothing new."""
        self.stopping = False

    @property
    def settled(self) -> bool:
        """Return whether the device is connected and all its messages are acknowledged."""
        return not self._kept and self._device is not None and self._device.is_open

    @property
    def said(self) -> int:
        """Return the number of messages sent."""
        return self._next

    async def live(self) -> None:
        """Connect, send, and reconnect, until `stopping`."""
        while not self.stopping:
            device = self._lab.waiting_device(self._owsla)
            try:
                await device.connect(20)
            except Exception:
                device.abort()
                await pause(0.1 + self._rng.random() * 0.2)
                continue
            await self._session(device)

    async def _session(self, device: Device) -> None:
        session = Session(self.name, len(self.sessions), self._owsla)
        self.sessions.append(session)
        self._device = device
        self._send(device, session, list(self._kept))
        while device.is_open and not self.stopping:
            self._hear(device, session)
            if self.moody and self._rng.random() < self.moody:
                session.uncertain = True
                device.abort()
            elif not self.quiet:
                room = min(UNACKNOWLEDGED - len(self._kept), self._rng.choice((0, 0, 1, 1, 3)))
                fresh = range(self._next, self._next + room)
                self._next += len(fresh)
                self._kept.extend(fresh)
                self._send(device, session, fresh)
            await pause(0.03 + self._rng.random() * 0.1)
        self._hear(device, session)
        session.open = device.is_open

    def abort(self) -> None:
        """Drop the connection, after a failure."""
        if self._device is not None:
            self._device.abort()

    def _send(self, device: Device, session: Session, ids: Iterable[int]) -> None:
        lines = []
        for one in ids:
            padding = "." * self._rng.choice((0, 10, 200))
            lines.append(f"{self.name} {session.number} {one} {padding}".encode())
            session.sent.append(one)
        if lines:
            device.send_line(*lines)

    def _hear(self, device: Device, session: Session) -> None:
        for line in device.lines.clear():
            kind, *words = line.decode().split(" ")
            if kind == "ACK":
                self._acknowledged(session, int(words[0]))
            elif kind == "re" and words[:2] == [self.name, str(session.number)]:
                session.received.append(int(words[2]))
            else:
                session.problems.append(f"was sent what is not for it: {line!r}")

    def _acknowledged(self, session: Session, seq: int) -> None:
        if seq < session.acknowledged or seq >= len(session.sent):
            session.problems.append(f"ACK {seq} after {session.acknowledged - 1}, with {len(session.sent)} sent")
            return
        for one in session.sent[session.acknowledged : seq + 1]:
            self.acknowledged.add(one)
            if self._kept and self._kept[0] == one:
                self._kept.popleft()
            else:
                session.problems.append(f"message {one} was acknowledged out of its order")
        session.acknowledged = seq + 1


class Fleet:
    """Devices that send at the same time, each to one of several Owslas."""

    def __init__(self, lab: Lab, *owslas: Owsla, seed: int, count: int = 20, moody: float = 0.0) -> None:
        self.devices = [
            TalkingDevice(lab, owslas[number % len(owslas)], f"d{number}", random.Random(f"{seed}/{number}"), moody=moody)
            for number in range(count)
        ]
        self._living: list[Deferred[None]] = []

    @property
    def sessions(self) -> list[Session]:
        return [session for device in self.devices for session in device.sessions]

    @property
    def said(self) -> int:
        """Return the number of messages sent."""
        return sum(device.said for device in self.devices)

    async def start(self) -> None:
        """Connect all devices; wait until a message of each is acknowledged."""
        self._living = [Deferred.fromCoroutine(device.live()) for device in self.devices]
        await until(lambda: all(device.acknowledged for device in self.devices), 60, "the devices' first acknowledgements")

    async def talk(self, lines: int, timeout: float = 60) -> None:
        """Wait until this many further messages were sent."""
        goal = self.said + lines
        await until(lambda: self.said >= goal, timeout, lambda: f"the devices to talk: {self.said} of {goal}")

    async def hush(self, timeout: float = 90) -> None:
        """Stop new messages, and wait until all messages are acknowledged."""
        for device in self.devices:
            device.quiet = True
            device.moody = 0.0
        await until(
            lambda: all(device.settled for device in self.devices),
            timeout,
            lambda: "acknowledgements for " + ", ".join(one.name for one in self.devices if not one.settled),
        )

    def talk_on(self) -> None:
        """Send new messages again."""
        for device in self.devices:
            device.quiet = False

    def owsla_died(self, owsla: Owsla) -> None:
        """Record that an Owsla was killed: delivered answers may be lost in all its sessions that are open now."""
        for session in self.sessions:
            if session.open and session.owsla is owsla:
                session.uncertain = session.killed = True

    def abort(self) -> None:
        """Drop all connections, after a failure."""
        for device in self.devices:
            device.abort()

    async def stop(self) -> None:
        """Stop the devices. Their connections stay open, and the lab closes them."""
        for device in self.devices:
            device.stopping = True
        living, self._living = self._living, []
        await gatherResults(living)


@dataclass(frozen=True)
class Answer:
    """Answer that is to be published."""

    connection_id: str
    seq: int
    body: bytes
    own_queue: str
    """The reply_to of the line."""
    reported: bool
    """True if a delivery report is requested."""
    direct: bool
    """True if the answer goes to `own_queue`, false for to_device."""


class AnsweringBackend:
    """Back end in a thread, with transactions, so that every message in its record of publishes is in the broker.

    It reconnects by itself, and waits for missing queues. While `gate` is clear, nothing is acknowledged.
    """

    def __init__(
        self, url: str, from_device: str, to_device: str, seed: int, *, prefetch: int = 200, withhold: float = 0.3
    ) -> None:
        """Keep each answer for the next round with probability `withhold`."""
        self._parameters = pika.URLParameters(url)
        self._parameters.heartbeat = 0
        self._parameters.socket_timeout = 10
        self._parameters.stack_timeout = 30
        self._from_device = from_device
        self._to_device = to_device
        self._rng = random.Random(f"{seed}/back end")
        self._prefetch = prefetch
        self._withhold = withhold
        self._thread = threading.Thread(target=self._run, name="answering back end", daemon=True)
        self._stop = threading.Event()
        self._seen: dict[str, Seen] = {}
        self._outbox: list[Answer] = []
        self._in_doubt: list[Answer] = []
        self._cancelled = False
        self.reports_queue = f"{to_device}_reports"
        self.reports_arguments: dict[str, Any] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.messages: Counter[str] = Counter()
        """Number of `batches` and of `lines` that came in messages of their own. Includes duplicates."""
        self.heard: list[tuple[str, int, bytes]] = []
        """Everything that arrived on from_device: connection id, number, body. Includes duplicates."""
        self.first: dict[Key, bytes] = {}
        self.attempted: Counter[Key] = Counter()
        self.published: Counter[Key] = Counter()
        self.asked: set[Key] = set()
        """Answers with a requested delivery report."""
        self.returned: set[Key] = set()
        """Answers of which a copy was returned: their node is gone."""
        self.reports: dict[Key, list[str]] = {}
        self.connections = 0
        self.error: BaseException | None = None

    async def start(self) -> AnsweringBackend:
        """Connect, and begin to answer."""
        logging.getLogger("pika").setLevel(logging.CRITICAL)  # pika logs each outage at length
        self._thread.start()
        await until(lambda: self.connections > 0, 30, "the back end's connection")
        return self

    @property
    def idle(self) -> bool:
        """Return whether all answers are published."""
        return not self._outbox and not self._in_doubt

    async def settled(self, timeout: float = 60) -> None:
        """Wait until everything that arrived is answered."""

        def quiet() -> bool:
            if self.error is not None:
                raise AssertionError(f"the back end failed: {self.error!r}") from self.error
            return self.idle

        await until(quiet, timeout, lambda: f"the back end: {len(self._outbox)} answers are not published")

    async def stop(self) -> None:
        """Stop in any state."""
        self._stop.set()
        self.gate.set()
        if self._thread.ident is not None:
            await until(lambda: not self._thread.is_alive(), 60, "the end of the back end's thread")
        if self.error is not None:
            raise AssertionError(f"the back end failed: {self.error!r}") from self.error

    # -- its own thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._serve()
            except (AMQPError, OSError):
                self._outbox += self._in_doubt
                self._in_doubt = []
                self._stop.wait(0.1)
            except BaseException as error:  # the test raises it
                self.error = error
                return

    def _serve(self) -> None:
        self._cancelled = False
        connection = pika.BlockingConnection(self._parameters)
        try:
            channel = connection.channel()
            channel.queue_declare(self.reports_queue, durable=True, arguments=self.reports_arguments)
            channel.queue_declare(self._from_device, passive=True)
            channel.tx_select()
            channel.basic_qos(prefetch_count=self._prefetch)
            channel.add_on_cancel_callback(self._on_cancel)
            channel.add_on_return_callback(self._on_return)
            done: list[int] = []

            def on_line(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
                self.messages["batches" if "owsla_batch" in properties.headers else "lines"] += 1
                for shape, line in lines_of(properties, body):
                    self._on_line(shape, line)
                done.append(method.delivery_tag)

            def on_report(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
                self._on_report(properties)
                done.append(method.delivery_tag)

            channel.basic_consume(self._from_device, on_line)
            channel.basic_consume(self.reports_queue, on_report)
            self.connections += 1
            while not self._stop.is_set() and not self._cancelled:
                connection.process_data_events(time_limit=0.02)
                if not self.gate.is_set():
                    continue
                self._publish(channel)
                for tag in done:
                    channel.basic_ack(tag)
                if done or self._in_doubt:
                    done.clear()
                    channel.tx_commit()
                    for answer in self._in_doubt:
                        self.published[answer.connection_id, answer.seq] += 1
                    self._in_doubt = []
                    connection.process_data_events(time_limit=0)  # returned messages arrive before the answer to the commit
        finally:
            if connection.is_open:
                connection.close()

    def _on_cancel(self, _frame: Any) -> None:
        self._cancelled = True

    def _on_line(self, properties: Any, body: bytes) -> None:
        connection_id, seq = properties.headers["connection_id"], properties.headers["from_device_seq"]
        self.heard.append((connection_id, seq, body))
        if not self._seen.setdefault(connection_id, Seen()).first_time(seq):
            return
        self.first[connection_id, seq] = body
        device, session, *_ = body.decode().split(" ")
        text = f"re {device} {session} {seq}".encode()
        reported = self._rng.random() < 0.5
        if reported:
            self.asked.add((connection_id, seq))
        for _ in range(self._rng.choice((1, 1, 1, 2))):
            direct = self._rng.random() < 0.5
            self._outbox.append(Answer(connection_id, seq, text, properties.reply_to, reported, direct))

    def _on_report(self, properties: Any) -> None:
        key = properties.headers["connection_id"], int(properties.correlation_id)
        self.reports.setdefault(key, []).append(properties.headers["owsla_report"])

    def _publish(self, channel: Any) -> None:
        self._rng.shuffle(self._outbox)
        later: list[Answer] = []
        for answer in self._outbox:
            if self._rng.random() < self._withhold:
                later.append(answer)
                continue
            self.attempted[answer.connection_id, answer.seq] += 1
            self._in_doubt.append(answer)
            properties = pika.BasicProperties(
                headers={"connection_id": answer.connection_id, "to_device_seq": answer.seq, "direct": answer.direct},
                delivery_mode=2,
                reply_to=self.reports_queue if answer.reported else None,
                correlation_id=str(answer.seq),
            )
            route = answer.own_queue if answer.direct else self._to_device
            channel.basic_publish("", route, answer.body, properties, mandatory=True)
        self._outbox = later

    def _on_return(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        key = properties.headers["connection_id"], properties.headers["to_device_seq"]
        self.published[key] -= 1
        if properties.headers["direct"]:
            self.returned.add(key)  # the node is gone, and the connection with it
        else:
            # to_device was deleted, and will be declared again
            self._outbox.append(Answer(*key, body, method.routing_key, properties.reply_to is not None, False))


@dataclass
class Remains:
    """Content of the queues after Owsla has stopped."""

    undeliverable: list[tuple[Key, str]] = field(default_factory=list)
    """Recorded messages, with their reasons."""
    stranded: list[Key] = field(default_factory=list)
    """Messages in queues of killed nodes."""
    to_device: list[Key] = field(default_factory=list)
    from_device: int = 0


def _take_all(channel: Any, queue: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    while True:
        method, properties, _ = channel.basic_get(queue, auto_ack=True)
        if method is None:
            return found
        found.append(properties.headers or {})


def clear_up(url: str, queues: Iterable[str], from_device: str, to_device: str) -> Remains:
    """Empty and delete all queues of a run. Return their content."""
    remains = Remains()
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        for queue in queues:
            left = [headers for headers in _take_all(channel, queue) if "owsla_notice" not in headers]  # from node to node
            if queue == from_device:
                remains.from_device = len(left)
            elif queue == f"{to_device}.nodes":
                pass  # notices of killed nodes, for the next node that starts
            elif queue == to_device or queue.startswith(f"{to_device}."):
                strange = [headers for headers in left if "to_device_seq" not in headers]
                assert not strange, f"on {queue}: {strange}"
                keys = [(str(headers["connection_id"]), int(headers["to_device_seq"])) for headers in left]
                if queue == to_device:
                    remains.to_device = keys
                elif queue.endswith(".undeliverable"):
                    reasons = [headers["owsla_reason"] for headers in left]
                    remains.undeliverable = list(zip(keys, reasons, strict=True))
                else:
                    remains.stranded += keys
            channel.queue_delete(queue)
    finally:
        connection.close()
    return remains


@dataclass
class Books:
    """Records of both sides, and the content of the queues."""

    fleet: Fleet
    backend: AnsweringBackend
    remains: Remains = field(default_factory=Remains)

    def differences(self, *, in_order: bool, skips: bool = False) -> list[str]:
        """Return the differences; an empty list means that the books balance.

        With `in_order` the broker refused nothing, so the lines of each connection were queued in order. With `skips` answers
        may be late, and recorded.
        """
        found: list[str] = []
        ids, problems = self.connections()
        found += problems
        found += self._acknowledged(ids)
        if in_order:
            found += self._order()
        for session in self.fleet.sessions:
            found += [f"{session.name}: {problem}" for problem in session.problems]
            if session.name in ids:
                found += self._answers(session, ids[session.name], skips)
            elif session.received:
                found.append(f"{session.name} was answered, and the back end knows nothing of it")
        if self.remains.from_device:
            found.append(f"{self.remains.from_device} lines left on from_device")
        return found

    def outstanding(self) -> list[str]:
        """Return the messages still on their way to connected devices, and their reports."""
        ids, _ = self.connections()
        all_published = dict(self.backend.published)  # the thread of the back end continues
        found = []
        for session in self.fleet.sessions:
            if session.open and session.name in ids:
                connection_id = ids[session.name]
                received = set(session.received)
                for (cid, seq), count in all_published.items():
                    if cid == connection_id and count > 0:
                        if seq not in received:
                            found.append(f"answer {seq} to {session.name} ({cid})")
                        elif (cid, seq) in self.backend.asked and (cid, seq) not in self.backend.reports:
                            found.append(f"the report of answer {seq} to {session.name} ({cid})")
        return found

    def connections(self) -> tuple[dict[tuple[str, int], str], list[str]]:
        """Find the connection id of each session, and check that each line was sent there, under that number."""
        ids: dict[tuple[str, int], str] = {}
        problems = []
        sessions = {session.name: session for session in self.fleet.sessions}
        for connection_id, seq, body in list(self.backend.heard):
            device, number, message, padding = body.decode().split(" ")
            name = device, int(number)
            if ids.setdefault(name, connection_id) != connection_id:
                problems.append(f"{name} has two connection ids")
            sent = sessions[name].sent
            if seq >= len(sent) or sent[seq] != int(message) or padding.strip("."):
                problems.append(f"{name}: line {seq} is not what was sent: {body!r}")
        if len(set(ids.values())) != len(ids):
            problems.append("two sessions have the same connection id")
        return ids, problems

    def _acknowledged(self, ids: Mapping[tuple[str, int], str]) -> list[str]:
        """Check that every acknowledged line arrived on its connection, and that every message arrived at least once."""
        found = []
        for session in self.fleet.sessions:
            connection_id = ids.get(session.name, "")
            missing = [seq for seq in range(session.acknowledged) if (connection_id, seq) not in self.backend.first]
            if missing:
                found.append(f"{session.name}: acknowledged, and lost: {missing}")
        heard = {tuple(body.decode().split(" ")[0:3:2]) for body in self.backend.first.values()}
        for device in self.fleet.devices:
            missing = [one for one in sorted(device.acknowledged) if (device.name, str(one)) not in heard]
            if missing:
                found.append(f"{device.name}: messages acknowledged, and lost: {missing}")
            if len(device.acknowledged) != device.said:
                found.append(f"{device.name}: said {device.said}, acknowledged {len(device.acknowledged)}")
        return found

    def _order(self) -> list[str]:
        """Check that first occurrences arrived in order of their numbers, from 0 and without a hole."""
        found = []
        following: Counter[str] = Counter()
        told: set[str] = set()
        seen: set[Key] = set()
        for connection_id, seq, _ in self.backend.heard:
            if (connection_id, seq) in seen:
                continue
            seen.add((connection_id, seq))
            if seq != following[connection_id] and connection_id not in told:
                told.add(connection_id)
                found.append(f"{connection_id}: line {seq} came where {following[connection_id]} was next")
            following[connection_id] = seq + 1
        return found

    def order_of_devices(self) -> list[str]:
        """Check that the messages of each device arrived in their order over all of its connections, without a hole.

        Repeats do not count: on a new connection a device begins with its first unacknowledged message.
        """
        found = []
        arrived: dict[str, dict[int, None]] = {device.name: {} for device in self.fleet.devices}
        for _, _, body in self.backend.heard:
            name, _, message, _ = body.decode().split(" ")
            arrived[name].setdefault(int(message))
        for device in self.fleet.devices:
            wrong = [(at, message) for at, message in enumerate(arrived[device.name]) if at != message]
            if wrong or len(arrived[device.name]) != device.said:
                found.append(f"{device.name}: {len(arrived[device.name])} of {device.said} messages; out of order: {wrong[:3]}")
        return found

    def _answers(self, session: Session, connection_id: str, skips: bool) -> list[str]:
        """Check that each answer was received once, in order, or recorded. After a sudden end it may only have been written."""
        found = []
        backend, remains = self.backend, self.remains
        received = session.received
        if any(later <= earlier for earlier, later in itertools.pairwise(received)):
            found.append(f"{session.name} received answers twice or out of order: {received}")
        published = {seq for (cid, seq), count in backend.published.items() if cid == connection_id and count > 0}
        attempted = {seq for cid, seq in backend.attempted if cid == connection_id}
        records = {seq: reason for (cid, seq), reason in remains.undeliverable if cid == connection_id}
        stranded = {seq for cid, seq in remains.stranded if cid == connection_id}
        waiting = {seq for cid, seq in remains.to_device if cid == connection_id}
        reports = {seq: words for (cid, seq), words in backend.reports.items() if cid == connection_id}
        if not set(received) <= attempted:
            found.append(f"{session.name} received answers that nobody gave: {sorted(set(received) - attempted)}")
        missing = published - set(received) - set(records) - stranded - waiting
        if session.uncertain:
            asked = {seq for cid, seq in backend.asked if cid == connection_id}
            if not session.killed:
                # Written to a connection that the device then dropped: the report says `delivered`.
                missing = {seq for seq in missing & asked if "delivered" not in reports.get(seq, [])}
            else:
                missing = set()
        if missing:
            found.append(f"{session.name} ({connection_id}): answers lost without a trace: {sorted(missing)}")
        if session.open:
            if stranded or waiting:
                found.append(f"{session.name}: answers left in queues: {sorted(stranded | waiting)}")
            wrong = {seq: reason for seq, reason in records.items() if not (skips and reason == "late")}
            if wrong:
                found.append(f"{session.name} is connected, and on record are {wrong}")
            both = set(records) & set(received)
            if both:
                found.append(f"{session.name}: received, and on record too: {sorted(both)}")
            for seq in sorted({seq for cid, seq in backend.asked if cid == connection_id} & set(received)):
                if "delivered" not in reports.get(seq, []):
                    found.append(f"{session.name}: answer {seq} was received, and reported as {reports.get(seq)}")
        return found
