"""TLS server that only holds connections: the minimum that a TLS connection costs with pyOpenSSL.

It uses the TLS context of the gateway, so that the difference in memory and CPU is due to the gateway. `bench.memory` starts it
with the certificate and the key. It prints its port, and ends with its standard input. `bench.handshakes` adds a port. Then it
serves until it is killed.
"""

from __future__ import annotations

import select
import socket
import sys
from pathlib import Path

from OpenSSL import SSL

from owsla.runtime.open_files import raise_open_files_limit
from owsla.tls.device import DeviceTLS, DeviceTLSFiles, load_device_tls


class Bare:
    """Server that keeps nothing per connection but the `SSL.Connection` with its socket."""

    def __init__(self, cert: Path, key: Path, port: int = 0) -> None:
        self.context = DeviceTLS(load_device_tls(DeviceTLSFiles(pairs=[(cert, key)]))).context
        self.socket = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.socket.setblocking(False)
        self.epoll = select.epoll()
        if not port:
            self.epoll.register(0, select.EPOLLIN)
        self.epoll.register(self.socket.fileno(), select.EPOLLIN)
        self.shaking: dict[int, SSL.Connection] = {}
        self.open: dict[int, SSL.Connection] = {}

    def accept(self) -> None:
        try:
            sock, _ = self.socket.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        connection = SSL.Connection(self.context, sock)
        connection.set_accept_state()
        self.shaking[sock.fileno()] = connection
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def serve(self, fd: int) -> None:
        """Continue a handshake, or discard input."""
        try:
            if fd in self.shaking:
                self.shaking[fd].do_handshake()
                self.open[fd] = self.shaking.pop(fd)
            else:
                self.open[fd].recv(16384)
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            self.epoll.unregister(fd)
            connection = self.shaking.pop(fd, None) or self.open.pop(fd)
            if isinstance(error, SSL.ZeroReturnError):
                connection.shutdown()  # answers close_notify, as the gateway does
            connection.close()

    def run(self) -> None:
        """Serve until the standard input ends."""
        while True:
            for fd, _ in self.epoll.poll():
                if fd == 0:
                    return
                if fd == self.socket.fileno():
                    self.accept()
                else:
                    self.serve(fd)


def main() -> None:
    """Serve on a port of 127.0.0.1: a free one, if none is given."""
    raise_open_files_limit()
    bare = Bare(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    print(bare.socket.getsockname()[1], flush=True)
    bare.run()


if __name__ == "__main__":
    main()
