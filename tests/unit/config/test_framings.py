"""Tests of the values of --framing."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.config.framings import LINES, FramingSpec, acknowledgement_fault, framing_fault, read_framing
from owsla.errors import ConfigError


class ReadTests(SynchronousTestCase):
    def test_read(self) -> None:
        """Each framing is read into its fields, and its text is that of the option."""
        for text, spec in (
            ("lines", LINES),
            ("netstring", FramingSpec("netstring")),
            ("octet-counting", FramingSpec("octet-counting")),
            ("length:1", FramingSpec("length", size=1)),
            ("length:2:little", FramingSpec("length", size=2, little=True)),
            ("length:4:inclusive", FramingSpec("length", size=4, inclusive=True)),
            ("length:8:little:inclusive", FramingSpec("length", size=8, little=True, inclusive=True)),
            ("fixed:32", FramingSpec("fixed", size=32)),
            ("between:02:03", FramingSpec("between", start=b"\x02", end=b"\x03")),
            ("between:0b:1c0d", FramingSpec("between", start=b"\x0b", end=b"\x1c\r")),
            ("between:7e:7e", FramingSpec("between", start=b"~", end=b"~")),
        ):
            self.assertEqual(read_framing(text), spec)
            self.assertEqual(str(spec), text)

    def test_other_writing(self) -> None:
        """The order of the words and the case of hexadecimal digits do not matter."""
        self.assertEqual(str(read_framing("length:2:inclusive:little")), "length:2:little:inclusive")
        self.assertEqual(str(read_framing("between:0A:1C0D")), "between:0a:1c0d")

    def test_wrong(self) -> None:
        """A wrong framing is one line that names what is wrong."""
        for text, words in (
            ("", "is not one of lines, length:N, netstring"),
            ("line", "is not one of lines"),
            ("Lines", "is not one of lines"),
            ("lines:2", "lines has no parameters"),
            ("netstring:", "netstring has no parameters"),
            ("length", "1, 2, 4 or 8 bytes"),
            ("length:", "1, 2, 4 or 8 bytes"),
            ("length:3", "1, 2, 4 or 8 bytes"),
            ("length:02", "1, 2, 4 or 8 bytes"),
            ("length:2:big", "not 'big'"),
            ("length:2:", "not ''"),
            ("length:2:little:little", "little is given twice"),
            ("fixed", "is not fixed:N"),
            ("fixed:0", "is not fixed:N"),
            ("fixed:-1", "is not fixed:N"),
            ("fixed:1:2", "is not fixed:N"),
            ("fixed:\u0661", "is not fixed:N"),
            ("fixed:1000000000000000", "is not fixed:N"),
            ("between:02", "is not between:START:END"),
            ("between:02:", "is not between:START:END"),
            ("between:2:3", "is not between:START:END"),
            ("between:0x02:0x03", "is not between:START:END"),
            ("between:02:03:04", "is not between:START:END"),
            ("between:02:" + "03" * 17, "at most 16 bytes"),
            ("between:0203:03", "must not begin within the start"),
            ("between:0203:0304", "must not begin within the start"),
            ("between:02:0203", "must not begin within the start"),
        ):
            error = self.assertRaises(ConfigError, read_framing, text)
            self.assertIn(words, str(error))
            self.assertNotIn("\n", str(error))

    def test_longest(self) -> None:
        """The longest payload is that of the length field, without what the field counts of itself."""
        for text, longest in (
            ("lines", None),
            ("netstring", None),
            ("octet-counting", None),
            ("between:02:03", None),
            ("length:1", 255),
            ("length:1:inclusive", 254),
            ("length:2:little", 65535),
            ("length:8", 2**64 - 1),
            ("fixed:7", 7),
        ):
            self.assertEqual(read_framing(text).longest, longest)


class FaultTests(SynchronousTestCase):
    def test_fixed_and_max_line(self) -> None:
        """Payloads of a fixed length fit into --max-line."""
        self.assertEqual(framing_fault(read_framing("fixed:100"), 100), "")
        self.assertIn("fixed:101 is longer than max-line (100 bytes)", framing_fault(read_framing("fixed:101"), 100))
        self.assertEqual(framing_fault(read_framing("length:8"), 100), "")

    def test_acknowledgement(self) -> None:
        """A template of acknowledgements can be sent in its framing, with any number in it."""
        for text, template, words in (
            ("lines", "ACK {seq}", ""),
            ("lines", "ACK\n{seq}", "contains the end of a line"),
            ("length:1", "ACK {seq}", ""),
            ("length:2", "\r\n\0{seq}", ""),
            ("length:1", "x" * 236 + "{seq}", ""),
            ("length:1", "x" * 237 + "{seq}", "256 bytes long, more than the 255 of length:1"),
            ("netstring", "{seq},", ""),
            ("octet-counting", "{seq} ", ""),
            ("fixed:8", "{seq}", "no fixed length"),
            ("between:02:03", "ACK {seq}", ""),
            ("between:02:03", "\2{seq}", "contains the start"),
            ("between:02:03", "{seq}\3", "contains the end"),
            ("between:02:6161", "{seq}a", "contains the end"),
            ("between:3a:3b", "{seq};", "contains the end"),
            ("between:3b:3130", "ACK {seq}", "the end of between:3b:3130 has digits"),
        ):
            fault = acknowledgement_fault(template, read_framing(text), b"\n")
            self.assertIn(words, fault)
            self.assertEqual(bool(words), bool(fault), (text, template))

    def test_acknowledgement_and_delimiter(self) -> None:
        """The delimiter matters for lines only."""
        self.assertIn("contains the delimiter", acknowledgement_fault("a|{seq}", LINES, b"|"))
        self.assertIn("contains the delimiter", acknowledgement_fault("{seq}a", LINES, b"aa"))
        self.assertIn("a delimiter with digits", acknowledgement_fault("{seq}", LINES, b"7"))
        self.assertEqual(acknowledgement_fault("a|{seq}", read_framing("length:2"), b"|"), "")
