"""Bytes that end a payload, and what a payload must not contain because of them."""

from __future__ import annotations

import re


def unfit_before(end: bytes, *others: bytes) -> re.Pattern[bytes]:
    """Return the pattern of payloads that cannot stand before `end`: a receiver would see their end too early.

    They contain `end`, or they end so that `end` begins within them: after `ab`, `abab` would be found too early by two bytes.
    `others` must not occur in payloads either.
    """
    tails = [end[:size] for size in range(1, len(end)) if end[size:] == end[:-size]]
    return re.compile(b"|".join([*map(re.escape, (end, *others)), *(re.escape(tail) + rb"\Z" for tail in tails)]))
