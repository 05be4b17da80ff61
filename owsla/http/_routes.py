"""Routes of the API: methods, paths and parameters. Pure.

A path is a template, as in OpenAPI: `/devices/{id}`. An id is percent-encoded in a path, so it may contain slashes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

from ._errors import HttpError

VERSION: Final = 1
"""Newest version of the API."""

LONGEST_ID: Final = 1024
"""Characters of an id in a path. Device ids come from certificates and logins, and are shorter."""

LONGEST_TEXT: Final = 256
"""Characters of the text of a parameter."""

MOST_PARAMETERS: Final = 50
"""Parameters in a query. Twisted limits the line and all headers together to 16 KiB."""

MOST_VALUES: Final = 20
"""Values of a repeatable parameter."""

H = TypeVar("H")


class ParameterType(Protocol):
    """Type of a parameter."""

    def read(self, text: str) -> Any:
        """Return the value of a text. Raise `ValueError` with the reason, which continues the name of the parameter."""

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the text, as in the OpenAPI file."""


@dataclass(frozen=True, slots=True)
class Integer:
    """Whole number from `low` to `high`."""

    low: int
    high: int

    def read(self, text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,12}", text, re.ASCII) or not self.low <= int(text) <= self.high:
            raise ValueError(f"is not a number from {self.low} to {self.high}")
        return int(text)

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Word:
    """Word of a list."""

    words: tuple[str, ...]

    def read(self, text: str) -> str:
        if text not in self.words:
            raise ValueError(f"is not one of {', '.join(self.words)}")
        return text

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.words)}


class Flag:
    """1 or 0."""

    def read(self, text: str) -> bool:
        if text not in ("0", "1"):
            raise ValueError("is neither 1 nor 0")
        return text == "1"

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "enum": [0, 1]}


class Text:
    """Any text of bounded length."""

    def read(self, text: str) -> str:
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"has more than {LONGEST_TEXT} characters")
        return text

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": LONGEST_TEXT}


class Name:
    """Name of an event: lower-case words with hyphens."""

    _FORM: Final = "^[a-z-]{1,64}$"

    def read(self, text: str) -> str:
        if not re.fullmatch(self._FORM, text, re.ASCII):
            raise ValueError("is not a name of lower-case letters and hyphens")
        return text

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": self._FORM}


@dataclass(frozen=True, slots=True)
class Parameter:
    """Parameter of the query of a URL. A repeatable one has a list of values."""

    name: str
    kind: ParameterType
    default: Any = None
    repeatable: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema, as in the OpenAPI file."""
        if self.repeatable:
            return {"type": "array", "items": self.kind.schema, "maxItems": MOST_VALUES}
        default = {} if self.default is None else {"default": int(self.default) if self.default is True else self.default}
        return self.kind.schema | default


@dataclass(frozen=True, slots=True)
class Route(Generic[H]):
    """A method and a path of the API."""

    method: str
    path: str
    """Template of the path below the version; empty for the version itself."""
    handler: H
    parameters: Sequence[Parameter] = ()
    acts: bool = False
    """True if the route does more than read."""
    segments: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.path.split("/")[1:]))

    def match(self, segments: Sequence[str]) -> dict[str, str] | None:
        """Return the values of the placeholders in the path; `None` for another path."""
        if len(segments) != len(self.segments):
            return None
        values = {}
        for own, other in zip(self.segments, segments, strict=True):
            if own.startswith("{"):
                if not other:
                    return None
                values[own.strip("{}")] = other
            elif own != other:
                return None
        return values


@dataclass(frozen=True, slots=True)
class Found(Generic[H]):
    """A route for a request, with the values of its path and of its parameters."""

    route: Route[H]
    values: Mapping[str, Any]


class Routes(Generic[H]):
    """The routes of the API."""

    def __init__(self, routes: Sequence[Route[H]]) -> None:
        self.all = tuple(routes)

    def find(self, method: str, path: bytes, query: bytes) -> Found[H]:
        """Return the route for a request. Raise `HttpError` if there is none, or the path or the query cannot be read.

        `path` and `query` are percent-encoded; HEAD is answered by the route of GET.
        """
        segments = [_decoded(segment, "path") for segment in path.split(b"/")[2:]]
        if segments and re.fullmatch(r"v[0-9]+", segments[0], re.ASCII):
            if segments[0] != f"v{VERSION}":
                raise HttpError(404, f"There is no version {segments[0]} of the API: the newest one is v{VERSION}.")
            segments = segments[1:]
        matching = {route.method: (route, values) for route, values in self._matching(segments)}
        if not matching:
            raise HttpError(404, "There is no such path; docs/api.md and /api/v1/openapi.json have all of them.")
        found = matching.get("GET" if method == "HEAD" else method)
        if found is None:
            allowed = [*matching, *(["HEAD"] if "GET" in matching else [])]
            raise HttpError(405, f"This path takes {' and '.join(matching)} only.", headers={"allow": ", ".join(allowed)})
        route, values = found
        return Found(route, {**_read_query(query, route.parameters), **values})

    def _matching(self, segments: Sequence[str]) -> Iterator[tuple[Route[H], dict[str, str]]]:
        for route in self.all:
            values = route.match(segments)
            if values is not None:
                yield route, values


def _decoded(segment: bytes, what: str) -> str:
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise HttpError(400, f"The {what} of the URL is not UTF-8.") from None
    if len(text) > LONGEST_ID:
        raise HttpError(400, f"A part of the path has more than {LONGEST_ID} characters.")
    return text


def _read_query(query: bytes, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Return the values of parameters, with the defaults of those that the query does not have."""
    given = _parse_query(query)
    known = {parameter.name for parameter in parameters}
    for name in given:
        if name not in known:
            takes = f"this path takes {', '.join(sorted(known))}" if known else "this path takes none"
            raise HttpError(400, f"There is no parameter {name!r}: {takes}.")
    return {parameter.name: _value(parameter, given.get(parameter.name, [])) for parameter in parameters}


def _parse_query(query: bytes) -> dict[str, list[str]]:
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MOST_PARAMETERS, separator="&"
        )
    except UnicodeError:
        raise HttpError(400, "The query of the URL is not UTF-8.") from None
    except ValueError:
        raise HttpError(400, f"The query of the URL has more than {MOST_PARAMETERS} parameters.") from None
    given: dict[str, list[str]] = {}
    for name, text in pairs:
        given.setdefault(name, []).append(text)
    return given


def _value(parameter: Parameter, texts: Sequence[str]) -> Any:
    try:
        if parameter.repeatable:
            if len(texts) > MOST_VALUES:
                raise ValueError(f"is given more than {MOST_VALUES} times")
            return [parameter.kind.read(text) for text in texts]
        if len(texts) > 1:
            raise ValueError("is given twice")
        return parameter.kind.read(texts[0]) if texts else parameter.default
    except ValueError as error:
        raise HttpError(400, f"The parameter {parameter.name} {error}.") from None


