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
        yield from self._lines()
        yield from self._messages()
        yield from self._broker()
        yield from self._itself()
        yield from _process(self._readings.started)

    def _devices(self) -> Iterator[Metric]:
        admission, port, devices = self._readings.admission, self._readings.port, self._readings.devices
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
        yield _gauge("owsla_paused_connections", "Connections whose reading is paused.", devices.paused_connections)
        yield _counters(
            "owsla_handshakes",
            "TLS handshakes by outcome; a connection closed before its handshake began counts as failed.",
            "outcome",
            {"completed": port.handshakes, "failed": port.failed_handshakes},
        )
        yield _counter(
            "owsla_silent_evicted",
            "Silent connections closed to make room for others; not counted as failed handshakes.",
            port.evicted,
        )
        yield _counter(
            "owsla_turned_away",
            "Connections refused because of --max-per-address.",
            port.turned_away,
        )

    def _lines(self) -> Iterator[Metric]:
        devices, lines, window = self._readings.devices, self._readings.lines, self._readings.window
        confirmed = lines.confirmed_lines
        received = confirmed + lines.given_up_lines + window.messages
        yield _counter("owsla_lines_received", "Lines from devices.", received)
        yield _counter("owsla_lines_confirmed", "Lines from devices that the broker has confirmed.", confirmed)
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
        yield _gauge(
            "owsla_taking_lines",
            "1 while lines are accepted; 0 while devices are not read because the broker is unavailable, blocks or refuses, "
            "or the window is full.",
            lines.accepting,
        )
        yield _gauge("owsla_window_lines", "Published, unconfirmed lines.", window.messages)
        yield _gauge(
            "owsla_window_limit_lines",
            "Limit on unconfirmed lines, at which reading from devices pauses: --window.",
            window.max_messages,
        )
        yield _gauge(
            "owsla_window_bytes", "Bytes of the unconfirmed lines as published, including headers.", window.size
        )
        yield _gauge(
            "owsla_window_limit_bytes",
            "Limit on unconfirmed bytes, at which reading from devices pauses: --window-bytes.",
            window.max_bytes,
        )
        yield _histogram(
            "owsla_publish_to_confirm_seconds",
            "Time from publishing a line to its confirm, including outages. A sample: one line at a time is measured.",
            self._readings.latency,
        )
        since = lines.unconfirmed_since
        yield _gauge(
            "owsla_unconfirmed_age_seconds",
            "Age of the unconfirmed line that is being measured; 0 if there is none.",
            0.0 if since is None else max(0.0, self._now() - since),
        )

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
        "Lateness of a call that the event loop makes once a second.",
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
    buckets = [("+Inf" if bound == float("inf") else str(bound), float(count)) for bound, count in histogram.buckets()]
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=histogram.sum)
