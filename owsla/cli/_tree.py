"""`owsla tree`: the supervision tree of a running gateway."""

from __future__ import annotations

import http.client
import json
import re
import sys
from typing import Any, Final, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from ._print import put

TIMEOUT: Final = 10.0
"""Seconds for the gateway to answer. It does within milliseconds, or two seconds where a worker of its is stuck."""

LARGEST: Final = 1 << 24
"""Bytes of an answer that are read: a tree is some kilobytes, for each worker."""

_PLACE: Final = re.compile(r"(?:(?P<address>\[[0-9A-Fa-f:.%]+\]|[^\s:/@?#\[\]]+):)?(?P<port>[0-9]{1,5})", re.ASCII)


class Unreachable(Exception):
    """There is no tree to show; the text says why in one line."""


def base_url(text: str) -> str:
    """Where to ask: a URL as it is, or `[ADDRESS:]PORT` as the gateway's own `--http` has it. `ValueError` says what it is not.

    An address that stands for all of a machine's is asked on this one.
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
    match = _PLACE.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ValueError(f"{text!r} is neither a URL nor [ADDRESS:]PORT")
    address = match["address"] or "127.0.0.1"
    if address in ("all", "0.0.0.0", "[::]"):
        address = "127.0.0.1"
    return f"http://{address}:{match['port']}"


def fetch(base: str) -> Any:
    """The tree of the gateway at this URL, as its JSON has it. `Unreachable`."""
    # No proxy: what is asked is on this machine, or near it.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(f"{base}/tree", timeout=TIMEOUT) as answer:
            return json.loads(answer.read(LARGEST))
    except HTTPError as error:
        error.close()
        raise Unreachable(f"{base} answers {error.code}: is that Owsla's --http?") from None
    except URLError as error:
        raise Unreachable(f"{base}: {_reason(error.reason)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{base}: {_reason(error)}") from None
    except (ValueError, RecursionError):
        raise Unreachable(f"{base} answers something that is no tree: is that Owsla's --http?") from None


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    if isinstance(error, http.client.HTTPException):
        return "what answers does not speak HTTP"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error)


def show(base: str) -> int:
    """Print the tree; the exit status."""
    from ..supervision import TreeNode, render

    try:
        tree = fetch(base)
        try:
            text = render(cast(TreeNode, tree))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Unreachable(f"{base} answers something that is no tree: is that Owsla's --http?") from None
    except Unreachable as error:
        sys.stderr.write(f"owsla tree: {' '.join(str(error).split())}\n")
        return 1
    # What comes over a network may hold what moves a terminal's cursor.
    lines = ("".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in line) for line in text.split("\n"))
    put("\n".join(lines) + "\n")
    return 0
