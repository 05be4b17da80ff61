"""Dialects: protocols in which devices talk to the gateway itself. `docs/dialects.md` shows how to write one."""

from ._find import find_dialect
from ._interfaces import (
    REDACTED,
    REFUSED,
    Conversation,
    DeviceRefused,
    Dialect,
    DialectPlugin,
    DialectSettings,
    Factory,
    IDialect,
    Refused,
    Successor,
)

__all__ = [
    "REDACTED",
    "REFUSED",
    "Conversation",
    "DeviceRefused",
    "Dialect",
    "DialectPlugin",
    "DialectSettings",
    "Factory",
    "IDialect",
    "Refused",
    "Successor",
    "find_dialect",
]
