"""Routing by exchanges."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.embedded.exchanges import Destination, ServerExchange, topic_matches

WORDS = st.sampled_from(["a", "b", "", "*", "#"])


class TopicTests(SynchronousTestCase):
    def test_examples(self) -> None:
        """`*` matches one word, `#` any number of words."""
        for pattern, key, expected in [
            ("a.b", "a.b", True),
            ("a.*", "a.b", True),
            ("a.*", "a", False),
            ("a.*", "a.b.c", False),
            ("#", "", True),
            ("#", "a.b", True),
            ("a.#", "a", True),
            ("#.b", "a.a.b", True),
            ("a.#.b", "a.b", True),
            ("*.#", "", False),
            ("", "", True),
            ("", "a", False),
        ]:
            self.assertEqual(topic_matches(pattern, key), expected, (pattern, key))

    @given(st.lists(WORDS, min_size=1, max_size=6), st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=6))
    def test_like_a_regular_expression(self, pattern: list[str], key: list[str]) -> None:
        """A topic pattern matches the same keys as the regular expression of its words."""
        parts = [{"*": r"[^.]*\.", "#": r"(?:[^.]*\.)*"}.get(word, re.escape(word) + r"\.") for word in pattern]
        if pattern == [""]:
            return
        expected = re.fullmatch("".join(parts), ".".join(key) + ".") is not None
        self.assertEqual(topic_matches(".".join(pattern), ".".join(key)), expected)

    def test_many_hashes_are_quick(self) -> None:
        """A pattern with many `#`, exponential for a backtracking matcher, is matched quickly."""
        self.assertFalse(topic_matches(".".join(["#", "a"] * 20), ".".join(["a"] * 100 + ["b"])))


class Headers:
    """Message with headers only."""

    def __init__(self, headers: dict[str, Any]) -> None:
        self._headers = headers

    def headers(self) -> dict[str, Any]:
        return self._headers


NO_HEADERS = Headers({})


class ExchangeTests(SynchronousTestCase):
    def test_direct_fanout_topic(self) -> None:
        """Each exchange type routes by its own rule, to each destination once."""
        one, two = Destination("one"), Destination("two")
        for kind, expected in [("direct", (one,)), ("fanout", (one, two)), ("topic", (one, two))]:
            exchange = ServerExchange("x", kind)
            exchange.bind(one, "a.b", {})
            exchange.bind(two, "a.*", {})
            exchange.bind(one, "#", {})
            self.assertEqual(exchange.route("a.b", NO_HEADERS), expected)

    def test_unbind_takes_effect_on_remembered_routes(self) -> None:
        """A cached route is computed again when the bindings change."""
        one = Destination("one")
        exchange = ServerExchange("x", "direct")
        exchange.bind(one, "k", {})
        self.assertEqual(exchange.route("k", NO_HEADERS), (one,))
        self.assertFalse(exchange.unbind(one, "k", {"other": 1}))
        self.assertTrue(exchange.unbind(one, "k", {}))
        self.assertEqual(exchange.route("k", NO_HEADERS), ())
        self.assertEqual(exchange.bindings, {})

    def test_equal_bindings_count_once(self) -> None:
        """A binding that is made twice is removed by one unbind; other arguments make another binding."""
        one = Destination("one")
        exchange = ServerExchange("x", "direct")
        exchange.bind(one, "k", {})
        exchange.bind(one, "k", {})
        exchange.bind(one, "k", {"a": 1})
        exchange.unbind(one, "k", {})
        self.assertEqual(exchange.route("k", NO_HEADERS), (one,))
        self.assertTrue(exchange.unbind_all(one))
        self.assertFalse(exchange.unbind_all(one))

    def test_headers(self) -> None:
        """A headers exchange matches headers only; one matching binding of a queue is enough."""
        one, two = Destination("one"), Destination("two")
        exchange = ServerExchange("x", "headers")
        exchange.bind(one, "", {"a": 1, "b": "x"})
        exchange.bind(one, "", {"a": 2})
        exchange.bind(two, "other", {"x-match": "any", "a": 1, "b": "y"})
        cases: list[tuple[dict[str, Any], tuple[Destination, ...]]] = [
            ({"a": 1, "b": "x"}, (one, two)),
            ({"a": 2}, (one,)),
            ({"a": 1}, (two,)),
            ({"a": True, "b": b"y"}, ()),
            ({"a": 1.0}, ()),
        ]
        for headers, expected in cases:
            self.assertEqual(exchange.route("any", Headers(headers)), expected, headers)
        exchange.unbind(one, "", {"a": 2})
        self.assertEqual(exchange.route("any", Headers({"a": 2})), ())
