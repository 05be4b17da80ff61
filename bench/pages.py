"""Costs of the page and of questions to the control interface, with many devices connected.

    python -m bench.pages --devices 10000 --pages 10 --output pages.md

The pages are open in a headless Chromium (`--chromium`), each in a session of its own, as of ten people. For each view of the
page the CPU of the gateway is measured for `--seconds`, beside that without a page, and how late the reactor was at worst
(`/api/v1/history`). Then lists of devices are asked for, one after another.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.request import Request, urlopen

from playwright.sync_api import BrowserContext, Page, sync_playwright

from owsla.runtime.open_files import raise_open_files_limit

from .harness import Gateway, arguments, circumstances, command_line, free_port, percentile, publish, table
from .swarm import Swarm

TOKEN: Final = "a-token-for-the-measurement"

CHROMIUM: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Arguments of a browser that may not use the network for anything but the pages."""

VIEWS: Final = {"overview": "#/", "devices": "#/search", "top": "#/top", "events": "#/events", "system": "#/system"}
"""Views of the page, and their addresses."""

LISTS: Final = {
    "1,000 devices by lines": "devices?limit=1000&sort=-lines_in",
    "50 devices by connect": "devices?limit=50",
    "a search that finds nothing": "devices?query=nothing-has-this-id",
    "one device": "devices/127.0.0.1",
    "the state": "state",
}
"""Questions, and their addresses."""

SETTLE: Final = 5.0
"""Seconds between opening the pages and measuring: a page loads the history of its charts first."""


class Api:
    """Client of the control interface."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}/api/v1/"

    def get(self, path: str) -> Any:
        """Return the answer to a request."""
        request = Request(self.base + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def lateness(self, since: float) -> float:
        """Return how late the reactor was at worst since a time, in milliseconds."""
        samples = self.get("history?span=5m")["samples"]
        return max((sample["lateness"] for sample in samples if sample["time"] >= since * 1000), default=float("nan"))


@contextmanager
def pages(chromium: str, url: str, count: int) -> Iterator[list[Page]]:
    """Open the page in a browser, several times."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=list(CHROMIUM))
        contexts: list[BrowserContext] = [browser.new_context() for _ in range(count)]
        opened = [context.new_page() for context in contexts]
        for page in opened:
            page.goto(url)
            page.get_by_label("Token").fill(TOKEN)
            page.get_by_role("button", name="Open").click()
        yield opened
        browser.close()


def measure(gateway: Gateway, api: Api, seconds: float, wait: Callable[[float], object]) -> tuple[str, str]:
    """Measure the gateway for some seconds. Return the CPU that it used and its worst lateness, for the table."""
    spent, began, wall = gateway.cpu(), time.monotonic(), time.time()
    wait(seconds)
    share = (gateway.cpu() - spent) / (time.monotonic() - began)
    return f"{100 * share:.1f} %", f"{api.lateness(wall):.1f} ms"


def questions(gateway: Gateway, api: Api, count: int) -> Iterator[tuple[str, ...]]:
    """Ask each question some times, and yield a row of the table for it."""
    for name, path in LISTS.items():
        spent, wall = gateway.cpu(), time.time()
        durations = []
        for _ in range(count):
            began = time.monotonic()
            api.get(path)
            durations.append((time.monotonic() - began) * 1e3)
        spent = (gateway.cpu() - spent) / count
        time.sleep(2)  # until there is a sample of the last second
        yield (
            name,
            f"{percentile(durations, 0.5):.1f} ms",
            f"{max(durations):.1f} ms",
            f"{spent * 1e3:.1f} ms",
            f"{api.lateness(wall):.1f} ms",
        )


def main() -> None:
    parser = arguments("Measure the costs of the page, and of questions to the control interface.")
    parser.add_argument("--devices", type=int, default=10000, help="connections to hold (default: %(default)s)")
    parser.add_argument("--pages", type=int, default=10, help="pages that are open (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of each measurement (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=20, help="times that each list is asked for (default: %(default)s)")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser (default: %(default)s)")
    options = parser.parse_args()
    raise_open_files_limit()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="owsla-bench-") as folder:
        token = Path(folder) / "token"
        token.write_text(TOKEN)
        with Gateway("embedded", "--http", str(port), "--http-token-file", str(token)) as gateway, Swarm(gateway.port) as swarm:
            api = Api(port)
            connected = swarm.call("connect", count=options.devices, concurrency=50)["connected"]
            if connected < options.devices:
                raise SystemExit(f"only {connected} of {options.devices} devices could connect")
            time.sleep(SETTLE)
            rows = [("no page", *measure(gateway, api, options.seconds, time.sleep))]
            with pages(options.chromium, f"http://127.0.0.1:{port}/", options.pages) as opened:
                for view, address in VIEWS.items():
                    print(view, file=sys.stderr)
                    for page in opened:
                        page.evaluate("address => { location.hash = address }", address)
                    opened[0].wait_for_timeout(SETTLE * 1e3)
                    wait = lambda seconds: opened[0].wait_for_timeout(seconds * 1e3)  # noqa: E731
                    rows.append((f"{options.pages} pages, {view}", *measure(gateway, api, options.seconds, wait)))
            asked = list(questions(gateway, api, options.questions))
    text = "\n\n".join(
        [
            "# Costs of the page and of questions",
            f"{circumstances('embedded')}. {options.devices} idle devices; {options.seconds:g} s for each row of the first "
            f"table, {options.questions} requests for each of the second. CPU is that of the gateway, of one core; lateness is "
            "that of a call that the reactor makes ten times a second, at worst.",
            f"    {command_line()}",
            table(("open", "CPU of the gateway", "worst lateness"), rows),
            table(("question", "answered after, median", "at most", "CPU of the gateway", "worst lateness"), asked),
        ]
    )
    publish(text, options.output)


if __name__ == "__main__":
    main()
