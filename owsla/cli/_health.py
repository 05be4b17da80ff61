"""`owsla health`: whether a running gateway is alive, or ready for devices. Made for health checks of containers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Final

from ._control import Control, ControlError, ControlResponse
from ._gateway import find, guarded
from ._print import put

PATIENCE: Final = 5.0
"""Seconds for an answer. The parent of workers waits two seconds for a worker that hangs."""


def command(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla health`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    check = _ready if args.ready else _alive
    return guarded("health", partial(check, find(args, environ, open_to_all=True)))


def _alive(control: Control) -> int:
    """Return 0 if the event loop of the gateway runs. Raise `ControlError`."""
    answer = control.request("GET", "/healthz", timeout=PATIENCE)
    if answer.status != HTTPStatus.OK:
        raise _unexpected(control, answer)
    put("The gateway is alive.\n")
    return 0


def _ready(control: Control) -> int:
    """Return 0 if the gateway accepts new devices. Raise `ControlError`, with the checks that fail."""
    answer = control.request("GET", "/readyz", timeout=PATIENCE)
    if answer.status not in (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE):
        raise _unexpected(control, answer)
    try:
        document = json.loads(answer.body)
        failed = sorted(str(name) for name, passed in document["checks"].items() if not passed)
        ready = document["ready"] is True
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise _unexpected(control, answer) from None
    if not ready:
        raise ControlError(f"{control.where}: the gateway is not ready: {', '.join(failed) or 'it does not say why'}")
    put("The gateway is ready.\n")
    return 0


def _unexpected(control: Control, answer: ControlResponse) -> ControlError:
    return ControlError(f"{control.where}: an unexpected answer (status {answer.status}): is that a gateway?")
