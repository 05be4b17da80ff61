"""Routing keys: what templates say, what is refused of them, and the shards that a back end computes as well."""

from __future__ import annotations

import zlib
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.errors import ConfigError
from owsla.routing_key import MOST_SHARDS, KeyTooLong, RoutingKey, shard

ID = b"0123abcd-0000-8000-8000-000000000001"

TEXT = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=8)


class TemplateTests(SynchronousTestCase):
    def test_placeholders(self) -> None:
        """Each placeholder stands for what it says, as often as it is there; the rest is taken as it is."""
        for text, device, key in (
            ("lines", None, b"lines"),
            ("", None, b""),
            ("{connection_id}", "door", ID),
            ("{device_id}", "door", b"door"),
            ("{device_id}", None, ID),
            ("{device_id}", "gerät", "gerät".encode()),
            ("ö.{node}.{device_id}.{node}", "a.b", "ö.0123abcd.a.b.0123abcd".encode()),
            ("{shard:1}", None, b"0"),
            ("lines.{shard:8}", "door", b"lines.%d" % (zlib.crc32(b"door") % 8)),
            ("{shard:3}{shard:1000}", None, b"%d%d" % (zlib.crc32(ID) % 3, zlib.crc32(ID) % 1000)),
        ):
            self.assertEqual(RoutingKey(text).fill(ID, device), key, text)

    def test_refused(self) -> None:
        """What cannot be used is refused with what is wrong about it."""
        for text, reason in (
            ("{device}", "{device} is none of {connection_id}, {device_id}, {node} and {shard:N}"),
            ("{}", "{} is none of"),
            ("{shard}", "{shard} is none of"),
            ("{node:2}", "{node:2} is none of"),
            ("{shard:}", "not a number of shards (1 to 65536)"),
            ("{shard:0}", "not a number of shards"),
            ("{shard:-1}", "not a number of shards"),
            ("{shard:08}", "not a number of shards"),
            ("{shard:65537}", "not a number of shards"),
            ("{shard:\u0663}", "not a number of shards"),
            ("{node", "a brace belongs to a placeholder"),
            ("node}", "a brace belongs to a placeholder"),
            ("{{node}}", "a brace belongs to a placeholder"),
            ("\udcff", "not UTF-8"),
            ("é" * 128, "256 bytes long, and AMQP allows 255"),
            ("x" * 220 + "{device_id}", "256 bytes long"),
            ("x" * 250 + f"{{shard:{MOST_SHARDS}}}{{shard:2}}", "256 bytes long"),
        ):
            message = str(self.assertRaises(ConfigError, RoutingKey, text))
            self.assertIn(reason, message, text)

    def test_too_long_for_one_device(self) -> None:
        """A template that is good for a device without an id may still be too long for one that has a long one."""
        key = RoutingKey("x" * 219 + "{device_id}")
        self.assertEqual(len(key.fill(ID, None)), 255)
        self.assertEqual(len(key.fill(ID, "d" * 36)), 255)
        self.assertIn("256 bytes long", str(self.assertRaises(KeyTooLong, key.fill, ID, "d" * 37)))

    def test_fixed(self) -> None:
        """It is known which template gives one key for all."""
        self.assertEqual([RoutingKey(text).fixed for text in ("", "x", "{node}", "{shard:1}")], [True, True, False, False])

    def test_equal(self) -> None:
        """Templates of one text are one."""
        self.assertEqual({RoutingKey("a"), RoutingKey("a"), RoutingKey("{node}")}, {RoutingKey("{node}"), RoutingKey("a")})
        self.assertEqual(repr(RoutingKey("{node}")), "RoutingKey('{node}')")

    @settings(deadline=None, max_examples=100)
    @given(
        st.lists(
            TEXT
            | st.sampled_from(["{connection_id}", "{device_id}", "{node}"])
            | st.integers(1, MOST_SHARDS).map(lambda shards: f"{{shard:{shards}}}"),
            max_size=12,
        ).map("".join),
        st.none() | TEXT,
    )
    def test_any_template(self, text: str, device: str | None) -> None:
        """A template that is taken fills to at most 255 bytes for a device without an id, and raises nothing but KeyTooLong."""
        try:
            key = RoutingKey(text)
        except ConfigError as error:
            self.assertIn("AMQP allows 255", str(error))
            return
        self.assertLessEqual(len(key.fill(ID, None)), 255)
        try:
            self.assertLessEqual(len(key.fill(ID, device)), 255)
        except KeyTooLong:
            assert device is not None
            self.assertGreater(len(device.encode()), 36)


class ShardTests(SynchronousTestCase):
    def test_documented(self) -> None:
        """The figures of docs/contract.md."""
        self.assertEqual((shard(b"door-7", 1000), shard(b"123456789", 65536)), (968, 0x3926))

    def test_even(self) -> None:
        """Devices with consecutive names are spread over any number of shards: none has a third more than its part."""
        for shards in (2, 3, 4, 8, 16, 50, 64):
            for name in ("device-%d", "%08d", "urn:dev:%x"):
                counts = Counter(shard((name % number).encode(), shards) for number in range(10_000))
                self.assertEqual(len(counts), shards)
                self.assertLess(max(counts.values()), 10_000 / shards * 4 / 3, (shards, name))
