"""Tests of trace context, end to end: sampled lines, messages to devices, and the program of docs/tracing.md."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from owsla.trace_context import read

from ._support.embedded import EmbeddedBrokerProcess
from ._support.journal import events_in
from ._support.lab import Broker, Lab
from ._support.page import Page
from ._support.process import ChildProcess
from ._support.waiting import reactor_test, until

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def events(journal: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of a kind so far."""
    return [event for event in events_in(journal) if event["event"] == kind]


@reactor_test
async def test_traces(lab: Lab, broker: Broker, tmp_path: Path) -> None:
    """With `--trace-lines 1` each line has its own traceparent, and the event of the end of its connection that of the last.
    The traceparent of a message to a device is on its delivery report, its record and the event.
    """
    journal = tmp_path / "events.json"
    gateway = await lab.gateway(broker.url, trace_lines=1, events=["console", f"json:{journal}"])
    device = await lab.device(gateway)
    device.send_line(b"one", b"two")
    first, second = await gateway.messages(2)
    traces = [message.headers["traceparent"] for message in (first, second)]
    assert all(read(trace) is not None and trace.endswith("-01") for trace in traces), traces
    assert traces[0][:35] != traces[1][:35]

    replies = await lab.backend(broker.url)
    reports = await replies.call(lambda channel: channel.queue_declare("", exclusive=True).method.queue)
    headers = {"connection_id": first.connection_id, "traceparent": TRACEPARENT, "tracestate": "a=1"}
    await gateway.backend.publish(gateway.to_device, b"hello", headers, reply_to=reports)
    assert await device.line() == b"hello"
    await device.close()
    (disconnected,) = await until(lambda: events(journal, "device-disconnected"), what="the end of the connection")
    assert disconnected["traceparent"] == traces[1]
    (connected,) = events(journal, "device-connected")
    assert "traceparent" not in connected
    await gateway.backend.publish(gateway.to_device, b"too late", headers, reply_to=reports)

    record = await gateway.refused()
    assert (record.headers["traceparent"], record.headers["tracestate"]) == (TRACEPARENT, "a=1")
    (undeliverable,) = await until(lambda: events(journal, "undeliverable"), what="the event")
    assert undeliverable["traceparent"] == TRACEPARENT
    outcomes: list[str] = []
    while len(outcomes) < 2:
        report = await replies.fetch(reports)
        if report is not None:
            assert (report.headers["traceparent"], report.headers["tracestate"]) == (TRACEPARENT, "a=1")
            outcomes.append(report.headers["owsla_report"])
    assert outcomes == ["delivered", "unknown-connection"]


@reactor_test
async def test_hostile_traceparent(lab: Lab, broker: Broker, tmp_path: Path) -> None:
    """A traceparent of any type and nearly any size delays no message, and does not get into events and reports. By default
    lines have none.
    """
    journal = tmp_path / "events.json"
    gateway = await lab.gateway(broker.url, events=["console", f"json:{journal}"])
    device = await lab.device(gateway)
    device.send_line(b"here")
    line = await gateway.message()
    assert "traceparent" not in line.headers
    values = ["0" * 100_000, b"\xff" * 100_000, f"{TRACEPARENT}\r\n\0\x1b[2J", 7, [TRACEPARENT], {"a": TRACEPARENT}, None, True]
    for number, value in enumerate(values):
        headers = {"connection_id": line.connection_id, "to_device_seq": number, "traceparent": value, "tracestate": "\0=1"}
        await gateway.backend.publish(gateway.to_device, b"%d" % number, headers)
    assert [await device.line() for _ in values] == [b"%d" % number for number in range(len(values))]
    replies = await lab.backend(broker.url)
    reports = await replies.call(lambda channel: channel.queue_declare("", exclusive=True).method.queue)
    for number, value in enumerate(values):
        headers = {"connection_id": "0" * 36, "traceparent": value, "tracestate": value}
        if isinstance(value, str | bytes) and len(value) > 1000:
            headers["tracestate"] = "a"
        await gateway.backend.publish(gateway.to_device, b"%d" % number, headers, reply_to=reports)
        record = await gateway.refused()
        assert record.body == b"%d" % number
        assert record.headers["owsla_reason"] in ("bad-connection-id", "unknown-connection")
    await until(lambda: len(events(journal, "undeliverable")) == len(values), what="the events")
    assert {event["traceparent"] for event in events(journal, "undeliverable")} == {None}
    count = 0
    while count < len(values):
        report = await replies.fetch(reports)
        if report is not None:
            assert set(report.headers) == {"connection_id", "owsla_report"}
            count += 1
    await gateway.round_trip(device)


@reactor_test
async def test_the_program_of_the_page(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """The back end of docs/tracing.md answers, and its spans are in the trace of the line: the first below the id of the line,
    each other below the one before it.
    """
    pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk, of the extra `test`")
    journal = tmp_path / "events.json"
    gateway = await lab.gateway(embedded.url, backend=False, trace_lines=1, events=["console", f"json:{journal}"])
    names = {'"from_device"': f'"{gateway.from_device}"', '"to_device"': f'"{gateway.to_device}"'}
    # A span on a line, to be read here.
    names["ConsoleSpanExporter()"] = 'ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\\n")'
    program = tmp_path / "backend.py"
    program.write_text(Page("tracing.md", tmp_path / "m").block("python", "DEFAULT_OFF", names))
    output = tmp_path / "spans"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    backend = ChildProcess(
        [sys.executable, "-u", str(program)],
        output=output,
        errors=tmp_path / "errors",
        env=environment | {"BROKER": embedded.url},
    )
    lab.ends(lambda: _stop(backend))
    device = await lab.device(gateway)
    device.send_line(b"one")
    assert await device.line() == b"OK one"
    await backend.wait_for_line(r'"name": "report to_device"')
    spans = {span["name"]: span for span in map(json.loads, output.read_text().splitlines())}
    assert set(spans) == {"process from_device", "send to_device", "report to_device"}
    await device.close()
    (disconnected,) = await until(lambda: events(journal, "device-disconnected"), what="the end of the connection")
    _, trace_id, parent_id, _ = disconnected["traceparent"].split("-")
    assert {span["context"]["trace_id"] for span in spans.values()} == {f"0x{trace_id}"}
    parents = [spans[name]["parent_id"] for name in ("process from_device", "send to_device", "report to_device")]
    ids = [spans[name]["context"]["span_id"] for name in ("process from_device", "send to_device")]
    assert parents == [f"0x{parent_id}", *ids]
    assert spans["report to_device"]["attributes"]["owsla.report"] == "delivered"


async def _stop(process: ChildProcess) -> None:
    process.kill()
