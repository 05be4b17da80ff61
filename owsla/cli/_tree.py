"""`owsla tree`: the supervision tree of a running gateway, over HTTP."""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from ..errors import ConfigError
from ..supervision import TreeNode, render
from ._print import put

TIMEOUT: Final = 10.0
"""Seconds for the gateway to answer. It takes milliseconds, or two seconds if one of its workers does not respond."""

LARGEST: Final = 1 << 24
"""Maximum size of an answer in bytes. A tree has some kilobytes for each worker."""

_NO_TREE: Final = "does not answer with a tree: is that the --http of a gateway?"

_ADDRESS_AND_PORT: Final = re.compile(r"(?:(?P<address>\[[0-9A-Fa-f:.%]+\]|[^\s:/@?#\[\]]+):)?(?P<port>[0-9]{1,5})", re.ASCII)


def command(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla tree`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    given = args.http if args.http is not None else environ.get("OWSLA_HTTP")
    if not given or given == "off":
        raise ConfigError("no gateway given: use --http URL (or OWSLA_HTTP), the address of its --http")
    try:
        return partial(show, base_url(given))
    except ValueError as error:
        raise ConfigError(f"{'--http' if args.http is not None else 'OWSLA_HTTP'}: {error}") from None


class Unreachable(Exception):
    """The tree cannot be fetched; the text says why in one line."""


def base_url(text: str) -> str:
    """Return the URL of a gateway, from a URL or from `[ADDRESS:]PORT` as in its own `--http`. Raise `ValueError`.

    An address that stands for all addresses of a machine is replaced by 127.0.0.1.
    """
    if "://" in text:
        parts = urlsplit(text)
        try:
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            good = False
        if not good or parts.query or parts.fragment or not text.isprintable() or " " in text:
            raise ValueError(f"{text!r} is not a URL such as http://127.0.0.1:9100")
        return text.rstrip("/").removesuffix("/tree")
    match = _ADDRESS_AND_PORT.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ValueError(f"{text!r} is neither a URL nor [ADDRESS:]PORT")
    address = match["address"] or "127.0.0.1"
    if address in ("all", "0.0.0.0", "[::]"):
        address = "127.0.0.1"
    return f"http://{address}:{match['port']}"


def fetch(base: str) -> Any:
    """Return the tree of the gateway at a URL, as parsed JSON. Raise `Unreachable`."""
    # Without the proxy of the environment: the gateway is on this machine or near it.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(f"{base}/tree", timeout=TIMEOUT) as answer:
            return json.loads(answer.read(LARGEST))
    except HTTPError as error:
        error.close()
        raise Unreachable(f"{base} answers {error.code}: is that the --http of a gateway?") from None
    except URLError as error:
        raise Unreachable(f"{base}: {_reason(error.reason)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{base}: {_reason(error)}") from None
    except (ValueError, RecursionError):
        raise Unreachable(f"{base} {_NO_TREE}") from None


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    if isinstance(error, http.client.HTTPException):
        return "the server does not speak HTTP"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error)


def show(base: str) -> int:
    """Print the tree of the gateway at a URL. Return the exit status."""
    try:
        tree = fetch(base)
        try:
            text = render(cast(TreeNode, tree))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Unreachable(f"{base} {_NO_TREE}") from None
    except Unreachable as error:
        sys.stderr.write(f"owsla tree: {' '.join(str(error).split())}\n")
        return 1
    # The answer may contain control characters, which would move the cursor of a terminal.
    lines = ("".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in line) for line in text.split("\n"))
    put("\n".join(lines) + "\n")
    return 0
