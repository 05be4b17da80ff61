"""Tests of the checks of certificates: key, chain, dates and authorities."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.trial.unittest import SynchronousTestCase

from owsla.checking.certificates import chain_of, check_authorities, check_dates, check_server_certificate, find_root_of_system
from owsla.checking.findings import Finding
from owsla.errors import ConfigError

from ..tls._handshakes import Key, ec_key, issue, pem, rsa_key

CERT, KEY = Path("server.pem"), Path("server.key")


class Pki:
    """A root, an intermediate authority, and a server's certificate."""

    def __init__(self, lifetime: timedelta = timedelta(days=100)) -> None:
        self.key, root_key, intermediate_key = ec_key(), ec_key(), ec_key()
        self.root = issue(root_key, common_names=("Root",), authority=True, lifetime=lifetime)
        self.intermediate = issue(
            intermediate_key, (self.root, root_key), common_names=("Intermediate",), authority=True, lifetime=lifetime
        )
        self.server = issue(
            self.key,
            (self.intermediate, intermediate_key),
            common_names=("Server",),
            alternatives=tuple(map(x509.DNSName, ("one.example", "two.example", "three.example", "four.example"))),
            lifetime=lifetime,
        )


def texts(findings: Sequence[Finding]) -> list[str]:
    """Return findings without the padding of the columns."""
    return [" ".join(str(finding).split()) for finding in findings]


def check(*certificates: x509.Certificate, key: Key, found: str = "", now: datetime | None = None) -> list[str]:
    """Return the findings for a file with these certificates."""
    contents = {CERT: pem(*certificates), KEY: pem(key)}
    now = now or datetime.now(UTC)
    return texts(list(check_server_certificate(CERT, KEY, contents.__getitem__, now, lambda chain: found)))


class ServerCertificateTests(SynchronousTestCase):
    def test_sound(self) -> None:
        """Names, kind of key, chain and dates of a certificate with nothing wrong, each in a line."""
        pki = Pki()
        end = f"{pki.root.not_valid_after_utc:%Y-%m-%d}"
        self.assertEqual(
            check(pki.server, pki.intermediate, pki.root, key=pki.key),
            [
                "ok certificate server.pem: one.example, two.example, three.example and 1 more, ECDSA secp256r1, "
                "and server.key is its key",
                "ok chain server.pem: complete, up to the self-signed CN=Root",
                f"ok dates server.pem: valid until {end}, for 99 days",
            ],
        )

    def test_self_signed(self) -> None:
        """A self-signed certificate has no chain."""
        key = rsa_key()
        found = check(issue(key, common_names=("Alone",), lifetime=timedelta(days=50)), key=key)
        self.assertEqual(found[0], "ok certificate server.pem: CN=Alone, RSA 2048, and server.key is its key")
        self.assertEqual(found[1], "ok chain server.pem: the certificate is self-signed, so devices must trust it")

    def test_incomplete(self) -> None:
        """A chain that ends before a root is a warning that names what is missing, unless the system trusts it."""
        pki = Pki()
        missing = "whose certificate is neither in the file nor in the trust store of the operating system"
        self.assertIn(
            f"warn chain server.pem: ends before CN=Intermediate, {missing}; append it, unless all devices have it",
            check(pki.server, key=pki.key),
        )
        self.assertIn(
            f"warn chain server.pem: ends before CN=Root, {missing}; append it, unless all devices have it",
            check(pki.server, pki.intermediate, key=pki.key),
        )
        self.assertIn(
            "ok chain server.pem: complete, up to CN=Root in the trust store of the operating system",
            check(pki.server, pki.intermediate, key=pki.key, found="the trust store of the operating system"),
        )

    def test_strangers(self) -> None:
        """A certificate in the file that does not belong to the chain is a warning."""
        pki, other = Pki(), Pki()
        found = check(pki.server, other.intermediate, pki.intermediate, pki.root, key=pki.key)
        self.assertIn("ok chain server.pem: complete, up to the self-signed CN=Root", found)
        self.assertIn("warn chain server.pem: CN=Intermediate does not belong to the chain of the first certificate", found)

    def test_another_key(self) -> None:
        """The key of another certificate is a fault. The chain and the dates are checked all the same."""
        pki = Pki()
        found = check(pki.server, pki.intermediate, pki.root, key=ec_key())
        self.assertEqual(found[0], "FAIL key server.key: this is not the private key of the certificate in server.pem")
        self.assertEqual([line.split()[:2] for line in found[1:]], [["ok", "chain"], ["ok", "dates"]])

    def test_unreadable(self) -> None:
        """Each file that cannot be read has its line."""

        def read(path: Path) -> bytes:
            raise ConfigError(f"{path}: permission denied")

        self.assertEqual(
            texts(list(check_server_certificate(CERT, KEY, read, datetime.now(UTC), lambda chain: ""))),
            ["FAIL certificate server.pem: permission denied", "FAIL key server.key: permission denied"],
        )

    def test_usage(self) -> None:
        """A certificate that is for clients only is a warning."""
        key = ec_key()
        for usage, warned in (
            (ExtendedKeyUsageOID.CLIENT_AUTH, True),
            (ExtendedKeyUsageOID.SERVER_AUTH, False),
            (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE, False),
        ):
            found = check(issue(key, common_names=("x",), usage=usage), key=key)
            self.assertEqual(any("extended key usage" in line for line in found), warned, usage)


