"""Imports at the start of a process. A module of its own, because what it imports itself adds to every start."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Import modules without garbage collections, and exclude the objects of the modules from later ones (`gc.freeze`).

    While modules are imported, nearly all objects stay, and Python examines 100,000 of them again and again: 0.06 of the 0.5 s
    of a start. Frozen, they are left out of the collection when the ports open, which saves another 0.05 s.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
