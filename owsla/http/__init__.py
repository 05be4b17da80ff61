"""What a running Owsla tells over HTTP: metrics, health, readiness, and its supervision tree.

| path       | what                                                                            |
|------------|---------------------------------------------------------------------------------|
| `/metrics` | for Prometheus                                                                  |
| `/healthz` | 200 while the process turns                                                     |
| `/readyz`  | 200, or 503 with what is missing: the broker, the device port, or it is leaving |
| `/tree`    | the supervision tree, as JSON                                                   |
| `/`        | the same for people, in short                                                   |

Everything is read when it is asked for, from counters that are there anyway.
"""

from ._collector import OwslaCollector, collector_for
from ._counts import EventCounts
from ._histogram import Histogram
from ._readings import Readings, readiness
from ._service import HttpService, claim

__all__ = ["EventCounts", "Histogram", "HttpService", "OwslaCollector", "Readings", "claim", "collector_for", "readiness"]
