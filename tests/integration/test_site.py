"""Tests of the documentation as a site, which packaging/site/conf.py makes of the pages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Page, expect

from ._support.browser import Chromium
from ._support.waiting import reactor_test

_ROOT: Final = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of the site, built without a warning: a link or an anchor that leads nowhere is one."""
    for module in ("furo", "myst_parser", "sphinx"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--fresh-env"]
    command += ["-q", "-c", "packaging/site", ".", str(folder)]
    ended = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    yield folder
    shutil.rmtree(folder)


class _Page(HTMLParser):
    """The links and anchors of a page, and the files that it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("index", "search", "next", "prev") and "href" in values:
            self.loaded.append(values["href"])
        elif "src" in values:
            self.loaded.append(values["src"])


def test_links(site: Path) -> None:
    """Every link within the site leads to a file, and to an anchor where it names one; every loaded file is in the site."""
    pages = {path: _Page(path) for path in sorted(site.rglob("*.html"))}
    assert len(pages) > 30
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto") and link not in page.loaded:
                continue
            assert not parts.scheme, f"{path}: loads {link}"
            assert not parts.netloc, f"{path}: {link}"
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path}: {link}"
            if parts.fragment and target in pages and parts.path not in ("search.html", "../search.html"):
                assert unquote(parts.fragment) in pages[target].anchors, f"{path}: {link}"


def test_styles(site: Path) -> None:
    """No style sheet loads a font or another file from elsewhere."""
    for path in site.rglob("*.css"):
        assert not re.search(r"""(url\(|@import)\s*["']?(https?:)?//""", path.read_text()), path


def test_index(site: Path) -> None:
    """The index is README.md, and its navigation has every page of docs/."""
    links = set(_Page(site / "index.html").links)
    for page in (_ROOT / "docs").glob("*.md"):
        assert f"docs/{page.stem}.html" in links, page.name


@reactor_test
async def test_in_browser(site: Path, require_chromium: None) -> None:
    """From a folder, without a web server: no page loads anything from elsewhere or is wider than a telephone; search works."""
    browser = Chromium()
    try:
        await browser.start()
        tab = await browser.tab("file://", viewport={"width": 390, "height": 800}, color_scheme="dark")

        def read(page: Page) -> None:
            for path in sorted(site.rglob("*.html")):
                page.goto(path.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= 390, path

        def search(page: Page) -> None:
            # Its results have no summaries: without a web server, a script may not read the pages.
            page.goto((site / "search.html").as_uri() + "?q=drain-timeout")
            expect(page.locator("#search-results li").first).to_be_visible()

        await browser.run(read, tab.page)
        assert tab.problems == []
        await browser.run(search, tab.page)
    finally:
        await browser.close()
