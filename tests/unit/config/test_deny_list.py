"""Tests of the file of `--deny`."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.config.deny_list import DenyList, parse_deny_list, read_deny_list
from owsla.errors import ConfigError

NOW = datetime(2026, 11, 28, tzinfo=UTC).timestamp()


def parse(*lines: str) -> DenyList:
    return parse_deny_list("\n".join(lines).encode())


class LinesTests(SynchronousTestCase):
    def devices(self, *lines: str) -> list[str]:
        return list(parse(*lines).devices)

    def test_ignored(self) -> None:
        """Space around words, blank lines and comments are ignored. A comment begins with a word."""
        denied = parse("# device x", "", " \t", "\taddress \t192.0.2.7", "serial 01AB  ", "device m#1 # stolen", "  # device y")
        self.assertEqual((list(denied.devices), list(denied.serials), denied.entries), (["m#1"], [0x1AB], 3))

    def test_windows(self) -> None:
        """An editor on Windows ends lines with CRLF, and begins the file with a byte order mark."""
        denied = parse_deny_list(b"\xef\xbb\xbfdevice meter-1\r\ndevice \"meter 2\"\r\n\r\naddress 192.0.2.7")
        self.assertEqual((list(denied.devices), denied.addresses), (["meter-1", "meter 2"], 1))

    def test_nothing(self) -> None:
        """An empty file denies nobody."""
        for content in (b"", b"\n", b"\xef\xbb\xbf", b"# nobody"):
            self.assertEqual(parse_deny_list(content).entries, 0)

    def test_quotes(self) -> None:
        """An id in quotes may have spaces, quotes, backslashes, and any begin."""
        for line, device_id in (
            ('device "meter 1"', "meter 1"),
            ('device "meter 1"# no comment', None),
            ('device "meter 1" # comment "', "meter 1"),
            (r'device "the \"old\" \\ one"', r'the "old" \ one'),
            ('device "#1"', "#1"),
            ("""device "'1'" """, "'1'"),
            ('device " 1 "', " 1 "),
            ('device "until" until 2099-01-01T00:00:00Z', "until"),
            ("device until", "until"),
            ("device o'hara", "o'hara"),
            (r"device acme\meter", r"acme\meter"),
            ('device 7"', '7"'),
            ("device Gerät-1", "Gerät-1"),
        ):
            if device_id is None:
                self.assertRaises(ConfigError, self.devices, line)
            else:
                self.assertEqual(self.devices(line), [device_id], line)

    @given(st.text(st.characters(categories=["L", "M", "N", "P", "S"], include_characters=" "), min_size=1, max_size=40))
    def test_any_id(self, device_id: str) -> None:
        """Each possible id can be written in quotes, and stands for itself."""
        quoted = device_id.replace("\\", "\\\\").replace('"', '\\"')
        if device_id.isprintable():
            self.assertEqual(self.devices(f'device "{quoted}"'), [device_id])

    def test_faults(self) -> None:
        """A fault is one line with the path, the number of the line, and the reason."""
        for line, reason in (
            ("adress 192.0.2.1", "'adress' is none of address, serial, device"),
            ("meter-1", "'meter-1' is none of"),
            ("Device meter-1", "'Device' is none of"),
            ("device", "after device its value is missing"),
            ("device # meter-1", "after device its value is missing"),
            ("serial until 2027-01-01T00:00:00Z", "after serial its value is missing"),
            ("device meter 1", "not '1'; put an id with spaces into double quotes"),
            ("device 'meter 1'", "an id in quotes is in double quotes"),
            ("device 'meter-1'", "an id in quotes is in double quotes"),
            ('device "meter 1', "an id in quotes is in double quotes"),
            ('device "meter" 1"', "not '1\"'"),
            (r'device "a\b"', "an id in quotes is in double quotes"),
            ('device ""', "a device id is 1 to 255 bytes"),
            ("device " + "x" * 256, "a device id is 1 to 255 bytes"),
            ("device a\x07b", "printable text"),
            ("address", "after address its value is missing"),
            ("address meter-1", "'meter-1' is not an IP address or network"),
            ("address 192.0.2", "is not an IP address"),
            ("address 192.0.2.01", "is not an IP address"),
            ("address 192.0.2.1:8883", "is not an IP address"),
            ("address [2001:db8::1]", "is not an IP address"),
            ("address fe80::1%eth0", "is not an IP address"),
            ("address 192.0.2.0/33", "a number from 0 to 32"),
            ("address 192.0.2.0/", "a number from 0 to 32"),
            ("address 192.0.2.0/255.255.255.0", "a number from 0 to 32"),
            ("address 2001:db8::/129", "a number from 0 to 128"),
            ("address 192.0.2.7/24", "the network is 192.0.2.0/24"),
            ("address 2001:db8:0:0:1::/64", "the network is 2001:db8::/64"),
            ("address 192.0.2.1 192.0.2.2", "not '192.0.2.2'"),
            ("serial 01GB", "'01GB' is not a serial number in hexadecimal"),
            ("serial 01::AB", "is not a serial number"),
            ("serial 01:ABC", "is not a serial number"),
            ("serial 0x", "is not a serial number"),
            ("serial ٣", "is not a serial number"),
            ("device a until", "after until there must be one time"),
            ("device a until 2027-01-01T00:00:00Z ever", "after until there must be one time"),
            ("device a untill 2027-01-01T00:00:00Z", "but not 'untill'"),
            ("device a until 2027-01-01", "is not a time with its offset from UTC (RFC 3339)"),
            ("device a until 2027-01-01T00:00:00", "is not a time with its offset"),
            ("device a until 2027-02-30T00:00:00Z", "is not a time with its offset"),
            ("device a until 2027-W01-1T00:00:00Z", "is not a time with its offset"),
            ("device a until 20270101T000000Z", "is not a time with its offset"),
            ("device a until tomorrow", "is not a time with its offset"),
        ):
            error = self.assertRaises(
                ConfigError, read_deny_list, Path("/etc/deny"), lambda _, line=line: f"device x\n\n{line}\r\nserial x".encode()
            )
            self.assertTrue(str(error).startswith("/etc/deny: line 3: "), str(error))
            self.assertIn(reason, str(error))
            self.assertNotIn("\n", str(error))

    def test_no_text(self) -> None:
        """A file in another encoding, or that is no text, is refused, with the number of the line."""
        for content, reason in (
            (b"device a\ndevice \xff\xfe", "line 2: this is not text in UTF-8"),
            (b"device a\0\n", "line 1: this is not a text file"),
            ("device a\n".encode("utf-16"), "line 1: this is not text in UTF-8"),
        ):
            self.assertIn(reason, str(self.assertRaises(ConfigError, parse_deny_list, content)))

    @given(st.binary(max_size=200))
    def test_anything(self, content: bytes) -> None:
        """Whatever a file contains, it is a list or a fault."""
        for text in (content, b"address " + content, b"serial " + content, b'device "' + content, b"device a until " + content):
            try:
                parse_deny_list(text)
            except ConfigError as error:
                self.assertRegex(str(error), "^line [0-9]+: ")


class SerialTests(SynchronousTestCase):
    def test_notations(self) -> None:
        """A serial number may be written as OpenSSL and others print it."""
        for text in ("01AB", "01:AB", "1ab", "0x1ab", "0X01AB", "0001ab", "1:ab", "00:01:ab"):
            self.assertEqual(list(parse(f"serial {text}").serials), [0x1AB], text)
        self.assertEqual(list(parse("serial -01").serials), [-1])
        self.assertEqual(list(parse("serial 0").serials), [0])

    def test_looks(self) -> None:
        """Only the serial numbers in the list are denied."""
        denied = parse("serial 01AB", "serial " + "F" * 40)
        self.assertTrue(denied.denies_serial(0x1AB, NOW) and denied.denies_serial(16**40 - 1, NOW))
        self.assertFalse(denied.denies_serial(0x1AC, NOW))


class AddressTests(SynchronousTestCase):
    def test_networks(self) -> None:
        """A network denies its addresses, an address itself only."""
        denied = parse("address 192.0.2.0/25", "address 198.51.100.7", "address 2001:db8:1:2::/64", "address 2001:db8::7")
        for host, expected in (
            ("192.0.2.0", True),
            ("192.0.2.127", True),
            ("192.0.2.128", False),
            ("198.51.100.7", True),
            ("198.51.100.8", False),
            ("2001:db8:1:2:ffff::9", True),
            ("2001:db8:1:3::", False),
            ("2001:db8::7", True),
            ("2001:db8:0:0:0:0:0:7", True),
            ("2001:db8::8", False),
            ("::ffff:192.0.2.1", True),
            ("::ffff:192.0.2.200", False),
            ("unix:/run/owsla.sock", False),
            ("", False),
        ):
            self.assertEqual(denied.denies_address(host, NOW), expected, host)

    def test_mapped(self) -> None:
        """An IPv4-mapped address or network in the list is the one of IPv4."""
        denied = parse("address ::ffff:192.0.2.7", "address ::ffff:198.51.100.0/120")
        for host in ("192.0.2.7", "::ffff:192.0.2.7", "::FFFF:c000:207", "198.51.100.200"):
            self.assertTrue(denied.denies_address(host, NOW), host)
        self.assertFalse(denied.denies_address("192.0.2.8", NOW))

    def test_all(self) -> None:
        """The network of all addresses of one version does not contain those of the other one."""
        for network, ipv4, ipv6 in (("0.0.0.0/0", True, False), ("::/0", False, True), ("::ffff:0:0/96", True, False)):
            denied = parse(f"address {network}")
            self.assertEqual(denied.denies_address("192.0.2.1", NOW), ipv4)
            self.assertEqual(denied.denies_address("::ffff:192.0.2.1", NOW), ipv4)
            self.assertEqual(denied.denies_address("2001:db8::1", NOW), ipv6)

    def test_interface(self) -> None:
        """A link-local address is denied on every interface."""
        self.assertTrue(parse("address fe80::1").denies_address("fe80::1%eth0", NOW))

    @given(
        st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=5),
        st.lists(st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)), max_size=5),
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**128 - 1)), min_size=1, max_size=5),
    )
    def test_oracle(self, ipv4: list[tuple[int, int]], ipv6: list[tuple[int, int]], hosts: list[tuple[int, int]]) -> None:
        """`ipaddress` says the same about any networks and addresses."""
        networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = [
            *(ipaddress.IPv4Network((number >> 32 - length << 32 - length, length)) for number, length in ipv4),
            *(ipaddress.IPv6Network((number >> 128 - length << 128 - length, length)) for number, length in ipv6),
        ]
        denied = parse(*(f"address {network}" for network in networks if not network[0].exploded.startswith("0000:")))
        networks = [network for network in networks if not network[0].exploded.startswith("0000:")]
        for choice, number in hosts:
            host: ipaddress.IPv4Address | ipaddress.IPv6Address
            if choice < len(networks):  # an address near a network
                network = networks[choice]
                host = network[min(number % 4, network.num_addresses - 1)] + (number % 3 == 0 and int(network[-1]) < 2**32 - 1)
            else:
                host = ipaddress.IPv4Address(number % 2**32) if number % 2 else ipaddress.IPv6Address(number | 1 << 127)
            expected = any(host.version == network.version and host in network for network in networks)
            self.assertEqual(denied.denies_address(str(host), NOW), expected)


class EndTests(SynchronousTestCase):
    def test_end(self) -> None:
        """An entry is void from its end on, in any offset from UTC; and again in force when the clock is set back."""
        for end in ("2026-11-28T00:00:10Z", "2026-11-28t01:00:10+01:00", "2026-11-27T20:30:10.0-03:30", "2026-11-28T00:00:10z"):
            denied = parse(f"device a until {end}", f"serial 01 until {end}", f"address 192.0.2.1 until {end}")
            for now, expected in ((NOW, True), (NOW + 9.9, True), (NOW + 10, False), (NOW + 1e6, False), (NOW + 5, True)):
                self.assertEqual(denied.denies_device("a", now), expected)
                self.assertEqual(denied.denies_serial(1, now), expected)
                self.assertEqual(denied.denies_address("192.0.2.1", now), expected)
                self.assertEqual(denied.in_force(now), 3 if expected else 0)

    def test_no_end(self) -> None:
        """An entry without an end is in force at any time."""
        denied = parse("device a", "address 192.0.2.1")
        for now in (0.0, NOW, 1e12):
            self.assertEqual((denied.denies_device("a", now), denied.in_force(now)), (True, 2))

    def test_duplicates(self) -> None:
        """Of several lines for the same thing the one with the latest end counts, in any order, and in any notation."""
        for first, second in (("", " until 2026-11-29T00:00:00Z"), (" until 2026-11-29T00:00:00Z", "")):
            denied = parse(
                f"device a{first}", f'device "a"{second}',
                f"serial 1AB{first}", f"serial 01:ab{second}",
                f"address 192.0.2.0/24{first}", f"address ::ffff:192.0.2.0/120{second}",
            )  # fmt: skip
            self.assertEqual((denied.entries, denied.in_force(NOW + 1e9)), (3, 3))
        denied = parse("device a until 2026-11-29T00:00:00Z", "device a until 2026-11-30T00:00:00Z")
        self.assertEqual(denied.ends, (NOW + 2 * 86400,))

    def test_networks_in_networks(self) -> None:
        """A network that is void does not hide a larger one around it."""
        void = "until 2020-01-01T00:00:00Z"
        denied = parse(f"address 192.0.2.7 {void}", "address 192.0.2.0/24", f"address 192.0.0.0/16 {void}")
        self.assertTrue(denied.denies_address("192.0.2.7", NOW))
        self.assertFalse(denied.denies_address("192.0.3.7", NOW))
