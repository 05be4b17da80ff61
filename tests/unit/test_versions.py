"""The version of Owsla, wherever it is written, and the changelog."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from owsla import __version__

_ROOT: Final = Path(__file__).parents[2]

_IN_TAGS: Final = __version__.replace(".dev", "-dev").replace("rc", "-rc")
"""The version as Semantic Versioning has it, for the tag of an image."""

_WRITTEN: Final = {
    "packaging/man/owsla.1": (rf'^\.TH .*"Owsla {re.escape(__version__)}" "Owsla"$', "run packaging/man/make.py"),
    "packaging/man/twistd-owsla.8": (rf'^\.TH .*"Owsla {re.escape(__version__)}" "Owsla"$', "run packaging/man/make.py"),
    "packaging/kubernetes/example/kustomization.yaml": (rf"^ +newTag: {re.escape(_IN_TAGS)}$", _IN_TAGS),
}
"""Files that have the version of `owsla/__init__.py`: a pattern of it, and what is to be done or written."""


class VersionTests(SynchronousTestCase):
    def test_form(self) -> None:
        """The version is a release, a candidate, or a development version, in the form of Python packages."""
        self.assertRegex(__version__, r"\A\d+\.\d+\.\d+(rc\d+|\.dev\d+)?\Z")

    def test_written(self) -> None:
        """Files that repeat the version have that of `owsla/__init__.py`."""
        others = [
            f"{name}: {remedy}"
            for name, (pattern, remedy) in _WRITTEN.items()
            if not re.search(pattern, (_ROOT / name).read_text(), re.MULTILINE)
        ]
        self.assertEqual(others, [], f"these files have another version than {__version__}")


class ChangelogTests(SynchronousTestCase):
    """CHANGELOG.md has the form of Keep a Changelog, so that a release only renames its first section."""

    def setUp(self) -> None:
        self.sections = [*_sections((_ROOT / "CHANGELOG.md").read_text())]

    def test_sections(self) -> None:
        """The first section is Unreleased; each other has a version and a date, and the newest comes first."""
        first, *others = [title for title, _ in self.sections]
        self.assertEqual(first, "[Unreleased]")
        releases = []
        for title in others:
            self.assertRegex(title, r"\A\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d\Z")
            version, _, date = title.partition(" - ")
            releases.append((tuple(map(int, version.strip("[]").split("."))), date))
        self.assertEqual(releases, sorted(releases, reverse=True))
        self.assertEqual(len({version for version, _ in releases}), len(releases))

    def test_kinds(self) -> None:
        """A section has kinds of changes of Keep a Changelog, each once and with entries; only Unreleased may be empty."""
        kinds = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
        for title, text in self.sections:
            before, *parts = re.split(r"^### (.*)\n", text, flags=re.MULTILINE)
            names, contents = parts[::2], parts[1::2]
            self.assertEqual([name for name in kinds if name in names], names, title)
            self.assertTrue(names or title == "[Unreleased]", title)
            self.assertFalse(re.search("^- ", before, re.MULTILINE), f"{title}: an entry without a kind")
            for name, content in zip(names, contents, strict=True):
                self.assertTrue(re.search("^- ", content, re.MULTILINE), f"{title}: nothing under {name}")

    def test_version(self) -> None:
        """A release has a section of its own. A development version comes after the newest section."""
        releases = [title.partition("]")[0].strip("[") for title, _ in self.sections[1:]]
        if re.fullmatch(r"\d+\.\d+\.\d+", __version__):
            self.assertEqual(releases[:1], [__version__])
        else:
            self.assertNotIn(re.split(r"rc|\.dev", __version__)[0], releases)


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Yield the titles of the sections of a changelog, with their texts."""
    _, *parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return zip(parts[::2], parts[1::2], strict=True)