class DatesTests(SynchronousTestCase):
    def check(self, moment: timedelta) -> list[str]:
        """Return the findings at a moment after the beginning of a certificate of 100 days, and of one of 200."""
        first = issue(ec_key(), common_names=("First",), lifetime=timedelta(days=100))
        second = issue(ec_key(), common_names=("Second",), lifetime=timedelta(days=200))
        now = first.not_valid_before_utc + moment
        self.begin, self.end = first.not_valid_before_utc, f"{first.not_valid_after_utc:%Y-%m-%d}"
        return texts(list(check_dates(CERT, [first, second], now)))

    def test_valid(self) -> None:
        """The first end counts; 21 days before it a warning begins."""
        self.assertEqual(self.check(timedelta(days=50)), [f"ok dates server.pem: valid until {self.end}, for 50 days"])
        self.assertEqual(self.check(timedelta(days=79)), [f"ok dates server.pem: valid until {self.end}, for 21 days"])
        self.assertEqual(
            self.check(timedelta(days=79, seconds=1)), [f"warn dates server.pem: CN=First expires on {self.end}, in 20 days"]
        )
        self.assertEqual(
            self.check(timedelta(days=99, hours=12)),
            [f"warn dates server.pem: CN=First expires on {self.end}, in less than a day"],
        )

    def test_expired(self) -> None:
        """A certificate that has expired is named; it keeps nobody from starting Owsla, so this is a warning."""
        self.assertEqual(self.check(timedelta(days=101)), [f"warn dates server.pem: CN=First expired on {self.end}"])

    def test_not_yet_valid(self) -> None:
        """A certificate whose time has not come is named, with the second from which it is valid."""
        found = self.check(timedelta(hours=-1))
        self.assertEqual(found[0], f"warn dates server.pem: CN=First is not valid before {self.begin:%Y-%m-%dT%H:%M:%SZ}")
        self.assertEqual(len(found), 2)


class AuthoritiesTests(SynchronousTestCase):
    def check(self, *certificates: x509.Certificate) -> list[str]:
        return texts(list(check_authorities("client-ca", CERT, lambda path: pem(*certificates), datetime.now(UTC))))

    def test_authorities(self) -> None:
        """The authorities of a file are counted and named, and one that cannot sign certificates is a warning."""
        pki = Pki()
        found = self.check(pki.root, pki.intermediate)
        self.assertEqual(found[0], "ok client-ca server.pem: 2 authorities, CN=Root, CN=Intermediate")
        found = self.check(pki.server)
        self.assertEqual(found[0], "ok client-ca server.pem: 1 authority, CN=Server")
        self.assertEqual(found[1], "warn client-ca server.pem: CN=Server is not an authority (basicConstraints)")

    def test_unreadable(self) -> None:
        """A file without a certificate is a fault."""
        found = texts(list(check_authorities("broker-ca", CERT, lambda path: b"x", datetime.now(UTC))))
        self.assertEqual(found, ["FAIL broker-ca server.pem: there is no certificate in PEM format in this file"])


class ChainTests(SynchronousTestCase):
    def test_order(self) -> None:
        """The order in the file does not matter behind the first certificate."""
        pki = Pki()
        self.assertEqual(
            chain_of([pki.server, pki.root, pki.intermediate]), ([pki.server, pki.intermediate, pki.root], [])
        )

    def test_system(self) -> None:
        """The operating system does not trust a root that was made just now."""
        pki = Pki()
        self.assertEqual(find_root_of_system([pki.server, pki.intermediate]), "")
