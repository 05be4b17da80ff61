"""Text from outside on a terminal: safe, of a known width, cut in the middle."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.cli._text import padded, printable, sentence, shortened, width, word


class TextTests(SynchronousTestCase):
    def test_control_characters(self) -> None:
        """Escape sequences, line ends, invisible and direction characters become visible and harmless."""
        for text, shown in (
            ("\x1b[2J", "\\x1b[2J"),
            ("a\nb", "a\\x0ab"),
            ("\u202eabc", "\\xe2\\x80\\xaeabc"),
            ("\x9b31m", "\\xc2\\x9b31m"),
            ("a b", "a\\x20b"),
            ("\\x1b", "\\\\x1b"),
            ("\ud800", "\\xed\\xa0\\x80"),
            ("❤\ufe0f", "❤\\xef\\xb8\\x8f"),
            ("", "-"),
            (None, "-"),
            (7, "7"),
        ):
            self.assertEqual(word(text), shown)
        self.assertEqual(printable(b"\xff\x07"), "\\xff\\x07")

    def test_leading_mark(self) -> None:
        """A combining mark at the beginning does not join the column before it."""
        self.assertEqual(word("\u0301a"), "\\x20\u0301a")

    def test_sentence(self) -> None:
        """A sentence is one line; only what a terminal would act on is escaped."""
        self.assertEqual(sentence("C:\\x said\n  'a b'\x1b"), "C:\\x said 'a b'\\x1b")

    def test_width(self) -> None:
        """A wide character takes two columns, and a combining mark none."""
        for text, columns in (("abc", 3), ("日本", 4), ("e\u0301", 1), ("\uff45", 2), ("😀", 2), ("", 0)):
            self.assertEqual(width(text), columns)
            self.assertEqual(width(padded(text, 9)), 9)
        self.assertEqual(padded("日", 4, right=True), "  日")

    def test_shortened(self) -> None:
        """A long text loses its middle; a short one nothing."""
        self.assertEqual(shortened("0123456789", 10), "0123456789")
        self.assertEqual(shortened("0123456789", 7), "012…789")
        self.assertEqual(shortened("日本語日本語", 8), "日本…語")
        self.assertEqual(shortened("abc", 1), "…")

    @given(st.text(max_size=40), st.integers(1, 40))
    def test_any_text(self, text: str, columns: int) -> None:
        """Any text from a device is printable, without spaces, and fits where it is cut to fit."""
        shown = word(text)
        self.assertTrue(shown.isprintable() and " " not in shown, repr(shown))
        self.assertLessEqual(width(shortened(shown, columns)), columns)
