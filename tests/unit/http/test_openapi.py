"""The OpenAPI file, held against the routes of the API."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk import SORTS, STATES
from owsla.http import ProcessSource, Tokens
from owsla.http._access import TokenAccess
from owsla.http._api import DESCRIPTION, Api
from owsla.http._streams import Streams

from ._fakes import World, api_parts

DOCUMENT: dict[str, Any] = json.loads(DESCRIPTION.read_text())

_DOCS = Path(__file__).parents[3] / "docs" / "api.md"


class OpenApiTests(SynchronousTestCase):
    def setUp(self) -> None:
        clock: Any = Clock()
        parts = api_parts(ProcessSource(World().readings))
        routes = Api(clock, parts, TokenAccess(Tokens), Streams(clock, 0)).routes.all
        self.routes = {(route.method, f"/api/v1{route.path}"): route for route in routes}
        self.described = {
            (method.upper(), path): operation for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
        }

    def test_routes(self) -> None:
        """The file describes each method of each path, and no other."""
        self.assertEqual(set(self.described), set(self.routes))

    def test_parameters(self) -> None:
        """The file describes each parameter with its type, limits and default, and no other."""
        for key, route in self.routes.items():
            described = {
                (each["in"], each["name"]): each["schema"] for each in self.described[key].get("parameters", [])
            }
            ids = {("path", name) for name in re.findall(r"{(\w+)}", route.path)}
            own = {("query", parameter.name): parameter.schema for parameter in route.parameters}
            self.assertEqual(set(described), set(own) | ids, key)
            for name, schema in own.items():
                self.assertEqual(described[name], schema, (key, name))

    def test_actions(self) -> None:
        """What acts can be refused to a token, and a path with an id can be unknown."""
        for key, route in self.routes.items():
            responses = self.described[key]["responses"]
            self.assertIn("403" if route.acts else "401", responses)

    def test_words(self) -> None:
        """The orders and states of devices are those of the desk."""
        (devices,) = (each for key, each in self.routes.items() if key[1] == "/api/v1/devices")
        words = {parameter.name: parameter.schema.get("enum") for parameter in devices.parameters}
        self.assertEqual(words["state"], list(STATES))
        self.assertEqual(words["sort"], [*SORTS, *(f"-{sort}" for sort in SORTS)])

    def test_page(self) -> None:
        """docs/api.md has a row for each method of each path, with its parameters."""
        rows = re.findall(r"^\| `([A-Z]+) (/api/v1\S*)` \|(.*?)\|", _DOCS.read_text(), re.M)
        documented = {(method, path): set(re.findall(r"`(\w+)`", parameters)) for method, path, parameters in rows}
        own = {key: {parameter.name for parameter in route.parameters} for key, route in self.routes.items()}
        self.assertEqual(documented, own)

    def test_references(self) -> None:
        """Every reference within the file leads somewhere."""
        for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', DESCRIPTION.read_text())):
            found = DOCUMENT
            for name in reference.split("/"):
                found = found[name]
