"""The metrics: each a value that is read when Prometheus asks.

Names follow https://prometheus.io/docs/practices/naming/. Nothing is counted per device: a series for each of them would
cost Prometheus more than the device costs Owsla.
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
from ._readings import ParentReadings, Readings, readiness

REASONS: Final = (
    "no-connection-id",
    "bad-connection-id",
    "unknown-connection",
    "connection-closed",
    "expired",
    "late",
    "too-long",
    "delimiter-in-body",
    "bad-seq",
    "bad-expires-at",
    "slow-device",
    "refused-by-dialect",
    "refused",
)
"""Why a message may be undeliverable (docs/contract.md). The list may grow: these are those shown before there is one."""


def collector_for(readings: Readings, *, now: Callable[[], float] = time.time) -> OwslaCollector:
    """What to register with prometheus-client; `now()` is in seconds since the epoch."""
    return OwslaCollector(readings, now)


class OwslaCollector(Collector):
    """Reads everything anew for each scrape."""

    def __init__(self, readings: Readings, now: Callable[[], float]) -> None:
        self._readings = readings
        self._now = now

    def collect(self) -> Iterator[Metric]:
        yield from self._devices()
        yield from self._lines()
        yield from self._messages()
        yield from self._broker()
        yield from self._itself()
        yield from _process(self._readings.started)

    def _devices(self) -> Iterator[Metric]:
        admission, listener, hub = self._readings.admission, self._readings.listener, self._readings.hub
        handshaking, waiting = admission.handshaking, admission.waiting
        accepted = admission.connections - admission.open - handshaking - waiting
        yield _gauges(
            "owsla_connections",
            "Connections of devices: accepted (no ClientHello yet), waiting (for a place to begin their handshake), "
            "handshaking, or open (whatever becomes of them).",
            "state",
            {"accepted": accepted, "waiting": waiting, "handshaking": handshaking, "open": admission.open},
        )
        yield _gauge(
            "owsla_connections_limit",
            "Connections at which no more are accepted: --max-connections.",
            admission.max_connections,
        )
        yield _gauge("owsla_paused_connections", "Connections that are not read just now.", hub.paused_connections)
        yield _counters(
            "owsla_handshakes",
            "TLS handshakes by outcome; a connection closed before its handshake began counts as failed.",
            "outcome",
            {"completed": listener.handshakes, "failed": listener.failed_handshakes},
        )
        yield _counter(
            "owsla_silent_evicted",
            "Connections that had said nothing, closed to make way for others; not among the failed handshakes.",
            listener.evicted,
        )
        yield _counter(
            "owsla_turned_away",
            "Connections closed at once, since there were as many from their address as --max-per-address allows.",
            listener.turned_away,
        )

    def _lines(self) -> Iterator[Metric]:
        hub, producer, window = self._readings.hub, self._readings.producer, self._readings.window
        confirmed = producer.confirmed_lines
        received = confirmed + producer.given_up_lines + window.messages
        yield _counter("owsla_lines_received", "Lines from devices.", received)
        yield _counter("owsla_lines_confirmed", "Lines from devices that the broker has confirmed.", confirmed)
        yield _counter("owsla_lines_sent", "Lines handed over to devices.", hub.lines_out)
        yield _counter("owsla_received_bytes", "Bytes read from devices, without TLS, with delimiters.", hub.bytes_in)
        yield _counter("owsla_sent_bytes", "Bytes of lines handed over to devices, without delimiters.", hub.bytes_out)
        yield _counter(
            "owsla_lines_discarded",
            "Lines of devices that left while lines could not be published, thrown away for want of room in the window.",
            hub.discarded_lines,
        )
        yield _counter(
            "owsla_unread_bytes_discarded",
            "Bytes that such devices had sent and that were not read, those of TLS included.",
            hub.discarded_bytes,
        )
        yield _gauge(
            "owsla_taking_lines",
            "1 while lines are taken; 0 while devices are not read, since the broker is away, blocks or refuses, "
            "or the window is full.",
            producer.accepting,
        )
        yield _gauge("owsla_window_lines", "Lines that are published and not confirmed.", window.messages)
        yield _gauge(
            "owsla_window_limit_lines", "Unconfirmed lines at which devices are not read: --window.", window.max_messages
        )
        yield _gauge(
            "owsla_window_bytes", "Bytes of the unconfirmed lines as they are published, headers and all.", window.size
        )
        yield _gauge(
            "owsla_window_limit_bytes", "Unconfirmed bytes at which devices are not read: --window-bytes.", window.max_bytes
        )
        yield _histogram(
            "owsla_publish_to_confirm_seconds",
            "From publishing a line to its confirm, an outage between them included. A sample: one line at a time is followed.",
            self._readings.latency,
        )
        since = producer.unconfirmed_since
        yield _gauge(
            "owsla_unconfirmed_age_seconds",
            "How long the line that is being followed has waited for its confirm; 0 without one.",
            0.0 if since is None else max(0.0, self._now() - since),
        )

    def _messages(self) -> Iterator[Metric]:
        hub, courier = self._readings.hub, self._readings.courier
        yield _counters(
            "owsla_undeliverable",
            "Messages for devices that could not be delivered, by reason.",
            "reason",
            dict.fromkeys(REASONS, 0) | courier.recorded,
        )
        yield _counter("owsla_duplicates", "Messages with a number that its device had been sent; dropped.", hub.duplicates)
        yield _counter("owsla_gaps_skipped", "Numbers of messages that were waited for in vain.", hub.skips)
        yield _counter(
            "owsla_reports_dropped", "Delivery reports that had nowhere to go, or were too many.", courier.reports_dropped
        )
        yield _gauge(
            "owsla_courier_unconfirmed_messages",
            "Records, forwards to other nodes and delivery reports that have not arrived.",
            courier.unconfirmed,
        )

    def _broker(self) -> Iterator[Metric]:
        connected = self._readings.events.by_name.get("broker-connected", 0)
        yield _counter(
            "owsla_broker_reconnects", "Times that the broker was lost and all connections came back.", max(0, connected - 1)
        )

    def _itself(self) -> Iterator[Metric]:
        readings = self._readings
        yield _ready(readiness(readings))
        yield from _parts(readings)
        expires = readings.certificate_expires()
        if expires is not None:
            yield _gauge(
                "owsla_certificate_expiry_timestamp_seconds", "When the certificate that devices are shown ends.", expires
            )


def parent_families(readings: ParentReadings, checks: Mapping[str, bool]) -> Iterator[Metric]:
    """What a parent tells of itself: it has no devices, and no broker. `checks` are those of the whole."""
    yield _ready(checks)
    yield from _parts(readings)
    yield from _process(readings.started)


def worker_is_ready(families: Iterable[Metric]) -> bool:
    """Whether a worker with these metrics takes devices."""
    return any(
        family.name == "owsla_ready" and family.samples and all(one.value == 1 for one in family.samples) for family in families
    )


def _ready(checks: Mapping[str, bool]) -> Metric:
    return _gauges("owsla_ready", "What /readyz asks for: 1 where it is so.", "condition", checks)


def _parts(readings: Readings | ParentReadings) -> Iterator[Metric]:
    """What any process of ours has."""
    yield _counters("owsla_restarts", "Restarts by the supervisors, by child.", "child", dict(restarts(readings.tree())))
    yield _counters("owsla_events", "Events, by kind.", "event", readings.events.by_name)
    yield _counters(
        "owsla_event_drops", "Events that a handler was too slow for, by handler.", "handler", readings.event_drops()
    )
    yield _counter(
        "owsla_log_lines_lost",
        "Lines of the log that could not be written: nobody read them, or the disk was full.",
        readings.log_lost(),
    )
    yield _histogram(
        "owsla_reactor_lateness_seconds",
        "How late the event loop makes a call that is due once a second.",
        readings.lateness,
    )
    yield InfoMetricFamily(
        "owsla_build",
        "What runs here.",
        {
            "version": __version__,
            "python": platform.python_version(),
            "twisted": version("twisted"),
            "openssl": SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode().split()[1],
        },
    )


def _process(started: float) -> Iterator[Metric]:
    """What any process has."""
    # prometheus-client's ProcessCollector lists the open files, and each device is one: with 50,000 of them that is tens of
    # milliseconds in which nobody is served.
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield _counter("process_cpu_seconds", "User and system CPU time.", usage.ru_utime + usage.ru_stime)
    memory = _resident_memory()
    if memory is not None:
        yield _gauge("process_resident_memory_bytes", "Resident memory.", memory)
    yield _gauge("process_start_time_seconds", "When the process started, or nearly.", started)
    yield _gauge(
        "process_max_fds", "Files that may be open: each device is one.", resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    )


def restarts(node: TreeNode, above: str = "") -> Iterator[tuple[str, int]]:
    """Every child of the tree by its path, and how often it was restarted. The root is nobody's child."""
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
    buckets = [("+Inf" if bound == float("inf") else str(bound), float(count)) for bound, count in histogram.buckets()]
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=histogram.sum)
