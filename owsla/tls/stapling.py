"""OCSP responses that are sent to devices with the server certificate (OCSP stapling, RFC 6066, section 8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cryptography.x509 import ocsp
from OpenSSL import SSL

from ..errors import ConfigError
from ..runtime.files import ReadFile, read_file


@dataclass(frozen=True, slots=True)
class OcspResponse:
    """The response in one file."""

    path: Path
    content: bytes
    serials: tuple[int, ...] = ()
    """Serial numbers of the certificates that it calls good."""
    next_update: float | None = None
    """Time at which it expires, in seconds since the epoch; `None`: never."""
    reason: str = ""
    """Reason for which it is of no use for any certificate."""


class UnusableResponse(NamedTuple):
    """A response that devices do not get."""

    path: Path
    reason: str


class OcspResponses:
    """The responses of `--ocsp-response`, each for the server certificate with its serial number."""

    def __init__(self, responses: Sequence[OcspResponse], serials: Sequence[int], now: Callable[[], float]) -> None:
        """`serials` are those of the server certificates. `now()` is in seconds since the epoch."""
        self._now = now
        self._by_serial: dict[int, OcspResponse] = {}
        self._rest: list[UnusableResponse] = []
        # Of several for one certificate the one that is valid for longest.
        for response in sorted(responses, key=lambda each: each.next_update or math.inf, reverse=True):
            fitting = [serial for serial in response.serials if serial in serials]
            for serial in fitting:
                self._by_serial.setdefault(serial, response)
            if not fitting:
                reason = response.reason or "it is for none of the server certificates"
                self._rest.append(UnusableResponse(response.path, reason))

    @property
    def next_update(self) -> float | None:
        """Time at which the first response in use expires, in seconds since the epoch; `None`: never."""
        return min((each.next_update for each in self._by_serial.values() if each.next_update is not None), default=None)

    @property
    def in_use(self) -> list[tuple[int, OcspResponse]]:
        """Serial number of each certificate that has a response, and this response."""
        return list(self._by_serial.items())

    def content(self, serial: int) -> bytes:
        """Return the response for a certificate, or `b""` if there is none now."""
        response = self._by_serial.get(serial)
        return response.content if response is not None and not self._expired(response) else b""

    def unusable(self) -> Iterator[UnusableResponse]:
        """Yield the responses that devices do not get."""
        yield from self._rest
        for response in dict.fromkeys(self._by_serial.values()):
            if response.next_update is not None and self._expired(response):
                end = datetime.fromtimestamp(response.next_update, UTC)
                yield UnusableResponse(response.path, f"it expired at {end:%Y-%m-%dT%H:%M:%SZ}")

    def _expired(self, response: OcspResponse) -> bool:
        return response.next_update is not None and response.next_update <= self._now()


def staple(connection: SSL.Connection, responses: OcspResponses | None) -> bytes:
    """Return the response for the certificate that OpenSSL has chosen (`SSL.Context.set_ocsp_server_callback`)."""
    certificate = connection.get_certificate()
    return b"" if responses is None or certificate is None else responses.content(certificate.get_serial_number())


def read_ocsp_response(path: Path, read: ReadFile = read_file) -> OcspResponse:
    """Return the response in a DER file, as `openssl ocsp -respout` writes it.

    A response that is an error, or not "good", is of no use, but no error: the responder may be busy, and its response to a
    later request will be another.
    """
    content = read(path)
    try:
        response = ocsp.load_der_ocsp_response(content)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            answer = response.response_status.name.lower().replace("_", " ")
            return OcspResponse(path, content, reason=f"the responder answered {answer!r}")
        singles = list(response.responses)
        good = [single for single in singles if single.certificate_status is ocsp.OCSPCertStatus.GOOD]
        ends = [single.next_update_utc for single in good]
    except ValueError:
        raise ConfigError(f"{path}: this is not an OCSP response in DER format") from None
    reason = "" if good else f"it says {', '.join(single.certificate_status.name.lower() for single in singles) or 'nothing'}"
    end = min((end.timestamp() for end in ends if end is not None), default=None)
    return OcspResponse(path, content, tuple(single.serial_number for single in good), end, reason)
