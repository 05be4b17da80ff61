"""What a device's lines mean: without a dialect they pass as they are. `docs/dialects.md` shows how to write one."""

from ._find import find_dialect
from ._interfaces import REFUSED, Conversation, Dialect, DialectPlugin, DialectSettings, Factory, IDialect, Refused

__all__ = [
    "REFUSED",
    "Conversation",
    "Dialect",
    "DialectPlugin",
    "DialectSettings",
    "Factory",
    "IDialect",
    "Refused",
    "find_dialect",
]
