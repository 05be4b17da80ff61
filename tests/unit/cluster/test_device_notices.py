"""Tests of the notices by which nodes ask each other for devices."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.cluster.device_notices import LARGEST, MOST, is_device_id, pack_claims, read_claims, read_ids
from owsla.device.claims import Claim

CONNECTION = "0a1b2c3d-0123-8456-9abc-0123456789ab"
CLAIM = Claim("meter 7", CONNECTION, 1_790_000_000_000, 1500, "default")

device_ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
numbers = st.integers(0, 2**63 - 1)
claims = st.builds(Claim, device_ids, st.uuids().map(str), numbers, numbers, device_ids)
names = st.sampled_from(["device_id", "connection_id", "since", "age", "door", "other"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner),
    max_leaves=10,
)


class DeviceIdTests(SynchronousTestCase):
    def test_device_ids(self) -> None:
        """A device id is a text of 1 to 255 bytes in UTF-8."""
        for good in ("a", "a" * 255, "\0\n", "é" * 127):
            self.assertTrue(is_device_id(good), good)
        for bad in ("", "a" * 256, "é" * 128, "\ud800", None, 7, b"a", ["a"]):
            self.assertFalse(is_device_id(bad), bad)


class QuestionTests(SynchronousTestCase):
    def test_header(self) -> None:
        """A question for one device has its id in a header; then the body has no meaning."""
        self.assertEqual(read_ids("meter 7", b"nonsense"), ["meter 7"])
        for bad in ("", "a" * 256, "\udcff"):
            self.assertIsNone(read_ids(bad, b""), bad)

    @settings(deadline=None)
    @given(st.lists(device_ids, min_size=1, max_size=20))
    def test_body(self, ids: list[str]) -> None:
        """A question for several devices is a JSON array. A repeated id counts once."""
        self.assertEqual(read_ids(None, json.dumps(ids + ids).encode()), list(dict.fromkeys(ids)))
        self.assertEqual(read_ids(None, json.dumps(ids, ensure_ascii=False).encode()), list(dict.fromkeys(ids)))

    def test_limit(self) -> None:
        """A question names 500 devices at most; these may have the longest ids."""
        longest = [f"{number:03}" + "\1" * 252 for number in range(MOST)]
        self.assertEqual(read_ids(None, json.dumps(longest).encode()), longest)
        self.assertIsNone(read_ids(None, json.dumps([*longest, "one more"]).encode()))

    def test_broken(self) -> None:
        """A broken question is about nothing."""
        for body in (b"", b"[]", b"{}", b'"a"', b"[1]", b'["a", ""]', b'["\\ud800"]', b"[" * 100_000, b'["a"', b"\xff"):
            self.assertIsNone(read_ids(None, body), body[:20])
        self.assertIsNone(read_ids(None, b" " * LARGEST + b'["a"]'))


class ClaimTests(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.lists(claims, max_size=5))
    def test_round_trip(self, some: list[Claim]) -> None:
        """What is packed is read."""
        self.assertEqual(read_claims(pack_claims(some)), some)

    def test_broken(self) -> None:
        """A notice with anything wrong in it is dropped as a whole."""
        good = CLAIM._asdict()
        self.assertEqual(read_claims(json.dumps([good]).encode()), [CLAIM])
        wrong: list[tuple[str, Any]] = [
            ("device_id", ""), ("device_id", 7), ("device_id", "a" * 256), ("device_id", "\ud800"), ("device_id", None),
            ("connection_id", "7"), ("connection_id", CONNECTION.upper()), ("connection_id", CONNECTION + "\n"),
            ("connection_id", 7), ("connection_id", "\ud800"), ("connection_id", "é" * 18), ("since", -1), ("since", 2**63),
            ("since", 1.5), ("since", True), ("since", "7"), ("age", -1), ("age", None), ("door", ""), ("door", []),
        ]  # fmt: skip
        for name, value in wrong:
            self.assertIsNone(read_claims(json.dumps([good, {**good, name: value}]).encode()), (name, value))
            lacking = {key: value for key, value in good.items() if key != name}
            self.assertIsNone(read_claims(json.dumps([lacking]).encode()), name)
        for body in (b"", b"{}", b"7", b"[7]", b"[null]", b"[[]]", b"[" * 100_000, b"\xff"):
            self.assertIsNone(read_claims(body), body[:20])
        self.assertIsNone(read_claims(json.dumps([good] * (MOST + 1)).encode()))

    def test_more_members(self) -> None:
        """Members that are not known are ignored, so that later versions can add some."""
        self.assertEqual(read_claims(json.dumps([{**CLAIM._asdict(), "more": [1]}]).encode()), [CLAIM])

    def test_none(self) -> None:
        """An announcement may have no claims."""
        self.assertEqual(read_claims(b"[]"), [])

    @settings(deadline=None)
    @given(st.lists(json_values) | json_values)
    def test_anything(self, value: Any) -> None:
        """No JSON raises an error."""
        body = json.dumps(value).encode()
        for claim in read_claims(body) or ():
            self.assertEqual(read_claims(pack_claims([claim])), [claim])
        read_ids(None, body)
