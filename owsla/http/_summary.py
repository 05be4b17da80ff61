"""The summary of a gateway as HTML: for browsers without scripts, and where the API is not enabled."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from itertools import starmap
from typing import Final

from .. import __version__
from ..supervision import render
from ._state import DoorNumbers, Numbers, State, WorkerState

_SUMMARY: Final = """\
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
"""


def title(state: State) -> str:
    """Return the title of the page as HTML."""
    return html.escape(f"Owsla {_who(state)}")


def _who(state: State) -> str:
    if state.workers is None:
        return f"node {state.node}"
    return f"{len(state.workers)} worker{'s' if len(state.workers) != 1 else ''}"


def summary(state: State) -> str:
    """Return the summary as HTML, without the page around it."""
    return _SUMMARY.format(
        version=html.escape(__version__),
        who=html.escape(_who(state)),
        css="ready" if state.ready else "not",
        state=html.escape("Ready" if state.ready else "Not ready: " + ", ".join(state.missing)),
        rows="\n".join(
            f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
            for name, text in _totals(state).items()
        ),
        doors=_doors(state.doors) if len(state.doors) > 1 else "",
        workers="" if state.workers is None else _workers(state.workers),
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
