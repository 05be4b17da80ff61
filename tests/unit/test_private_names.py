"""Imports between the modules of the package. The layers and circles are checked by `lint-imports` (pyproject.toml)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import owsla

PACKAGE = Path(owsla.__file__).parent


class PrivateNameTests(SynchronousTestCase):
    """Names that begin with an underscore."""

    def test_private_names(self) -> None:
        """No module imports a private name of another module."""
        found = [
            f"{path.relative_to(PACKAGE)}:{line}: {name}"
            for path in sorted(PACKAGE.rglob("*.py"))
            for line, name in private_names(path)
        ]
        self.assertEqual(found, [])


def private_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the private names of other modules that a module imports, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if _private(alias.name) and not _is_module(path, node, alias.name):
                    yield node.lineno, alias.name


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_module(path: Path, node: ast.ImportFrom, name: str) -> bool:
    folder = path.parents[node.level - 1] if node.level else PACKAGE.parent
    return (folder.joinpath(*(node.module or "").split(".")) / f"{name}.py").exists()
