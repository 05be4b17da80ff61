"""Devices for the tests: a TLS connection for lines, and a plain TCP connection for invalid bytes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, PrivateCertificate, TLSVersion, optionsForClientTLS
from twisted.python.failure import Failure
from zope.interface import implementer

from .waiting import PATIENCE, Inbox, current_reactor, until, within


class _Factory(Factory):
    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: Any) -> Protocol:
        return self._protocol


@implementer(IHandshakeListener)
class _Lines(Protocol):
    """Protocol that splits received bytes into lines, and reports the begin and the end of the connection."""

    def __init__(self, delimiter: bytes, lines: Inbox[bytes]) -> None:
        self.delimiter = delimiter
        self.lines = lines
        self.rest = b""
        self.received = 0
        self.handshake: Deferred[None] = Deferred()
        self.secure = False
        self.lost: Failure | None = None

    def handshakeCompleted(self) -> None:
        self.secure = True
        if not self.handshake.called:  # the test no longer waits
            self.handshake.callback(None)

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        *lines, self.rest = (self.rest + data).split(self.delimiter)
        for line in lines:
            self.lines.put(line)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.lost = reason
        self.lines.finish(ConnectionError(f"the connection ended: {reason.getErrorMessage()}"))
        if not self.handshake.called:
            self.handshake.errback(reason)


class _Connection:
    """Common part of both kinds of connection."""

    protocol: _Lines

    def __init__(self, port: int, delimiter: bytes) -> None:
        self.port = port
        self.lines: Inbox[bytes] = Inbox(f"lines from port {port}")
        self.protocol = _Lines(delimiter, self.lines)

    @property
    def transport(self) -> Any:
        transport: Any = self.protocol.transport
        assert transport is not None, "not connected"
        return transport

    @property
    def is_open(self) -> bool:
        return self.protocol.transport is not None and self.protocol.lost is None

    @property
    def local_port(self) -> int:
        """Return the local port, which identifies the connection in the log."""
        port: int = self.transport.getHost().port
        return port

    def send_raw(self, data: bytes) -> None:
        """Send bytes unchanged; in one TLS record if there are at most 16384."""
        self.transport.write(data)

    def send_line(self, *lines: bytes) -> None:
        """Send lines, each with a bare newline, in one write."""
        self.send_raw(b"".join(line + b"\n" for line in lines))

    async def line(self, timeout: float = PATIENCE) -> bytes:
        """Return the next line from Owsla, without its delimiter."""
        return await self.lines.get(timeout)

    async def closed(self, timeout: float = PATIENCE) -> Failure:
        """Wait until the connection has ended, and return why."""
        await until(lambda: self.protocol.lost is not None, timeout, f"the end of a connection to port {self.port}")
        assert self.protocol.lost is not None
        return self.protocol.lost

    def abort(self) -> None:
        """Drop the connection with a TCP reset."""
        if self.is_open:
            self.transport.abortConnection()

    async def close(self) -> None:
        """Close the connection, if it is open, and wait for its end."""
        if self.is_open:
            self.transport.loseConnection()
            try:
                await self.closed(5)
            except AssertionError:
                self.abort()
                await self.closed()

    def pause(self) -> None:
        """Stop reading."""
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Resume reading."""
        self.transport.resumeProducing()


class Device(_Connection):
    """Device that connects with TLS to `port`, trusts the CA in the file `ca`, and sends and receives lines.

    `tls` is the only version to use; `certificate` a PEM file with a certificate and its key; `source` the local address;
    `delimiter` the one that Owsla writes after each line.
    """

    def __init__(
        self,
        port: int,
        ca: Path,
        *,
        host: str = "127.0.0.1",
        server_name: str = "localhost",
        tls: TLSVersion | None = None,
        certificate: Path | None = None,
        source: str | None = None,
        delimiter: bytes = b"\r\n",
    ) -> None:
        super().__init__(port, delimiter)
        extra: dict[str, Any] = {}
        if tls is not None:
            extra = {"insecurelyLowerMinimumTo": tls, "lowerMaximumSecurityTo": tls}
        if tls is TLSVersion.TLSv1_3:
            extra = {"raiseMinimumTo": tls}
        with warnings.catch_warnings():
            # Twisted passes a client certificate to pyOpenSSL in a form that newer versions of pyOpenSSL warn of.
            warnings.filterwarnings("ignore", "Passing pyOpenSSL", DeprecationWarning)
            options = optionsForClientTLS(
                server_name,
                trustRoot=Certificate.loadPEM(ca.read_bytes()),
                clientCertificate=PrivateCertificate.loadPEM(certificate.read_bytes()) if certificate else None,
                extraCertificateOptions=extra,
            )
        tcp: Any = TCP4ClientEndpoint(current_reactor(), host, port, bindAddress=(source, 0) if source else None)
        self._endpoint: Any = wrapClientTLS(options, tcp)

    async def connect(self, timeout: float = PATIENCE) -> Device:
        """Connect and finish the handshake."""
        factory = cast(IProtocolFactory, _Factory(self.protocol))
        await within(self._endpoint.connect(factory), timeout, f"a TCP connection to port {self.port}")
        await within(self.protocol.handshake, timeout, f"a TLS handshake with port {self.port}")
        return self

    def begin(self, timeout: float) -> None:
        """Begin to connect, without waiting: `is_ready` tells when the handshake is complete."""
        self._connecting = Deferred.fromCoroutine(self.connect(timeout))
        self._connecting.addErrback(lambda failure: None)

    @property
    def is_ready(self) -> bool:
        """Return whether the handshake is complete."""
        return self.protocol.secure

    @property
    def tls_version(self) -> str:
        """Return the negotiated version, as in `TLSv1.3`."""
        return self._tls().get_protocol_version_name()

    def _tls(self) -> SSL.Connection:
        return cast(SSL.Connection, self.transport.getHandle())


class Plain(_Connection):
    """TCP connection without TLS, or a connection to the unix socket `path`: for devices, silent sockets and invalid bytes.

    `header` are bytes that are sent at once, as a proxy does.
    """

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        source: str | None = None,
        path: Path | None = None,
        header: bytes = b"",
        delimiter: bytes = b"\n",
    ) -> None:
        super().__init__(port, delimiter)
        self._header = header
        self._endpoint: Any
        if path is not None:
            self._endpoint = UNIXClientEndpoint(current_reactor(), str(path))
        else:
            self._endpoint = TCP4ClientEndpoint(current_reactor(), host, port, bindAddress=(source, 0) if source else None)
        self.protocol.handshake.callback(None)

    async def connect(self, timeout: float = PATIENCE) -> Plain:
        """Connect."""
        factory = cast(IProtocolFactory, _Factory(self.protocol))
        await within(self._endpoint.connect(factory), timeout, f"a connection to port {self.port}")
        if self._header:
            self.send_raw(self._header)
        return self
