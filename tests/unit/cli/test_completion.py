"""The completion of shells, tried in the shells themselves."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from unittest import skipUnless

from owsla.cli._arguments import parser
from owsla.cli._completion import commands_of, script
from owsla.cli._control_arguments import SORTS

from ._running import CommandTestCase

PATIENCE = 30.0
"""Seconds for a shell, on a busy machine."""


class Shell:
    """An interactive shell on a pseudo-terminal."""

    def __init__(self, argv: Sequence[str], folder: str) -> None:
        self._seen = ""
        self._terminal, terminal = pty.openpty()
        environ = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": folder, "LC_ALL": "C.UTF-8", "PS1": "$ "}
        # A session whose controlling terminal is this one. Not pty.fork(): this process has threads.
        controlled = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY); os.execvp(sys.argv[1], sys.argv[1:])"
        self._child = subprocess.Popen(
            [sys.executable, "-S", "-c", controlled, *argv],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=folder,
            env=environ,
            start_new_session=True,
        )
        os.close(terminal)

    def type(self, text: str) -> None:
        """Type a text, as a user does: what came before is forgotten."""
        self._seen = ""
        os.write(self._terminal, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Wait until the shell shows a pattern, and return all that it has shown since the last text was typed."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, self._seen):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self._seen!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                self._seen += os.read(self._terminal, 65536).decode("utf-8", "replace").replace("\a", "")
        return self._seen

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        os.close(self._terminal)


class CompletionTests(CommandTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.file = self.folder / "completion"

    def printed(self, shell: str) -> str:
        """Return the completion that the command prints."""
        out = self.output("completion", shell)
        self.file.write_text(out)
        return out

    def shell(self, *argv: str) -> Shell:
        shell = Shell(argv, str(self.folder))
        self.addCleanup(shell.close)
        return shell

    def test_everything_is_there(self) -> None:
        """Every command and every option of the argument parser is in the completion of every shell."""
        commands = list(commands_of(parser()))
        self.assertLessEqual({"devices", "swarm", "send", "completion"}, {one.name for one in commands})
        for shell in ("bash", "zsh", "fish"):
            text = script(shell, commands)
            for one in commands:
                self.assertIn(one.name, text)
                for option in one.options:
                    for name in option.names:
                        shown = name if shell != "fish" else f"-l {name[2:]} " if name.startswith("--") else f"-s {name[1:]} "
                        self.assertIn(shown, text, shell)

    def test_another_shell(self) -> None:
        """A shell without completion is an error that names those that have one."""
        refused = self.refused("completion", "ksh").replace("'", "")  # Python 3.12 and later quote less
        self.assertIn("invalid choice: ksh (choose from bash, zsh, fish)", refused)

    def bash(self, *words: str) -> list[str]:
        """Return what bash offers for the last of some words, split as bash does."""
        quoted = " ".join(f"'{word}'" for word in words)
        done = subprocess.run(
            ["bash", "--norc", "-c",
             f'. "$1"; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _owsla; printf "%s\\n" "${{COMPREPLY[@]}}"',
             "bash", str(self.file)],
            capture_output=True, text=True, timeout=PATIENCE, check=True, cwd=self.folder,
        )  # fmt: skip
        self.assertEqual(done.stderr, "")
        return done.stdout.split("\n")[:-1] if done.stdout.strip() else []

    def test_bash(self) -> None:
        """Bash completes commands, options, the values of options, and files; and nothing where anything may stand."""
        self.printed("bash")
        (self.folder / "a token").touch()
        for words, offered in (
            (["owsla", "dev"], ["devices", "device"]),
            (["owsla", "--v"], ["--version"]),
            (["owsla", "devices", "--s"], ["--state", "--sort"]),
            (["owsla", "devices", "door", "--rev"], ["--reverse"]),
            (["owsla", "devices", "--state", ""], ["paused", "slow", "held", "closing"]),
            (["owsla", "devices", "--state", "=", "sl"], ["slow"]),
            (["owsla", "devices", "--sort", "="], list(SORTS)),
            (["owsla", "kick", "--token-file", "a"], ["a token"]),
            (["owsla", "kick", "--token-file", "=", "a"], ["a token"]),
            (["owsla", "swarm", "--mode", "f"], ["flood"]),
            (["owsla", "completion", "z"], ["zsh"]),
            (["owsla", "devices", "--door", ""], []),
            (["owsla", "devices", ""], []),
            (["owsla", "nothing", "--"], []),
        ):  # fmt: skip
            self.assertEqual(self.bash(*words), offered, words)

    def test_typed_in_bash(self) -> None:
        """An interactive bash completes what is typed, at the Tab key."""
        self.printed("bash")
        bash = self.shell("bash", "--norc", "--noprofile", "-i")
        bash.type(". ./completion; echo re''ady\n")
        bash.wait_for("ready")
        bash.type("owsla dra\t")
        bash.wait_for("owsla drain ")
        bash.type("\x15owsla devices --state=pa\t")
        bash.wait_for("--state=paused ")

    @skipUnless(shutil.which("zsh"), "needs zsh")
    def test_typed_in_zsh(self) -> None:
        """An interactive zsh completes what is typed, whether the file is sourced or in its $fpath."""
        self.printed("zsh")
        self.file.rename(self.folder / "_owsla")
        for load in (
            "autoload -Uz compinit; compinit -u -D; . ./_owsla",
            "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D",
        ):
            zsh = self.shell("zsh", "-f", "-i")
            zsh.type(f"{load}; echo re''ady\n")
            zsh.wait_for("ready\r")
            zsh.type("owsla dra\t")
            zsh.wait_for("owsla drain")
            zsh.type("\x15owsla devices --state=pa\t")
            zsh.wait_for("--state=paused")

    @skipUnless(shutil.which("fish"), "needs fish")
    def test_fish(self) -> None:
        """Fish completes commands, options, the values of options, and files."""
        self.printed("fish")
        for line, offered in (
            ("owsla dra", ["drain"]),
            ("owsla devices --sta", ["--state"]),
            ("owsla devices --state pa", ["paused"]),
            ("owsla completion z", ["zsh"]),
            ("owsla kick --token-file comp", ["completion"]),
        ):
            done = subprocess.run(
                ["fish", "--no-config", "-c", 'source $argv[1]; complete -C "$argv[2]"', "completion", line],
                capture_output=True, text=True, timeout=PATIENCE, check=True, cwd=self.folder,
                env={**os.environ, "HOME": str(self.folder)},
            )  # fmt: skip
            self.assertEqual([one.partition("\t")[0] for one in done.stdout.splitlines()], offered, line)
