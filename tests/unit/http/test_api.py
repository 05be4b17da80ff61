"""The API, as HTTP on a transport in memory."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Request

from owsla.desk import BadArgument
from owsla.http import ApiParts, History, ProcessSource, Tokens
from owsla.http._access import Access, Caller, TokenAccess
from owsla.http._api import Api
from owsla.http._site import make_site
from owsla.http._streams import Streams

from ._fakes import NOW, FakeActions, FakeDesk, World

FULL, READING = "full-0123456789ab", "read-0123456789ab"
BY = "user ann (uid 7)"


class FakeAccess:
    """Access of an operator with a name."""

    def caller(self, request: Request) -> Caller:
        return Caller(True, lambda: succeed(BY))


class ApiCase(SynchronousTestCase):
    """An API at one address."""

    access: Access = FakeAccess()
    names: Any = None

    def setUp(self) -> None:
        self.world = World()
        self.clock: Any = Clock()
        self.desk = FakeDesk({"traces": {"traces": []}})
        self.actions = FakeActions()
        self.history = History()
        parts = ApiParts(self.desk, ProcessSource(self.world.readings), self.actions.actions, self.history, lambda: NOW)
        self.streams = Streams(self.clock, 3)
        self.site = make_site(self.clock, {}, Api(self.clock, parts, self.access, self.streams), self.names)
        self.site.doStart()
        self.addCleanup(self.site.doStop)

    def begin(self, path: str, method: str = "GET", headers: str = "", host: str = "here") -> tuple[Any, StringTransport]:
        """Send a request, and leave it to the test to wait for the answer."""
        transport = StringTransport()
        protocol: Any = self.site.buildProtocol(None)
        protocol.makeConnection(transport)
        protocol.dataReceived(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode())
        return protocol, transport

    def read(self, transport: StringTransport) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and JSON of an answer."""
        head, _, body = transport.value().partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.assertEqual(headers["content-type"], "application/json")
        self.assertEqual((headers["cache-control"], headers["owsla-api-version"]), ("no-store", "1"))
        return int(first.split()[1]), headers, json.loads(body)

    def ask(self, path: str, method: str = "GET", headers: str = "", host: str = "here") -> tuple[int, Any]:
        """Send a request. Return status and JSON of the answer."""
        status, _, body = self.read(self.begin(path, method, headers, host)[1])
        return status, body


