"""Routes of the API: paths, methods and parameters."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.http._errors import HttpError
from owsla.http._routes import Flag, Integer, Name, Parameter, Route, Routes, Text, Word

PARAMETERS = (
    Parameter("limit", Integer(1, 1000), 100),
    Parameter("state", Word(("paused", "slow"))),
    Parameter("all", Flag(), False),
    Parameter("query", Text(), ""),
    Parameter("kind", Name(), repeatable=True),
)

DEFAULTS: dict[str, Any] = {"limit": 100, "state": None, "all": False, "query": "", "kind": []}


class FindTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.routes = Routes([
            Route("GET", "", "root"),
            Route("GET", "/devices", "devices", PARAMETERS),
            Route("GET", "/devices/{id}", "device"),
            Route("DELETE", "/devices/{id}", "close", acts=True),
            Route("POST", "/reload", "reload", acts=True),
        ])  # fmt: skip

    def find(self, path: str, query: str = "", method: str = "GET") -> tuple[str, dict[str, Any]]:
        found = self.routes.find(method, path.encode(), query.encode())
        return found.route.handler, dict(found.values)

    def refused(self, path: str, query: str = "", method: str = "GET") -> HttpError:
        error: HttpError = self.assertRaises(HttpError, self.find, path, query, method)
        return error

    def test_versions(self) -> None:
        """A path without a version is one of the newest version; another version is unknown."""
        for path in ("/api", "/api/v1"):
            self.assertEqual(self.find(path), ("root", {}))
        for path in ("/api/devices", "/api/v1/devices"):
            self.assertEqual(self.find(path), ("devices", DEFAULTS))
        error = self.refused("/api/v2/devices")
        self.assertEqual((error.status, str(error)), (404, "There is no version v2 of the API: the newest one is v1."))

    def test_ids(self) -> None:
        """An id may have any characters, percent-encoded: slashes, dots, blanks, and all of UTF-8."""
        for encoded, decoded in (
            ("meter-4711", "meter-4711"),
            ("a%2Fb", "a/b"),
            ("%2e%2e", ".."),
            ("%C3%A9%20x", "\u00e9 x"),
            ("a+b", "a+b"),
            ("2001:db8::1", "2001:db8::1"),
            ("v1", "v1"),
        ):
            self.assertEqual(self.find(f"/api/v1/devices/{encoded}"), ("device", {"id": decoded}))
        for path, status in (
            ("/api/v1/devices/%ff", 400),
            ("/api/v1/devices/" + "x" * 1025, 400),
            ("/api/v1/devices/", 404),
            ("/api/v1/devices/a/b", 404),
            ("/api/v1/", 404),
            ("/api//devices", 404),
        ):
            self.assertEqual(self.refused(path).status, status, path)

    def test_methods(self) -> None:
        """HEAD is answered like GET. Another method of a known path is refused with those that it takes."""
        self.assertEqual(self.find("/api/devices/a", method="HEAD"), ("device", {"id": "a"}))
        self.assertEqual(self.find("/api/devices/a", method="DELETE"), ("close", {"id": "a"}))
        for path, method, allowed in (
            ("/api/devices/a", "POST", "GET, DELETE, HEAD"),
            ("/api/reload", "GET", "POST"),
            ("/api/reload", "HEAD", "POST"),
            ("/api/devices", "OPTIONS", "GET, HEAD"),
        ):
            error = self.refused(path, method=method)
            self.assertEqual((error.status, error.headers), (405, {"allow": allowed}))

    def test_parameters(self) -> None:
        """Parameters are read as their types. A repeatable one has a list."""
        for query, values in (
            ("limit=7", {"limit": 7}),
            ("state=slow&all=1", {"state": "slow", "all": True}),
            ("all=0&query=", {}),
            ("query=a%26b+c%C3%A9", {"query": "a&b c\u00e9"}),
            ("kind=a&kind=b", {"kind": ["a", "b"]}),
            ("", {}),
        ):
            self.assertEqual(self.find("/api/devices", query)[1], DEFAULTS | values, query)

    def test_bad_parameters(self) -> None:
        """What cannot be used is refused in one sentence with the name of the parameter."""
        for query, reason in (
            ("limit=0", "The parameter limit is not a number from 1 to 1000."),
            ("limit=", "The parameter limit is not a number from 1 to 1000."),
            ("limit=1001", "The parameter limit is not a number from 1 to 1000."),
            ("limit=\u0663", "The query of the URL is not UTF-8."),
            ("limit=%D9%A3", "The parameter limit is not a number from 1 to 1000."),
            ("limit=" + "9" * 5000, "The parameter limit is not a number from 1 to 1000."),
            ("limit=1&limit=2", "The parameter limit is given twice."),
            ("state=odd", "The parameter state is not one of paused, slow."),
            ("all=yes", "The parameter all is neither 1 nor 0."),
            ("query=" + "x" * 257, "The parameter query has more than 256 characters."),
            ("query=%ff", "The query of the URL is not UTF-8."),
            ("&".join(["kind=a"] * 51), "The query of the URL has more than 50 parameters."),
            ("&".join(["kind=a"] * 21), "The parameter kind is given more than 20 times."),
            ("kind=A", "The parameter kind is not a name of lower-case letters and hyphens."),
            ("kind=a%0a", "The parameter kind is not a name of lower-case letters and hyphens."),
            ("colour=red", "There is no parameter 'colour': this path takes all, kind, limit, query, state."),
        ):
            error = self.refused("/api/devices", query)
            self.assertEqual((error.status, str(error)), (400, reason))
        self.assertEqual(str(self.refused("/api", "a=b")), "There is no parameter 'a': this path takes none.")
