"""Faults of certificate and key files."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives.asymmetric import dsa

from owsla.errors import ConfigError
from owsla.runtime.files import ReadFile
from owsla.tls.certificates import read_certificates

from ._handshakes import Files, ec_key, issue, pem, rsa_key, server_tls


def returning(content: bytes) -> ReadFile:
    """Return a function that reads the same content from every file."""
    return lambda path: content


class FilesTests(Files):
    def test_bad_files(self) -> None:
        """Each fault of a file is an error of one sentence with the file's name."""
        key, other = ec_key(), ec_key()
        certificate = issue(key, common_names=("leaf",))
        good_cert, good_key = self.file(pem(certificate)), self.file(pem(key))
        missing = self.new_path()
        damaged = b"-----BEGIN %s-----\nAAAA\n-----END %s-----\n"
        dsa_key = dsa.generate_private_key(2048)
        for cert, key_file, reason in [
            (missing, good_key, f"{missing}: no such file or directory"),
            (good_cert, missing, f"{missing}: no such file or directory"),
            (Path("/"), good_key, "/: is a directory"),
            (self.file(b"hello"), good_key, "no certificate in PEM format"),
            (good_key, good_cert, "no certificate in PEM format"),
            (good_cert, good_cert, "no private key in PEM format"),
            (self.file(damaged % ((b"CERTIFICATE",) * 2)), good_key, "damaged"),
            (good_cert, self.file(damaged % ((b"PRIVATE KEY",) * 2)), "damaged"),
            (good_cert, self.file(pem(key, password=b"x")), "encrypted"),
            (good_cert, self.file(pem(dsa_key)), "neither RSA nor ECDSA"),
            (good_cert, self.file(pem(other)), f"this is not the private key of the certificate in {good_cert}"),
            (self.file(pem(issue(other), certificate)), good_key, "the server's own certificate must come first"),
            (self.file(pem(issue(rsa_key(1024)))), self.file(pem(rsa_key(1024))), "key too small"),
        ]:
            message = str(self.assertRaises(ConfigError, server_tls, cert, key_file))
            self.assertIn(reason, message)
            self.assertEqual(len(message.splitlines()), 1)
            self.assertTrue(message.startswith((f"{cert}: ", f"{key_file}: ")), message)

    def test_cut_off(self) -> None:
        """A file that ends in the middle of a certificate is refused, although there are whole ones before it.

        A reload may read a file while it is written. Without the last authorities, their devices would be refused.
        """
        whole = pem(issue(ec_key(), common_names=("first",)))
        content = whole + pem(issue(ec_key(), common_names=("second",)))
        for length in range(len(whole) + len(b"-----B"), len(content) - 1):
            error = self.assertRaises(ConfigError, read_certificates, Path("x"), returning(content[:length]))
            self.assertIn("ends in the middle of a certificate", str(error), length)
        for text, count in [(content, 2), (content.rstrip(), 2), (whole + b"# the second one\n-- \n" + whole + b"# end\n", 2)]:
            self.assertEqual(len(read_certificates(Path("x"), returning(text))), count)

    def test_unreadable(self) -> None:
        """A file that cannot be read is named with the reason."""
        path = self.file(b"")
        with mock.patch.object(Path, "read_bytes", side_effect=PermissionError(13, "Permission denied")):
            error = self.assertRaises(ConfigError, read_certificates, path)
        self.assertEqual(str(error), f"{path}: permission denied")
