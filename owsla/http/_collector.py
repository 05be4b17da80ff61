"""The metrics, read when Prometheus scrapes them.

Names follow https://prometheus.io/docs/practices/naming/. There are no metrics per device: a time series per device would cost
Prometheus more than the device costs Owsla.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Final

from OpenSSL import SSL
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from .. import __version__
from ..supervision import TreeNode
from ._histogram import Histogram
from ._readings import BROADCAST_STATES, NameReadings, ParentReadings, Readings, WindowReadings, readiness

REASONS: Final = (
    "no-connection-id",
    "bad-connection-id",
    "unknown-connection",
    "unknown-device",
    "bad-device-id",
    "bad-selector",
    "busy",
    "node-lost",
    "connection-closed",
    "expired",
    "late",
    "too-long",
    "delimiter-in-body",
    "bad-length",
    "bad-seq",
    "bad-expires-at",
    "slow-device",
    "refused-by-dialect",
    "refused",
)
"""Reasons for undeliverable messages (docs/contract.md) whose series exist from the start, at 0."""


def collector_for(readings: Readings, *, now: Callable[[], float] = time.time) -> OwslaCollector:
    """Return a collector for prometheus-client. `now()` is in seconds since the epoch."""
    return OwslaCollector(readings, now)


class OwslaCollector(Collector):
    """Collector that reads all values at each scrape."""

    def __init__(self, readings: Readings, now: Callable[[], float]) -> None:
        self._readings = readings
        self._now = now

    def collect(self) -> Iterator[Metric]:
        yield from self._devices()
        yield from self._handshakes()
        yield from self._refused()
        yield from self._lines()
        yield from self._messages()
        yield from _names(self._readings.names)
        yield from self._broker()
        yield from self._itself()
        yield from _process(self._readings.started)

    def _devices(self) -> Iterator[Metric]:
        admission, devices, doors = self._readings.admission, self._readings.devices, self._readings.doors
        handshaking, waiting = admission.handshaking, admission.waiting
        accepted = admission.connections - admission.open - handshaking - waiting
        yield _gauges(
            "owsla_connections",
            "Connections of devices: accepted (no ClientHello yet), waiting (to start their handshake), handshaking, or open.",
            "state",
            {"accepted": accepted, "waiting": waiting, "handshaking": handshaking, "open": admission.open},
        )
        yield _gauge(
            "owsla_connections_limit",
            "Limit on connections: --max-connections.",
            admission.max_connections,
        )
        yield _gauges(
            "owsla_door_connections",
            "Connections of a door, in any state.",
            "door",
            {name: door.admission.connections for name, door in doors.items()},
        )
        yield _gauges(
            "owsla_door_connections_limit",
            "Limit on connections of a door: its own --max-connections, or that of the process.",
            "door",
            {name: door.admission.max_connections for name, door in doors.items()},
        )
        yield _gauge("owsla_paused_connections", "Connections whose reading is paused.", devices.paused_connections)

    def _handshakes(self) -> Iterator[Metric]:
        doors = self._readings.doors
        handshakes = CounterMetricFamily(
            "owsla_handshakes",
            "TLS handshakes by outcome; a connection closed before its handshake began counts as failed. Without TLS: "
            "connections that were opened, or closed before.",
            labels=["door", "outcome"],
        )
        for name, door in doors.items():
            handshakes.add_metric([name, "completed"], door.port.handshakes)
            handshakes.add_metric([name, "failed"], door.port.failed_handshakes)
        yield handshakes
        yield _counters(
            "owsla_accepted",
            "Accepted connections. Those refused because of their address are not among them.",
            "door",
            {name: door.port.accepted for name, door in doors.items()},
        )

    def _refused(self) -> Iterator[Metric]:
        devices, doors = self._readings.devices, self._readings.doors
        yield _counters(
            "owsla_silent_evicted",
            "Silent connections closed to make room for others; not counted as failed handshakes.",
            "door",
            {name: door.port.evicted for name, door in doors.items()},
        )
        yield _counters(
            "owsla_turned_away",
            "Connections refused because of --max-per-address.",
            "door",
            {name: door.port.turned_away for name, door in doors.items()},
        )
        yield _counters(
            "owsla_connect_rate_exceeded",
            "Connections refused because of --max-connect-rate.",
            "door",
            {name: door.port.too_fast for name, door in doors.items()},
        )
        yield _counters(
            "owsla_address_denied",
            "Connections refused because their address is in the list of --deny.",
            "door",
            {name: door.port.denied for name, door in doors.items()},
        )
        yield _counter(
            "owsla_device_denied",
            "Connections refused after their device was identified, because of the list of --deny.",
            devices.denied,
        )
        yield _gauge("owsla_deny_entries", "Entries in force of the list of --deny.", devices.deny_entries)
        yield _counter(
            "owsla_held_off",
            "Connections closed after their device was identified, because of --max-flaps.",
            devices.held_off,
        )
        yield _counters(
            "owsla_proxy_untrusted",
            "Connections refused because their peer is not trusted by --proxy-protocol.",
            "door",
            {name: door.port.untrusted for name, door in doors.items()},
        )

    def _lines(self) -> Iterator[Metric]:
        devices = self._readings.devices
        lines = {name: door.lines for name, door in self._readings.doors.items()}
        windows = {name: each.window for name, each in lines.items()}
        yield _counters(
            "owsla_lines_received", "Lines from devices.", "door", {name: each.entered for name, each in windows.items()}
        )
        yield _counters(
            "owsla_lines_confirmed",
            "Lines from devices that the broker has confirmed.",
            "door",
            {name: each.confirmed_lines for name, each in windows.items()},
        )
        yield _counters(
            "owsla_line_messages_confirmed",
            "Messages with lines from devices that the broker has confirmed: with --batch fewer than lines.",
            "door",
            {name: each.confirmed_messages for name, each in windows.items()},
        )
        yield _counters(
            "owsla_lines_traced",
            "Lines from devices that began a trace (--trace-lines).",
            "door",
            {name: each.traced_lines for name, each in lines.items()},
        )
        yield _counter("owsla_lines_sent", "Lines sent to devices.", devices.lines_out)
        yield _counter("owsla_received_bytes", "Bytes read from devices, without TLS, with delimiters.", devices.bytes_in)
        yield _counter("owsla_sent_bytes", "Bytes of lines sent to devices, without delimiters.", devices.bytes_out)
        yield _counter(
            "owsla_lines_discarded",
            "Lines discarded because their device disconnected while lines could not be published and the window had no room.",
            devices.discarded_lines,
        )
        yield _counter(
            "owsla_lines_skipped",
            "Lines skipped because they were longer than --max-line (--on-long skip).",
            devices.skipped_lines,
        )
        yield _counter(
            "owsla_unread_bytes_discarded",
            "Unread bytes of such devices, including TLS overhead.",
            devices.discarded_bytes,
        )
        yield _gauges(
            "owsla_taking_lines",
            "1 while lines are accepted; 0 while devices are not read because the broker is unavailable, blocks or refuses, "
            "or the window is full.",
            "door",
            {name: each.accepting for name, each in lines.items()},
        )
        yield from self._windows(windows)
        latency = HistogramMetricFamily(
            "owsla_publish_to_confirm_seconds",
            "Time from publishing a line to its confirm, including outages. A sample: one line at a time is measured.",
            labels=["door"],
        )
        for name, door in self._readings.doors.items():
            latency.add_metric([name], *_buckets(door.latency))
        yield latency
        since = {name: each.unconfirmed_since for name, each in lines.items()}
        yield _gauges(
            "owsla_unconfirmed_age_seconds",
            "Age of the unconfirmed line that is being measured; 0 if there is none.",
            "door",
            {name: 0.0 if then is None else max(0.0, self._now() - then) for name, then in since.items()},
        )

    def _windows(self, windows: Mapping[str, WindowReadings]) -> Iterator[Metric]:
        for name, text, value in (
            ("lines", "Published, unconfirmed lines.", lambda window: window.messages),
            (
                "limit_lines",
                "Limit on unconfirmed lines, at which reading from devices pauses: --window.",
                lambda window: window.max_messages,
            ),
            ("bytes", "Bytes of the unconfirmed lines as published, including headers.", lambda window: window.size),
            (
                "limit_bytes",
                "Limit on unconfirmed bytes, at which reading from devices pauses: --window-bytes.",
                lambda window: window.max_bytes,
            ),
        ):
            values = {door: value(window) for door, window in windows.items()}
            yield _gauges(f"owsla_window_{name}", text, "door", values)

    def _messages(self) -> Iterator[Metric]:
        devices, courier = self._readings.devices, self._readings.courier
        yield _counters(
            "owsla_undeliverable",
            "Messages for devices that could not be delivered, by reason.",
            "reason",
            dict.fromkeys(REASONS, 0) | courier.recorded,
        )
        yield _counter(
            "owsla_duplicates", "Messages dropped because their number had been sent to the device before.", devices.duplicates
        )
        yield _counter("owsla_gaps_skipped", "Sequence numbers of messages that never arrived and were skipped.", devices.skips)
        yield _counter(
            "owsla_reports_dropped",
            "Delivery reports dropped because their queue does not exist, or there were too many.",
            courier.reports_dropped,
        )
        yield _gauge(
            "owsla_courier_unconfirmed_messages",
            "Unconfirmed records, forwards to other nodes and delivery reports.",
            courier.unconfirmed,
        )

    def _broker(self) -> Iterator[Metric]:
        connected = self._readings.events.by_name.get("broker-connected", 0)
        yield _counter(
            "owsla_broker_reconnects", "Recoveries of all connections after the broker was lost.", max(0, connected - 1)
        )

    def _itself(self) -> Iterator[Metric]:
        readings = self._readings
        yield _ready(readiness(readings))
        yield from _parts(readings)
        for name, text, expires in (
            ("certificate", "server certificate", readings.certificate_expires()),
            ("crl", "revocation list", readings.crl_expires()),
            ("ocsp_response", "OCSP response", readings.ocsp_expires()),
        ):
            if expires is not None:
                yield _gauge(
                    f"owsla_{name}_expiry_timestamp_seconds", f"Expiry of the {text}; of the first of several.", expires
                )


def _names(names: NameReadings) -> Iterator[Metric]:
    """Yield the metrics of messages by name, and for many devices."""
    lookups, groups, broadcast = names.lookups, names.groups, names.broadcast
    yield _gauge("owsla_identified_devices", "Device ids with a connection to this process.", names.identified())
    yield _counters(
        "owsla_device_lookups",
        "Devices that other nodes were asked for, because of a message by name, by outcome.",
        "outcome",
        {"answered": lookups.answered, "unanswered": lookups.unanswered},
    )
    yield _counter(
        "owsla_device_questions",
        "Device ids in questions to all nodes; one that is asked again counts again.",
        lookups.questions,
    )
    yield _counter(
        "owsla_messages_returned",
        "Messages by name that another node returned, because their device had left it.",
        lookups.returned_messages,
    )
    yield _gauge("owsla_messages_awaiting_lookup", "Messages by name that wait until their device is found.", lookups.waiting)
    yield _gauge("owsla_remembered_devices", "Devices of other nodes whose node is remembered.", lookups.remembered)
    yield _gauge("owsla_group_messages", "Messages for many devices that are being handed over.", groups.spreading)
    yield _counters(
        "owsla_group_devices",
        "Connections that a message for many devices was handed over to, or not.",
        "outcome",
        {"handed-over": groups.devices, "missed": groups.missed},
    )
    yield _gauges(
        "owsla_broadcast_state",
        "1 for the state of the exchange that reaches all nodes. Unless it is up, devices of other nodes are not found.",
        "state",
        {state: state == broadcast.state for state in BROADCAST_STATES},
    )
    yield _counter(
        "owsla_notices_dropped", "Questions, answers and claims for other nodes that could not be published.", broadcast.dropped
    )


def parent_families(readings: ParentReadings, checks: Mapping[str, bool]) -> Iterator[Metric]:
    """Yield the metrics of a parent, which has neither devices nor a broker. `checks`: readiness of parent and workers."""
    yield _ready(checks)
    yield from _parts(readings)
    yield from _process(readings.started)


def worker_is_ready(families: Iterable[Metric]) -> bool:
    """Return whether these metrics are those of a ready worker."""
    return any(
        family.name == "owsla_ready" and family.samples and all(one.value == 1 for one in family.samples) for family in families
    )


def _ready(checks: Mapping[str, bool]) -> Metric:
    return _gauges("owsla_ready", "Checks of /readyz: 1 if the check passes.", "condition", checks)


def _parts(readings: Readings | ParentReadings) -> Iterator[Metric]:
    """Yield the metrics that both parent and workers have."""
    yield _counters("owsla_restarts", "Restarts by supervisors, by child.", "child", dict(restarts(readings.tree())))
    yield _counters("owsla_events", "Events, by kind.", "event", readings.events.by_name)
    yield _counters(
        "owsla_event_drops", "Events dropped because a handler was too slow, by handler.", "handler", readings.event_drops()
    )
    yield _counter(
        "owsla_log_lines_lost",
        "Log lines that could not be written: the reader was blocked, or the disk full.",
        readings.log_lost(),
    )
    yield _histogram(
        "owsla_reactor_lateness_seconds",
        "Lateness of a call that the event loop makes ten times a second.",
        readings.lateness,
    )
    if readings.reloads is not None:
        yield _gauge(
            "owsla_config_last_reload_successful",
            "1 unless the last reload of the configuration failed.",
            readings.reloads.successful,
        )
        yield _gauge(
            "owsla_config_last_reload_success_timestamp_seconds",
            "Time of the last successful reload of the configuration, or of the start.",
            readings.reloads.success_time,
        )
    yield InfoMetricFamily(
        "owsla_build",
        "Versions.",
        {
            "version": __version__,
            "python": platform.python_version(),
            "twisted": version("twisted"),
            "openssl": SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode().split()[1],
        },
    )


def _process(started: float) -> Iterator[Metric]:
    """Yield the metrics of any process."""
    # Not prometheus-client's ProcessCollector: it lists all open files, of which each device is one. With 50,000 devices that
    # blocks the event loop for tens of milliseconds.
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield _counter("process_cpu_seconds", "User and system CPU time.", usage.ru_utime + usage.ru_stime)
    memory = _resident_memory()
    if memory is not None:
        yield _gauge("process_resident_memory_bytes", "Resident memory.", memory)
    yield _gauge("process_start_time_seconds", "Approximate start of the process.", started)
    yield _gauge(
        "process_max_fds", "Limit on open files, of which each device is one.", resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    )


def restarts(node: TreeNode, above: str = "") -> Iterator[tuple[str, int]]:
    """Yield path and number of restarts of each child in the tree."""
    path = f"{above}/{node['id']}" if above else node["id"]
    if above:
        yield path, node["restarts"]
    for child in node.get("children", []):
        yield from restarts(child, path)


def _resident_memory() -> int | None:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None  # not Linux


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value)


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, float(value))


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    buckets, total = _buckets(histogram)
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Return the buckets and the sum of a histogram, as prometheus-client takes them."""
    buckets = [("+Inf" if bound == float("inf") else str(bound), float(count)) for bound, count in histogram.buckets()]
    return buckets, histogram.sum
