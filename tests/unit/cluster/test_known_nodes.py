"""The nodes that a node remembers, and the lists of the registrar."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.cluster.known_nodes import CHANGE_INTERVAL, FORGET_AFTER, LIST_INTERVAL, KnownNodes
from owsla.cluster.notices import GONE, HERE, LARGEST_LIST, LEFT, pack_list, read_list

ME, A, B = "00000000", "aaaaaaaa", "bbbbbbbb"

_DIGITS = "0123456789abcdef"
_NAMES = st.text(_DIGITS, min_size=8, max_size=8) | st.text(_DIGITS + "ABCg\n \0\u0663", min_size=7, max_size=9) | st.text()
_STATES = st.sampled_from([HERE, LEFT, GONE]) | st.none() | st.text() | st.integers() | st.lists(st.just(HERE)) | st.booleans()


def _is_name(name: str) -> bool:
    return len(name) == 8 and set(name) <= set(_DIGITS)


class ListTests(SynchronousTestCase):
    def test_packed(self) -> None:
        """A packed list is read again."""
        self.assertEqual(read_list(pack_list({A: HERE, B: LEFT})), {A: HERE, B: LEFT})

    @given(st.binary())
    def test_any_bytes(self, body: bytes) -> None:
        """Any bytes are read without an exception, and name no node."""
        self.assertEqual(read_list(body), {})

    @given(st.dictionaries(_NAMES, _STATES))
    def test_any_list(self, document: dict[str, Any]) -> None:
        """Of a list that is nearly valid, the entries are read that a node writes, and no others."""
        valid = {name: state for name, state in document.items() if _is_name(name) and state in ("here", "left")}
        self.assertEqual(read_list(json.dumps(document).encode()), valid)

    @given(st.dictionaries(_NAMES, _STATES, min_size=1), st.data())
    def test_any_damage(self, document: dict[str, Any], data: st.DataObject) -> None:
        """A list in which bytes are lost or replaced is read without an exception, and names nothing that is not a node."""
        body = json.dumps(document).encode()
        begin = data.draw(st.integers(0, len(body)))
        damaged = body[:begin] + data.draw(st.binary(max_size=3)) + body[begin + data.draw(st.integers(0, 3)) :]
        for name, state in read_list(damaged).items():
            self.assertTrue(_is_name(name), name)
            self.assertIn(state, ("here", "left"))

    def test_odd_entries(self) -> None:
        """Entries that are not nodes with a known state are left out, and lists that are too large."""
        body = json.dumps({A: HERE, B: [], "bbbbbbbb\n": HERE, "BBBBBBBB": HERE, "cccccccc": GONE}).encode()
        self.assertEqual(read_list(body), {A: HERE})
        for odd in (b"[]", b"7", b"[" * 100_000, b'{"aaaaaaaa":"here"}' + b" " * LARGEST_LIST):
            self.assertEqual(read_list(odd), {}, odd[:20])


class KnownNodesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.known = KnownNodes()

    def test_missing(self) -> None:
        """The missing nodes are those that are remembered and are not members, without this node."""
        self.known.remember({ME: HERE, A: HERE, B: HERE}, 0)
        self.known.remember({B: LEFT}, 1)
        self.assertEqual(self.known.missing({A: HERE}, ME), {B: LEFT})
        self.assertEqual(self.known.missing({}, ME), {B: LEFT}, "members are forgotten")
        self.known.forget(B)
        self.assertEqual((self.known.missing({}, ME), len(self.known)), ({}, 0))

    def test_forgotten(self) -> None:
        """A node that is no longer listed is forgotten when the broker has deleted its queue."""
        self.known.remember({A: HERE, B: HERE}, 0)
        self.known.remember({B: HERE}, FORGET_AFTER - 1)
        self.assertEqual(self.known.missing({}, ME), {A: HERE, B: HERE})
        self.known.remember({}, FORGET_AFTER)
        self.assertEqual(self.known.missing({}, ME), {B: HERE})

    def test_due(self) -> None:
        """A list is due at once, soon after a change, and seldom without one; never for a single node."""
        two, three = {ME: HERE, A: HERE}, {ME: HERE, A: HERE, B: HERE}
        self.assertFalse(self.known.is_due({ME: HERE}, 0))
        self.assertTrue(self.known.is_due(two, 0))
        self.known.listed(two, 0)
        self.assertFalse(self.known.is_due(two, LIST_INTERVAL - 1))
        self.assertTrue(self.known.is_due(two, LIST_INTERVAL))
        self.assertFalse(self.known.is_due(three, CHANGE_INTERVAL - 1))
        self.assertTrue(self.known.is_due(three, CHANGE_INTERVAL))