class QuestionTests(ApiCase):
    def test_version(self) -> None:
        """The root tells the versions, the node, and that the client may act."""
        status, body = self.ask("/api")
        self.assertEqual(status, 200)
        self.assertIsInstance(body.pop("version"), str)
        self.assertEqual(body, {"api": 1, "node": "0badcafe", "workers": None, "read_only": False})

    def test_state(self) -> None:
        """The state has the checks and the tree."""
        self.desk.answers["traces"] = {"traces": [{"id": "t"}]}
        status, body = self.ask("/api/v1/state")
        self.assertEqual((status, body["ready"], body["tree"]), (200, True, self.world.tree))
        self.assertEqual(body["traces"], [{"id": "t"}])

    def test_questions(self) -> None:
        """Questions go to the desk with the values of all parameters, and its answer to the client."""
        answer = {"devices": [], "total": 0, "next": None}
        defaults = {"query": "", "door": None, "state": None, "sort": "since", "limit": 100, "after": None}
        for path, what, args in (
            ("/api/devices", "devices", defaults),
            (
                "/api/devices?query=47%2F11&door=a&state=slow&sort=-bytes_in&limit=7&after=x",
                "devices",
                {"query": "47/11", "door": "a", "state": "slow", "sort": "-bytes_in", "limit": 7, "after": "x"},
            ),
            ("/api/top?limit=3", "top", {"limit": 3}),
            ("/api/ends?query=x", "ends", {"query": "x", "limit": 100}),
            (
                "/api/events?kind=a&kind=b&warnings=1",
                "events",
                {"after": None, "limit": 100, "kinds": ["a", "b"], "query": "", "warnings": True},
            ),
        ):
            self.desk.answers[what] = answer
            self.assertEqual(self.ask(path), (200, {**answer, "missing": []}))
            self.assertEqual(self.desk.asked[-1], (what, args))

    def test_device(self) -> None:
        """A device that is connected, was, or is refused, is found. One that is not known is a 404."""
        self.desk.answers["device"] = {"connections": [], "ends": [{"text": "x"}], "findings": []}
        self.assertEqual(self.ask("/api/devices/a%2Fb")[0], 200)
        self.assertEqual(self.desk.asked, [("device", {"id": "a/b"})])
        self.desk.answers["device"] = {"connections": [], "ends": [], "findings": ["It is denied."]}
        self.assertEqual(self.ask("/api/devices/a")[0], 200)
        self.desk.answers["device"] = {"connections": [], "ends": [], "findings": [], "missing": ["worker-2"]}
        status, body = self.ask("/api/devices/a")
        self.assertEqual(status, 404)
        self.assertEqual(body["missing"], ["worker-2"])

    def test_not_yet(self) -> None:
        """A question that nobody answers is a 503."""
        self.assertEqual(self.ask("/api/devices"), (503, {"error": "This gateway cannot answer that at the moment."}))

    def test_bad_argument(self) -> None:
        """An argument that the desk refuses is a 400 with its words."""

        def refuse(args: Any) -> Any:
            raise BadArgument("`after` is not a cursor")

        self.desk.answers["devices"] = refuse
        self.assertEqual(self.ask("/api/devices?after=x"), (400, {"error": "`after` is not a cursor."}))

    def test_failure(self) -> None:
        """A failure is a 500 without details, and is in the log."""

        def fail(args: Any) -> Any:
            raise RuntimeError("secret")

        self.desk.answers["devices"] = fail
        self.assertEqual(self.ask("/api/devices"), (500, {"error": "This could not be answered; the log has the reason."}))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_impatient(self) -> None:
        """A client that goes before the answer costs nothing."""
        answer: Deferred[Any] = Deferred()
        self.desk.answers["devices"] = lambda args: answer
        protocol, transport = self.begin("/api/devices")
        protocol.connectionLost(None)
        answer.callback({"devices": []})
        self.assertEqual(transport.value(), b"")

    def test_history(self) -> None:
        """The samples of a span are there from the start, although none has been taken."""
        self.assertEqual(self.ask("/api/history"), (200, {"step": 1000, "samples": []}))
        self.assertEqual(self.ask("/api/history?span=1h"), (200, {"step": 10000, "samples": []}))
        self.assertEqual(self.ask("/api/history?span=2h")[0], 400)

    def test_errors(self) -> None:
        """Errors are objects with one sentence, whatever the path below /api."""
        for path, method, status in (
            ("/api/nothing", "GET", 404),
            ("/api/", "GET", 404),
            ("/api/v9", "GET", 404),
            ("/api/devices", "POST", 405),
            ("/api/devices?limit=x", "GET", 400),
        ):
            answered, body = self.ask(path, method)
            self.assertEqual((answered, list(body)), (status, ["error"]))
            self.assertRegex(body["error"], r"^[A-Z].*\.$")

    def test_not_below(self) -> None:
        """A path that only begins like that of the API is a page."""
        self.assertIn(b"text/plain", self.begin("/apis")[1].value())

    def test_head(self) -> None:
        """HEAD has the headers of GET and no body, and begins no stream."""
        _, transport = self.begin("/api/history", "HEAD")
        head, _, body = transport.value().partition(b"\r\n\r\n")
        self.assertEqual((b"Content-Length: 26" in head, body), (True, b""))
        for path in ("/api/live", "/api/trace/x"):
            _, transport = self.begin(path, "HEAD")
            head, _, body = transport.value().partition(b"\r\n\r\n")
            self.assertEqual((b"Content-Type: text/event-stream" in head, body), (True, b""))
        self.assertEqual((len(self.streams), self.desk.asked), (0, []))


