"""Errors that a request can end with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class HttpError(Exception):
    """An answer other than success. Its text is one sentence for the client."""

    def __init__(self, status: int, text: str, *, headers: Mapping[str, str] | None = None, **details: Any) -> None:
        """`details` are further members of the JSON object of the error."""
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers or {}
        self.details = details
