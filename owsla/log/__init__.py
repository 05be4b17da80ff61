"""The log of the process: it never blocks the reactor, and text from outside cannot break its lines.

The log observers of twistd write in the thread that logs, which is the reactor's: a pipe without a reader would stop every
device. So the observers are called in a thread of their own, behind a bounded queue (`LogQueue`). Each line passes `escaped` on
its way there, because a connection id, a broker's reason or a device's name may hold any number of any characters.

Where twistd would log to standard output, `StreamObserver` takes its place. It writes the same lines or, where standard output
is the systemd journal, lines with a priority and without a second time stamp. With `--log-format json`, `StreamObserver` or
`FileObserver` takes the place of twistd's observer in any case, and each line is a JSON object.
"""

from ._formats import LogFormat
from ._install import LoggingService, install_log
from ._queue import LogQueue, Lossy
from ._stream import LineStream, StreamObserver, is_journal
from ._text import ESCAPED, FIELDS, TRACEBACK, escaped, parts_of, pluralize, utc, with_traceback

__all__ = [
    "ESCAPED",
    "FIELDS",
    "TRACEBACK",
    "LineStream",
    "LogFormat",
    "LogQueue",
    "LoggingService",
    "Lossy",
    "StreamObserver",
    "escaped",
    "install_log",
    "is_journal",
    "parts_of",
    "pluralize",
    "utc",
    "with_traceback",
]