class ActionTests(ApiCase):
    def test_close(self) -> None:
        """Closing names who acts. It returns the ids of the closed connections."""
        self.desk.answers["close"] = {"closed": ["c1"], "matches": [{}]}
        self.assertEqual(self.ask("/api/devices/a%2Fb?all=1", "DELETE"), (200, {"closed": ["c1"], "missing": []}))
        self.assertEqual(self.desk.asked, [("close", {"id": "a/b", "all": True, "by": BY})])

    def test_close_none(self) -> None:
        """Closing an unknown device is a 404; one that is ambiguous is a 409 with the matches, and closes none."""
        self.desk.answers["close"] = {"closed": [], "matches": [], "total": 0}
        self.assertEqual(self.ask("/api/devices/a", "DELETE")[0], 404)
        matches = [{"connection_id": "c1", "closing": None}, {"connection_id": "c2", "closing": "x"}]
        self.desk.answers["close"] = {"closed": [], "matches": matches, "total": 700}
        status, body = self.ask("/api/devices/a", "DELETE")
        self.assertEqual((status, body["matches"]), (409, matches))
        self.assertIn("700 connections match", body["error"])
        self.desk.answers["close"] = {"closed": [], "matches": matches[1:], "total": 1}
        status, body = self.ask("/api/devices/a", "DELETE")
        self.assertEqual((status, body["error"]), (409, "It is being closed already."))

    def test_reload(self) -> None:
        """A reload is answered when it is done: with the changes, or with the reason for which nothing was changed."""
        for result, expected in (
            ((True, "Configuration reloaded: window"), (200, {"text": "Configuration reloaded: window"})),
            ((False, "--window: 'x' is not a number"), (409, {"error": "--window: 'x' is not a number"})),
        ):
            _, transport = self.begin("/api/reload", "POST")
            self.assertEqual(transport.value(), b"")
            by, requested = self.actions.reloads.pop()
            self.assertEqual(by, BY)
            requested.callback(result)
            status, _, body = self.read(transport)
            self.assertEqual((status, body), expected)

    def test_drain(self) -> None:
        """A drain is answered before it is done. The second one is answered, too."""
        self.assertEqual(self.ask("/api/drain", "POST"), (202, {"text": "The gateway stops in order."}))
        self.assertEqual(self.ask("/api/drain", "POST"), (202, {"text": "The gateway stops already."}))
        self.assertEqual(self.actions.drains, [BY, BY])

    def test_body(self) -> None:
        """A body is refused; an action has none."""
        _, transport = self.begin("/api/reload", "POST", "Content-Length: 3\r\n")
        self.assertTrue(transport.value().startswith(b"HTTP/1.1 413 "))
        self.assertEqual(json.loads(transport.value().partition(b"\r\n\r\n")[2]), {"error": "No path takes a body."})
        self.begin("/api/reload", "POST", "Content-Length: 0\r\n")
        self.assertEqual(len(self.actions.reloads), 1)

    def test_other_pages(self) -> None:
        """Another web page in a browser can neither read nor act."""
        for headers in ("Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"):
            for path, method in (("/api/reload", "POST"), ("/api/state", "GET"), ("/api/nothing", "GET")):
                self.assertEqual(self.ask(path, method, f"{headers}\r\n")[0], 403)
        self.assertEqual(self.actions.reloads, [])
        self.begin("/api/reload", "POST", "Origin: http://here\r\n")
        self.assertEqual(len(self.actions.reloads), 1)

    def test_no_cors(self) -> None:
        """A preflight of a browser is refused, and no header lets another page read."""
        _, transport = self.begin("/api/reload", "OPTIONS", "Access-Control-Request-Method: POST\r\n")
        self.assertTrue(transport.value().startswith(b"HTTP/1.1 405 "))
        self.assertNotIn(b"access-control", transport.value().lower())


