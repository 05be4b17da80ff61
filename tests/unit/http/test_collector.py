"""The metrics, by what Prometheus would read."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from twisted.trial.unittest import SynchronousTestCase

from owsla.events import BrokerConnected, BrokerLost, GapSkipped
from owsla.events._wire import KINDS
from owsla.http import EventCounts, collector_for
from owsla.http._collector import REASONS, restarts
from owsla.interfaces import FIRST_DOOR

from ._fakes import NOW, World, node

UNITS = re.compile(r"_(milli|micro|ms|msec|minutes?|hours?|kilo|kb|mb|mib|percent)(_|$)")
"""What promtool complains of: units that are not Prometheus's base units."""


class CollectorTests(SynchronousTestCase):
    """A scrape."""

    def setUp(self) -> None:
        self.world = World()
        self.registry = CollectorRegistry()
        self.registry.register(collector_for(self.world.readings, now=lambda: NOW))

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def samples(self, name: str) -> dict[str, float]:
        """The values of a metric of the first door, or of the node, by its other label's value, or by "" where it has none."""
        found = {}
        for family in parse(self.text()):
            for sample in family.samples:
                if sample.name == name and sample.labels.get("door", FIRST_DOOR) == FIRST_DOOR:
                    values = [value for label, value in sample.labels.items() if label != "door"]
                    assert len(values) <= 1
                    found["".join(values)] = sample.value
        return found

    def by_door(self, name: str) -> dict[str, float]:
        """The values of a metric with the one label `door`."""
        (family,) = (family for family in parse(self.text()) if [one for one in family.samples if one.name == name])
        assert all(set(sample.labels) == {"door"} for sample in family.samples)
        return {sample.labels["door"]: sample.value for sample in family.samples}

    def value(self, name: str) -> float:
        return self.samples(name)[""]

    def test_names(self) -> None:
        """Names follow Prometheus's conventions: a prefix, `_total` for counters and for them alone, base units, one HELP."""
        self.world.certificate_expires = NOW
        self.world.event_drops["database"] = 1
        text = self.text()
        families = list(parse(text))
        self.assertGreater(len(families), 30)
        for family in families:
            self.assertRegex(family.name, r"^(owsla|process)_[a-z_]+$")
            self.assertNotRegex(family.name, UNITS)
            self.assertTrue(family.samples, family.name)
            self.assertRegex(family.documentation, r"^[A-Z0-9].+\.$")
            self.assertIn(family.type, ("counter", "gauge", "histogram"))
            for sample in family.samples:
                self.assertEqual(sample.name.endswith("_total"), family.type == "counter", sample.name)
                if family.type != "histogram":
                    self.assertNotRegex(sample.name, r"_(count|sum|bucket)$")
                    others = set(sample.labels) - {"door"}
                    self.assertLessEqual(len(others), 1 if not sample.name.startswith("owsla_build") else 9)
        helps = re.findall(r"^# HELP (\S+)", text, re.MULTILINE)
        self.assertEqual(len(helps), len(set(helps)))
        self.assertEqual(len(helps), len(families))

    def test_openmetrics(self) -> None:
        """The newer format, which Prometheus asks for first, parses by its stricter rules, and says the same."""
        newer = {family.name for family in parse_openmetrics(generate_openmetrics(self.registry).decode())}
        older = {family.name.removesuffix("_info") for family in parse(self.text())}
        self.assertEqual(newer, older)

    def test_registries(self) -> None:
        """Nothing is global: two gateways in a process have a registry each."""
        other = World()
        other.devices.duplicates = 5
        registry = CollectorRegistry()
        registry.register(collector_for(other.readings))
        self.assertIn(b"owsla_duplicates_total 5.0", generate_latest(registry))
        self.assertEqual(self.value("owsla_duplicates_total"), 0)

    def test_connections(self) -> None:
        """Connections are counted by state, and the states add up to all of them."""
        admission = self.world.admission
        admission.connections, admission.open, admission.handshaking, admission.waiting = 12, 6, 3, 2
        self.assertEqual(self.samples("owsla_connections"), {"accepted": 1, "waiting": 2, "handshaking": 3, "open": 6})
        self.assertEqual(self.value("owsla_connections_limit"), 10_000)
        self.world.devices.paused_connections = 4
        self.assertEqual(self.value("owsla_paused_connections"), 4)
        self.world.port.handshakes, self.world.port.failed_handshakes = 7, 2
        self.assertEqual(self.samples("owsla_handshakes_total"), {"completed": 7, "failed": 2})
        self.world.port.evicted, self.world.port.turned_away = 8, 9
        self.assertEqual((self.value("owsla_silent_evicted_total"), self.value("owsla_turned_away_total")), (8, 9))
        self.world.port.untrusted = 3
        self.assertEqual(self.value("owsla_proxy_untrusted_total"), 3)

    def test_refused(self) -> None:
        """Refused connections are counted by reason."""
        port, devices = self.world.port, self.world.devices
        port.too_fast, port.denied, devices.denied, devices.deny_entries, devices.held_off = 1, 2, 3, 4, 5
        names = ("connect_rate_exceeded_total", "address_denied_total", "device_denied_total", "deny_entries", "held_off_total")
        self.assertEqual([self.value(f"owsla_{name}") for name in names], [1, 2, 3, 4, 5])

    def test_doors(self) -> None:
        """What concerns a port or the lines of a door is counted for each; what the node shares has no door."""
        world = self.world
        other = World()
        other.port.handshakes, other.port.turned_away, other.door_admission.connections = 3, 4, 5
        window = other.window
        window.confirmed_lines, window.confirmed_messages, window.given_up_lines = 60, 3, 1
        window.messages, window.size = 7, 700
        other.lines.traced_lines = 6
        other.lines.accepting, other.lines.unconfirmed_since = False, NOW - 2.5
        world.doors["meters"] = other.doors[FIRST_DOOR]
        world.doors["meters"].latency.observe(0.1)
        for name, expected in {
            "owsla_door_connections": 5,
            "owsla_door_connections_limit": 10_000,
            "owsla_turned_away_total": 4,
            "owsla_silent_evicted_total": 0,
            "owsla_lines_received_total": 68,
            "owsla_lines_confirmed_total": 60,
            "owsla_line_messages_confirmed_total": 3,
            "owsla_lines_traced_total": 6,
            "owsla_taking_lines": 0,
            "owsla_window_lines": 7,
            "owsla_window_bytes": 700,
            "owsla_window_limit_lines": 10_000,
            "owsla_window_limit_bytes": 1 << 24,
            "owsla_unconfirmed_age_seconds": 2.5,
        }.items():
            found = self.by_door(name)
            self.assertEqual(set(found), {"default", "meters"}, name)
            self.assertEqual(found["meters"], expected, name)
        self.assertIn('owsla_handshakes_total{door="meters",outcome="completed"} 3.0', self.text())
        self.assertIn('owsla_publish_to_confirm_seconds_count{door="meters"} 1.0', self.text())
        self.assertIn('owsla_publish_to_confirm_seconds_count{door="default"} 0.0', self.text())
        self.assertIn("owsla_lines_sent_total 0.0", self.text())

    def test_ready_with_doors(self) -> None:
        """A node is ready while one of its doors accepts devices: the full one must not cost the others theirs."""
        other = World()
        self.world.doors["meters"] = other.doors[FIRST_DOOR]
        self.world.port.accepting = False
        self.assertEqual(self.samples("owsla_ready")["listener_accepting"], 1)
        other.port.accepting = False
        self.assertEqual(self.samples("owsla_ready")["listener_accepting"], 0)

    def test_lines(self) -> None:
        """A line is received when it is published; a confirm moves it from the window and changes nothing of that."""
        world = self.world
        world.window.confirmed_lines, world.window.messages, world.window.size = 90, 10, 2000
        self.assertEqual(self.value("owsla_lines_received_total"), 100)
        self.assertEqual(self.value("owsla_lines_confirmed_total"), 90)
        world.window.confirmed_lines, world.window.messages = 95, 5
        self.assertEqual(self.value("owsla_lines_received_total"), 100)
        world.window.given_up_lines, world.window.messages = 2, 3
        self.assertEqual(self.value("owsla_lines_received_total"), 100)
        world.window.given_up_lines, world.window.messages = 0, 5
        self.assertEqual(self.value("owsla_window_lines"), 5)
        self.assertEqual(self.value("owsla_window_bytes"), 2000)
        self.assertEqual(self.value("owsla_window_limit_lines"), 10_000)
        self.assertEqual(self.value("owsla_window_limit_bytes"), 1 << 24)
        world.devices.lines_out, world.devices.bytes_in, world.devices.bytes_out = 3, 1000, 30
        self.assertEqual(self.value("owsla_lines_sent_total"), 3)
        self.assertEqual(self.value("owsla_received_bytes_total"), 1000)
        self.assertEqual(self.value("owsla_sent_bytes_total"), 30)
        self.assertEqual(self.value("owsla_taking_lines"), 1)
        world.lines.accepting = False
        self.assertEqual(self.value("owsla_taking_lines"), 0)

    def test_latency(self) -> None:
        """Confirms are in a histogram in seconds; what waits for one now is a gauge that grows."""
        for seconds in (0.0005, 0.003, 100.0):
            self.world.doors[FIRST_DOOR].latency.observe(seconds)
        buckets = {}
        for family in parse(self.text()):
            if family.name == "owsla_publish_to_confirm_seconds":
                buckets = {sample.labels["le"]: sample.value for sample in family.samples if "le" in sample.labels}
        self.assertEqual((buckets["0.0005"], buckets["0.0025"], buckets["0.005"], buckets["30.0"]), (1, 1, 2, 2))
        self.assertEqual(buckets["+Inf"], 3)
        self.assertEqual(self.value("owsla_publish_to_confirm_seconds_count"), 3)
        self.assertAlmostEqual(self.value("owsla_publish_to_confirm_seconds_sum"), 100.0035)
        self.assertEqual(self.value("owsla_unconfirmed_age_seconds"), 0)
        self.world.lines.unconfirmed_since = NOW - 12.5
        self.assertEqual(self.value("owsla_unconfirmed_age_seconds"), 12.5)
        self.world.lines.unconfirmed_since = NOW + 3600  # somebody set the clock back
        self.assertEqual(self.value("owsla_unconfirmed_age_seconds"), 0)

    def test_by_name(self) -> None:
        """Messages by name and for many devices are counted by what became of them, and the exchange is in one state."""
        world = self.world
        world.identified = 9
        lookups, groups, broadcast = world.lookups, world.groups, world.broadcast
        lookups.answered, lookups.unanswered, lookups.questions, lookups.returned_messages = 3, 2, 8, 1
        lookups.remembered, lookups.waiting = 5, 4
        groups.spreading, groups.devices, groups.missed = 1, 60, 6
        broadcast.state, broadcast.dropped = "refused", 7
        self.assertEqual(self.samples("owsla_device_lookups_total"), {"answered": 3, "unanswered": 2})
        self.assertEqual(self.samples("owsla_group_devices_total"), {"handed-over": 60, "missed": 6})
        self.assertEqual(self.samples("owsla_broadcast_state"), {"up": 0, "away": 0, "blocked": 0, "refused": 1})
        for name, value in {
            "owsla_identified_devices": 9,
            "owsla_device_questions_total": 8,
            "owsla_messages_returned_total": 1,
            "owsla_messages_awaiting_lookup": 4,
            "owsla_remembered_devices": 5,
            "owsla_group_messages": 1,
            "owsla_notices_dropped_total": 7,
        }.items():
            self.assertEqual(self.value(name), value, name)

    def test_undeliverable(self) -> None:
        """Every reason of the contract is there from the start, with 0; one that is new is added."""
        self.assertEqual(self.samples("owsla_undeliverable_total"), dict.fromkeys(REASONS, 0))
        self.world.courier.recorded.update({"late": 2, "refused": 1})
        found = self.samples("owsla_undeliverable_total")
        self.assertEqual((found["late"], found["refused"], found["expired"]), (2, 1, 0))

    def test_discarded(self) -> None:
        """Lines that were lost are counted, and bytes that nobody read."""
        self.assertEqual(self.value("owsla_lines_discarded_total"), 0)
        self.world.devices.skipped_lines = 7
        self.assertEqual(self.value("owsla_lines_skipped_total"), 7)
        self.world.devices.discarded_lines, self.world.devices.discarded_bytes = 4, 500
        self.assertEqual(self.value("owsla_lines_discarded_total"), 4)
        self.assertEqual(self.value("owsla_unread_bytes_discarded_total"), 500)

    def test_messages(self) -> None:
        """What became of messages in other ways."""
        self.world.devices.skips, self.world.courier.reports_dropped, self.world.courier.unconfirmed = 1, 2, 3
        self.assertEqual(self.value("owsla_gaps_skipped_total"), 1)
        self.assertEqual(self.value("owsla_reports_dropped_total"), 2)
        self.assertEqual(self.value("owsla_courier_unconfirmed_messages"), 3)

    def test_reconnects(self) -> None:
        """The first connection to the broker is no reconnect."""
        self.assertEqual(self.value("owsla_broker_reconnects_total"), 0)
        for expected in (0, 1, 2):
            self.world.events.handle(BrokerConnected("amqp://host"), "n", NOW)
            self.assertEqual(self.value("owsla_broker_reconnects_total"), expected)

    def test_events(self) -> None:
        """Events are counted by kind, those that never happened too; drops by handler."""
        self.world.events.handle(BrokerLost("amqp://host", "gone"), "n", NOW)
        for _ in range(2):
            self.world.events.handle(GapSkipped("id", None, 1, 2), "n", NOW)
        events = self.samples("owsla_events_total")
        self.assertEqual((events["broker-lost"], events["gap-skipped"], events["slow-device"]), (1, 2, 0))
        self.assertNotIn("event", events)
        self.assertEqual(set(events), set(KINDS))
        self.assertEqual(self.samples("owsla_event_drops_total"), {})
        self.world.event_drops["database"] = 7
        self.assertEqual(self.samples("owsla_event_drops_total"), {"database": 7})

    def test_own_events(self) -> None:
        """A parent counts those of its own alone: its workers count theirs."""
        counts = EventCounts(own=lambda: "n")
        for origin in ("n", "m", "n"):
            counts.handle(GapSkipped("id", None, 1, 2), origin, NOW)
        self.assertEqual(counts.by_name["gap-skipped"], 2)

    def test_restarts(self) -> None:
        """Restarts are by the child's path; a dynamic supervisor's children, one for each device, are not listed."""
        self.assertEqual(
            self.samples("owsla_restarts_total"),
            {
                "owsla/events": 0,
                "owsla/broker": 1,
                "owsla/broker/producer": 3,
                "owsla/broker/consumers": 0,
                "owsla/listener": 0,
                "owsla/http": 0,
            },
        )
        endpoints = node("endpoints")
        endpoints["count"] = 10_000
        self.assertEqual(dict(restarts(node("owsla", 0, endpoints))), {"owsla/endpoints": 0})

    def test_ready(self) -> None:
        """The same as at /readyz."""
        self.world.draining = True
        self.assertEqual(self.samples("owsla_ready"), {"broker_connected": 1, "listener_accepting": 1, "not_draining": 0})

    def test_process(self) -> None:
        """The usual metrics of a process, under their usual names; the certificate's end where it is known."""
        self.assertGreater(self.value("process_cpu_seconds_total"), 0)
        self.assertGreater(self.value("process_resident_memory_bytes"), 1 << 20)
        self.assertEqual(self.value("process_start_time_seconds"), NOW)
        self.assertGreater(self.value("process_max_fds"), 0)
        self.assertNotIn("owsla_certificate", self.text())
        self.world.certificate_expires = NOW + 86400
        self.assertEqual(self.value("owsla_certificate_expiry_timestamp_seconds"), NOW + 86400)
        self.assertRegex(self.text(), r'owsla_build_info\{.*version="\d+\.\d+')

    def test_size(self) -> None:
        """A scrape stays a few kilobytes, however many devices there are."""
        self.world.admission.connections = self.world.admission.open = 100_000
        self.assertLess(len(self.text()), 20_480)
