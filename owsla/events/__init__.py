"""What happens, as typed values, and who is told of it.

`docs/events.md` says what there is. `owsla.events.amqp` is not imported here: it knows the broker.
"""

from ._console import (
    Console,
)
from ._database import (
    DatabaseWriter,
    PostgreSQL,
    SQLite,
)
from ._json import (
    JSONWriter,
)
from ._mailbox import (
    Mailbox,
)
from ._manager import (
    EventManager,
    Handler,
    HandlerStats,
)
from ._outbox import (
    Outbox,
    Record,
    Trouble,
    Writer,
)
from ._presence import (
    Announcement,
    Presence,
)
from ._service import (
    HandlerService,
)
from ._specs import (
    HandlerChild,
    HandlerSpec,
    check_handlers,
    handler_spec,
    handlers_from,
)
from ._supervised import (
    DuplicatesWatch,
    supervision_event,
)
from ._types import (
    BrokerBlocked,
    BrokerConnected,
    BrokerLost,
    BrokerUnavailable,
    BrokerUnblocked,
    BrokerWarning,
    CertificateExpiring,
    ChildRestarted,
    DeviceConnected,
    DeviceContested,
    DeviceDisconnected,
    DeviceIdentified,
    DeviceReplaced,
    DialectFailed,
    DuplicatesDropped,
    Event,
    EventsDropped,
    Full,
    GapSkipped,
    HandlerFailed,
    HandshakeFailed,
    LinesAccepted,
    LinesRefused,
    LineTooLong,
    Listening,
    LoginFailed,
    NodeLost,
    NodeRenamed,
    NodeStarted,
    NodeStopped,
    SilentEvicted,
    SlowDevice,
    SupervisorGaveUp,
    TurnedAway,
    Undeliverable,
    UndeliverableLost,
)
from ._wire import (
    UnknownEvent,
    from_wire,
    to_wire,
)

__all__ = [
    "Announcement",
    "BrokerBlocked",
    "BrokerConnected",
    "BrokerLost",
    "BrokerUnavailable",
    "BrokerUnblocked",
    "BrokerWarning",
    "CertificateExpiring",
    "ChildRestarted",
    "Console",
    "DatabaseWriter",
    "DeviceConnected",
    "DeviceContested",
    "DeviceDisconnected",
    "DeviceIdentified",
    "DeviceReplaced",
    "DialectFailed",
    "DuplicatesDropped",
    "DuplicatesWatch",
    "Event",
    "EventManager",
    "EventsDropped",
    "Full",
    "GapSkipped",
    "Handler",
    "HandlerChild",
    "HandlerFailed",
    "HandlerService",
    "HandlerSpec",
    "HandlerStats",
    "HandshakeFailed",
    "JSONWriter",
    "LineTooLong",
    "LinesAccepted",
    "LinesRefused",
    "Listening",
    "LoginFailed",
    "Mailbox",
    "NodeLost",
    "NodeRenamed",
    "NodeStarted",
    "NodeStopped",
    "Outbox",
    "PostgreSQL",
    "Presence",
    "Record",
    "SQLite",
    "SilentEvicted",
    "SlowDevice",
    "SupervisorGaveUp",
    "Trouble",
    "TurnedAway",
    "Undeliverable",
    "UndeliverableLost",
    "UnknownEvent",
    "Writer",
    "check_handlers",
    "from_wire",
    "handler_spec",
    "handlers_from",
    "supervision_event",
    "to_wire",
]