class HostTests(ApiCase):
    names = frozenset({"gateway"})

    def test_host(self) -> None:
        """Where only this machine may ask, the name in the request must be that of this machine."""
        self.assertEqual(self.ask("/api/history", host="localhost:9100")[0], 200)
        self.assertEqual(self.ask("/api/history", host="gateway")[0], 200)
        status, body = self.ask("/api/history", host="rebind.example")
        self.assertEqual((status, list(body)), (421, ["error"]))


class TokenTests(ApiCase):
    def setUp(self) -> None:
        self.tokens = Tokens(FULL, READING)
        self.access = TokenAccess(lambda: self.tokens)
        super().setUp()

    def status(self, path: str, token: str | None, method: str = "GET") -> int:
        headers = f"Authorization: Bearer {token}\r\n" if token is not None else ""
        return self.ask(path, method, headers)[0]

    def test_full(self) -> None:
        """The full token may read and act."""
        self.desk.answers["close"] = {"closed": ["c1"], "matches": [{}]}
        self.assertEqual(self.status("/api/state", FULL), 200)
        self.assertEqual(self.status("/api/devices/a", FULL, "DELETE"), 200)
        self.assertEqual(self.desk.asked[-1], ("close", {"id": "a", "all": False, "by": "token from 192.168.1.1"}))

    def test_reading(self) -> None:
        """The token for reading may neither act nor trace, and the root says so."""
        self.assertEqual(self.status("/api/state", READING), 200)
        self.assertIs(self.ask("/api", "GET", f"Authorization: bearer {READING}\r\n")[1]["read_only"], True)
        for path, method in (
            ("/api/devices/a", "DELETE"),
            ("/api/reload", "POST"),
            ("/api/drain", "POST"),
            ("/api/trace/a", "GET"),
            ("/api/trace/a", "HEAD"),
        ):
            transport = self.begin(path, method, f"Authorization: Bearer {READING}\r\n")[1]
            self.assertTrue(transport.value().startswith(b"HTTP/1.1 403 "), (path, method))
        self.assertEqual((self.actions.reloads, self.actions.drains), ([], []))
        self.assertEqual({what for what, _ in self.desk.asked}, {"traces"})

    def test_refused(self) -> None:
        """Without a token, or with another one, nothing is told: not even which paths there are."""
        for headers in (
            "",
            "Authorization: Bearer\r\n",
            "Authorization: Bearer \r\n",
            "Authorization: Bearer None\r\n",
            f"Authorization: Bearer {FULL}x\r\n",
            f"Authorization: Bearer {FULL[:-1]}\r\n",
            f"Authorization: Basic {FULL}\r\n",
            f"Authorization: Bearer {FULL}\r\nAuthorization: Bearer {FULL}\r\n",
            f"Authorization: Bearer {FULL}, Bearer {FULL}\r\n",
            "Authorization: Bearer \u00e9\r\n",
        ):
            for path in ("/api/state", "/api/nothing"):
                status, answered, _ = self.read(self.begin(path, "GET", headers)[1])
                self.assertEqual((status, answered["www-authenticate"]), (401, 'Bearer realm="owsla"'), headers)

    def test_only_one(self) -> None:
        """With one of the tokens, the other kind does not exist."""
        self.tokens = Tokens(None, READING)
        self.assertEqual(self.status("/api/state", READING), 200)
        self.assertEqual(self.status("/api/state", ""), 401)
        self.tokens = Tokens(FULL, None)
        self.assertEqual(self.status("/api/state", FULL), 200)
        self.assertEqual(self.status("/api/state", READING), 401)
        self.assertEqual(self.status("/api/state", ""), 401)

    def test_none(self) -> None:
        """Without tokens the API is not served, and says how it would be. New tokens are in force at once."""
        self.tokens = Tokens()
        status, body = self.ask("/api/state", "GET", f"Authorization: Bearer {FULL}\r\n")
        self.assertEqual(status, 404)
        self.assertIn("--http-token-file", body["error"])
        self.tokens = Tokens(FULL)
        self.assertEqual(self.status("/api/state", FULL), 200)
