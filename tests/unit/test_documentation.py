"""Links between the pages of the documentation."""

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

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
