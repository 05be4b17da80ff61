"""The pages: read-only, made for each request, for GET and HEAD only."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import ip_address
from itertools import starmap
from typing import Any, Final
from urllib.parse import urlsplit

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from .. import __version__
from ..supervision import render
from ._sources import Source
from ._state import DoorNumbers, Numbers, State, WorkerState

IDLE: Final = 60.0
"""Seconds after which an idle connection is closed."""

CHECKS: Final = frozenset({b"/healthz", b"/readyz"})
"""Pages that accept any Host header: an orchestrator must not restart a gateway because of one."""

_HTML: Final = "text/html; charset=utf-8"
_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"

_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Owsla {who}</title>
<link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c4320a; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2.5rem auto; padding: 0 1.25rem; }}
h1 {{ font-size: 1.6rem; margin: 0; }}
h2 {{ font-size: 1.05rem; margin: 2rem 0 .5rem; }}
header p {{ margin: .25rem 0 0; opacity: .75; }}
.state {{ display: inline-block; margin: 1.25rem 0 0; padding: .2rem .7rem; border-radius: 1rem; color: #fff; }}
.ready {{ background: var(--good); }}
.not {{ background: var(--bad); }}
table {{ border-collapse: collapse; width: 100%; }}
td, th {{ padding: .35rem 0; border-bottom: 1px solid var(--line); text-align: left; font-weight: normal; }}
td {{ text-align: right; font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
.wide td, .wide thead th {{ padding-left: 1rem; text-align: right; vertical-align: top; }}
.wide tr > th:first-child {{ padding-left: 0; text-align: left; min-width: 10rem; }}
.wide thead th, small {{ opacity: .75; }}
small {{ display: block; }}
pre {{ font: .85rem/1.6 ui-monospace, monospace; overflow-x: auto; padding: .75rem 1rem; border: 1px solid var(--line);
  border-radius: .4rem; }}
nav {{ margin-top: 1rem; }}
nav a {{ margin-right: 1.25rem; }}
</style>
</head>
<body>
<header>
<h1>Owsla</h1>
<p>Version {version}, {who}</p>
</header>
<nav><a href="/metrics">/metrics</a><a href="/healthz">/healthz</a><a href="/readyz">/readyz</a><a href="/tree">/tree</a></nav>
<p class="state {css}">{state}</p>
<h2>Now</h2>
<table>
{rows}
</table>
{doors}
{workers}
<h2>Supervision tree</h2>
<pre>{tree}</pre>
</body>
</html>
"""


Answer = tuple[int, str, str | bytes]
"""Status, media type and body of an answer."""

PageFunction = Callable[[Request], Deferred[Answer]]
"""A function that generates a page."""


class Pages(Resource):
    """Resource that selects a page by its path."""

    isLeaf = True
    _log = Logger(namespace="owsla.http")

    def __init__(self, pages: Mapping[bytes, PageFunction], names: Collection[str] | None = None) -> None:
        """`names`: accepted host names (`is_accepted_host`); `None` accepts all."""
        super().__init__()
        self._pages = pages
        self._names = names

    def render(self, request: Request) -> int:
        page = self._pages.get(request.path, _not_found)
        if self._names is not None and request.path not in CHECKS:
            hosts = request.requestHeaders.getRawHeaders(b"host", [])
            if not all(is_accepted_host(host, self._names) for host in hosts):
                page = _misdirected
        if request.method not in (b"GET", b"HEAD"):
            page = _method_not_allowed
        answer: Deferred[Answer] = maybeDeferred(page, request)
        answer.addErrback(self._failed, request)
        answer.addCallback(self._write, request)
        return NOT_DONE_YET

    def _failed(self, failure: Failure, request: Request) -> Answer:
        self._log.failure("Generating {page} failed", failure, page=request.path.decode("ascii", "replace"))
        return 500, _TEXT, "This page could not be generated; the log has the reason.\n"

    def _write(self, answer: Answer, request: Request) -> None:
        if request.channel is None:
            return  # the client has disconnected
        status, media_type, text = answer
        body = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
        request.setResponseCode(status)
        for name, value in (
            ("content-type", media_type),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:"),
            ("x-content-type-options", "nosniff"),
            ("server", "owsla"),
        ):
            request.setHeader(name.encode(), value.encode())
        request.write(body)
        request.finish()


