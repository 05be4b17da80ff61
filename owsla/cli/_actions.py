"""`owsla reload` and `owsla drain`: actions on a gateway as a whole."""

from __future__ import annotations

import argparse
import os
import select
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from ._control import JSON, Control, ControlError, Unreachable
from ._gateway import find, guarded, say
from ._print import put
from ._text import sentence
from ._units import counted

RELOAD_TIMEOUT: Final = 120.0
"""Seconds for a reload, which reads files that may be on a slow file server."""

LOOK: Final = 0.5
"""Seconds between two looks at a gateway that stops."""

EXIT_TIMEOUT: Final = 10.0
"""Seconds for a process to exit after it has closed its socket."""


def reload(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla reload`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    return guarded("reload", partial(_reload, find(args, environ)))


def _reload(control: Control) -> int:
    answer = control.post("/api/v1/reload", timeout=RELOAD_TIMEOUT)
    put(sentence(str(answer.get("text", "reloaded"))) + "\n")
    return 0


def drain(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla drain`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    return guarded("drain", partial(_drain, find(args, environ)))


def _drain(control: Control) -> int:
    """Start an orderly stop, and print its progress until the process has gone."""
    gateway = control.process()
    descriptor = _open_process(gateway)
    put(sentence(str(control.post("/api/v1/drain").get("text", "The gateway stops."))) + "\n")
    shown = ""
    try:
        while not _gone(descriptor, LOOK):
            try:
                if gateway is not None and control.process() != gateway:
                    break  # another one has taken its place
                text = progress(control.get("/api/v1/state"))
            except Unreachable:
                if descriptor is not None and not _gone(descriptor, EXIT_TIMEOUT):
                    say("drain", f"{control.where}: closed, and process {gateway} is still there")
                    return 1
                break
            except ControlError:
                continue  # a part that the answer needs has stopped
            if text != shown:
                put(text + "\n")
                shown = text
    finally:
        if descriptor is not None:
            os.close(descriptor)
    put("The gateway has gone.\n")
    return 0


def progress(state: JSON) -> str:
    """Return what a gateway that stops still has to do."""
    numbers = state.get("numbers") or {}
    return f"{counted(numbers.get('open', 0), 'connection')} open, {counted(numbers.get('unconfirmed', 0), 'line')} unconfirmed"


def _open_process(number: int | None) -> int | None:
    """Return a descriptor of a process on this machine, or `None` if there is no such process."""
    try:
        return None if number is None else os.pidfd_open(number)
    except OSError:
        return None


def _gone(descriptor: int | None, seconds: float) -> bool:
    """Wait for the end of a process, some seconds at most. Return whether it has ended."""
    if descriptor is None:
        time.sleep(seconds)
        return False
    return bool(select.select([descriptor], [], [], seconds)[0])
