"""Configuration of Sphinx: the pages of this repository as a site, with README.md as its index.

    pip install -e '.[docs]'
    sphinx-build --fail-on-warning --keep-going -c packaging/site . SITE

The pages are the Markdown files as they are; the navigation follows the table "Documentation" of README.md. The site can be
read from a folder, without a web server, and loads nothing from elsewhere.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

_ROOT: Final = Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT))

from owsla import __version__  # noqa: E402

project = "Owsla"
author = copyright = "The Owsla maintainers"
version = release = __version__

extensions = ["myst_parser"]
include_patterns = ["*.md", "docs/**.md", "bench/**.md", "certs/README.md"]
root_doc = "README"
# Links lead to headings by the names that forges give them.
myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = f"Owsla {release}"
html_use_index = False
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def _navigation(readme: str) -> str:
    """Return the navigation: a part for each reader in the table "Documentation" of README.md, with the pages named there."""
    table = readme.split("\n## Documentation\n")[1].split("\n## ")[0]
    parts: list[list[str]] = []
    for row in re.findall(r"^\|.*\|$", table, re.MULTILINE)[2:]:
        readers, pages = (cell.strip() for cell in row.split("|")[1:3])
        if readers:
            parts.append([f":caption: For {readers}", ":hidden:", ""])
        parts[-1] += [page for page in re.findall(r"\]\(([^)#]+\.md)\)", pages) if not any(page in part for part in parts)]
    return "\n".join("\n".join(["", "```{toctree}", *part, "```"]) for part in parts) + "\n"


def _without_folders(page: Path, text: str) -> str:
    """Return a page without links to folders of the repository, which a site does not have."""

    def plain(link: re.Match[str]) -> str:
        return f"`{link[1]}`" if (page.parent / link[2]).is_dir() else link[0]

    return re.sub(r"\[([^\]]+)\]\(([^)\s#:]+)\)", plain, text)


def _read_page(app: Sphinx, name: str, source: list[str]) -> None:
    text = _without_folders(app.srcdir / f"{name}.md", source[0])
    if name == root_doc:
        text += _navigation(text)
    elif name.startswith(("bench/results/", "certs/")):
        text = f"---\norphan: true\n---\n\n{text}"  # not in the navigation: other pages link to it
    source[0] = text


def _name_index(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the navigation, an index.html, and languages of code."""
    for language in ("haproxy", "mermaid"):
        app.add_lexer(language, TextLexer)  # Pygments does not know them
    app.connect("source-read", _read_page)
    app.connect("build-finished", _name_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
