"""HTTP for operators: pages (metrics, health, readiness and the supervision tree), and the API.

| path       | content                                                                                       |
|------------|-----------------------------------------------------------------------------------------------|
| `/metrics` | metrics for Prometheus                                                                        |
| `/healthz` | status 200 while the event loop runs                                                          |
| `/readyz`  | status 200, or 503 and the failed checks: the broker, the device port, or a shutdown          |
| `/tree`    | the supervision tree, as JSON                                                                 |
| `/`        | a page for people                                                                             |
| `/api/v1`  | questions about devices, and actions: JSON (`Api`)                                            |

Each page reads counters that exist anyway, at the time of the request. `ProcessSource` serves a single process. `ParentSource`
serves a parent: it asks its workers, and each worker replies with `answer`.
"""

from ._access import Tokens
from ._api import Actions, ApiParts
from ._collector import OwslaCollector, collector_for
from ._counts import EventCounts
from ._histogram import Histogram
from ._history import History
from ._lateness import Lateness, LatenessProbe
from ._readings import CertificateReading, DoorReadings, NameReadings, ParentReadings, Readings, ReloadReadings, readiness
from ._sampling import SampleService
from ._service import HttpService, claim, claim_control, control_listener, tcp_listener
from ._sources import QUESTIONS, ParentSource, ProcessSource, Source, answer
from ._state import State
from ._state_document import state_document

__all__ = [
    "QUESTIONS",
    "Actions",
    "ApiParts",
    "CertificateReading",
    "DoorReadings",
    "EventCounts",
    "Histogram",
    "History",
    "HttpService",
    "Lateness",
    "LatenessProbe",
    "NameReadings",
    "OwslaCollector",
    "ParentReadings",
    "ParentSource",
    "ProcessSource",
    "Readings",
    "ReloadReadings",
    "SampleService",
    "Source",
    "State",
    "Tokens",
    "answer",
    "claim",
    "claim_control",
    "collector_for",
    "control_listener",
    "readiness",
    "state_document",
    "tcp_listener",
]
