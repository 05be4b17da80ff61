"""Requests that a browser sends for another web page."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.http._guards import is_from_elsewhere


class OriginTests(SynchronousTestCase):
    def test_own(self) -> None:
        """Programs send neither header. The page has the origin of the host, and the browser says so."""
        for origins, sites in (
            ([], []),
            ([b"http://localhost:9100"], []),
            ([b"https://LOCALHOST:9100"], []),
            ([], [b"same-origin"]),
            ([], [b"none"]),
            ([b"https://gateway.example"], [b"same-origin"]),  # behind a reverse proxy
        ):
            self.assertFalse(is_from_elsewhere(origins, sites, [b"localhost:9100"]), (origins, sites))

    def test_elsewhere(self) -> None:
        """Another page, another port of this machine, and a page without an origin are refused."""
        for origins, sites in (
            ([b"http://evil.example"], []),
            ([b"http://localhost:8080"], []),
            ([b"http://localhost"], []),
            ([b"null"], []),
            ([b""], []),
            ([b"http://localhost:9100", b"http://evil.example"], []),
            ([], [b"cross-site"]),
            ([b"http://localhost:9100"], [b"same-site"]),
            ([], [b"same-origin", b"cross-site"]),
        ):
            self.assertTrue(is_from_elsewhere(origins, sites, [b"localhost:9100"]), (origins, sites))
        self.assertTrue(is_from_elsewhere([b"http://x"], [], []))
