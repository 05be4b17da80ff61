"""Tests of the checks of all files that settings name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from owsla.checking.files import check_doors, check_files
from owsla.config.sources import load_settings
from owsla.runtime.files import Files as Contents

from ..tls._handshakes import Files, ec_key, issue, pem


class CheckFilesTests(Files):
    def setUp(self) -> None:
        root_key, key = ec_key(), ec_key()
        self.root_key = root_key
        self.root = issue(root_key, common_names=("Root",), authority=True, lifetime=timedelta(days=100))
        server = issue(key, (self.root, root_key), common_names=("one.example",), lifetime=timedelta(days=90))
        self.cert, self.key, self.ca = self.file(pem(server)), self.file(pem(key)), self.file(pem(self.root))

    def check(self, *argv: str) -> list[str]:
        """Return the findings without the padding of the columns, and with short paths."""
        files = Contents()
        settings = load_settings(argv, {}, files=files, certificates="left")
        found = check_files(settings, files, datetime.now(UTC), lambda chain: "")
        return [" ".join(str(finding).split()) for finding in found]

    def revocations(self, age: timedelta) -> Path:
        """Return a file with a list that was made `age` ago, and is valid for two days."""
        begin = datetime.now(UTC) - age
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.root.subject).last_update(begin)
        crl = builder.next_update(begin + timedelta(days=2)).sign(self.root_key, hashes.SHA256())
        return self.file(crl.public_bytes(serialization.Encoding.PEM))

    def test_root_of_devices(self) -> None:
        """A chain is complete if its root signs device certificates, too."""
        self.assertIn(
            f"ok chain {self.cert}: complete, up to CN=Root in --client-ca",
            self.check(f"--cert={self.cert}", f"--key={self.key}", f"--client-ca={self.ca}"),
        )
        found = self.check(f"--cert={self.cert}", f"--key={self.key}")
        self.assertTrue(found[1].startswith(f"warn chain {self.cert}: ends before CN=Root, "), found)

    def test_same_use(self) -> None:
        """Of two certificates for the same names and with the same type of key only one could be used."""
        found = self.check(*(f"--{name}={path}" for name, path in (("cert", self.cert), ("key", self.key)) * 2))
        (fault,) = [line for line in found if line.startswith("FAIL")]
        self.assertEqual(
            fault, f"FAIL certificate {self.cert}: has the names and the key type of {self.cert}; only one of them can be used"
        )

    def test_revocation(self) -> None:
        """A list that has expired is a warning, which says what --crl-policy makes of it; one that is damaged is a fault."""
        arguments = [f"--cert={self.cert}", f"--key={self.key}", f"--client-ca={self.ca}"]
        valid, expired = self.revocations(timedelta(days=1)), self.revocations(timedelta(days=3))
        (line,) = [line for line in self.check(*arguments, f"--client-crl={valid}") if " client-crl " in line]
        self.assertTrue(line.startswith(f"ok client-crl {valid}: 1 list, valid until 20"), line)
        for policy, effect in (("hard", "will be refused"), ("soft", "will be accepted")):
            found = self.check(*arguments, f"--client-crl={expired}", f"--crl-policy={policy}")
            (line,) = [line for line in found if line.startswith("warn")]
            self.assertTrue(line.startswith(f"warn client-crl {expired}: CN=Root: the list expired at 20"), line)
            self.assertTrue(line.endswith(f"devices of this authority {effect} (--crl-policy {policy})"), line)
        found = self.check(*arguments, f"--client-crl={self.ca}")
        (line,) = [line for line in found if line.startswith("FAIL")]
        self.assertTrue(line.startswith(f"FAIL client-crl {self.ca}: there is no certificate revocation list"), line)

    def test_missing(self) -> None:
        """Every file that is missing has its line: settings are read without them."""
        missing = self.new_path()
        found = self.check(*(f"--{name}={missing}" for name in ("cert", "key", "client-ca", "client-crl", "ocsp-response")))
        self.assertEqual(
            [line.split()[:2] for line in found],
            [["FAIL", "certificate"], ["FAIL", "key"], ["FAIL", "ocsp-response"], ["FAIL", "client-ca"]],
        )

    def test_development(self) -> None:
        """Without --cert the check says what the start will make, and makes nothing."""
        folder = self.new_path()
        self.assertEqual(
            self.check(f"--certs-dir={folder}"),
            [f"ok certificate {folder}: the start will make a development certificate there (no --cert is given)"],
        )
        self.assertFalse(folder.exists())
        folder.write_text("")
        (found,) = self.check(f"--certs-dir={folder}")
        self.assertTrue(found.startswith("FAIL certificate"), found)

    def test_doors(self) -> None:
        """The files of each door are checked, and each file once; those of a door without TLS are not needed."""
        lines = self.check(
            f"--cert={self.cert}", f"--key={self.key}", "--listen=tls:1:name=a", f"--listen=tls:2:name=b:client-ca={self.ca}",
            "--listen=tcp:3:name=c",
        )  # fmt: skip
        self.assertEqual([line.split()[1] for line in lines].count("certificate"), 1, lines)
        self.assertEqual([line.split()[1] for line in lines].count("client-ca"), 1, lines)
        self.assertEqual(self.check("--tls=no", "--certs-dir=/proc/none"), [])

    def test_plain_door(self) -> None:
        """Plain TCP that other machines can reach is a warning."""
        settings = load_settings(
            ["--tls=no", "--listen=tcp:1:name=a:interface=127.0.0.1", "--listen=unix:s", "--listen=tls:2",
             "--listen=tcp:3:name=b:interface=192.0.2.1"], {},
        )  # fmt: skip
        warnings = [str(finding) for finding in check_doors(settings, Contents())]
        self.assertEqual(len(warnings), 2, warnings)
        self.assertIn("default: plain TCP on all interfaces: ", warnings[0])
        self.assertIn("b: plain TCP on 192.0.2.1: ", warnings[1])

    def test_unix_door(self) -> None:
        """A unix socket that could not be made is a fault."""
        folder = self.new_path()
        folder.mkdir()
        cases = [(self.cert, "exists and is not a socket"), ("/nowhere/x", "there is no folder /nowhere"), (folder / "x", "")]
        for path, fault in cases:
            settings = load_settings([f"--listen=unix:{path}:name=a"], {})
            found = [str(finding) for finding in check_doors(settings, Contents())]
            self.assertEqual([line[:4] for line in found], ["FAIL"] if fault else [], found)
            self.assertIn(fault, "".join(found))

    def test_skipped_and_acknowledged(self) -> None:
        """Devices that count their lines and are acknowledged would be misled by skipped ones."""
        settings = load_settings(["--on-long=skip", "--device-ack=ACK {seq}"], {})
        (found,) = check_doors(settings, Contents())
        self.assertIn("default: --on-long skip with --device-ack", str(found))
