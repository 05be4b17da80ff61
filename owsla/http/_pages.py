"""The pages. All are read-only, made anew for each request, and for GET and HEAD only."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from .. import __version__
from ..supervision import render
from ._collector import collector_for
from ._readings import Readings, readiness

IDLE: Final = 60.0
"""Seconds after which a connection that asks nothing is closed."""

_HTML: Final = "text/html; charset=utf-8"
_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"

_MISSING: Final = {
    "broker_connected": "the broker is not connected",
    "listener_accepting": "no devices are accepted",
    "not_draining": "it is stopping",
}

_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Owsla {node}</title>
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
pre {{ font: .85rem/1.6 ui-monospace, monospace; overflow-x: auto; padding: .75rem 1rem; border: 1px solid var(--line);
  border-radius: .4rem; }}
nav {{ margin-top: 1.5rem; }}
nav a {{ margin-right: 1.25rem; }}
</style>
</head>
<body>
<header>
<h1>Owsla</h1>
<p>Version {version}, node {node}</p>
</header>
<p class="state {css}">{state}</p>
<h2>Now</h2>
<table>
{rows}
</table>
<h2>Supervision tree</h2>
<pre>{tree}</pre>
<nav><a href="/metrics">/metrics</a><a href="/healthz">/healthz</a><a href="/readyz">/readyz</a><a href="/tree">/tree</a></nav>
</body>
</html>
"""


Answer = tuple[int, str, str | bytes]
"""A status, a media type and a text."""


class Pages(Resource):
    """Finds and renders a page by its path."""

    isLeaf = True

    def __init__(self, pages: Mapping[bytes, Callable[[Request], Answer]]) -> None:
        super().__init__()
        self._pages = pages

    def render(self, request: Request) -> bytes:
        make = self._pages.get(request.path, _nothing)
        if request.method not in (b"GET", b"HEAD"):
            make = _read_only
        status, media_type, text = make(request)
        request.setResponseCode(status)
        for name, value in (
            ("content-type", media_type),
            ("cache-control", "no-store"),
            ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:"),
            ("x-content-type-options", "nosniff"),
            ("server", "owsla"),
        ):
            request.setHeader(name.encode(), value.encode())
        return text if isinstance(text, bytes) else text.encode()


def _nothing(_: Request) -> Answer:
    return 404, _TEXT, "There are /, /metrics, /healthz, /readyz and /tree here.\n"


def _read_only(request: Request) -> Answer:
    request.setHeader(b"allow", b"GET, HEAD")
    return 405, _TEXT, "There is nothing to change here.\n"


class QuietSite(Site):
    """A site that does not log each request: Prometheus comes every few seconds, for ever."""

    noisy = False
    displayTracebacks = False

    def log(self, request: Any) -> None: ...


def site(readings: Readings, reactor: Any) -> QuietSite:
    """All pages."""
    registry = CollectorRegistry()
    registry.register(collector_for(readings))

    def index(_: Request) -> Answer:
        return 200, _HTML, index_page(readings)

    def metrics(request: Request) -> Answer:
        encode, media_type = choose_encoder(request.getHeader("accept") or "")
        return 200, media_type, encode(registry)

    def healthz(_: Request) -> Answer:
        return 200, _TEXT, "ok\n"

    def readyz(_: Request) -> Answer:
        checks = readiness(readings)
        ready = all(checks.values())
        return 200 if ready else 503, _JSON, json.dumps({"ready": ready, "checks": checks}) + "\n"

    def tree(_: Request) -> Answer:
        return 200, _JSON, json.dumps(readings.tree(), indent=2) + "\n"

    pages = {b"/": index, b"/metrics": metrics, b"/healthz": healthz, b"/readyz": readyz, b"/tree": tree}
    return QuietSite(Pages(pages), timeout=IDLE, reactor=reactor)


def index_page(readings: Readings) -> str:
    """The state in short, for people."""
    missing = [_MISSING[name] for name, is_so in readiness(readings).items() if not is_so]
    admission, window, hub = readings.admission, readings.window, readings.hub
    rows = {
        "Devices connected": f"{admission.open:,} of {admission.max_connections:,}",
        "Handshakes under way": f"{admission.handshaking:,}",
        "Connections not read": f"{hub.paused_connections:,}",
        "Lines from devices": f"{readings.producer.confirmed_lines + window.messages:,}",
        "Lines to devices": f"{hub.lines_out:,}",
        "Not yet confirmed": f"{window.messages:,} of {window.max_messages:,} lines",
        "Undeliverable": f"{sum(readings.courier.recorded.values()):,}",
    }
    return _PAGE.format(
        version=html.escape(__version__),
        node=html.escape(readings.node),
        css="not" if missing else "ready",
        state=html.escape("Not ready: " + ", ".join(missing) if missing else "Ready"),
        rows="\n".join(
            f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows.items()
        ),
        tree=html.escape(render(readings.tree())),
    )
