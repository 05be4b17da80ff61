"""The reason for which a TLS connection is refused, noted on OpenSSL's connection by a callback."""

from __future__ import annotations

from dataclasses import dataclass

from OpenSSL import SSL


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection is refused. A callback of OpenSSL's cannot raise; it notes this as the connection's application data."""

    reason: str

    def note(self, connection: SSL.Connection) -> None:
        """Keep this for `noted`."""
        connection.set_app_data(self)


def noted(connection: SSL.Connection) -> Refusal | None:
    """Return the refusal that a callback noted on this connection, if any."""
    data = connection.get_app_data()
    return data if isinstance(data, Refusal) else None
