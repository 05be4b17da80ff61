"""Tests of the check of the file of `--deny`."""

from __future__ import annotations

from datetime import UTC, datetime

from twisted.trial.unittest import SynchronousTestCase

from owsla.checking.deny_list import check_deny_list
from owsla.config.sources import load_settings

CERTIFICATES = ("--client-ca=ca.pem",)


class CheckDenyListTests(SynchronousTestCase):
    def check(self, *lines: str, options: tuple[str, ...] = CERTIFICATES) -> list[str]:
        """Return the findings without the padding of the columns."""
        settings = load_settings([*options, "--deny=list"], {}, certificates="left")
        assert settings.deny is not None
        content = "\n".join(lines).encode()
        found = check_deny_list(settings, settings.deny, lambda path: content, datetime(2026, 11, 28, tzinfo=UTC))
        return [" ".join(str(finding).split()) for finding in found]

    def test_contents(self) -> None:
        """One line says how much is in the list, and how many entries have ended."""
        self.assertEqual(self.check("# nobody"), ["ok deny list: empty: nothing is denied"])
        self.assertEqual(self.check("address 192.0.2.1"), ["ok deny list: 1 address"])
        self.assertEqual(
            self.check(
                "address 192.0.2.1", "address 192.0.2.2", "address 192.0.2.0/24", "address 2001:db8::/64", "serial 01",
                "device a", "device b until 2027-01-01T00:00:00Z", "device c until 2026-11-28T00:00:00Z",
            ),
            ["ok deny list: 2 addresses, 2 networks, 1 serial number, 3 device ids; ended: 1"],
        )  # fmt: skip

    def test_fault(self) -> None:
        """A fault is named with the number of its line."""
        (line,) = self.check("device a", "adress 192.0.2.1")
        self.assertTrue(line.startswith("FAIL deny list: line 2: 'adress' is none of"), line)

    def test_everybody(self) -> None:
        """A list that denies all addresses is a warning."""
        for network, version in (("0.0.0.0/0", "IPv4"), ("::/0", "IPv6"), ("::ffff:0:0/96", "IPv4")):
            self.assertEqual(
                self.check(f"address {network}")[1:], [f"warn deny list: a network of length 0 denies every {version} address"]
            )

    def test_single_addresses(self) -> None:
        """A single IPv6 address is a warning: it keeps nobody out."""
        (line,) = self.check("address 2001:db8::1", "address 192.0.2.1", "address 2001:db8::/64")[1:]
        self.assertTrue(line.startswith("warn deny list: 1 single IPv6 address; "), line)

    def test_no_effect(self) -> None:
        """Entries that no door can check are a warning."""
        lines = ("serial 01", "device a")
        self.assertEqual([line.split()[0] for line in self.check(*lines, options=())], ["ok", "warn", "warn"])
        self.assertEqual(len(self.check(*lines)), 1)
        (line,) = self.check(*lines, options=("--dialect=login",))[1:]
        self.assertIn("serial numbers have no effect", line)
        proxy = ("--proxy-protocol=10.0.0.0/8", "--proxy-identity=cn", "--tls=no")
        (line,) = self.check(*lines, options=proxy)[1:]
        self.assertIn("serial numbers have no effect", line)
        self.assertEqual(len(self.check(*lines, options=("--listen=tls:9000:client-ca=ca.pem",))), 1)


