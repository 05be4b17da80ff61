"""Formats of log lines. Pure: each function returns the lines of an event, with their ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from twisted.logger import LogEvent, LogLevel, formatEventAsClassicLogText

from ._text import FIELDS, parts_of, utc, with_traceback

LogFormat: TypeAlias = Literal["text", "json"]
"""Value of `--log-format`."""

Format: TypeAlias = Callable[[LogEvent], str]

PRIORITIES: Final = {LogLevel.debug: 7, LogLevel.info: 6, LogLevel.warn: 4, LogLevel.error: 3, LogLevel.critical: 2}
"""Priorities of syslog: sd-daemon(3)."""


def format_for(log_format: LogFormat, *, journal: bool = False) -> Format:
    """Return the format of the log on a file, or on the journal."""
    if log_format == "json":
        return partial(json_line, journal=journal)
    return journal_lines if journal else text_lines


def text_lines(event: LogEvent) -> str:
    """Return the lines of an event in twistd's format."""
    # Without the failure: the traceback is in the text, and Twisted would append it again.
    plain = {key: value for key, value in event.items() if key != "log_failure"}
    return formatEventAsClassicLogText({**plain, "log_format": "{text}", "text": with_traceback(event)}) or ""


def journal_lines(event: LogEvent) -> str:
    """Return the lines of an event for the journal, where each line is an entry with a priority of its own and a time."""
    # The name of the program is not needed: the journal has an identifier for each unit (`SyslogIdentifier=`).
    part = str(event.get("log_namespace", "")).removeprefix("owsla").lstrip(".")
    first, *more = with_traceback(event).split("\n")
    lines = [f"[{part}] {first}" if part else first, *(f"\t{line}" for line in more)]
    return "".join(f"{_priority(event)}{line}\n" for line in lines)


def json_line(event: LogEvent, *, journal: bool = False) -> str:
    """Return an event as one line with a JSON object; for the journal, after its priority."""
    text, trace = parts_of(event)
    level = event.get("log_level", LogLevel.info)
    line: dict[str, Any] = {
        "time": utc(event.get("log_time", 0.0)),
        "level": level.name,
        "namespace": str(event.get("log_namespace", "-")),
        "text": text,
    }
    if trace:
        line["traceback"] = trace
    # In this order: no key of an event takes the place of one that all lines have.
    line = {**line, **event.get(FIELDS, {}), **line}
    return f"{_priority(event) if journal else ''}{json.dumps(line)}\n"


def _priority(event: LogEvent) -> str:
    return f"<{PRIORITIES.get(event.get('log_level', LogLevel.info), 6)}>"
