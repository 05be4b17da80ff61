"""Errors that a person can cause, and how the system's own read."""

from __future__ import annotations


class ConfigError(ValueError):
    """Something the user set can't be used; the text is one sentence saying what, and where it came from."""


def os_reason(error: OSError) -> str:
    """Why the system refused, in its own words."""
    return (error.strerror or str(error)).lower()
