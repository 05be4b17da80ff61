"""Links between the pages of the documentation, and the names of metrics, alerts and events on them."""

import os
import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from owsla.config.options import OPTIONS

_ROOT = Path(__file__).parents[2]
_PAGES = [*_ROOT.glob("*.md"), *(page for folder in ("bench", "certs", "docs") for page in (_ROOT / folder).rglob("*.md"))]


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


class DocumentationTests(SynchronousTestCase):
    def test_links(self) -> None:
        """Every relative link in a page leads to a file, and to a heading where it names one."""
        for page in _PAGES:
            for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
                if "://" in link:
                    continue
                name, _, anchor = link.partition("#")
                target = page.parent / name if name else page
                self.assertTrue(target.exists(), f"{page.relative_to(_ROOT)}: {link}")
                if anchor:
                    self.assertIn(anchor, _anchors(target), f"{page.relative_to(_ROOT)}: {link}")

    def test_manual_pages(self) -> None:
        """The manual pages are those that the option table and the argument parser give; packaging/man/make.py writes them."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("OWSLA_")}
        command = [sys.executable, str(_ROOT / "packaging" / "man" / "make.py"), "--check"]
        ended = subprocess.run(
            command, env=env | {"PYTHONPATH": str(_ROOT)}, capture_output=True, text=True, timeout=60, check=False
        )
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))


class ContributingTests(SynchronousTestCase):
    def test_integration_tests(self) -> None:
        """CONTRIBUTING.md has a row for each file of integration tests, and for no other."""
        named = re.findall(r"^\| `(test_\w+)` \|", (_ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
        self.assertEqual(sorted(named), sorted(path.stem for path in (_ROOT / "tests" / "integration").glob("test_*.py")))


class DoorsTests(SynchronousTestCase):
    def test_options(self) -> None:
        """The table "Options of a door" in doors.md has every option that a door can have, and its name."""
        section = (_ROOT / "docs" / "doors.md").read_text().split("## Options of a door\n")[1].split("\n## ")[0]
        named = re.findall(r"`([a-z-]+)`", section)
        self.assertEqual(sorted(named), sorted(["name", *(option.name for option in OPTIONS if option.door)]))


class MonitoringTests(SynchronousTestCase):
    """The alerts, and the table "What to watch" in certificates.md."""

    def setUp(self) -> None:
        self.monitoring = (_ROOT / "docs" / "monitoring.md").read_text()
        watched = (_ROOT / "docs" / "certificates.md").read_text().split("## What to watch\n")[1]
        self.watched = "\n".join(line for line in watched.splitlines() if line.startswith("|"))
        self.rules = (_ROOT / "packaging" / "grafana" / "alerts.yaml").read_text()

    def test_metrics(self) -> None:
        """Every metric of an alert or of the table is described in the table of metrics."""
        described = {name for row in re.findall(r"^\| (`owsla_.*?) \|", self.monitoring, re.M) for name in _metrics(row)}
        used = {re.sub("_bucket$", "", name) for name in _metrics(self.rules) | _metrics(self.watched)}
        self.assertEqual(used - described, set())

    def test_names(self) -> None:
        """Every alert of the table is a rule, and every event in it is described in events.md."""
        alerts = set(re.findall(r"`(Owsla\w+)`", self.watched))
        self.assertEqual(alerts - set(re.findall(r"- alert: (\w+)", self.rules)), set())
        described = set(re.findall(r"^\| `([a-z-]+)`", (_ROOT / "docs" / "events.md").read_text(), re.M))
        events = set(re.findall(r"\| `([a-z]+-[a-z-]+)`", self.watched))
        self.assertTrue(events)
        self.assertEqual(events - described, set())


def _metrics(text: str) -> set[str]:
    return set(re.findall(r"\bowsla_[a-z_]+", text))
