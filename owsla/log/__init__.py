"""The log of the process: it never blocks, and text from outside cannot break its lines.

twistd's log observers write from the thread that logs, which is the reactor's. A pipe that nobody reads then stops every
device. So observers are called in a thread of their own, behind a bounded queue (`LogQueue`). Each line passes `escaped` on its
way there: a connection id, a broker's reason or a device's name may hold anything, and be of any length.

Where twistd would log to standard output, `StreamObserver` takes its place. It writes the same lines, or, where standard output
is the systemd journal, lines with a priority and without a second time stamp.
"""

from ._install import LoggedService, install_log
from ._queue import LogQueue, Lossy
from ._stream import StreamObserver, is_journal
from ._text import ESCAPED, counted, escaped, with_traceback

__all__ = [
    "ESCAPED",
    "LogQueue",
    "LoggedService",
    "Lossy",
    "StreamObserver",
    "counted",
    "escaped",
    "install_log",
    "is_journal",
    "with_traceback",
]
