"""OpenSSL's reasons for the end of a TLS connection, as text for people."""

from __future__ import annotations

from typing import Final

_NOT_TLS: Final = "the device does not speak TLS"
_DISTRUSTS: Final = "the device refuses the certificate of the gateway"
_NOTHING_IN_COMMON: Final = "the device offers no version or cipher of TLS that the gateway accepts"

_MEANINGS: Final = {
    "wrong version number": _NOT_TLS,
    "http request": _NOT_TLS,
    "https proxy request": _NOT_TLS,
    "packet length too long": _NOT_TLS,
    "unknown ca": _DISTRUSTS,
    "bad certificate": _DISTRUSTS,
    "unsupported certificate": _DISTRUSTS,
    "certificate revoked": _DISTRUSTS,
    "certificate expired": _DISTRUSTS,
    "certificate unknown": _DISTRUSTS,
    "no shared cipher": _NOTHING_IN_COMMON,
    "unsupported protocol": _NOTHING_IN_COMMON,
    "no suitable key share": _NOTHING_IN_COMMON,
    "no suitable signature algorithm": _NOTHING_IN_COMMON,
    "peer did not return a certificate": "the device has no certificate, or sends none",
}
"""Meanings by OpenSSL's text. That of an alert from the peer is looked up without its beginning, as in `tlsv1 alert unknown ca`
or `ssl/tls alert certificate expired`: the words before `alert` differ between versions of OpenSSL.
"""


def explain_tls_error(text: str) -> str:
    """Return OpenSSL's text for an error with its meaning before it, if that is known."""
    meaning = _MEANINGS.get(text.rpartition(" alert ")[2])
    return text if meaning is None else f"{meaning} ({text})"
