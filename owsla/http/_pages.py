"""The pages. All are read-only, made anew for each request, and for GET and HEAD only."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import ip_address
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
from ._state import Numbers, State, WorkerState

IDLE: Final = 60.0
"""Seconds after which a connection that asks nothing is closed."""

CHECKS: Final = frozenset({b"/healthz", b"/readyz"})
"""Pages that answer under any name: an orchestrator must not end a gateway over a Host header."""

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
.workers {{ overflow-x: auto; }}
.workers td, .workers thead th {{ padding-left: 1rem; text-align: right; vertical-align: top; }}
.workers tr > th:first-child {{ padding-left: 0; text-align: left; min-width: 10rem; }}
.workers thead th, small {{ opacity: .75; }}
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
{workers}
<h2>Supervision tree</h2>
<pre>{tree}</pre>
</body>
</html>
"""


Answer = tuple[int, str, str | bytes]
"""A status, a media type and a text."""

Make = Callable[[Request], Deferred[Answer]]
"""Makes a page."""


class Pages(Resource):
    """Finds and renders a page by its path."""

    isLeaf = True
    _log = Logger(namespace="owsla.http")

    def __init__(self, pages: Mapping[bytes, Make], names: Collection[str] | None = None) -> None:
        """`names` are those of this machine, where others are not to be asked for (`is_ours`); `None`, where any are."""
        super().__init__()
        self._pages = pages
        self._names = names

    def render(self, request: Request) -> int:
        make = self._pages.get(request.path, _nothing)
        if self._names is not None and request.path not in CHECKS:
            hosts = request.requestHeaders.getRawHeaders(b"host", [])
            if not all(is_ours(host, self._names) for host in hosts):
                make = _misdirected
        if request.method not in (b"GET", b"HEAD"):
            make = _read_only
        answer: Deferred[Answer] = maybeDeferred(make, request)
        answer.addErrback(self._failed, request)
        answer.addCallback(self._write, request)
        return NOT_DONE_YET

    def _failed(self, failure: Failure, request: Request) -> Answer:
        self._log.failure("Making {page} failed", failure, page=request.path.decode("ascii", "replace"))
        return 500, _TEXT, "This page could not be made; the log says why.\n"

    def _write(self, answer: Answer, request: Request) -> None:
        if request.channel is None:
            return  # whoever asked is gone
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


def _nothing(_: Request) -> Deferred[Answer]:
    return succeed((404, _TEXT, "There are /, /metrics, /healthz, /readyz and /tree here.\n"))


def _read_only(request: Request) -> Deferred[Answer]:
    request.setHeader(b"allow", b"GET, HEAD")
    return succeed((405, _TEXT, "There is nothing to change here.\n"))


def _misdirected(_: Request) -> Deferred[Answer]:
    return succeed((421, _TEXT, "Ask by an address, as localhost, or by this machine's own name (Host).\n"))


def is_ours(host: bytes, names: Collection[str]) -> bool:
    """Return whether a Host header is an address, localhost, or one of `names`. Pure.

    In a browser another name may be that of a web page. Its owner can let it lead to 127.0.0.1, to read what answers there (DNS
    rebinding).
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
    """A request whose body is refused at its headers: Twisted would keep it on disk, without bound."""

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
        """Drop what comes before the connection is closed."""

    def process(self) -> None:
        if not self._refused:
            super().process()


class QuietSite(Site):
    """A site that does not log each request: Prometheus comes every few seconds, for ever."""

    noisy = False
    displayTracebacks = False
    requestFactory = BodilessRequest

    def log(self, request: Any) -> None: ...


class _Collected(Collector):
    """Metrics that are there already, as an encoder wants them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def site(source: Source, reactor: Any, names: Collection[str] | None = None) -> QuietSite:
    """All pages. `names` are as for `Pages`."""

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

    pages: dict[bytes, Make] = {b"/": index, b"/metrics": metrics, b"/healthz": healthz, b"/readyz": readyz, b"/tree": tree}
    return QuietSite(Pages(pages, names), timeout=IDLE, reactor=reactor)


def _encoder(request: Request) -> tuple[Callable[[Collector], bytes], str]:
    try:
        return choose_encoder(request.getHeader("accept") or "")
    except Exception:
        # Whatever prometheus-client cannot read (`version=` without a number, bytes that are no text) asks for nothing special.
        return choose_encoder("")


def _readiness(state: State) -> dict[str, Any]:
    """For whoever sends devices here."""
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
    """The state in short, for people."""
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
            for name, text in _totals(state.numbers).items()
        ),
        workers=workers,
        tree=html.escape(render(state.tree)),
    )


def _totals(numbers: Numbers) -> dict[str, str]:
    return {
        "Devices connected": f"{numbers.open:,} of {numbers.max_connections:,}",
        "Handshakes under way": f"{numbers.handshaking:,}",
        "Connections not read": f"{numbers.paused:,}",
        "Lines from devices": f"{numbers.lines_in:,}",
        "Lines to devices": f"{numbers.lines_out:,}",
        "Not yet confirmed": f"{numbers.unconfirmed:,} of {numbers.window:,} lines",
        "Undeliverable": f"{numbers.undeliverable:,}",
    }


_WORKERS: Final = """\
<h2>Workers</h2>
<div class="workers"><table>
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


def _workers(workers: Iterable[WorkerState]) -> str:
    heads = "".join(f"<th>{name}</th>" for name in _FIGURES)
    return _WORKERS.format(heads=heads, rows="\n".join(map(_worker, workers)))


def _worker(worker: WorkerState) -> str:
    says = worker.says
    if says is None:
        about = f"{worker.process}, no answer"
        figures = ["-" for _ in _FIGURES]
    else:
        about = f"node {says.node}, {worker.process if says.ready else _why_not(worker.process, says)}"
        figures = [f"{figure(says.numbers):,}" for figure in _FIGURES.values()]
    cells = "".join(f"<td>{figure}</td>" for figure in figures)
    return f"<tr><th scope=row>{html.escape(worker.name)}<small>{html.escape(about)}</small></th>{cells}</tr>"


def _why_not(process: str, says: State) -> str:
    """A worker's port may be open, and it be not ready all the same."""
    return f"{'not ready' if process == 'ready' else process}: {', '.join(says.missing)}"
