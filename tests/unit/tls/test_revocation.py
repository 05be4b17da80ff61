"""Certificate revocation lists: reading, what is wrong with them, and whom they revoke."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from OpenSSL import crypto

from owsla.errors import ConfigError
from owsla.tls.revocation import RevocationLists, read_revocation_lists

from ._handshakes import Files, ec_key, issue, pem, revocation_list, rsa_key


class RevocationListTests(Files):
    def setUp(self) -> None:
        self.key = ec_key()
        self.authority = issue(self.key, common_names=("device CA",), authority=True)
        self.now = datetime.now(UTC)

    def crl(self, *revoked: x509.Certificate, **options: object) -> bytes:
        return revocation_list((self.authority, self.key), *revoked, **options)  # type: ignore[arg-type]

    def read(self, *lists: bytes, authorities: tuple[x509.Certificate, ...] | None = None) -> RevocationLists:
        self.path = self.file(b"".join(lists))
        return read_revocation_lists(self.path, [self.authority] if authorities is None else authorities)

    def refused(self, *lists: bytes) -> str:
        error = self.assertRaises(ConfigError, self.read, *lists)
        return str(error).removeprefix(f"{self.path}: ")

    def device(self, serial: int | None = None) -> x509.Certificate:
        return issue(ec_key(), (self.authority, self.key), common_names=("device",), serial=serial)

    def revokes(self, lists: RevocationLists, *chain: x509.Certificate) -> bool:
        return lists.revoke([crypto.X509.from_cryptography(certificate) for certificate in chain])

    def test_revoked(self) -> None:
        """A device is revoked by a list of its authority that has its serial number."""
        bad, good = self.device(), self.device()
        lists = self.read(self.crl(bad))
        for _ in range(2):
            self.assertTrue(self.revokes(lists, bad, self.authority))
            self.assertFalse(self.revokes(lists, good, self.authority))

    def test_other_authority(self) -> None:
        """A list does not concern certificates of another authority, even one of the same name, with the same serial number."""
        key = ec_key()
        other = issue(key, common_names=("device CA",), authority=True)
        certificate = issue(ec_key(), (other, key), serial=4711)
        lists = self.read(self.crl(self.device(4711)))
        self.assertFalse(self.revokes(lists, certificate, other))
        self.assertTrue(self.revokes(lists, certificate, self.authority))

    def test_intermediate(self) -> None:
        """A device is revoked with its intermediate authority, and by a list of that authority."""
        middle_key = ec_key()
        middle = issue(middle_key, (self.authority, self.key), common_names=("middle",), authority=True)
        device = issue(ec_key(), (middle, middle_key), common_names=("device",))
        chain = device, middle, self.authority
        self.assertTrue(self.revokes(self.read(self.crl(middle)), *chain))
        own = revocation_list((middle, middle_key), device)
        self.assertTrue(self.revokes(self.read(self.crl(), own), *chain))
        self.assertFalse(self.revokes(self.read(self.crl(self.device())), *chain))
        self.assertEqual(len(self.read(self.crl(), own).lists), 2)

    def test_newer_list(self) -> None:
        """Of two lists of an authority the newer one counts, as in OpenSSL: a certificate may be on hold for a time."""
        device = self.device()
        old, new = self.crl(device, age=timedelta(hours=2)), self.crl(age=timedelta(hours=1))
        for lists in ((old, new), (new, old)):
            self.assertFalse(self.revokes(self.read(*lists), device, self.authority))

    def test_expired(self) -> None:
        """An expired list is reported with its authority, and still revokes."""
        device = self.device()
        lists = self.read(self.crl(device, age=timedelta(hours=3), lifetime=timedelta(hours=1)))
        end = lists.next_update
        assert end is not None
        self.assertEqual(list(lists.unusable(end - 1)), [])
        (early,) = lists.unusable(0.0)
        self.assertIn("the list is not valid before ", early.reason)
        (found,) = lists.unusable(end)
        self.assertEqual(found.authority, "CN=device CA")
        self.assertRegex(found.reason, r"\Athe list expired at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")
        self.assertTrue(self.revokes(lists, device, self.authority))

    def test_replaced_before_it_expires(self) -> None:
        """An expired list is not reported beside a newer one of the same authority."""
        old = self.crl(age=timedelta(hours=3), lifetime=timedelta(hours=1))
        lists = self.read(old, self.crl())
        self.assertEqual(list(lists.unusable(self.now.timestamp())), [])
        self.assertGreater(lists.next_update or 0.0, self.now.timestamp(), "the end of a list that was replaced does not count")

    def test_missing(self) -> None:
        """An authority of which there is no list is reported; an intermediate one that only devices know is not."""
        other = issue(rsa_key(), common_names=("other CA",), authority=True)
        lists = self.read(self.crl(), authorities=(self.authority, other))
        self.assertEqual(list(lists.unusable(self.now.timestamp())), [("CN=other CA", "there is no list of this authority")])

    def test_first_to_expire(self) -> None:
        """With several lists the first end is that of all; a list without an end never expires."""
        key = rsa_key()
        other = issue(key, common_names=("other CA",), authority=True)
        lists = self.read(
            self.crl(lifetime=timedelta(hours=9)), revocation_list((other, key), lifetime=timedelta(hours=5)),
            authorities=(self.authority, other),
        )  # fmt: skip
        assert lists.next_update is not None
        self.assertLess(abs(lists.next_update - self.now.timestamp() - 4 * 3600), 60)

    def test_same(self) -> None:
        """Lists are the same if their contents are."""
        content = self.crl(self.device())
        self.assertTrue(self.read(content).same_as(self.read(content)))
        self.assertFalse(self.read(content).same_as(self.read(self.crl())))
        self.assertFalse(self.read(content).same_as(None))

    def test_bad_files(self) -> None:
        """A file that is no list, or half of one, is refused."""
        self.assertEqual(self.refused(b"hello"), "there is no certificate revocation list in PEM format in this file")
        self.assertEqual(
            self.refused(pem(self.authority)), "there is no certificate revocation list in PEM format in this file"
        )
        damaged = "a certificate revocation list in this file is damaged"
        cut = "this file ends in the middle of a certificate revocation list"
        self.assertEqual(self.refused(self.crl()[:-40]), cut)
        self.assertEqual(self.refused(self.crl(), self.crl()[:200]), cut)
        self.assertEqual(self.refused(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"), damaged)

    def test_unreadable(self) -> None:
        """A file that cannot be read is refused with the reason."""
        missing = self.new_path()
        error = self.assertRaises(ConfigError, read_revocation_lists, missing, [self.authority])
        self.assertEqual(str(error), f"{missing}: no such file or directory")

    def test_signature(self) -> None:
        """A list in the name of an authority is refused if another key has signed it."""
        forged = revocation_list((self.authority, ec_key()))
        self.assertEqual(self.refused(forged), "the signature of the list of CN=device CA is not valid")

    def test_signed_by_an_older_key(self) -> None:
        """A list is accepted whose authority key identifier names another certificate of the same authority."""
        old_key, key = ec_key(), ec_key()
        old = issue(old_key, common_names=("CA",), authority=True, identified=True)
        new = issue(key, common_names=("CA",), authority=True, identified=True)
        self.read(revocation_list((old, old_key)), authorities=(new,))
        lists = self.read(revocation_list((old, old_key)), authorities=(new,))
        self.assertEqual(len(list(lists.unusable(self.now.timestamp()))), 1)

    def test_may_not_sign(self) -> None:
        """A list is refused whose authority may sign certificates only, because OpenSSL would refuse all its devices."""
        self.authority = issue(self.key, common_names=("device CA",), authority=True, uses=("key_cert_sign",))
        reason = "the certificate of CN=device CA does not allow it to sign lists (keyUsage cRLSign)"
        self.assertEqual(self.refused(self.crl()), reason)

    def test_kinds(self) -> None:
        """Delta lists and indirect lists are refused: OpenSSL would ignore them."""
        delta = x509.DeltaCRLIndicator(1)
        self.assertIn("is a delta list", self.refused(self.crl(extension=delta)))
        indirect = x509.IssuingDistributionPoint(
            full_name=[x509.UniformResourceIdentifier("http://a.example/")], relative_name=None,
            only_contains_user_certs=False, only_contains_ca_certs=False, only_some_reasons=None, indirect_crl=True,
            only_contains_attribute_certs=False,
        )  # fmt: skip
        self.assertIn("is indirect", self.refused(self.crl(extension=indirect)))

    def test_odd_authority(self) -> None:
        """If an authority's certificate cannot be read, a serial number in any list counts."""
        device = self.device()
        lists = self.read(self.crl(device), authorities=())
        odd = crypto.X509.from_cryptography(self.authority)
        self.patch(crypto.X509, "to_cryptography", lambda certificate: 1 / 0)
        self.assertTrue(lists.revoke([crypto.X509.from_cryptography(device), odd]))
