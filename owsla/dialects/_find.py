"""Lookup of the dialect class for `--dialect`."""

from __future__ import annotations

import difflib
import importlib

from twisted.plugin import getPlugins

from ..errors import ConfigError
from ._interfaces import Dialect, IDialect


def find_dialect(text: str) -> type[Dialect]:
    """Return the dialect class for a short name, or for `package.module:Name`. Raise `ConfigError` if it cannot be found."""
    if ":" in text:
        return _import_dialect(text)
    plugins = {plugin.name: plugin.reference for plugin in getPlugins(IDialect)}
    if text in plugins:
        return _import_dialect(plugins[text])
    names = ", ".join(sorted(plugins))
    close = difflib.get_close_matches(text, list(plugins), 1)
    hint = f"; did you mean {close[0]}?" if close else f" ({names}, or package.module:Name)"
    raise ConfigError(f"{text!r}: there is no such dialect{hint}")


def _import_dialect(reference: str) -> type[Dialect]:
    module_name, _, name = reference.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"{reference!r} is not of the form package.module:Name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # The name of the missing module distinguishes a typing error from a package that is not installed.
        raise ConfigError(f"{reference!r}: there is no module {error.name}") from None
    except Exception as error:
        raise ConfigError(f"{reference!r}: {module_name} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        found = getattr(module, name)
    except AttributeError:
        raise ConfigError(f"{reference!r}: there is no {name} in {module_name}") from None
    if not (isinstance(found, type) and issubclass(found, Dialect)):
        raise ConfigError(f"{reference!r} is not a dialect: a subclass of owsla.dialects.Dialect")
    return found
