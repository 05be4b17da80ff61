"""Commands and files of a page of the documentation, to be run in a folder of a test."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from collections.abc import Mapping
from pathlib import Path

_DOCS = Path(__file__).parents[3] / "docs"

#: Folders of a page that are folders of the test instead.
_FOLDERS = ("/etc/owsla", "/etc/haproxy", "/etc/rabbitmq", "/etc/letsencrypt", "/run/owsla", "/usr/local/sbin", "/var/lib/lego")


class Page:
    """A page, and a machine below `root` for its commands. Programs in `root`/bin are found before those of this machine."""

    def __init__(self, name: str, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir(parents=True)
        for folder in _FOLDERS:
            (root / folder[1:]).mkdir(parents=True)
        self._blocks = [
            (match[2], textwrap.dedent(match[3]))
            for match in re.finditer(r"^( *)```(\w+)\n(.*?)^\1```$", (_DOCS / name).read_text(), re.MULTILINE | re.DOTALL)
        ]

    def path(self, path: str) -> Path:
        """Return where a path of the page is in the test."""
        return self.root / path[1:]

    def block(self, language: str, text: str, replace: Mapping[str, str] | None = None) -> str:
        """Return the only block in this language that contains `text`, with folders, the group and `replace` as in the test."""
        found = [block for kind, block in self._blocks if kind == language and text in block]
        assert len(found) == 1, f"{len(found)} blocks contain {text!r}"
        block = found[0]
        for folder in _FOLDERS:
            block = block.replace(folder, str(self.path(folder)))
        block = block.replace("owsla-secrets", str(os.getgid()))
        for old, new in (replace or {}).items():
            assert old in block, f"{old!r} is not in {block!r}"
            block = block.replace(old, new)
        return block

    def program(self, name: str, script: str) -> None:
        """Put a shell script on the PATH."""
        self._write_script(self.bin / name, f"#!/bin/sh\n{script}\n")

    def install_script(self, path: str, text: str) -> None:
        """Write a script of the page, the block that contains `text`, to its place."""
        self._write_script(self.path(path), self.block("sh", text))

    def run(
        self,
        text: str,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        replace: Mapping[str, str] | None = None,
    ) -> str:
        """Run the commands of the block that contains `text`, up to the first that fails. Return their output."""
        return self.run_script(self.block("sh", text, replace), cwd=cwd, env=env)

    def run_script(self, script: str, *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Run a shell script in the environment of the page."""
        done = subprocess.run(
            ["/bin/sh", "-c", script],  # without -e, as a reader's shell
            cwd=cwd or self.root,
            env=os.environ | {"PATH": f"{self.bin}:/usr/sbin:{os.environ['PATH']}"} | dict(env or {}),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"status {done.returncode} of {script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _write_script(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)
