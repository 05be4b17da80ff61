"""Commands, options, variables and settings of Owsla on the pages of the documentation: they exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from twisted.scripts import twistd
from twisted.trial.unittest import SynchronousTestCase

from owsla.cli._arguments import parser
from owsla.cli._completion import commands_of
from owsla.config.options import OPTIONS
from owsla.config.sources import parse_command_line
from owsla.errors import ConfigError
from owsla.twistd import with_twistd_options

_ROOT: Final = Path(__file__).parents[2]
_PAGES: Final = [
    path
    for pattern in ("*.md", "docs/*.md", "bench/README.md", "certs/README.md", "packaging/**/*.md")
    for path in sorted(_ROOT.glob(pattern))
    if path.name != "CHANGELOG.md"  # tells of options that are gone
]
_MANUALS: Final = [_ROOT / "packaging" / "man" / name for name in ("owsla.1", "twistd-owsla.8")]

_VARIABLES_OF_TESTS: Final = re.compile(r"OWSLA_(REQUIRE_\w+|FAULT_SEED|SOAK_\w+|UPGRADE_FROM|ONE_WAY)")
_VARIABLES_OF_COMMANDS: Final = frozenset({"OWSLA_HTTP", "OWSLA_HTTP_TOKEN_FILE", "OWSLA_CONTROL"})
_OPTIONS_OF_OTHERS: Final = frozenset({
    "--beside", "--churn", "--groups", "--mqtt", "--only", "--output", "--peers", "--runs", "--variants",  # bench
    "--from-file", "--pre",  # kubectl, pip
    "--force-confold", "--no-deps", "--revision", "--wheels",  # dpkg, pip, packaging/debian/build
    # podman, docker
    "--build-arg", "--cpu-shares", "--cpus", "--cpuset-cpus", "--format", "--init", "--log-opt", "--memory", "--network",
    "--no-cache", "--no-healthcheck", "--restart", "--secret", "--stop-timeout", "--timestamp", "--ulimit", "--user",
    "--volume", "--volumes",
})  # fmt: skip
"""Options of other programs that pages name between backticks."""
_NO_COMMANDS: Final = frozenset({"gave", "worker-2"})
"""Words after `owsla` in code that is no command line: a line of the log, the name of a process."""
_TWISTD: Final = twistd.ServerOptions()  # type: ignore[attr-defined]  # it depends on the platform
_COMMANDS: Final = {command.name: command for command in commands_of(parser())}


class Code(NamedTuple):
    """Code on a page."""

    page: str
    language: str
    """Language of a block; `indented` for one without, and `inline` for text between backticks."""
    text: str


def code_of(page: Path) -> Iterator[Code]:
    """Yield the blocks of a page, and then its texts between backticks."""
    name, text = str(page.relative_to(_ROOT)), page.read_text()
    fenced = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    for match in fenced.finditer(text):
        yield Code(name, match[2], match[3])
    text = fenced.sub("", text)
    indented = re.compile(r"(?:^ {4,}\S.*\n(?:\n(?= {4}))?)+", re.MULTILINE)
    for match in indented.finditer(text):
        if text[: match.start()].endswith("\n\n"):
            yield Code(name, "indented", match[0])
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
        yield Code(name, "inline", match[1].replace("\n", " "))


def examples_of(manual: Path) -> Iterator[Code]:
    """Yield the blocks of a manual page."""
    for match in re.finditer(r"^\.EX\n(.*?)^\.EE$", manual.read_text(), re.MULTILINE | re.DOTALL):
        text = match[1].replace(r"\-", "-").replace(r"\(aq", "'").replace(r"\(dq", '"').replace(r"\e", "\\")
        yield Code(manual.name, "roff", text)


def command_lines(code: Code) -> Iterator[list[str]]:
    """Yield the words of each command of Owsla or twistd: the program, and its arguments."""
    text = re.sub(r"\\\n\s*", "", code.text)
    if code.language in ("toml", "json", "python", "java", "javascript", "sql", "mermaid", "haproxy"):
        return
    for line in text.splitlines():
        if code.language == "console":
            if not re.match(r"\s*[$#] ", line):
                continue  # the output of a command
            line = line.strip()[2:]
        line = re.sub(r"^\s*\w+=(?=[/\w.-]*twistd)", "", line)  # ExecStart= of systemd
        try:
            words = _words(line)
        except ValueError:
            continue  # a part of a command in quotes
        while words:
            ends = (index for index, word in enumerate(words) if set(word) <= set("|;&()<>"))
            end = next(ends, len(words))
            one, words = words[:end], words[end + 1 :]
            if found := _owsla(one):
                yield found


def _owsla(words: Sequence[str]) -> list[str]:
    """Return the program and its arguments if a command runs Owsla or twistd, also by sudo or `kubectl exec ... --`."""
    if "--" in words and words[0] not in ("owsla", "twistd"):
        words = words[words.index("--") + 1 :]
    rest = [*words]
    while rest and (re.match(r"\w+=", rest[0]) or rest[0] in ("sudo", "exec", "-u")):
        del rest[: 2 if rest[0] == "-u" else 1]
    if len(rest) < 2 or not re.fullmatch(r"([\w.$/{}-]*/)?(owsla|twistd|twistd-owsla)", rest[0]) or rest[1] in _NO_COMMANDS:
        return []
    return [rest[0].rpartition("/")[2], *rest[1:]]


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&()<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words = list(lexer)
    return words[: next((index for index, word in enumerate(words) if word.startswith("#")), len(words))]


def fault_of(words: Sequence[str]) -> str:
    """Return why Owsla refuses a command line, or an empty string. `…` stands for arguments, and capitals for values."""
    program, *arguments = words
    if program == "owsla":
        return _fault_of_command(arguments)
    if program == "twistd-owsla":
        arguments = with_twistd_options(arguments, _TWISTD.synonyms)
    if "owsla" not in arguments:
        return ""
    at = arguments.index("owsla")
    for word in arguments[:at]:
        if word.startswith("-") and word.lstrip("-").partition("=")[0] not in _TWISTD.synonyms and word[:3] != "-ny":
            return f"twistd has no option {word}"
    own = arguments[at + 1 :]
    own = [word for word, before in zip(own, ["", *own], strict=False) if word != "…" or before.startswith("--")]
    try:
        parsed = parse_command_line(own)
    except ConfigError as error:
        return str(error)
    rest = [word for word in parsed.rest if word not in ("[options]", "...")]
    return f"not an option: {rest[0]}" if rest else ""


def _fault_of_command(arguments: Sequence[str]) -> str:
    name = arguments[0]
    if name in ("COMMAND", "…", "--help", "--version"):
        return ""
    if name not in _COMMANDS:
        return f"owsla has no command {name}"
    options = {one for option in _COMMANDS[name].options for one in option.names}
    for word in arguments[1:]:
        if word.startswith("--") and word != "--" and word.partition("=")[0] not in options:
            return f"owsla {name} has no option {word}"
    return ""


def refusal_of(arguments: Sequence[str]) -> str:
    """Return the line with which `owsla` refuses a complete command line, or an empty string."""
    output = io.StringIO()
    by_name = any(word.startswith(("--device", "--to")) for word in arguments)
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(io.StringIO()):
            parser(by_name=by_name).parse_args(arguments)
    except SystemExit as end:
        return output.getvalue() if end.code else ""
    return ""


class CommandTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.code = [code for page in _PAGES for code in code_of(page)]
        self.code += [code for manual in _MANUALS for code in examples_of(manual)]

    def test_commands(self) -> None:
        """Each command line of `owsla`, `twistd owsla` and `twistd-owsla` has a command and options that exist."""
        lines = [(code.page, words) for code in self.code for words in command_lines(code)]
        self.assertGreater(len(lines), 120)
        faults = [f"{page}: {' '.join(words)}: {fault_of(words)}" for page, words in lines if fault_of(words)]
        self.assertEqual(faults, [])

    def test_complete_commands(self) -> None:
        """Each command line of `owsla` in a block can be run: no value or argument is missing, or of another form."""
        refused, count = [], 0
        for code in self.code:
            for words in () if code.language == "inline" else command_lines(code):
                if words[0] == "owsla" and not {"COMMAND", "…"} & set(words):
                    count += 1
                    refused += [f"{code.page}: {refusal}" for refusal in [refusal_of(words[1:])] if refusal]
        self.assertGreater(count, 20)
        self.assertEqual(refused, [])

    def test_options(self) -> None:
        """Each option between backticks, such as `--port 8883`, is one of the gateway, of a command, or of another program."""
        known = {f"--{option.name}" for option in OPTIONS} | {"--check", "--help", "--version"}
        known |= {name for command in _COMMANDS.values() for option in command.options for name in option.names}
        known |= {f"--{name}" for name in _TWISTD.synonyms}
        known |= _OPTIONS_OF_OTHERS
        found = {(code.page, code.text) for code in self.code if code.language == "inline" and code.text.startswith("--")}
        unknown = [f"{page}: {text}" for page, text in found if re.split(r"[ =\[]", text)[0] not in known]
        self.assertEqual(sorted(unknown), [])

    def test_variables(self) -> None:
        """Each variable OWSLA_... is one of an option, of a command, or of the tests."""
        known = {option.variable for option in OPTIONS} | _VARIABLES_OF_COMMANDS
        for code in self.code:
            for name in re.findall(r"\bOWSLA_[A-Z_]+\b", code.text):
                self.assertTrue(name in known or _VARIABLES_OF_TESTS.fullmatch(name), f"{code.page}: {name}")

    def test_settings(self) -> None:
        """Each block of settings in TOML has options of the gateway only."""
        names = {option.name for option in OPTIONS}
        doors = {option.name for option in OPTIONS if option.door} | {"name"}
        blocks = [code for code in self.code if code.language == "toml"]
        self.assertGreater(len(blocks), 10)
        for code in blocks:
            table = tomllib.loads(code.text)
            self.assertEqual(table.keys() - names, set(), f"{code.page}: {code.text}")
            for door in table.get("listen", []):
                if isinstance(door, dict):
                    self.assertEqual(door.keys() - doors, set(), f"{code.page}: {code.text}")
