"""The pages, as HTTP on a transport in memory."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

from prometheus_client.parser import text_string_to_metric_families as parse
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from owsla.http import ProcessSource
from owsla.http._site import IDLE
from owsla.supervision import render

from ._fakes import World, door, pages_site


class Text(HTMLParser):
    """What a page shows, and where its links lead."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str | None] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link"):
            self.open.append(tag)
        self.links += [value for name, value in attrs if tag == "a" and name == "href"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


class PagesTests(SynchronousTestCase):
    """Requests and answers."""

    def setUp(self) -> None:
        self.world = World()
        self.clock = Clock()
        self.site = pages_site(ProcessSource(self.world.readings), self.clock)
        self.site.doStart()
        self.addCleanup(self.site.doStop)

    def connect(self) -> tuple[Any, StringTransport]:
        transport = StringTransport()
        protocol: Any = self.site.buildProtocol(None)
        protocol.makeConnection(transport)
        return protocol, transport

    def ask(self, path: str, method: str = "GET", headers: str = "") -> tuple[int, dict[str, str], str]:
        """One request: status, headers, text."""
        protocol, transport = self.connect()
        protocol.dataReceived(f"{method} {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{headers}\r\n".encode())
        head, _, body = transport.value().partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        found = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if found.get("transfer-encoding") == "chunked":
            self.fail("every page is sent with its length")
        return int(first.split()[1]), found, body.decode()

    def test_healthz(self) -> None:
        """It answers whatever is missing: that the process turns is all it says."""
        self.world.health.ready = False
        self.assertEqual(self.ask("/healthz")[::2], (200, "ok\n"))

    def test_readyz(self) -> None:
        """200 where devices can be sent here; else 503, and what is missing."""
        status, headers, body = self.ask("/readyz")
        checks = {"broker_connected": True, "listener_accepting": True, "not_draining": True}
        self.assertEqual((status, headers["content-type"]), (200, "application/json"))
        self.assertEqual(json.loads(body), {"ready": True, "checks": checks})
        for missing in checks:
            self.world.health.ready = missing != "broker_connected"
            self.world.port.accepting = missing != "listener_accepting"
            self.world.draining = missing == "not_draining"
            status, _, body = self.ask("/readyz")
            self.assertEqual(status, 503)
            self.assertEqual(json.loads(body), {"ready": False, "checks": checks | {missing: False}})

    def test_metrics(self) -> None:
        """Prometheus gets the format it asks for, and everybody else plain text."""
        status, headers, body = self.ask("/metrics")
        self.assertEqual((status, headers["content-type"]), (200, "text/plain; version=0.0.4; charset=utf-8"))
        self.assertIn("owsla_connections", {family.name for family in parse(body)})
        _, headers, body = self.ask("/metrics", headers="Accept: application/openmetrics-text; version=1.0.0\r\n")
        self.assertTrue(headers["content-type"].startswith("application/openmetrics-text"))
        self.assertTrue(body.endswith("# EOF\n"))

    def test_odd_accept(self) -> None:
        """Whoever asks for a format that nobody can read gets plain text, and nothing is logged."""
        for accept in (
            "application/openmetrics-text; version",
            "application/openmetrics-text; version=",
            "application/openmetrics-text; version=x",
            "application/openmetrics-text; version=1.0.0; escaping",
            "text/plain; version=; escaping=nonsense",
            ";;;,,,==",
            "\u00ff",
        ):
            status, _, body = self.ask("/metrics", headers=f"Accept: {accept}\r\n")
            self.assertEqual((status, "owsla_connections" in body), (200, True), accept)

    def test_body(self) -> None:
        """A body is refused at its headers, before any of it is kept, in whichever way its length is told."""
        for method in ("POST", "PUT", "GET"):
            for headers in ("Content-Length: 1000000000000", "Transfer-Encoding: chunked", "Content-Length: 3"):
                protocol, transport = self.connect()
                protocol.dataReceived(
                    f"{method} /metrics HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\n{headers}\r\n\r\n".encode()
                )
                self.assertTrue(transport.value().startswith(b"HTTP/1.1 413 "), transport.value())
                self.assertTrue(transport.disconnecting)
                request = protocol._channel.requests[-1]
                protocol.dataReceived(b"3\r\nabc\r\n0\r\n\r\n" * 1000)
                self.assertEqual(request.content.read(), b"")
                self.assertEqual(transport.value().count(b"HTTP/1.1"), 1)

    def test_tree(self) -> None:
        """The tree's JSON is what `render` takes."""
        status, headers, body = self.ask("/tree")
        self.assertEqual((status, headers["content-type"]), (200, "application/json"))
        self.assertEqual(json.loads(body), self.world.tree)

    def test_index(self) -> None:
        """A page for people: well formed, with the state, the numbers, the tree and the way to the rest."""
        self.world.admission.open = 1234
        status, headers, body = self.ask("/")
        page = Text(body)
        self.assertEqual((status, headers["content-type"], page.open), (200, "text/html; charset=utf-8", []))
        self.assertEqual(page.links, ["/metrics", "/healthz", "/readyz", "/tree"])
        for text in ("0badcafe", "Ready", "1,234 of 10,000", render(self.world.tree)):
            self.assertIn(text, page.text)
        for path in page.links:
            self.assertEqual(self.ask(path or "")[0], 200)

    def test_static_files(self) -> None:
        """Styles and scripts are served with their type. A browser that has the same file gets no second copy."""
        status, headers, body = self.ask("/static/app.css")
        self.assertEqual((status, headers["content-type"]), (200, "text/css; charset=utf-8"))
        self.assertEqual(headers["cache-control"], "no-cache")
        self.assertTrue(body)
        status, kept, body = self.ask("/static/app.css", headers=f"If-None-Match: {headers['etag']}\r\n")
        self.assertEqual((status, body, kept["etag"]), (304, "", headers["etag"]))
        self.assertEqual(self.ask("/static/app.css", headers='If-None-Match: "other"\r\n')[0], 200)
        for path in (
            "/static/",
            "/static/index.html",
            "/static/../_static.py",
            "/static/%2e%2e/_static.py",
            "/static/app.css/",
        ):
            self.assertEqual(self.ask(path)[0], 404, path)

    def test_policy(self) -> None:
        """A browser runs scripts and applies styles of this gateway's files only, and none within a page."""
        policy = self.ask("/")[1]["content-security-policy"]
        self.assertIn("default-src 'none'; script-src 'self'; style-src 'self'", policy)
        self.assertNotIn("unsafe", policy)
        self.assertNotRegex(self.ask("/")[2], r"<style|<script(?! type=\"module\" src=)|\sstyle=|\son\w+=")

    def test_index_escapes(self) -> None:
        """What a failure says is text, never markup."""
        body = self.ask("/")[2]
        self.assertNotIn("<b>no</b>", body)
        self.assertIn("<b>no</b>", Text(body).text)

    def test_index_not_ready(self) -> None:
        """The page says in words what is missing."""
        self.world.health.ready = False
        self.world.draining = True
        self.assertIn("Not ready: the broker is not connected, the process is shutting down", Text(self.ask("/")[2]).text)

    def test_index_one_door(self) -> None:
        """With one door the page has no table of doors, and the totals are those of the door."""
        self.world.window.messages = 12
        text = Text(self.ask("/")[2]).text
        self.assertNotIn("Doors", text)
        self.assertIn("Not yet confirmed12 of 10,000 lines", text)

    def test_index_doors(self) -> None:
        """With several doors each has a row, and its own window: their sum would hide one that is full."""
        self.world.window.messages = 12
        self.world.doors["plain"] = door(taking=False, connections=34, unconfirmed=5600)
        self.world.doors["<b>full</b>"] = door(accepting=False)
        body = self.ask("/")[2]
        page = Text(body)
        self.assertEqual(page.open, [])
        self.assertNotIn("<b>", body)
        for text in (
            "Lines from devices5,626\n",
            "Not yet confirmed5,612 lines\n",
            "DoorsNameConnectionsLines fromUnconfirmed",
            "defaulttakes lines, accepting0 of 10,0001212 of 10,000\n",
            "plainwaits, accepting34 of 5005,6075,600 of 20,000\n",
            "<b>full</b>takes lines, not accepting0 of 50070 of 20,000\n",
        ):
            self.assertIn(text, page.text.replace("Doors\n\n", "Doors"))

    def test_nothing_else(self) -> None:
        """Any other path is a 404 that says what there is; nothing can be changed here."""
        for path in ("/metric", "/metrics/", "/tree/x", "//", "/../tree", "/favicon.ico"):
            status, _, body = self.ask(path)
            self.assertEqual((status, body), (404, "Not found. The pages are /, /metrics, /healthz, /readyz and /tree.\n"))
        for method in ("POST", "PUT", "DELETE"):
            status, headers, _ = self.ask("/tree", method)
            self.assertEqual((status, headers["allow"]), (405, "GET, HEAD"))

    def test_query(self) -> None:
        """Prometheus may add parameters; they change nothing."""
        self.assertEqual(self.ask("/healthz?a=b")[0], 200)

    def test_head(self) -> None:
        """A check that wants no body gets none."""
        status, headers, body = self.ask("/healthz", "HEAD")
        self.assertEqual((status, headers["content-length"], body), (200, "3", ""))

    def test_headers(self) -> None:
        """Nothing is kept by a cache, run, or guessed at, and the server's make is nobody's business."""
        for path in ("/", "/metrics", "/healthz", "/readyz", "/tree", "/none"):
            headers = self.ask(path)[1]
            self.assertEqual(
                (headers["cache-control"], headers["x-content-type-options"], headers["server"]),
                ("no-store", "nosniff", "owsla"),
            )
            self.assertIn("default-src 'none'", headers["content-security-policy"])

    def test_failure(self) -> None:
        """A reading that fails is a 500 for that page, on record in the log, and no detail for who asked."""
        self.world.readings.events.by_name.clear()
        self.world.tree = {}  # type: ignore[typeddict-item]
        status, _, body = self.ask("/metrics")
        self.assertEqual(status, 500)
        self.assertEqual(body, "This could not be answered; the log has the reason.\n")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual(self.ask("/healthz")[0], 200)

    def test_garbage(self) -> None:
        """What is not HTTP is answered with a 400 and closed."""
        protocol, transport = self.connect()
        protocol.dataReceived(b"\x16\x03\x01\x02\x00\r\n\r\n")
        self.assertTrue(transport.value().startswith(b"HTTP/1.1 400"))
        self.assertTrue(transport.disconnecting)

    def test_silence(self) -> None:
        """Whoever asks nothing is let go after a while: each connection is a file that a device could have."""
        _, transport = self.connect()
        self.clock.advance(IDLE - 1)
        self.assertFalse(transport.disconnecting)
        self.clock.advance(2)
        self.assertTrue(transport.disconnecting)
