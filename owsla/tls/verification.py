"""Why OpenSSL does not accept a certificate, in a person's words."""

from __future__ import annotations

from typing import Final

from OpenSSL import SSL

_WORDS: Final = {
    "DEPTH_ZERO_SELF_SIGNED_CERT": "it is signed by itself",
    "SELF_SIGNED_CERT_IN_CHAIN": "its authority is not one that is trusted",
    "UNABLE_TO_GET_ISSUER_CERT": "its authority is not one that is trusted",
    "UNABLE_TO_GET_ISSUER_CERT_LOCALLY": "its authority is not one that is trusted",
    "UNABLE_TO_VERIFY_LEAF_SIGNATURE": "its authority is not one that is trusted",
    "CERT_SIGNATURE_FAILURE": "its authority is not one that is trusted",
    "CERT_HAS_EXPIRED": "it has expired",
    "CERT_NOT_YET_VALID": "it is not valid yet",
}


def why_not(error: int) -> str:
    """What this number means that a verify callback is given (X509_V_ERR_…, X509_STORE_CTX_get_error(3))."""
    for name, number in vars(SSL.X509VerificationCodes).items():
        if number == error and not name.startswith("_"):
            name = name.removeprefix("ERR_")
            return _WORDS.get(name) or name.replace("_", " ").lower()
    return f"error {error}"
