"""The gateway that a command asks: where it is, and what the user is told when it does not answer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from ._control import JSON, Control, ControlError, at_socket, at_url, base_url
from ._print import put
from ._text import sentence

DEFAULT_SOCKET: Final = "owsla.sock"
"""Default of the gateway's own `--control`."""


def find(args: argparse.Namespace, environ: Mapping[str, str], *, open_to_all: bool = False) -> Control:
    """Return the control interface that the options or the environment name. Raise `ConfigError`.

    `OWSLA_HTTP` in the environment counts only with a token, or if the page is `open_to_all`: the socket needs none.
    """
    token = args.token_file or environ.get("OWSLA_HTTP_TOKEN_FILE") or None
    if args.http is not None:
        return _at_http("--http", args.http, token)
    if args.control is not None:
        if args.token_file is not None:
            raise ConfigError("--token-file: is for --http: the socket needs no token")
        return _at_control("--control", args.control)
    if environ.get("OWSLA_CONTROL", "off") != "off":
        return _at_control("OWSLA_CONTROL", environ["OWSLA_CONTROL"])
    if environ.get("OWSLA_HTTP", "off") not in ("", "off") and (token is not None or open_to_all):
        return _at_http("OWSLA_HTTP", environ["OWSLA_HTTP"], token)
    if args.token_file is not None:
        raise ConfigError("--token-file: use --http too: the address of the gateway's --http")
    if environ.get("OWSLA_CONTROL") == "off":
        raise ConfigError("no gateway given: OWSLA_CONTROL is off; use --http URL, with --token-file")
    return at_socket(DEFAULT_SOCKET)


def _at_control(origin: str, path: str) -> Control:
    if path in ("", "off"):
        raise ConfigError(f"{origin}: is the path of the gateway's socket")
    return at_socket(path)


def _at_http(origin: str, text: str, token: str | None) -> Control:
    try:
        return at_url(base_url(text), None if token is None else Path(token))
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


def guarded(name: str, run: Callable[[], int]) -> Callable[[], int]:
    """Return a command that reports a `ControlError` in one line, with status 1."""

    def guard() -> int:
        try:
            return run()
        except ControlError as error:
            say(name, str(error))
            return 1

    return guard


def say(name: str, text: str) -> None:
    """Write a line to standard error."""
    try:
        sys.stderr.write(f"owsla {name}: {sentence(text)}\n")
        sys.stderr.flush()
    except OSError:
        pass  # standard error is closed


def whole(name: str, missing: Collection[object]) -> int:
    """Return exit status 0 if all workers have answered. Name those that are `missing` on standard error, with status 1."""
    if missing:
        say(name, f"no answer in time from {', '.join(sorted(map(str, missing)))}: what they know is not shown")
    return 1 if missing else 0


def put_json(document: JSON) -> None:
    """Print a JSON document on one line, in ASCII."""
    put(json.dumps(document, separators=(", ", ": ")) + "\n")
