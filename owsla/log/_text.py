"""Text of log lines. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from twisted.logger import LogEvent, formatEvent
from twisted.python.failure import Failure

LONGEST: Final = 4096
"""Longest message, in characters. A longer one is cut: a certificate or a header may have megabytes."""

LONGEST_TRACE: Final = 65536
"""Longest traceback, in characters."""

ESCAPED: Final = "owsla_escaped"
"""Key of an event whose text is escaped already, and may have several lines: the text of a worker, in its parent."""

TRACEBACK: Final = "owsla_traceback"
"""Key of an event whose text ends with a traceback, for that traceback."""

FIELDS: Final = "owsla_fields"
"""Key of an event for further keys of its JSON line, with values for `json.dumps`."""


def utc(time: float) -> str:
    """Format a time in seconds since the epoch as ISO 8601, in UTC, with microseconds."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def escaped(text: str, longest: int = LONGEST, keep: str = "") -> str:
    """Replace characters that are not printable, except `keep`, by escape sequences. Cut a text that is too long.

    A terminal obeys control characters, and after a newline a forged line could follow.
    """
    length = len(text)
    if length > longest:
        text = text[:longest]
    if not text.isprintable():
        text = "".join(
            one if one.isprintable() or one in keep else one.encode("unicode_escape").decode("ascii") for one in text
        )
    return text if length <= longest else f"{text}… ({length} characters)"


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 device", "2 devices"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def message_of(event: LogEvent) -> str:
    """Return the message of a log event, escaped. The lines of a traceback stay lines."""
    text = formatEvent(event)
    if event.get(ESCAPED):
        return escaped(text, LONGEST + LONGEST_TRACE, keep="\n\t")
    if event.get("isError"):  # twisted.python.log puts the traceback into the message
        return escaped(text, LONGEST_TRACE, keep="\n\t")
    return escaped(text.rstrip("\n"))


def traceback_of(event: LogEvent) -> str:
    """Return the traceback of a log event, escaped, or an empty text if the event has no failure."""
    failure = event.get("log_failure")
    if not isinstance(failure, Failure) or event.get("isError") or TRACEBACK in event:
        return ""
    try:
        trace = failure.getTraceback()
    except Exception as error:  # an exception whose own __str__ fails
        trace = f"(no traceback: {type(error).__name__})"
    return escaped(trace.rstrip("\n"), LONGEST_TRACE, keep="\n\t")


def with_traceback(event: LogEvent) -> str:
    """Return the message of a log event, followed by its traceback if it has one."""
    text, trace = message_of(event), traceback_of(event)
    return f"{text}\n{trace}".strip("\n") if trace else text


def parts_of(event: LogEvent) -> tuple[str, str]:
    """Return the message of a log event and its traceback, both escaped; without a traceback, the second is empty."""
    message, trace = message_of(event), traceback_of(event)
    if TRACEBACK in event:
        trace = event[TRACEBACK]
        message = message.removesuffix(trace)
    elif event.get("isError"):  # the message of twisted.python.log: a reason, and the traceback below it
        message, _, trace = message.partition("\n")
    return message.rstrip("\n"), trace.rstrip("\n")
