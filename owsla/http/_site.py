"""The site: checks of each request, the choice of its page or of the API, and the headers of each answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NOT_MODIFIED
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from ._api import JSON_TYPE, Answered, Api
from ._errors import HttpError
from ._guards import is_accepted_host, is_from_elsewhere
from ._routes import VERSION
from ._static import CONTENT_SECURITY_POLICY

IDLE: Final = 60.0
"""Seconds after which an idle connection is closed."""

CHECKS: Final = frozenset({b"/healthz", b"/readyz"})
"""Pages that accept any Host header: an orchestrator must not restart a gateway because of one."""

HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "referrer-policy": "no-referrer",
    "server": "owsla",
    "x-content-type-options": "nosniff",
}
"""Headers of all answers. A page may have another `cache-control`."""

TEXT_TYPE: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Response:
    """An answer to a request."""

    status: int
    media_type: str
    body: str | bytes
    headers: Mapping[str, str] = field(default_factory=dict)


PageFunction = Callable[[Request], Deferred[Response]]
"""A function that generates a page."""


class Root(Resource):
    """Resource that selects a page, or the API, by the path of a request."""

    isLeaf = True
    _log = Logger(namespace="owsla.http")

    def __init__(
        self, pages: Mapping[bytes, PageFunction], api: Api, names: Collection[str] | None = None
    ) -> None:
        """`names`: accepted host names (`is_accepted_host`); `None` accepts all."""
        super().__init__()
        self._pages = pages
        self._api = api
        self._names = names

    def render(self, request: Request) -> int:
        for name, value in HEADERS.items():
            request.setHeader(name.encode(), value.encode())
        if _is_of_api(request):
            request.setHeader(b"owsla-api-version", str(VERSION).encode())
        answer: Deferred[Response | None] = maybeDeferred(self._answer, request)
        answer.addErrback(self._refused, request)
        answer.addErrback(self._failed, request)
        answer.addCallback(self._write, request)
        return NOT_DONE_YET

    def _answer(self, request: Request) -> Deferred[Response | None]:
        """Return the answer to a request; `None` if it is a stream."""
        hosts = request.requestHeaders.getRawHeaders(b"host", [])
        if self._names is not None and request.path not in CHECKS:
            names = self._names
            if not all(is_accepted_host(host, names) for host in hosts):
                raise HttpError(421, "Misdirected request: Host must be an IP address, localhost or the name of this machine.")
        if _is_of_api(request):
            origins = request.requestHeaders.getRawHeaders(b"origin", [])
            sites = request.requestHeaders.getRawHeaders(b"sec-fetch-site", [])
            if is_from_elsewhere(origins, sites, hosts):
                raise HttpError(403, "Another web page may not use the API.")
            return self._api.handle(request).addCallback(_answer_of_api)
        page = self._pages.get(request.path)
        if page is None:
            raise HttpError(404, "Not found. The pages are /, /metrics, /healthz, /readyz and /tree.")
        if request.method not in (b"GET", b"HEAD"):
            raise HttpError(405, "Method not allowed: the pages are read-only.", headers={"allow": "GET, HEAD"})
        return page(request).addCallback(lambda answer: answer)

    def _refused(self, failure: Failure, request: Request) -> Response:
        failure.trap(HttpError)
        error: Any = failure.value
        if _is_of_api(request):
            return Response(error.status, JSON_TYPE, json.dumps({"error": error.text, **error.details}), error.headers)
        return Response(error.status, TEXT_TYPE, f"{error.text}\n", error.headers)

    def _failed(self, failure: Failure, request: Request) -> Response:
        self._log.failure("Answering {page} failed", failure, page=request.path.decode("ascii", "replace"))
        text = "This could not be answered; the log has the reason."
        if _is_of_api(request):
            return Response(500, JSON_TYPE, json.dumps({"error": text}))
        return Response(500, TEXT_TYPE, f"{text}\n")

    def _write(self, answer: Response | None, request: Request) -> None:
        if request.channel is None:
            return  # the client has disconnected
        if answer is None:
            return
        body = answer.body if isinstance(answer.body, bytes) else answer.body.encode("utf-8", "replace")
        request.setResponseCode(answer.status)
        headers = {"content-type": answer.media_type, **answer.headers}
        if answer.status != NOT_MODIFIED and (body or request.method != b"HEAD"):
            headers["content-length"] = str(len(body))
        for name, value in headers.items():
            request.setHeader(name.encode(), value.encode())
        request.write(body)
        request.finish()


def _is_of_api(request: Request) -> bool:
    return bool(request.path == b"/api" or request.path.startswith(b"/api/"))


def _answer_of_api(answered: Answered | None) -> Response | None:
    return None if answered is None else Response(answered.status, answered.media_type, answered.text)


class BodilessRequest(Request):
    """A request that is refused at its headers if it has a body. Twisted would write the body to disk without limit."""

    _refused = False

    def gotLength(self, length: int | None) -> None:
        super().gotLength(0)
        if length == 0:
            return
        self._refused = True
        self.requestHeaders.removeHeader(b"expect")  # no "100 Continue"
        body = b'{"error": "No path takes a body."}'
        transport: Any = self.channel.transport
        transport.write(
            b"HTTP/1.1 413 Content Too Large\r\nserver: owsla\r\nconnection: close\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        self.channel.loseConnection()

    def handleContentChunk(self, data: bytes) -> None:
        """Discard data that arrives before the connection is closed."""

    def process(self) -> None:
        if not self._refused:
            super().process()


class QuietSite(Site):
    """A site without an access log. Prometheus makes a request every few seconds."""

    noisy = False
    displayTracebacks = False
    requestFactory = BodilessRequest

    def log(self, request: Any) -> None: ...


def make_site(
    reactor: Any, pages: Mapping[bytes, PageFunction], api: Api, names: Collection[str] | None = None
) -> QuietSite:
    """Return the site of an address. `names`: see `Root`."""
    return QuietSite(Root(pages, api, names), timeout=IDLE, reactor=reactor)
