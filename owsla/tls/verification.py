"""OpenSSL's reasons for refusing a certificate, as text for people."""

from __future__ import annotations

from typing import Final

from OpenSSL import SSL

_MEANINGS: Final = {
    "DEPTH_ZERO_SELF_SIGNED_CERT": "it is self-signed",
    "SELF_SIGNED_CERT_IN_CHAIN": "its authority is not trusted",
    "UNABLE_TO_GET_ISSUER_CERT": "its authority is not trusted",
    "UNABLE_TO_GET_ISSUER_CERT_LOCALLY": "its authority is not trusted",
    "UNABLE_TO_VERIFY_LEAF_SIGNATURE": "its authority is not trusted",
    "CERT_SIGNATURE_FAILURE": "its authority is not trusted",
    "CERT_HAS_EXPIRED": "it has expired",
    "CERT_NOT_YET_VALID": "it is not valid yet",
    "CERT_REVOKED": "it has been revoked",
    "UNABLE_TO_GET_CRL": "there is no revocation list of its authority",
    "CRL_HAS_EXPIRED": "the revocation list of its authority has expired",
    "CRL_NOT_YET_VALID": "the revocation list of its authority is not valid yet",
    "CRL_SIGNATURE_FAILURE": "the signature of the revocation list of its authority is not valid",
    "KEYUSAGE_NO_CRL_SIGN": "its authority may not sign revocation lists",
    "DIFFERENT_CRL_SCOPE": "the revocation list of its authority does not cover it",
}


def explain_verify_error(error: int) -> str:
    """Return the meaning of an error number of a verify callback (X509_V_ERR_…, X509_STORE_CTX_get_error(3))."""
    for name, number in vars(SSL.X509VerificationCodes).items():
        if number == error and not name.startswith("_"):
            name = name.removeprefix("ERR_")
            return _MEANINGS.get(name) or name.replace("_", " ").lower()
    return f"error {error}"
