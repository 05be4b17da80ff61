"""A real Chromium, controlled with Playwright from a thread of its own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Playwright,
    Request,
    expect,
    sync_playwright,
)
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from .waiting import current_reactor, within

T = TypeVar("T")

ARGUMENTS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

PATIENCE: Final = 15.0
"""Seconds that Playwright waits for what a test expects of a page."""


class Tab:
    """A page in a browser profile of its own, with all that went wrong in it."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.problems: list[str] = []
        """Errors and violations of the Content-Security-Policy, and requests to other origins."""
        self.requests: list[str] = []
        """Paths of all requests, with their queries."""
        self.streams: set[str] = set()
        """Paths of the streams that are open."""
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"{error}\n{error.stack}"))
        page.on("request", self._request)
        page.on("requestfailed", self._finished)
        page.on("requestfinished", self._finished)
        page.on("dialog", self._dialog)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.text} ({message.location.get('url')})")

    def _dialog(self, dialog: Dialog) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("data", "blob"):
            return
        if f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.problems.append(f"a request to {request.url}")
        self.requests.append(f"{parts.path}?{parts.query}" if parts.query else parts.path)
        if request.headers.get("accept") == "text/event-stream":
            self.streams.add(parts.path)

    def _finished(self, request: Request) -> None:
        if request.headers.get("accept") == "text/event-stream":
            self.streams.discard(urlsplit(request.url).path)

    def expect_problem(self, pattern: str) -> None:
        """Drop the problems that match, of which there must be one."""
        rest = [problem for problem in self.problems if not re.search(pattern, problem)]
        assert rest != self.problems, f"no problem matches {pattern!r}: {self.problems}"
        self.problems = rest


class Chromium:
    """A browser. Functions that use its pages run in its thread, since Playwright's objects belong to one."""

    def __init__(self) -> None:
        self._pool = ThreadPool(1, 1, "chromium")
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None

    async def start(self) -> Chromium:
        """Start the browser."""
        self._pool.start()
        await self.run(self._launch, timeout=60)
        return self

    def _launch(self) -> None:
        self._playwright = sync_playwright().start()
        expect.set_options(timeout=PATIENCE * 1000)
        self._browser = self._playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(ARGUMENTS))

    async def run(self, function: Callable[..., T], *arguments: Any, timeout: float = 120) -> T:
        """Run a function in the thread of the browser, while the reactor runs."""
        result: T = await within(deferToThreadPool(current_reactor(), self._pool, function, *arguments), timeout)
        return result

    async def tab(self, origin: str, **options: Any) -> Tab:
        """Open an empty page in a new profile. `options` are those of Playwright's `new_context`."""

        def new() -> Tab:
            assert self._browser is not None, "not started"
            context: BrowserContext = self._browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
            context.set_default_timeout(PATIENCE * 1000)
            return Tab(context.new_page(), origin)

        return await self.run(new)

    async def close_tab(self, tab: Tab) -> None:
        """Close a page and its profile."""
        await self.run(tab.page.context.close)

    async def close(self) -> None:
        """End the browser, if it was started."""
        if not self._pool.started:
            return

        def end() -> None:
            if self._browser is not None:
                self._browser.close()
            if self._playwright is not None:
                self._playwright.stop()

        try:
            await self.run(end, timeout=30)
        finally:
            self._pool.stop()
