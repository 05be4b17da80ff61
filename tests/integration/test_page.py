"""The page in a real Chromium: one gateway and one browser for all tests."""

from __future__ import annotations

import json
import re
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, Route, expect

from ._support.browser import Chromium, Tab
from ._support.commands import Commands
from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.waiting import block_on, reactor_test
from .test_doors import port_of
from .test_http import http_port

TOKEN = "a-token-for-everything"
READ_TOKEN = "a-token-to-look-only"

DIALECT = '''
"""The first line is the device id."""

from owsla.dialects import Dialect


class Named(Dialect):
    def line(self, line):
        if self.conversation.device_id is None:
            self.conversation.identify(line.decode())
            self.conversation.answer(b"hello " + line)
        else:
            self.conversation.publish(line)
'''

HOSTILE = [
    '<img src=x onerror="document.title=1">',
    "<script>document.title = 1</script>",
    "javascript:document.title=1",
    '"><svg onload=document.title=1>',
    "#/device/other?q=1",
    "../../api/v1/drain",
    "100% %2F %zz",
    "a & b &amp; c",
    "מד־7 (שער)",
    "__proto__",
    "x" * 255,
]
"""Ids that devices can have."""

UNPRINTABLE = ["\u202egnp.exe", "zero\u0000byte", "x" * 10240, "half\ud800surrogate", "two\nlines"]
"""Ids that no device can have today, since they are not printable or too long. The page does not rely on that."""


@dataclass
class Desk:
    """The gateway, its HTTP port, and the browser."""

    gateway: Gateway
    port: int
    plain_port: int
    browser: Chromium

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def device(self, lab: Lab, name: str) -> Device:
        """Connect a device with an id."""
        device = await lab.device(self.gateway)
        device.send_line(name.encode())
        assert await device.line() == b"hello " + name.encode()
        return device

    async def connection_id(self, device: Device) -> str:
        """Return the id of a connection, from the message of a line."""
        return await self.gateway.introduce(device)


