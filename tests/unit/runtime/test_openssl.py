"""Tests of `owsla.runtime.openssl`, each in a process of its own: OpenSSL is configured once."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

HANDSHAKE = """
import os, ssl, sys, tempfile
from pathlib import Path
from tests.unit.tls._handshakes import ec_key, issue, pem, server_context, shake_with

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "pem")
    key = ec_key()
    file.write_bytes(pem(issue(key, common_names=("server",)), key))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    print(shake_with(server_context(file, file), client).session.has_ticket)
"""
"""Script that prints whether a device gets a session ticket."""

OTHER_MODULE = """
import importlib.util
from importlib.machinery import ModuleSpec
from owsla.runtime.openssl import load_openssl

def load(file):
    importlib.util.find_spec = lambda name: file and ModuleSpec(name, None, origin=file)
    print(load_openssl())

"""
"""Script with a function that calls `load_openssl` as if the module of cryptography were in another file, or missing."""

PROGRAM = """
import sys
from owsla.twistd import main

sys.argv = ["twistd-owsla", "--version"]
try:
    main()
except SystemExit:
    pass
"""
"""Script that runs `twistd-owsla`."""

PLUGIN = "from twisted.plugins.owsla_plugin import owsla\nowsla.options\n"
"""Script that does what `twistd owsla` does."""

LOAD = "from owsla.runtime.openssl import load_openssl\nprint(load_openssl())"


class LoadOpenSSLTests(SynchronousTestCase):
    def output(self, script: str, configuration: Path | None = None) -> list[str]:
        """Return the words that a script prints in a process with this OPENSSL_CONF."""
        environ = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"}
        if configuration is not None:
            environ["OPENSSL_CONF"] = str(configuration)
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    def test_no_tickets(self) -> None:
        """A device gets no session ticket in TLS 1.3. Without the defaults it gets some."""
        self.assertEqual(self.output(HANDSHAKE), ["True"])
        self.assertEqual(self.output(LOAD + HANDSHAKE), ["True", "False"])

    def test_programs(self) -> None:
        """`twistd-owsla` and `twistd owsla` have the defaults."""
        for script in (PROGRAM, PLUGIN):
            self.assertEqual(self.output(script + HANDSHAKE)[-1], "False")

    def test_configuration_of_the_operator(self) -> None:
        """With OPENSSL_CONF only the file that it names counts."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "openssl.cnf")
            file.write_text("openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nNumTickets = 1\n")
            self.assertEqual(self.output(LOAD + HANDSHAKE, file), ["False", "True"])

    def test_configuration_of_the_system(self) -> None:
        """A configuration file of the OpenSSL in cryptography's module counts, as does that of an OpenSSL outside of it, which
        is the system's. Without the module, or without access to it, nothing is loaded.
        """
        with tempfile.TemporaryDirectory() as folder:
            module, linked, configured, missing = (Path(folder, name) for name in ("module", "linked", "configured", "missing"))
            module.write_bytes(b'\0OPENSSLDIR: "%b"\0' % os.fsencode(Path(folder, "nowhere")))
            configured.write_bytes(b'\0OPENSSLDIR: "%b"\0' % os.fsencode(folder))
            linked.write_bytes(b"OpenSSL 3.5.4")
            Path(folder, "openssl.cnf").write_text("")
            files = [str(configured), str(linked), str(missing), None, str(module)]
            script = OTHER_MODULE + f"for file in {files!r}:\n    load(file)\n"
            self.assertEqual(self.output(script), ["False", "False", "False", "False", "True"])

    def test_loaded_before(self) -> None:
        """In a process that has imported OpenSSL before, such as another program that uses Owsla, nothing changes."""
        self.assertEqual(self.output("from OpenSSL import SSL\n" + LOAD + HANDSHAKE), ["False", "True"])

    def test_other_openssl(self) -> None:
        """The OpenSSL of Python itself has its own configuration, and the environment is as before."""
        script = "import os, ssl\nprint(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).num_tickets, 'OPENSSL_CONF' in os.environ)"
        self.assertEqual(self.output(LOAD + "\n" + script), ["True", "2", "False"])
