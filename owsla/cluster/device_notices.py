"""Notices about devices: how nodes ask each other for a device, and say that they have it. Pure.

A notice is a message with the header `owsla_notice`, and without a connection id:

    who-has   the question which node has a device. The device id is the header `device_id`; or the body is a JSON array of at
              most `MOST` device ids.
    has       the answer: the body is a JSON array of claims.
    here      the announcement of connections that were identified: the same body.

A claim says that a node has a connection of a device. Back ends may ask, too, so all that arrives is checked. A notice with
anything wrong in it is dropped as a whole. Members of a claim that are not known are ignored, so that later versions can add
some.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from ..device.claims import Claim
from ..routing import canonical

MOST: Final = 500
"""Limit of the device ids of a question, and of the claims of an answer."""

LONGEST_ID: Final = 255
"""Limit of the bytes of a device id in UTF-8, and of the name of a door."""

LARGEST: Final = 1_000_000
"""Limit of the bytes of a body that is decoded. `MOST` device ids of the longest kind take 770 KB: 255 control characters, each
escaped in six bytes."""

_MOST_NUMBER: Final = 2**63 - 1


def pack_claims(claims: Iterable[Claim]) -> bytes:
    """Return the body of an answer, or of an announcement."""
    return json.dumps([claim._asdict() for claim in claims], separators=(",", ":")).encode()


def read_ids(device_id: str | None, body: bytes) -> list[str] | None:
    """Return the device ids that a question is about, each once, or `None` if it is broken.

    `device_id` is the header of that name, or `None`; with it the body has no meaning.
    """
    ids = _array(body) if device_id is None else [device_id]
    if not ids or not all(map(is_device_id, ids)):
        return None
    return list(dict.fromkeys(ids))


def read_claims(body: bytes) -> list[Claim] | None:
    """Return the claims of an answer or announcement, or `None` if it is broken.

    There may be none: a node publishes an empty announcement to find out whether it may.
    """
    members = _array(body)
    if members is None:
        return None
    claims = []
    for member in members:
        claim = _claim(member)
        if claim is None:
            return None
        claims.append(claim)
    return claims


def is_device_id(value: Any) -> bool:
    """Return whether a device can have this id: a text of 1 to 255 bytes in UTF-8."""
    if not isinstance(value, str):
        return False
    try:
        return 0 < len(value.encode()) <= LONGEST_ID
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _array(body: bytes) -> list[Any] | None:
    if len(body) > LARGEST:
        return None
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, list) and len(values) <= MOST else None


def _claim(member: Any) -> Claim | None:
    if not isinstance(member, dict):
        return None
    claim = Claim(*[member.get(name) for name in Claim._fields])  # type: ignore[arg-type]  # checked below
    valid = (
        is_device_id(claim.device_id)
        and is_device_id(claim.door)
        and _is_number(claim.since)
        and _is_number(claim.age)
        and _is_connection_id(claim.connection_id)
    )
    return claim if valid else None


def _is_connection_id(value: Any) -> bool:
    if not isinstance(value, str) or not value.isascii():
        return False
    return canonical(value.encode()) == value.encode()


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_NUMBER