@pytest.fixture(scope="module")
def desk(
    module_lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path_factory: pytest.TempPathFactory, require_chromium: None
) -> Iterator[Desk]:
    """Return a gateway of two workers with an API, and a browser."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "named.py").write_text(DIALECT)
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "read-token").write_text(f"{READ_TOKEN}\n")
    browser = Chromium()

    async def start() -> Desk:
        options: dict[str, Any] = {
            "http": 0,
            "http_token_file": folder / "token",
            "http_read_token_file": folder / "read-token",
            "control": "off",
            "workers": 2,
            "dialect": "named:Named",
            "listen": ["tcp:0:name=plain:interface=127.0.0.1:dialect=lines"],
            "env": {"PYTHONPATH": str(folder)},
        }
        gateway = await module_lab.gateway(embedded.url, **options)
        await browser.start()
        return Desk(gateway, await http_port(gateway.owsla), await port_of(gateway.owsla, "plain"), browser)

    try:
        yield block_on(start())
    finally:
        block_on(browser.close())


class Opened:
    """A tab with the page, and the token that was typed."""

    def __init__(self, desk: Desk, tab: Tab) -> None:
        self.desk = desk
        self.tab = tab

    async def open(self, route: str = "#/", token: str | None = TOKEN) -> None:
        """Open a route of the page, with a token."""

        def act(page: Page) -> None:
            if token is not None:
                page.add_init_script(f"sessionStorage.setItem('owsla-token', {json.dumps(token)})")
            page.goto(f"{self.desk.origin}/{route}")
            if token is not None:
                expect(page.get_by_role("link", name="Ready", exact=True)).to_be_visible()

        await self.do(act)

    async def do(self, act: Any) -> Any:
        """Run a function with the page in the thread of the browser."""
        return await self.desk.browser.run(act, self.tab.page)


@pytest.fixture
def opened(desk: Desk) -> Iterator[Opened]:
    """Return a tab. No error, violation of the policy or request elsewhere may have happened in it at the end."""
    tab = block_on(desk.browser.tab(desk.origin))
    yield Opened(desk, tab)
    problems = list(tab.problems)
    block_on(desk.browser.close_tab(tab))
    assert problems == []


@reactor_test
async def test_token(opened: Opened) -> None:
    """Without a token the page asks for one, says when it is wrong, and opens with the right one. It is not in the URL, and the
    tab keeps it at a reload. With the read token nothing can be done. A link with a token in its fragment, opened in the same
    tab, replaces the token.
    """

    def act(page: Page) -> None:
        field = page.get_by_label("Token")
        expect(field).to_be_focused()
        field.fill("wrong")
        field.press("Enter")
        expect(page.get_by_text("does not accept this token")).to_be_visible()
        field.fill(TOKEN)
        field.press("Enter")
        expect(page.get_by_role("link", name="Ready", exact=True)).to_be_visible()
        assert TOKEN not in page.url
        page.reload()
        expect(page.get_by_role("link", name="Ready", exact=True)).to_be_visible()
        page.goto(f"{opened.desk.origin}/#/device/nobody")
        expect(page.get_by_role("button", name="Start trace")).to_be_visible()
        page.evaluate("(token) => sessionStorage.setItem('owsla-token', token)", READ_TOKEN)
        page.reload()
        expect(page.get_by_text("Not connected")).to_be_visible()
        expect(page.get_by_role("button", name=re.compile("trace|Kick"))).to_have_count(0)
        page.goto(f"{opened.desk.origin}/#token={TOKEN}")
        expect(page.get_by_role("link", name="Ready", exact=True)).to_be_visible()
        page.goto(f"{opened.desk.origin}/#/device/nobody")
        expect(page.get_by_role("button", name="Start trace")).to_be_visible()
        page.go_back()
        expect(page.get_by_role("heading", name="Charts")).to_be_visible()
        assert TOKEN not in page.url

    await opened.open(token=None)
    await opened.do(act)
    opened.tab.expect_problem("status of 401")
    opened.tab.expect_problem("status of 404")


@reactor_test
async def test_swarm(opened: Opened, lab: Lab, tmp_path: Path) -> None:
    """A page that is open shows a swarm that connects: in the numbers, in the charts with their values under the pointer and by
    worker, in the events as they happen, in the list, and among the top talkers.
    """
    await opened.open()
    commands = Commands(tmp_path / "swarm")
    try:
        arguments = ["--plain", "--mode=flood", "--connections=40", "--rate=100", "--seconds=600"]
        commands.start("swarm", f"--port={opened.desk.plain_port}", *arguments)

        def watch(page: Page) -> None:
            tile = page.locator(".tile", has_text="Devices").locator(".value")
            expect(tile).to_have_text("40")
            chart = page.get_by_role("slider", name="Devices")
            expect(chart).to_have_attribute("aria-valuetext", "now: connected 40")
            chart.focus()
            page.keyboard.press("ArrowLeft")
            expect(chart).to_have_attribute("aria-valuetext", re.compile(r"\d\d:\d\d:\d\d: connected \d+"))
            lines = page.get_by_role("slider", name="Lines a second")
            expect(lines).to_have_attribute("aria-valuetext", re.compile(r"now: in [1-9]"))
            lines.hover()
            expect(lines.locator(".tip")).to_contain_text(re.compile("in.*out", re.S))
            assert lines.locator("path.line").count() == 2
            page.get_by_role("button", name="By worker").click()
            expect(lines).to_have_attribute("aria-valuetext", re.compile(r"worker-1 [\d,.]+, worker-2 [\d,.]+"))
            page.get_by_role("button", name="1 hour").click()
            expect(page.get_by_text("30 min").first).to_be_visible()
            page.keyboard.press("4")
            expect(page.get_by_role("log").get_by_text(re.compile("^Device connected: .*door plain")).first).to_be_visible()
            page.keyboard.press("3")
            expect(page.get_by_role("heading", name="Top talkers")).to_be_visible()
            expect(page.get_by_role("table", name="Top talkers").get_by_role("row")).to_have_count(21)
            page.keyboard.press("2")
            expect(page.get_by_role("status").filter(has_text="40 connections")).to_be_visible()
            page.get_by_label("Door").select_option("default")
            expect(page.get_by_role("status").filter(has_text="0 connections")).to_be_visible()

        await opened.do(watch)
    finally:
        commands.close()


@reactor_test
async def test_customer_calls(opened: Opened, lab: Lab) -> None:
    """ "My device does not work": its id and Enter lead to the device, by its address or connection id too. The view has the
    facts, and goes on to say when and why the connection ended.
    """
    name = f"meter-{secrets.token_hex(4)}"
    device = await opened.desk.device(lab, name)
    connection_id = await opened.desk.connection_id(device)
    similar = await opened.desk.device(lab, f"{name}0")
    await opened.open()

    def search(page: Page) -> None:
        page.keyboard.press("/")
        box = page.get_by_role("searchbox", name="Find a device")
        expect(box).to_be_focused()
        page.keyboard.type(name[2:].upper())
        expect(page).to_have_url(re.compile(rf"#/search\?q={name[2:].upper()}$"))
        expect(page.get_by_role("status").filter(has_text="2 connections")).to_be_visible()
        box.fill(name)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name=name)).to_be_visible()
        card = page.get_by_role("article")
        for text in (connection_id, "127.0.0.1:", "default", "TLSv1.3", "worker-", "Lines in2 ", "Held0", "now|s ago"):
            expect(card).to_contain_text(re.compile(text))
        page.keyboard.press("Escape")
        expect(page).to_have_url(re.compile("#/search"))
        box.fill(connection_id)
        box.press("ArrowDown")
        box.press("Enter")
        expect(page.get_by_role("heading", name=connection_id)).to_be_visible()
        expect(card).to_contain_text(name)

    await opened.do(search)
    await device.close()
    await similar.close()

    def ended(page: Page) -> None:
        expect(page.get_by_text("Not connected. The last end: ")).to_be_visible()
        box = page.get_by_role("searchbox", name="Find a device")
        box.fill(name)
        expect(page.get_by_text("No connected device has this")).to_be_visible()
        link = page.get_by_role("list", name="Recent ends and refusals").get_by_role("link", name=name, exact=True)
        expect(link).to_be_visible()
        box.press("ArrowDown")
        if not link.evaluate("link => link === document.activeElement"):
            page.keyboard.press("ArrowDown")  # it is the second one: the other connection ended later
        expect(link).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("list", name="Last ends and refusals")).to_contain_text("Device disconnected")

    await opened.do(ended)


@reactor_test
async def test_kick(opened: Opened, lab: Lab) -> None:
    """A device is kicked after a question, which Esc and Cancel answer with no. Of several connections of a device one can be
    kicked, or all.
    """
    name = f"twin-{secrets.token_hex(4)}"
    first, second, third = [await opened.desk.device(lab, name) for _ in range(3)]
    await opened.open(f"#/device/{name}")

    def refuse(page: Page) -> None:
        expect(page.get_by_role("article")).to_have_count(3)
        kick = page.get_by_role("article").last.get_by_role("button", name="Kick")
        kick.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("Kick this device?")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        kick.click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page.get_by_role("article")).to_have_count(3)
        kick.click()
        page.get_by_role("dialog").get_by_role("button", name="Kick").click()
        expect(page.get_by_text("Kicked: 1 connection closed.")).to_be_visible()
        expect(page.get_by_role("article")).to_have_count(2)

    await opened.do(refuse)
    assert [device.is_open for device in (first, second, third)].count(False) == 1

    def kick_all(page: Page) -> None:
        page.get_by_role("button", name="Kick all").click()
        expect(page.get_by_role("dialog")).to_contain_text("Close 2 connections")
        page.get_by_role("dialog").get_by_role("button", name="Kick all").click()
        expect(page.get_by_text("Kicked: 2 connections closed.")).to_be_visible()
        expect(page.get_by_text("Not connected. The last end: ")).to_be_visible()
        expect(page.get_by_role("list", name="Last ends and refusals")).to_contain_text("token from 127.0.0.1")

    await opened.do(kick_all)
    for device in (first, second, third):
        await device.closed()


@reactor_test
async def test_trace(opened: Opened, lab: Lab, tmp_path: Path) -> None:
    """A device that is not connected is traced from its next connection: lines both ways with sizes, and bodies if wanted, as
    text. The trace can be saved. It ends with a click, or when the view is left, and both are events.
    """
    name = f"traced-{secrets.token_hex(4)}"
    await opened.open(f"#/device/{name}")

    def begin(page: Page) -> None:
        expect(page.get_by_text("trace it from its next connection")).to_be_visible()
        page.get_by_label("bodies").check()
        page.get_by_role("button", name="Start trace").click()
        expect(page.get_by_role("button", name="Stop trace")).to_be_visible()

    await opened.do(begin)
    await opened.desk.gateway.owsla.wait_for_line(f"Trace started: .*{name}")
    device = await opened.desk.device(lab, name)
    device.send_line(b"<b>21.5</b> \xe2\x82\xac", b"\xff\x00")
    await opened.desk.gateway.send(await opened.desk.connection_id(device), b"set 42")
    assert await device.line() == b"set 42"

    def look(page: Page) -> None:
        trace = page.get_by_role("list", name="Trace")
        expect(trace).to_contain_text("<b>21.5</b> €")
        expect(trace).to_contain_text("ff 00")
        expect(trace.locator(".is-out", has_text="set 42")).to_contain_text("6 B")
        with page.expect_download() as download:
            page.get_by_role("button", name="Save").click()
        download.value.save_as(tmp_path / "trace.ndjson")
        page.get_by_role("button", name="Stop trace").click()
        expect(page.get_by_text(re.compile("^Stopped"))).to_be_visible()

    await opened.do(look)
    await opened.desk.gateway.owsla.wait_for_line(f"Trace ended: .*{name}")
    records = [json.loads(line) for line in (tmp_path / "trace.ndjson").read_text().splitlines()]
    assert "set 42" in [record.get("body") for record in records]
    mark = opened.desk.gateway.owsla.mark()

    await opened.do(lambda page: page.get_by_role("button", name="Start trace").click())
    await opened.desk.gateway.owsla.wait_for_line(f"Trace started: .*{name}", start=mark)
    device.send_line(b"again")

    def leave(page: Page) -> None:
        expect(page.get_by_role("list", name="Trace").locator(".is-in")).to_contain_text("again")
        page.get_by_role("link", name="Events").click()

    await opened.do(leave)
    await opened.desk.gateway.owsla.wait_for_line(f"Trace ended: .*{name}", start=mark)
    opened.tab.expect_problem("status of 404")


@reactor_test
async def test_hostile_ids(opened: Opened, lab: Lab) -> None:
    """An id is text, whatever is in it: in lists, views, events, titles and links. It leads to its own device."""
    devices = [await opened.desk.device(lab, name) for name in HOSTILE]
    await opened.open("#/search?sort=device_id")

    def look(page: Page) -> None:
        links = page.locator("tbody a.device")
        expect(links).to_have_count(len(HOSTILE))
        for href in links.evaluate_all("links => links.map(link => link.getAttribute('href'))"):
            assert href.startswith("#/device/"), href
        for name in HOSTILE:
            page.goto(f"{opened.desk.origin}/#/device/{quote(name, safe='')}")
            expect(page.get_by_role("article")).to_have_count(1)
            shown = page.get_by_role("heading", level=1)
            expect(shown).to_have_text(name if len(name) <= 120 else re.compile(r"^x+…x+$"))
            assert page.title().endswith("workers")
        page.goto(f"{opened.desk.origin}/#/events?kind=device-identified")
        expect(page.get_by_role("log").get_by_role("link")).not_to_have_count(0)
        assert page.locator("#content :is(img, script, svg[onload])").count() == 0

    await opened.do(look)
    for device in devices:
        await device.close()


@reactor_test
async def test_impossible_ids(opened: Opened) -> None:
    """Ids that are not printable or very long show their characters by number, and stay on the screen."""
    rows = [
        {"connection_id": f"0badcafe-{number}", "device_id": name, "node": name, "worker": None, "peer": name, "door": name}
        for number, name in enumerate(UNPRINTABLE)
    ]
    event = {
        "time": 1,
        "node": "n",
        "worker": None,
        "event": "x" * 999,
        "warning": True,
        "text": "\u202e<b>",
        "fields": rows[0],
    }

    def answer(route: Route) -> None:
        url = route.request.url
        body: object = {"devices": rows, "total": len(rows), "next": None, "missing": ["\u202e<b>"]}
        if "/ends" in url:
            body = {"ends": [event], "missing": []}
        elif "/devices/" in url:
            body = {"connections": [rows[2] | {"findings": ["\u202e<b>"]}], "total": 1, "findings": [], "ends": [event]}
        route.fulfill(body=json.dumps(body), content_type="application/json")

    def look(page: Page) -> None:
        page.route("**/api/v1/devices**", answer)
        page.route("**/api/v1/ends**", answer)
        page.route("**/api/v1/devices/**", answer)
        page.goto(f"{opened.desk.origin}/#/search")
        cells = page.locator("tbody a.device")
        expect(cells).to_have_count(len(UNPRINTABLE))
        expect(cells.nth(0)).to_have_text("⟨202E⟩gnp.exe")
        expect(cells.nth(1)).to_have_text("zero⟨0000⟩byte")
        for number in range(len(UNPRINTABLE)):
            page.goto(f"{opened.desk.origin}/#/search")
            cells.nth(number).click()
            expect(page.get_by_role("article")).to_have_count(1)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0

    await opened.open()
    await opened.do(look)


@reactor_test
async def test_stale(opened: Opened) -> None:
    """When the gateway hangs, the page says that its data is old, and that it is current when it goes on."""
    await opened.open()
    process = opened.desk.gateway.owsla.process
    process.signal(signal.SIGSTOP)
    try:
        await opened.do(lambda page: expect(page.get_by_role("link", name=re.compile("Stale: "))).to_be_visible())
    finally:
        process.signal(signal.SIGCONT)
    await opened.do(lambda page: expect(page.get_by_role("link", name="Ready", exact=True)).to_be_visible())


@reactor_test
async def test_cheap(opened: Opened) -> None:
    """A page has one stream, and another one where it shows events. It asks for nothing that it does not show, and for nothing
    at all while its tab is hidden.
    """
    await opened.open("#/search?q=none")

    def act(page: Page) -> None:
        tab = opened.tab
        assert tab.streams == {"/api/v1/live"}
        assert not [path for path in tab.requests if re.search("/api/v1/(top|events)|span=1h", path)]
        page.keyboard.press("4")
        expect(page.get_by_role("log")).to_be_visible()
        # Not `wait_for_function`, which makes a function of a text in the page: its policy forbids that.
        asked = "performance.getEntriesByType('resource').some(one => one.name.includes('/events?'))"
        for _ in range(200):
            if page.evaluate(asked):
                break
            page.wait_for_timeout(50)
        page.wait_for_timeout(300)
        assert tab.streams == {"/api/v1/live", "/api/v1/events"}
        page.evaluate(HIDE, True)
        expect(page.get_by_role("link", name="Paused")).to_be_visible()
        assert tab.streams == set()
        before = len(tab.requests)
        page.keyboard.press("3")
        page.wait_for_timeout(2500)
        assert tab.requests[before:] == []
        page.evaluate(HIDE, False)
        expect(page.get_by_role("link", name="Ready", exact=True)).to_be_visible()
        expect(page.get_by_role("heading", name="Top talkers")).to_be_visible()
        assert tab.streams == {"/api/v1/live"}

    await opened.do(act)


HIDE = """(hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""

VIEWS = ["#/", "#/search", "#/top", "#/events", "#/system", "#/device/127.0.0.1"]


@reactor_test
async def test_looks(opened: Opened, lab: Lab) -> None:
    """All views fit a telephone of 360 pixels, and follow the colours of the system, with enough contrast."""
    await opened.desk.device(lab, f"seen-{secrets.token_hex(4)}")
    await opened.open()

    def act(page: Page) -> None:
        colours = {}
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            colours[scheme] = page.evaluate(CONTRASTS)
            assert min(colours[scheme].values()) >= 4.5, colours
        page.set_viewport_size({"width": 360, "height": 740})
        for view in VIEWS:
            page.goto(f"{opened.desk.origin}/{view}")
            expect(page.locator("#content h2").first).to_be_visible()
            page.wait_for_timeout(200)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, view

    await opened.do(act)


CONTRASTS = """() => {
    const style = getComputedStyle(document.documentElement);
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const light = (name) => {
        canvas.fillStyle = style.getPropertyValue(name).trim();
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const pairs = [["--text", "--surface"], ["--quiet", "--surface"], ["--quiet", "--ground"], ["--accent", "--surface"],
        ["--on-accent", "--accent"], ["--good", "--good-ground"], ["--warn", "--warn-ground"], ["--bad", "--bad-ground"]];
    return Object.fromEntries(pairs.map(([one, other]) => {
        const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
        return [`${one} ${other}`, (a + 0.05) / (b + 0.05)];
    }));
}"""


@reactor_test
async def test_system(opened: Opened) -> None:
    """The view of the parts has the doors, workers, broker connections, certificates and the supervision tree."""
    await opened.open("#/system")

    def act(page: Page) -> None:
        for heading in ("Broker connections", "Certificates", "Doors", "Workers", "Supervision tree"):
            expect(page.get_by_role("heading", name=heading)).to_be_visible()
        expect(page.get_by_role("table", name="Doors")).to_contain_text("plain")
        expect(page.get_by_role("table", name="Workers")).to_contain_text("worker-2")
        expect(page.get_by_role("table", name="Broker connections")).to_contain_text("127.0.0.1")
        expect(page.get_by_role("table", name="Certificates")).to_contain_text(re.compile(r"default.*\d{4}-\d\d-\d\d", re.S))
        expect(page.locator(".tree")).to_contain_text(re.compile("owsla.*worker-1.*worker-2", re.S))

    await opened.do(act)


@reactor_test
async def test_event_filters(opened: Opened, lab: Lab) -> None:
    """Events are filtered by kind, text and warnings; the filters are in the URL, which works in another browser. A list that
    stands still counts the new ones.
    """
    name = f"filtered-{secrets.token_hex(4)}"
    await opened.open("#/events")

    async def come_and_go() -> None:
        await (await opened.desk.device(lab, name)).close()

    await come_and_go()

    def choose(page: Page) -> None:
        log = page.get_by_role("log")
        page.get_by_label("Text in the event").fill(name)
        expect(log.get_by_role("listitem")).to_have_count(2)
        page.get_by_label("Kind of event").select_option("device-disconnected")
        expect(log.get_by_role("listitem")).to_have_count(1)
        expect(page).to_have_url(re.compile(f"#/events\\?(q={name}|kind=device-disconnected|&)+$"))
        page.reload()
        expect(log.get_by_role("listitem")).to_have_count(1)
        page.get_by_role("button", name="Pause").click()

    await opened.do(choose)
    await come_and_go()

    def go_on(page: Page) -> None:
        expect(page.get_by_text("paused, 1 new")).to_be_visible()
        expect(page.get_by_role("log").get_by_role("listitem")).to_have_count(1)
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("log").get_by_role("listitem")).to_have_count(2)
        page.get_by_label("warnings").check()
        expect(page.get_by_text("No event that is remembered matches.")).to_be_visible()

    await opened.do(go_on)


@reactor_test
async def test_without_api(opened: Opened) -> None:
    """Without the API the page shows the summary that the gateway makes, and how to get the rest."""

    def act(page: Page) -> None:
        page.route("**/api/v1", lambda route: route.fulfill(status=404, body="Not found."))
        page.goto(opened.desk.origin)
        expect(page.get_by_role("heading", name="Owsla")).to_be_visible()
        expect(page.get_by_text("Lines from devices")).to_be_visible()
        expect(page.get_by_text("--http-token-file")).to_be_visible()

    await opened.do(act)
    opened.tab.expect_problem("status of 404")
