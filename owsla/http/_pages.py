"""The pages: read-only, made for each request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred, succeed
from twisted.web.http import NOT_MODIFIED
from twisted.web.server import Request

from ._site import TEXT_TYPE, PageFunction, Response
from ._sources import Source
from ._state import State
from ._static import StaticFile, StaticFiles
from ._summary import summary, title

_HTML: Final = "text/html; charset=utf-8"
_JSON: Final = "application/json"


class _Collected(Collector):
    """Adapter that passes collected metrics to an encoder."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def make_pages(source: Source) -> dict[bytes, PageFunction]:
    """Return the pages by path."""
    files = StaticFiles()

    def index(_: Request) -> Deferred[Response]:
        return source.state().addCallback(lambda state: Response(200, _HTML, files.index(title(state), summary(state))))

    def metrics(request: Request) -> Deferred[Response]:
        encode, media_type = _encoder(request)
        return source.metrics().addCallback(lambda families: Response(200, media_type, encode(_Collected(families))))

    def healthz(_: Request) -> Deferred[Response]:
        return succeed(Response(200, TEXT_TYPE, "ok\n"))

    def readyz(_: Request) -> Deferred[Response]:
        return source.state().addCallback(
            lambda state: Response(200 if state.ready else 503, _JSON, json.dumps(_readiness(state)) + "\n")
        )

    def tree(_: Request) -> Deferred[Response]:
        return source.state().addCallback(lambda state: Response(200, _JSON, json.dumps(state.tree, indent=2) + "\n"))

    return {
        b"/": index,
        b"/metrics": metrics,
        b"/healthz": healthz,
        b"/readyz": readyz,
        b"/tree": tree,
        **{path: _static_page(file) for path, file in files.items()},
    }


def _static_page(file: StaticFile) -> PageFunction:
    # A browser keeps the file, and asks at each use whether it has changed: after an update no part of it is an old one.
    headers = {"cache-control": "no-cache", "etag": file.etag.decode()}

    def page(request: Request) -> Deferred[Response]:
        if file.etag in (request.getHeader(b"if-none-match") or b""):
            return succeed(Response(NOT_MODIFIED, file.media_type, b"", headers))
        return succeed(Response(200, file.media_type, file.body, headers))

    return page


def _encoder(request: Request) -> tuple[Callable[[Collector], bytes], str]:
    try:
        return choose_encoder(request.getHeader("accept") or "")
    except Exception:
        # prometheus-client raises for a malformed Accept header, such as `version=` without a number. Use the default format.
        return choose_encoder("")


def _readiness(state: State) -> dict[str, Any]:
    """Return the body of /readyz."""
    body: dict[str, Any] = {"ready": state.ready, "checks": state.checks}
    if state.workers is not None:
        body["workers"] = [
            {
                "name": worker.name,
                "state": worker.process,
                "ready": worker.says is not None and worker.says.ready,
                "checks": None if worker.says is None else worker.says.checks,
            }
            for worker in state.workers
        ]
    return body
