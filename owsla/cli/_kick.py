"""`owsla kick`: close the connection of a device."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from ._control import JSON, Control, Refusal, part
from ._device import NOT_FOUND
from ._gateway import find, guarded, put_json, say, whole
from ._print import put
from ._text import sentence, word

CONFLICT: Final = 409

NAMED: Final = 20
"""Connections that an error names at most: thousands may have one address, that of a router."""


def command(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla kick`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    return guarded("kick", partial(close, find(args, environ), args.id, every=args.all, as_json=args.json))


def close(control: Control, device: str, *, every: bool, as_json: bool) -> int:
    """Close the connection of a device, or each of them. Return the exit status."""
    try:
        answer = control.delete(f"/api/v1/devices/{part(device)}", {"all": every})
    except Refusal as refusal:
        missing = (refusal.answer or {}).get("missing", ())
        if refusal.status == NOT_FOUND:
            say("kick", f"{control.where}: no connection has '{sentence(device)}' as its connection id, device id or address")
            return whole("kick", missing) or 1
        if refusal.status != CONFLICT:
            raise
        matches = refusal.answer.get("matches", [])
        say("kick", f"{len(matches)} connections match '{sentence(device)}': name one by its connection id, or use --all")
        for match in matches[:NAMED]:
            say("kick", _named(match))
        if len(matches) > NAMED:
            say("kick", f"and {len(matches) - NAMED:,} more, which 'owsla devices' lists")
        return whole("kick", missing) or 1
    if as_json:
        put_json(answer)
    else:
        for connection_id in answer["closed"]:
            put(f"closed {word(connection_id)}\n")
    return whole("kick", answer.get("missing", ()))


def _named(match: JSON) -> str:
    details = [f"{name} {word(match[key])}" for name, key in (("device", "device_id"), ("peer", "peer")) if match.get(key)]
    return " ".join([word(match["connection_id"]), *details])
