"""`owsla tree`: the supervision tree of a running gateway."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, cast

from ..supervision_tree import TreeNode, render
from ._control import TIMEOUT, Control, ControlError
from ._gateway import find, guarded, put_json
from ._print import put

_NO_TREE: Final = "does not answer with a tree: is that a gateway?"


def command(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla tree`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    return guarded("tree", partial(show, find(args, environ, open_to_all=True), as_json=args.json))


def fetch(control: Control) -> Any:
    """Return the tree of a gateway, as parsed JSON. Raise `ControlError`.

    The page is older than the control interface, and `--http` has it without a token.
    """
    answer = control.request("GET", "/tree", timeout=TIMEOUT)
    if answer.status != 200:
        raise ControlError(f"{control.where} answers {answer.status}: is that a gateway?")
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        raise ControlError(f"{control.where} {_NO_TREE}") from None


def show(control: Control, *, as_json: bool = False) -> int:
    """Print the tree of a gateway. Return the exit status. Raise `ControlError`."""
    tree = fetch(control)
    try:
        text = render(cast(TreeNode, tree))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ControlError(f"{control.where} {_NO_TREE}") from None
    if as_json:
        put_json(tree)
        return 0
    # The answer may contain control characters, which would move the cursor of a terminal.
    shown = ("".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in line) for line in text.split("\n"))
    put("\n".join(shown) + "\n")
    return 0
