"""The development authority and server certificate."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from unittest import mock

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from owsla.errors import ConfigError
from owsla.tls import development
from owsla.tls.certificates import read_server_certificate
from owsla.tls.development import development_certificates

from ._handshakes import Files, ec_key, pem, rsa_key, server_context

_NOW = datetime(2030, 1, 1, tzinfo=UTC)

#: End of each message.
_HINT = "; name another folder (--certs-dir) or a certificate (--cert and --key)"


class DevelopmentCertificatesTests(Files):
    """The development certificates of a new machine."""

    def setUp(self) -> None:
        self.folder = self.new_path() / "certs"

    def make(self, hostname: str = "box.example", now: datetime = _NOW) -> dict[str, bytes]:
        """Get the certificates, and return the content of the folder."""
        made = development_certificates(self.folder, hostname, lambda: now)
        self.assertEqual(
            (made.ca, made.cert, made.key),
            (self.folder / "ca.pem", self.folder / "server.pem", self.folder / "server.key"),
        )
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def refused(self) -> str:
        return str(self.assertRaises(ConfigError, self.make))

    def test_what_is_made(self) -> None:
        """An authority and a server certificate are made, with the documented names, lifetimes and extensions."""
        files = self.make("Box.example")
        self.assertEqual(sorted(files), ["ca.key", "ca.pem", "server.key", "server.pem"])
        authority, server = (x509.load_pem_x509_certificate(files[name]) for name in ("ca.pem", "server.pem"))
        server.verify_directly_issued_by(authority)
        self.assertEqual(authority.not_valid_after_utc - _NOW, timedelta(days=3650))
        self.assertEqual(server.not_valid_after_utc - _NOW, timedelta(days=820))
        self.assertLess(server.not_valid_before_utc, _NOW)
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["localhost", "box.example"])
        self.assertEqual(names.get_values_for_type(x509.IPAddress), [ip_address("127.0.0.1"), ip_address("::1")])
        usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        self.assertEqual(list(usage), [ExtendedKeyUsageOID.SERVER_AUTH])
        basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
        self.assertTrue(basic.critical and basic.value.ca)
        self.assertTrue(authority.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign)
        self.assertEqual(
            server.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier,
            authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest,
        )

    def test_a_client_accepts_it(self) -> None:
        """A client with Python's default checks that trusts ca.pem accepts the server by each of its names."""
        made = development_certificates(self.folder, "box.example")
        context = server_context(made.cert, made.key)
        trusting = ssl.create_default_context(cafile=str(made.ca))
        trusting.verify_flags |= ssl.VERIFY_X509_STRICT
        for name in ("localhost", "box.example", "127.0.0.1", "::1"):
            server = SSL.Connection(context)
            server.set_accept_state()
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = trusting.wrap_bio(incoming, outgoing, server_hostname=name)
            for _ in range(4):
                try:
                    client.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                if outgoing.pending:
                    server.bio_write(outgoing.read())
                try:
                    server.do_handshake()
                except SSL.WantReadError:
                    pass
                try:
                    incoming.write(server.bio_read(1 << 16))
                except SSL.WantReadError:
                    pass
            self.assertIsNotNone(client.version(), name)

    def test_private(self) -> None:
        """Private keys are readable by their owner only, with any umask; certificates by everybody."""
        previous = os.umask(0)
        self.addCleanup(os.umask, previous)
        self.make()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in self.folder.iterdir()}
        self.assertEqual(modes, {"ca.key": 0o600, "server.key": 0o600, "ca.pem": 0o644, "server.pem": 0o644})

    def test_never_readable(self) -> None:
        """No key file is readable by others at any moment."""
        modes: list[int] = []
        real = os.open

        def watching(path: str, flags: int, mode: int = 0o777, **more: int) -> int:
            if flags & os.O_CREAT:
                modes.append(mode)
            return real(path, flags, mode, **more)

        with mock.patch("os.open", watching):
            self.make()
        self.assertEqual(modes, [0o600] * 4)

    def test_open_key_is_closed(self) -> None:
        """A key that was made readable for others becomes private again."""
        self.make()
        (self.folder / "server.key").chmod(0o644)
        self.make()
        self.assertEqual(stat.S_IMODE((self.folder / "server.key").stat().st_mode), 0o600)

    def test_used_again(self) -> None:
        """Existing files are reused, byte for byte, even if the folder is not writable."""
        files = self.make()
        with mock.patch.object(development, "_write", side_effect=PermissionError(13, "Permission denied")):
            self.assertEqual(self.make(now=_NOW + timedelta(days=789)), files)

    def test_renewed(self) -> None:
        """In its last 30 days the server's certificate is renewed, by the same authority for the same key."""
        files = self.make()
        later = _NOW + timedelta(days=791)
        renewed = self.make(now=later)
        self.assertEqual([name for name in files if files[name] != renewed[name]], ["server.pem"])
        expiry = x509.load_pem_x509_certificate(renewed["server.pem"]).not_valid_after_utc
        self.assertEqual(expiry - later, timedelta(days=820))

    def test_another_host_name(self) -> None:
        """When the host name has changed, the server's certificate is renewed by the same authority."""
        files = self.make()
        renewed = self.make("other.example")
        self.assertEqual([name for name in files if files[name] != renewed[name]], ["server.pem"])

    def test_odd_host_names(self) -> None:
        """Any host name works: an address, an underscore, beyond ASCII, too long, empty."""
        for hostname in ("10.0.0.1", "a_b", "d\u00e9j\u00e0.example", "x" * 300, "", "localhost"):
            files = self.make(hostname)
            self.assertEqual(self.make(hostname), files, hostname)
            names = x509.load_pem_x509_certificate(files["server.pem"]).extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            )
            dns = names.value.get_values_for_type(x509.DNSName)
            self.assertEqual(len(set(dns)), len(dns))
            self.assertNotIn("", dns)

    def test_half_made(self) -> None:
        """After a kill between any two writes the next start completes files that fit."""
        real = development._write
        for survived in range(4):
            self.folder = self.new_path()
            writes = iter(range(4))

            def dying(path: Path, content: bytes, mode: int, writes: object = writes, survived: int = survived) -> None:
                if next(writes) == survived:  # type: ignore[call-overload]
                    raise KeyboardInterrupt
                real(path, content, mode)

            with mock.patch.object(development, "_write", dying):
                self.assertRaises(KeyboardInterrupt, self.make)
            before = {path.name: path.read_bytes() for path in self.folder.iterdir()}
            self.assertEqual(len(before), survived)
            files = self.make()
            self.assertEqual({name: files[name] for name in before}, before)
            read_server_certificate(self.folder / "server.pem", self.folder / "server.key")
            x509.load_pem_x509_certificate(files["server.pem"]).verify_directly_issued_by(
                x509.load_pem_x509_certificate(files["ca.pem"])
            )

    def test_killed_while_writing(self) -> None:
        """A failed write leaves no file. Files that a killed process left are removed by the next start."""
        with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            self.assertEqual(
                self.refused(), f"{self.folder}: cannot keep development certificates here: no space left on device{_HINT}"
            )
        self.assertEqual(list(self.folder.iterdir()), [])
        (self.folder / ".owsla-abc").write_text("")
        self.assertNotIn(".owsla-abc", self.make())

    def test_two_at_once(self) -> None:
        """Processes that start at the same time use one set of files."""
        program = (
            "import sys; from pathlib import Path; from owsla.tls.certificates import *; from owsla.tls.development import *;"
            "d = development_certificates(Path(sys.argv[1]), 'box'); read_server_certificate(d.cert, d.key);"
            "print(d.ca.read_bytes() + d.cert.read_bytes() + d.key.read_bytes())"
        )
        processes = [
            subprocess.Popen([sys.executable, "-c", program, str(self.folder)], stdout=subprocess.PIPE) for _ in range(4)
        ]
        outputs = {process.communicate()[0] for process in processes}
        self.assertEqual([process.returncode for process in processes], [0] * 4)
        self.assertEqual(len(outputs), 1)

    def test_folder_is_closed(self) -> None:
        """A new folder is private to its owner; write permission of others is removed from an existing one."""
        self.make()
        self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o700)
        self.folder.chmod(0o777)
        self.make()
        self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o755)

    def test_links(self) -> None:
        """The folder and the files in it must not be symbolic links."""
        elsewhere = self.new_path()
        elsewhere.mkdir()
        self.folder.parent.mkdir()
        self.folder.symlink_to(elsewhere)
        self.assertIn("this is a symbolic link", self.refused())
        self.assertEqual(list(elsewhere.iterdir()), [])
        self.folder.unlink()
        self.make()
        for name in ("ca.pem", "ca.key", "server.pem", "server.key"):
            path = self.folder / name
            moved = path.rename(elsewhere / name)
            path.symlink_to(moved)
            self.assertEqual(self.refused(), f"{path}: this is a symbolic link; it must be a regular file")
            moved.rename(path)
        self.make()

    def test_somebody_elses(self) -> None:
        """A folder of another user is refused, who could replace the keys in it. Root is trusted."""
        self.make()
        owner = self.folder.stat().st_uid
        with mock.patch("os.geteuid", return_value=owner + 1):
            if owner == 0:
                self.make()
            else:
                self.assertIn("belongs to another user", self.refused())
        with mock.patch("os.fstat", return_value=os.stat_result((0o40755, 0, 0, 1, 4242, 0, 0, 0, 0, 0))):
            self.assertIn("this folder belongs to another user (uid 4242)", self.refused())

    def test_folder_cannot_be_used(self) -> None:
        """A folder that cannot be made or written to, or is a file, is named with the reason."""
        self.folder.parent.mkdir()
        self.folder.write_text("")
        self.assertEqual(self.refused(), f"{self.folder}: cannot keep development certificates here: not a directory{_HINT}")
        self.folder.unlink()
        with mock.patch("tempfile.mkstemp", side_effect=PermissionError(13, "Permission denied")):
            self.assertEqual(
                self.refused(), f"{self.folder}: cannot keep development certificates here: permission denied{_HINT}"
            )

    def test_broken(self) -> None:
        """A damaged or wrong file is named, with a remedy, and is never overwritten."""
        good = self.make()
        for name, content, reason in [
            ("ca.pem", b"", "there is no certificate in PEM format in this file"),
            ("server.pem", b"x", "there is no certificate in PEM format in this file"),
            ("server.key", b"", "there is no private key in PEM format in this file"),
        ]:
            (self.folder / name).write_bytes(content)
            self.assertEqual(self.refused(), f"{self.folder / name}: {reason}")
            self.assertEqual((self.folder / name).read_bytes(), content)
            (self.folder / name).write_bytes(good[name])
        (self.folder / "server.pem").unlink()
        for content, reason in [(b"", "no private key"), (pem(ec_key()), "not the key of"), (pem(rsa_key()), "did not make")]:
            (self.folder / "ca.key").write_bytes(content)
            message = self.refused()
            self.assertTrue(message.startswith(f"{self.folder / 'ca.key'}: "), message)
            self.assertIn(reason, message)
        (self.folder / "ca.key").unlink()
        self.assertIn("delete", self.refused())

    def test_authority_expires(self) -> None:
        """An authority that expires is not replaced, since devices trust it: an error tells the user."""
        self.make()
        error = self.assertRaises(ConfigError, self.make, now=_NOW + timedelta(days=3640))
        reason = "this authority expires; delete it and ca.key to make a new one"
        self.assertEqual(str(error), f"{self.folder / 'ca.pem'}: {reason}")