def _not_found(_: Request) -> Deferred[Answer]:
    return succeed((404, _TEXT, "Not found. The pages are /, /metrics, /healthz, /readyz and /tree.\n"))


def _method_not_allowed(request: Request) -> Deferred[Answer]:
    request.setHeader(b"allow", b"GET, HEAD")
    return succeed((405, _TEXT, "Method not allowed: the pages are read-only.\n"))


def _misdirected(_: Request) -> Deferred[Answer]:
    return succeed((421, _TEXT, "Misdirected request: Host must be an IP address, localhost or the name of this machine.\n"))


def is_accepted_host(host: bytes, names: Collection[str]) -> bool:
    """Return whether a Host header is an IP address, localhost, or one of `names`. Pure.

    Any other name is refused because of DNS rebinding: the owner of a web page can resolve its name to 127.0.0.1, and so let
    the browser of a visitor read these pages.
    """
    try:
        name = urlsplit(f"//{host.decode('ascii')}").hostname or ""
    except (UnicodeDecodeError, ValueError):
        return False
    name = name.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost") or name in (own.lower() for own in names):
        return True
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


class BodilessRequest(Request):
    """A request that is refused at its headers if it has a body. Twisted would write the body to disk without limit."""

    _refused = False

    def gotLength(self, length: int | None) -> None:
        super().gotLength(0)
        if length == 0:
            return
        self._refused = True
        self.requestHeaders.removeHeader(b"expect")  # no "100 Continue"
        transport: Any = self.channel.transport
        transport.write(b"HTTP/1.1 413 Content Too Large\r\nserver: owsla\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
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


class _Collected(Collector):
    """Adapter that passes collected metrics to an encoder."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def site(source: Source, reactor: Any, names: Collection[str] | None = None) -> QuietSite:
    """Return the site with all pages. `names`: see `Pages`."""

    def index(_: Request) -> Deferred[Answer]:
        return source.state().addCallback(lambda state: (200, _HTML, index_page(state)))

    def metrics(request: Request) -> Deferred[Answer]:
        encode, media_type = _encoder(request)
        return source.metrics().addCallback(lambda families: (200, media_type, encode(_Collected(families))))

    def healthz(_: Request) -> Deferred[Answer]:
        return succeed((200, _TEXT, "ok\n"))

    def readyz(_: Request) -> Deferred[Answer]:
        return source.state().addCallback(
            lambda state: (200 if state.ready else 503, _JSON, json.dumps(_readiness(state)) + "\n")
        )

    def tree(_: Request) -> Deferred[Answer]:
        return source.state().addCallback(lambda state: (200, _JSON, json.dumps(state.tree, indent=2) + "\n"))

    pages: dict[bytes, PageFunction] = {
        b"/": index,
        b"/metrics": metrics,
        b"/healthz": healthz,
        b"/readyz": readyz,
        b"/tree": tree,
    }
    return QuietSite(Pages(pages, names), timeout=IDLE, reactor=reactor)


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


def index_page(state: State) -> str:
    """Return the index page as HTML."""
    if state.workers is None:
        who, workers = f"node {state.node}", ""
    else:
        who = f"{len(state.workers)} worker{'s' if len(state.workers) != 1 else ''}"
        workers = _workers(state.workers)
    return _PAGE.format(
        version=html.escape(__version__),
        who=html.escape(who),
        css="ready" if state.ready else "not",
        state=html.escape("Ready" if state.ready else "Not ready: " + ", ".join(state.missing)),
        rows="\n".join(
            f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
            for name, text in _totals(state).items()
        ),
        doors=_doors(state.doors) if len(state.doors) > 1 else "",
        workers=workers,
        tree=html.escape(render(state.tree)),
    )


def _totals(state: State) -> dict[str, str]:
    numbers = state.numbers
    # Each door has a window of its own: one that is full is not seen in their sum.
    of_window = f" of {numbers.window:,}" if len(state.doors) <= 1 else ""
    return {
        "Devices connected": f"{numbers.open:,} of {numbers.max_connections:,}",
        "Handshakes in progress": f"{numbers.handshaking:,}",
        "Connections paused": f"{numbers.paused:,}",
        "Lines from devices": f"{numbers.lines_in:,}",
        "Lines to devices": f"{numbers.lines_out:,}",
        "Not yet confirmed": f"{numbers.unconfirmed:,}{of_window} lines",
        "Undeliverable": f"{numbers.undeliverable:,}",
    }


_TABLE: Final = """\
<h2>{title}</h2>
<div class="wide"><table>
<thead><tr><th>Name</th>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>"""

_FIGURES: Final[Mapping[str, Callable[[Numbers], int]]] = {
    "Devices": lambda numbers: numbers.open,
    "Lines from": lambda numbers: numbers.lines_in,
    "Lines to": lambda numbers: numbers.lines_out,
    "Unconfirmed": lambda numbers: numbers.unconfirmed,
    "Undeliverable": lambda numbers: numbers.undeliverable,
}


_DOOR_FIGURES: Final[Mapping[str, Callable[[DoorNumbers], str]]] = {
    "Connections": lambda door: f"{door.connections:,} of {door.max_connections:,}",
    "Lines from": lambda door: f"{door.lines_in:,}",
    "Unconfirmed": lambda door: f"{door.unconfirmed:,} of {door.window:,}",
}


def _doors(doors: Mapping[str, DoorNumbers]) -> str:
    heads = "".join(f"<th>{name}</th>" for name in _DOOR_FIGURES)
    return _TABLE.format(title="Doors", heads=heads, rows="\n".join(starmap(_door, doors.items())))


def _door(name: str, door: DoorNumbers) -> str:
    lines = _in_processes("takes lines", "waits", door.taking, door.processes)
    devices = _in_processes("accepting", "not accepting", door.accepting, door.processes)
    cells = "".join(f"<td>{figure(door)}</td>" for figure in _DOOR_FIGURES.values())
    return f"<tr><th scope=row>{html.escape(name)}<small>{lines}, {devices}</small></th>{cells}</tr>"


def _in_processes(if_all: str, if_none: str, count: int, processes: int) -> str:
    """Describe a condition that `count` of some processes meet."""
    if 0 < count < processes:
        return f"{if_all} in {count} of {processes} workers"
    return if_all if count else if_none


def _workers(workers: Iterable[WorkerState]) -> str:
    heads = "".join(f"<th>{name}</th>" for name in _FIGURES)
    return _TABLE.format(title="Workers", heads=heads, rows="\n".join(map(_worker, workers)))


def _worker(worker: WorkerState) -> str:
    says = worker.says
    if says is None:
        about = f"{worker.process}, no answer"
        figures = ["-" for _ in _FIGURES]
    else:
        about = f"node {says.node}, {worker.process if says.ready else _not_ready(worker.process, says)}"
        figures = [f"{figure(says.numbers):,}" for figure in _FIGURES.values()]
    cells = "".join(f"<td>{figure}</td>" for figure in figures)
    return f"<tr><th scope=row>{html.escape(worker.name)}<small>{html.escape(about)}</small></th>{cells}</tr>"


def _not_ready(process: str, says: State) -> str:
    """Describe why a worker is not ready. Its port may be open all the same."""
    return f"{'not ready' if process == 'ready' else process}: {', '.join(says.missing)}"
