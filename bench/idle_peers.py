"""Other TLS servers that hold idle connections, to compare the memory of a connection: a minimal server in Go, and HAProxy.

Neither does anything with a line. HAProxy makes a plain connection to a server for each of a device, as a load balancer does.
So it needs two open files for each.
"""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from owsla.tls.development import development_certificates

from . import proc
from .c_program import MeasurementError
from .harness import free_port

SOURCE = Path(__file__).parent / "beside" / "idle.go"

PROGRAMS: Final = ("go", "haproxy")
"""Programs that have to be installed."""

_HAPROXY: Final = """
global
    nbthread 1
    tune.ssl.cachesize 0
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend devices
    bind 127.0.0.1:{port} ssl crt {pem} no-tls-tickets ssl-min-ver TLSv1.2
    default_backend plain
backend plain
    server one 127.0.0.1:{plain}
"""


class IdlePeer:
    """Server with a certificate like that of a gateway. As a context manager, it ends with its block."""

    name: str
    pid: int
    port: int

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="owsla-bench-")
        self._path = Path(self._folder.name)
        made = development_certificates(self._path, "localhost")
        self._cert, self._key = made.cert, made.key
        try:
            self._process = self._start()
        except BaseException:
            self._folder.cleanup()
            raise
        self.pid = self._process.pid

    def _start(self) -> subprocess.Popen[str]:
        """Start the process. Set `name` and `port`."""
        raise NotImplementedError

    def pss(self) -> float:
        """Return the memory of the server in KB: its proportional set size."""
        return proc.pss(self.pid)

    def __enter__(self) -> IdlePeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()
        self._folder.cleanup()


class GoServer(IdlePeer):
    """Server `beside/idle.go`."""

    def _start(self) -> subprocess.Popen[str]:
        program, version = self._path / "idle", _version("go", "version", r"go(\d\S*)")
        self.name = f"Go {version}: a goroutine with crypto/tls and bufio"
        subprocess.run(["go", "build", "-o", str(program), str(SOURCE)], check=True)
        command = [str(program), str(self._cert), str(self._key)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        self.port = int(process.stdout.readline())
        return process


class HAProxy(IdlePeer):
    """HAProxy in front of a plain server, which is a thread of this process."""

    def _start(self) -> subprocess.Popen[str]:
        version = _version("haproxy", "-v", r"version (\d+\.\d+\.\d+)")
        built = _version("haproxy", "-vv", r"Running on OpenSSL version : OpenSSL (\S+)")
        self.name = f"HAProxy {version}, OpenSSL {built}"
        self._plain = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._accepted: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()
        self.port = free_port()
        pem = self._path / "both.pem"
        pem.write_text(self._cert.read_text() + self._key.read_text())
        config = self._path / "haproxy.cfg"
        config.write_text(_HAPROXY.format(port=self.port, pem=pem, plain=self._plain.getsockname()[1]))
        process = subprocess.Popen(["haproxy", "-f", str(config), "-db"], stderr=subprocess.DEVNULL, text=True)
        patience = time.monotonic() + 10
        while time.monotonic() < patience and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                time.sleep(0.1)
            else:
                return process
        process.kill()
        process.wait()
        raise MeasurementError("HAProxy did not start")

    def _accept(self) -> None:
        while True:
            try:
                self._accepted.append(self._plain.accept()[0])
            except OSError:
                return  # closed

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._plain.shutdown(socket.SHUT_RDWR)
        self._plain.close()
        for one in self._accepted:
            one.close()


def _version(program: str, option: str, pattern: str) -> str:
    """Return the part of a program's output that a pattern finds."""
    found = re.search(pattern, subprocess.run([program, option], capture_output=True, text=True, check=True).stdout)
    return found[1] if found else "?"
