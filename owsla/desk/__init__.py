"""Questions of operators about the devices of a running gateway, and actions on them.

Each question has a name, such as `devices`, and arguments; its answer is an object of JSON values (docs/api.md). `NodeDesk`
answers for one process. `ParentDesk` asks all workers at once and merges their answers. Both are a `Desk`, which the HTTP
interface uses.

Nothing is collected or formatted while nobody asks, but for the last events and the last ends of connections, which are
bounded. Streams of an HTTP client are repeated questions.
"""

from ._asking import Answers, WorkerHandle, WorkerQueries
from ._close import CloseConnections
from ._desk import Desk, NodeDesk, ParentDesk, UnknownQuestion
from ._device import DeviceDetails
from ._device_trace import NodeTraces
from ._devices import STATES, DeviceList
from ._end_search import EndSearch
from ._ends import Ends
from ._events import RecentEvents
from ._lookup import Lookup
from ._paging import SORTS
from ._refusals import Remembered
from ._ring import PastEvent
from ._rows import Rows
from ._slices import Slices
from ._top import TopDevices
from ._traces import TooManyTraces, Traces, node_traces, parent_traces
from ._types import JSON, NO_ARGS, AnswerFunction, Args, BadArgument

__all__ = [
    "JSON",
    "NO_ARGS",
    "SORTS",
    "STATES",
    "AnswerFunction",
    "Answers",
    "Args",
    "BadArgument",
    "CloseConnections",
    "Desk",
    "DeviceDetails",
    "DeviceList",
    "EndSearch",
    "Ends",
    "Lookup",
    "NodeDesk",
    "NodeTraces",
    "ParentDesk",
    "PastEvent",
    "RecentEvents",
    "Remembered",
    "Rows",
    "Slices",
    "TooManyTraces",
    "TopDevices",
    "Traces",
    "UnknownQuestion",
    "WorkerHandle",
    "WorkerQueries",
    "node_traces",
    "parent_traces",
]
