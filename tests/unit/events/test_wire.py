"""Events between processes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.events import (
    BrokerWarning,
    CertificateExpiring,
    ChildRestarted,
    DeviceConnected,
    Event,
    UnknownEvent,
    from_wire,
    to_wire,
)
from owsla.events._wire import KINDS as KNOWN

from .test_events import KINDS

TEXT = st.text(st.characters())  # halves of surrogate pairs, NUL and line ends among them
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "str": TEXT,
    "str | None": TEXT | st.none(),
    "int": st.integers(),
    "int | None": st.integers() | st.none(),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "tuple[str, ...]": st.lists(TEXT).map(tuple),
}
EVENTS = st.sampled_from(KINDS).flatmap(
    lambda kind: st.builds(kind, **{field.name: VALUES[str(field.type)] for field in dataclasses.fields(kind)})
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner)
)


def through(event: Event) -> Event:
    """As it comes out of the other end of a pipe."""
    return from_wire(json.loads(json.dumps(to_wire(event))))


class WireTests(SynchronousTestCase):
    """There and back."""

    def test_every_event(self) -> None:
        """Each kind of event that there is comes out as it went in."""
        self.assertEqual(set(KNOWN.values()), set(KINDS))
        for kind in KINDS:
            event = kind(**{field.name: _plain(str(field.type)) for field in dataclasses.fields(kind)})
            self.assertEqual(through(event), event)
            self.assertIs(type(through(event)), kind)

    @settings(deadline=None)
    @given(EVENTS)
    def test_whatever_is_in_it(self, event: Event) -> None:
        """So it does with any values."""
        self.assertEqual(through(event), event)

    def test_tuples(self) -> None:
        """A tuple is one again: events are values, and can be in a set."""
        event = through(ChildRestarted("owsla/http", "E: x", 1, 0.5, ("a", "b")))
        assert isinstance(event, ChildRestarted)
        self.assertEqual(event.siblings, ("a", "b"))
        self.assertIn(event, {event})

    def test_a_new_kind(self) -> None:
        """An event that a newer process has, and this one has not, is told of as it was sent."""
        sent = {"event": "new-thing", "warning": True, "text": "New: 5", "fields": {"count": 5}}
        event = from_wire(sent)
        self.assertEqual(event, UnknownEvent("new-thing", True, "New: 5", {"count": 5}))
        self.assertEqual((event.name, event.warning, str(event), event.fields()), ("new-thing", True, "New: 5", {"count": 5}))
        self.assertEqual(to_wire(event), sent)
        self.assertEqual(len({event, event}), 1)

    def test_other_fields(self) -> None:
        """So is one that has other fields there: more, less, or of another type."""
        for change in ({"days": "soon"}, {"more": 1}, {"days": None}, {"not_after": 5}):
            sent = to_wire(CertificateExpiring("c.pem", "2030-01-01T00:00:00Z", 3.0))
            sent["fields"] |= change
            event = from_wire(sent)
            self.assertIsInstance(event, UnknownEvent)
            self.assertEqual(to_wire(event), sent)
        sent = to_wire(BrokerWarning("x"))
        del sent["fields"]["text"]
        self.assertIsInstance(from_wire(sent), UnknownEvent)

    def test_without_a_door(self) -> None:
        """An event of a process that knows no doors is one of the first door: during a rolling restart it stays an event."""
        sent = to_wire(DeviceConnected("c", "d", "192.0.2.1:5", "TLSv1.3"))
        self.assertEqual(sent["fields"].pop("door"), "default")
        self.assertEqual(from_wire(sent), DeviceConnected("c", "d", "192.0.2.1:5", "TLSv1.3", "default"))

    def test_more_beside_it(self) -> None:
        """What a newer process says beside the event is not minded."""
        self.assertEqual(from_wire(to_wire(BrokerWarning("x")) | {"trace": 7}), BrokerWarning("x"))

    @settings(deadline=None)
    @given(st.fixed_dictionaries({}, optional={"event": JSON, "warning": JSON, "text": JSON, "fields": JSON}) | JSON)
    def test_garbage(self, sent: Any) -> None:
        """What is no event at all is a `ValueError`, and nothing else."""
        try:
            event = from_wire(sent)
        except ValueError:
            return
        self.assertEqual(to_wire(event), {key: sent[key] for key in ("event", "warning", "text", "fields")})

    @settings(deadline=None)
    @given(st.sampled_from(sorted(KNOWN)), st.booleans(), TEXT, st.dictionaries(TEXT, JSON))
    def test_any_fields(self, name: str, warning: bool, text: str, fields: dict[str, Any]) -> None:
        """An event of a known name with any fields is an event that reads as it was sent."""
        event = from_wire({"event": name, "warning": warning, "text": text, "fields": fields})
        self.assertEqual((event.name, event.warning, str(event)), (name, warning, text))


def _plain(kind: str) -> Any:
    values = {"str": "x", "int": 7, "float": 1.5, "bool": True, "tuple[str, ...]": ("a", "b")}
    return None if kind.endswith(" | None") else values[kind]
