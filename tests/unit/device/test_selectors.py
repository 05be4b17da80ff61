"""Tests of the selectors of messages for many devices."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.selectors import Selector, read_selector


class ReadTests(SynchronousTestCase):
    def test_selectors(self) -> None:
        """All, a door, or a prefix of device ids. The value is everything after the first colon."""
        for text, selector in {
            "all": Selector(),
            "door:meters": Selector(door="meters"),
            "prefix:meter-": Selector(prefix="meter-"),
            "prefix:a:b c": Selector(prefix="a:b c"),
            "prefix:é": Selector(prefix="é"),
        }.items():
            self.assertEqual(read_selector(text), selector)

    def test_no_selectors(self) -> None:
        """Other words, other case, and empty values are no selectors."""
        for text in ("", "All", "all ", "all:", "door", "door:", "prefix:", "prefix", "device:x", ":x", "Prefix:x", "*"):
            self.assertIsNone(read_selector(text), text)

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """Any text is read or refused, without an exception."""
        selector = read_selector(text)
        if selector is not None:
            selector.selects(text, text)


class SelectsTests(SynchronousTestCase):
    def test_all(self) -> None:
        """Every connection is selected, also one of an unidentified device."""
        self.assertTrue(Selector().selects(None, "default"))

    def test_door(self) -> None:
        """The name of the door must be equal."""
        meters = Selector(door="meters")
        self.assertTrue(meters.selects(None, "meters"))
        self.assertFalse(meters.selects("meters", "default"))

    def test_prefix(self) -> None:
        """The device id must begin with the prefix. A connection without a device id is not selected."""
        some = Selector(prefix="m-")
        self.assertTrue(some.selects("m-1", "default"))
        self.assertTrue(some.selects("m-", "default"))
        for other in ("M-1", "m", "xm-1", "", None):
            self.assertFalse(some.selects(other, "m-"), other)
