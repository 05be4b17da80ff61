"""What a running Owsla tells over HTTP: metrics, health, readiness, and its supervision tree.

| path       | what                                                                            |
|------------|---------------------------------------------------------------------------------|
| `/metrics` | for Prometheus                                                                  |
| `/healthz` | 200 while the process turns                                                     |
| `/readyz`  | 200, or 503 with what is missing: the broker, the device port, or it is leaving |
| `/tree`    | the supervision tree, as JSON                                                   |
| `/`        | the same for people, in short                                                   |

Everything is read when it is asked for, from counters that are there anyway. `Alone` is one process that tells of itself;
`Whole` is a parent, which asks its workers, and each of them has an `answer`.
"""

from ._collector import OwslaCollector, collector_for
from ._counts import EventCounts
from ._histogram import Histogram
from ._readings import ParentReadings, Question, Readings, WorkerProcess, readiness
from ._service import Beat, HttpService, claim
from ._sources import Alone, Source, Whole, answer

__all__ = [
    "Alone",
    "Beat",
    "EventCounts",
    "Histogram",
    "HttpService",
    "OwslaCollector",
    "ParentReadings",
    "Question",
    "Readings",
    "Source",
    "Whole",
    "WorkerProcess",
    "answer",
    "claim",
    "collector_for",
    "readiness",
]
