"""Errors that a user causes, and their texts."""

from __future__ import annotations


class ConfigError(ValueError):
    """An error in what the user set. The text is one sentence that names the fault and its source."""


class ReloadRefused(Exception):
    """A configuration was loaded and cannot be put in force. The text is one sentence that says why."""


def os_reason(error: OSError) -> str:
    """Return the reason that the operating system gives for an error."""
    return (error.strerror or str(error)).lower()


def one_line(message: str) -> str:
    """Return a message without line ends."""
    return " ".join(message.splitlines())
