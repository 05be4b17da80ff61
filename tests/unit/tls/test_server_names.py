"""Choice of server certificates for a server name."""

from __future__ import annotations

from dataclasses import dataclass

from twisted.trial.unittest import SynchronousTestCase

from owsla.tls.server_names import ServerNames, covering, same_use


@dataclass(frozen=True)
class Certificate:
    title: str
    names: frozenset[str]
    key_type: str = "ECDSA"


def named(title: str, *names: str, rsa: bool = False) -> Certificate:
    return Certificate(title, frozenset(names), "RSA" if rsa else "ECDSA")


def titles(certificates: tuple[Certificate, ...]) -> str:
    return " ".join(certificate.title for certificate in certificates)


class ServerNamesTests(SynchronousTestCase):
    def find(self, name: str | None, *certificates: Certificate) -> str:
        """Return the titles of the certificates for a server name."""
        return ServerNames.of(certificates, titles).find(None if name is None else name.encode())

    def test_covering(self) -> None:
        """A name is covered by itself, and by the wildcard of its parent."""
        self.assertEqual(covering("a.example.com"), ("a.example.com", "*.example.com"))
        self.assertEqual(covering("localhost"), ("localhost",))
        self.assertEqual(covering("*.example.com"), ("*.example.com",))
        self.assertEqual(covering(""), ("",))
        self.assertEqual(covering(".com"), (".com",))

    def test_exact(self) -> None:
        """The certificate with the name is chosen, whatever the case and with a final dot."""
        pair = named("one", "one.example"), named("two", "two.example", "zwei.example")
        for name, title in (
            ("one.example", "one"),
            ("two.example", "two"),
            ("ZWEI.Example.", "two"),
            ("three.example", "one"),
            ("a.two.example", "one"),
            ("", "one"),
            (None, "one"),
        ):
            self.assertEqual(self.find(name, *pair), title, name)

    def test_not_ascii(self) -> None:
        """A name that is not ASCII fits none."""
        names = ServerNames.of([named("one", "one.example"), named("two", "two.example")], titles)
        self.assertEqual(names.find(b"\xff.example"), "one")

    def test_wildcard(self) -> None:
        """A wildcard covers one label, and a certificate with the exact name precedes it."""
        three = named("one", "one.example"), named("all", "*.example.com"), named("exact", "a.example.com")
        for name, title in (
            ("a.example.com", "exact"),
            ("b.example.com", "all"),
            ("a.b.example.com", "one"),
            ("example.com", "one"),
        ):
            self.assertEqual(self.find(name, *three), title, name)

    def test_key_types(self) -> None:
        """Certificates with the same names and other key types are used together; OpenSSL chooses among them."""
        certificates = named("rsa", "a.example", rsa=True), named("ecdsa", "a.example")
        made: list[str] = []

        def make(group: tuple[Certificate, ...]) -> str:
            made.append(titles(group))
            return made[-1]

        names = ServerNames.of(certificates, make)
        for name in (b"a.example", b"b.example", None):
            self.assertEqual(names.find(name), "rsa ecdsa")
        self.assertEqual(made, ["rsa ecdsa"])
        self.assertEqual(names.values(), made)

    def test_partly_the_same_names(self) -> None:
        """For a name that certificates of different key types have, all are used; an exact name precedes a wildcard."""
        certificates = (
            named("first", "a.example", "b.example", rsa=True),
            named("second", "b.example", "c.example"),
            named("third", "*.example", rsa=True),
        )
        for name, title in (
            ("a.example", "first"),
            ("b.example", "first second"),
            ("c.example", "second third"),
            ("d.example", "third"),
            (None, "first"),
        ):
            self.assertEqual(self.find(name, *certificates), title, name)

    def test_without_names(self) -> None:
        """Certificates without names can only be the default."""
        self.assertEqual(self.find("a.example", named("one"), named("two", rsa=True)), "one two")
        self.assertEqual(self.find("a.example", named("one"), named("two", "a.example")), "two")

    def test_same_use(self) -> None:
        """Two certificates with the same names and key type are found."""
        one, two, other = named("one", "a", "b"), named("two", "b", "a"), named("other", "a", "b", rsa=True)
        self.assertEqual(same_use([one, other, two]), (one, two))
        self.assertIsNone(same_use([one, other]))
        self.assertIsNone(same_use([one, named("more", "a", "b", "c")]))
