"""Packets of MQTT, compared with those of paho-mqtt."""

from __future__ import annotations

import socket
import threading

from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from twisted.trial.unittest import SynchronousTestCase

from owsla.cli.swarm import _mqtt

CONNACK = b"\x20\x02\x00\x00"
SUBACK = b"\x90\x03\x00\x01\x01"


class PahoSession:
    """A paho-mqtt client that is connected to the test."""

    def __init__(self, client: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.messages: list[bytes | bytearray] = []
            self.paho = Client(CallbackAPIVersion.VERSION2, client_id=client)
            self.paho.on_message = self._on_message
            thread = threading.Thread(target=lambda: self.paho.connect("127.0.0.1", server.getsockname()[1], keepalive=0))
            thread.start()
            self.server = server.accept()[0]
            thread.join()
        self.server.settimeout(10)

    def _on_message(self, client: Client, data: object, message: MQTTMessage) -> None:
        self.messages.append(message.payload)

    def sent(self, size: int) -> bytes:
        """Return the next `size` bytes that the client has sent."""
        data = b""
        while len(data) < size:
            self.paho.loop_write()
            received = self.server.recv(size - len(data))
            assert received
            data += received
        return data

    def receive(self, data: bytes) -> None:
        """Send bytes to the client, which reads a packet."""
        self.server.sendall(data)
        self.paho.loop_read()

    def close(self) -> None:
        self.server.close()
        self.paho.disconnect()


class PacketTests(SynchronousTestCase):
    """Packets, compared with those of paho-mqtt."""

    def setUp(self) -> None:
        self.session = PahoSession("swarm-1")
        self.addCleanup(self.session.close)

    def test_as_paho(self) -> None:
        """CONNECT, SUBSCRIBE, PUBLISH, PUBACK and DISCONNECT are byte for byte those of paho-mqtt."""
        session, paho = self.session, self.session.paho
        connect = _mqtt.connect("swarm-1")
        self.assertEqual(session.sent(len(connect)), connect)
        session.receive(CONNACK)
        paho.subscribe("answers/7", qos=1)
        subscribe = _mqtt.subscribe(7)
        self.assertEqual(session.sent(len(subscribe)), subscribe)
        session.receive(SUBACK)
        for number, line in ((1, b"7 1"), (2, b"x" * 200), (3, b"x" * 20_000)):
            paho.publish("lines/7", line, qos=1)
            publish = _mqtt.publish(7, number, line)
            self.assertEqual(session.sent(len(publish)), publish)
        session.receive(b"\x32\x0f\x00\x09answers/7\x01\x02hi")
        self.assertEqual(session.messages, [b"hi"])
        self.assertEqual(session.sent(4), _mqtt.puback(b"\x01\x02"))
        paho.disconnect()
        self.assertEqual(session.sent(2), _mqtt.DISCONNECT)

    def test_identifiers(self) -> None:
        """Packet identifiers go from 1 to 65535, and then begin again: 0 is not allowed."""
        found = [_mqtt.publish(0, number, b"")[-2:] for number in (0, 65534, 65535)]
        self.assertEqual(found, [b"\x00\x01", b"\xff\xff", b"\x00\x01"])


class SplitTests(SynchronousTestCase):
    """Packets in a stream."""

    @given(st.lists(st.integers(0, 40_000), max_size=5), st.data())
    def test_any_cut(self, sizes: list[int], data: st.DataObject) -> None:
        """Packets are found wherever the stream is cut."""
        packets = [_mqtt.publish(1, number, b"." * size) for number, size in enumerate(sizes)]
        stream = b"".join(packets)
        cut = data.draw(st.integers(0, len(stream)))
        first, rest = _mqtt.split(stream[:cut])
        second, left = _mqtt.split(rest + stream[cut:])
        self.assertEqual(left, b"")
        self.assertEqual([len(_mqtt.published(packet)[1]) for packet in first + second], sizes)

    def test_malformed(self) -> None:
        """A remaining length of five bytes, and a PUBLISH packet without its identifier, are malformed."""
        self.assertRaises(_mqtt.MalformedPacket, _mqtt.split, b"\x30\xff\xff\xff\xff\x01")
        for body in (b"", b"\x00\x05ab", b"\x00\x01a\x00"):
            self.assertRaises(_mqtt.MalformedPacket, _mqtt.published, _mqtt.Packet(_mqtt.PUBLISH, 2, body))
