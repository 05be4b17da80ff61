"""Write the manual pages owsla(1) and twistd-owsla(8) from the option table and the argument parser.

    python packaging/man/make.py            # write owsla.1 and twistd-owsla.8 beside this file
    python packaging/man/make.py --check    # status 1 if they are not current

The pages are in version control, so that a package can be built without the dependencies of Owsla. The date of a page is that
of the last change of its text.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from owsla import __version__
from owsla.cli._arguments import parser
from owsla.config.options import OPTIONS
from owsla.config.usage import FLAGS_HELP, Options

_FOLDER: Final = Path(__file__).parent
_TITLE: Final = re.compile(r'^(\.TH \S+ \d) \S+ (".*")$', re.MULTILINE)

# -- roff ------------------------------------------------------------------------------------------------------------------

_ESCAPES: Final = str.maketrans({"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"})


def plain(text: str) -> str:
    """Return a text in which no character is special to roff."""
    return text.translate(_ESCAPES)


def inline(text: str) -> str:
    """Return running text, with options and code between backticks in bold, and with a line for each sentence."""
    parts = re.split(r"(`[^`]+`|(?<![\w-])--[a-z][a-z-]*)", " ".join(text.split()))
    marked = "".join(rf"\fB{plain(part.strip('`'))}\fP" if index % 2 else _words(part) for index, part in enumerate(parts))
    return re.sub(r"(?<=[a-z0-9)P][.:]) (?=[A-Z(\\])", "\n", marked)


def _words(text: str) -> str:
    # A hyphen between letters is a hyphen, and may end a line; any other is a minus, as a user types it.
    return re.sub(r"(?<=[a-z])\\-(?=[a-z])", "-", plain(text))


def paragraph(text: str) -> list[str]:
    """Return a paragraph of running text."""
    return [".PP", *_lines(inline(text))]


def tagged(tag: str, text: str) -> list[str]:
    """Return an entry of a list: a tag in roff, and its running text."""
    return [".TP", tag, *_lines(inline(text))]


def example(lines: Iterable[str]) -> list[str]:
    """Return lines that are kept as they are."""
    return [".PP", ".RS 4", ".EX", *(_line(plain(line)) for line in lines), ".EE", ".RE"]


def _line(text: str) -> str:
    return r"\&" + text if text.startswith((".", "'")) else text


def _lines(text: str) -> list[str]:
    wrapped = (textwrap.wrap(line, 78, break_long_words=False, break_on_hyphens=False) for line in text.split("\n"))
    return [_line(line) for lines in wrapped for line in lines]


def description(text: str) -> Iterator[str]:
    """Yield the description of a command: paragraphs, and below them indented lines, which are a list or kept as they are."""
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.split("\n")
        indented = [line for line in lines if line.startswith("  ")]
        entries = _entries(indented)
        if running := " ".join(line for line in lines if not line.startswith("  ")):
            yield from paragraph(_sentence(running) if entries else running)
        if entries:
            for tag, meaning in entries:
                yield from tagged(_command_line(tag), meaning)
        elif indented:
            yield from example(line[2:] for line in indented)


def _sentence(text: str) -> str:
    """Return a text that begins with a capital letter, unless its first word is no plain word."""
    return text[0].upper() + text[1:] if re.match("[a-z]+ |[a-z]+:$", text) else text


def _entries(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return the tags and texts of a list in two columns; an empty list for anything else."""
    entries: list[tuple[str, str]] = []
    for line in lines:
        if entry := re.match(r"  (\S.*?) {2,}(\S.*)$", line):
            entries.append((entry[1], entry[2]))
        elif entries and line.startswith("     "):
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {line.strip()}")
        else:
            return []
    return entries


def _command_line(text: str) -> str:
    """Return a command line: words in capitals are for the user to choose."""
    parts = re.split(r"([A-Z][A-Z_]+|\[options\])", text)
    return "".join(
        rf"\fI{plain(part)}\fP" if index % 2 else rf"\fB{plain(part)}\fP" for index, part in enumerate(parts) if part
    )


def page(name: str, section: int, summary: str, body: Iterable[str]) -> str:
    """Return a page. Its date is to be filled in."""
    title = f'.TH {name.upper()} {section} DATE "Owsla {__version__}" "Owsla"'
    lines = [
        r'.\" Written by packaging/man/make.py: change the option table or the argument parser, and run it again.',
        title, ".SH NAME", rf"{plain(name)} \- {_words(summary)}", *body,
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    # A paragraph right below a heading is one anyway.
    return re.sub(r"^(\.S[HS] .*\n)\.PP\n", r"\1", text, flags=re.MULTILINE)


# -- owsla(1) --------------------------------------------------------------------------------------------------------------


def owsla() -> str:
    """Return owsla(1)."""
    top = parser()
    commands = dict(_subcommands(top))
    shared = _shared_groups(commands)
    body = [".SH SYNOPSIS", r"\fBowsla\fP \fICOMMAND\fP [\fIoptions\fP]", ".br", r"\fBowsla \-\-help\fP | \fB\-\-version\fP"]
    body += [".SH DESCRIPTION", *description(re.sub(r"\n'owsla COMMAND.*", "", top.description or "", flags=re.DOTALL))]
    body += paragraph("The gateway itself is twistd-owsla(8). Each command has `--help`.")
    body.append(".SH COMMANDS")
    for name, command in commands.items():
        body += _command(name, command, shared)
    for title, names in shared.items():
        body += [f'.SH "OPTIONS: {title.upper()}"', *_shared(title, [(name, commands[name]) for name in names])]
    body += _OWSLA_END
    return page("owsla", 1, "an example back end for Owsla, and tools to look at messages", body)


def _subcommands(top: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _groups(command: argparse.ArgumentParser) -> dict[str, list[argparse.Action]]:
    """Return the arguments of a command by the titles of their groups, without --help and empty groups."""
    groups = {
        group.title or "": [one for one in group._group_actions if "--help" not in one.option_strings]
        for group in command._action_groups
    }
    return {title: actions for title, actions in groups.items() if actions}


def _shared_groups(commands: dict[str, argparse.ArgumentParser]) -> dict[str, list[str]]:
    """Return the titles of the groups of options that several commands have, with these commands."""
    usual = {"options", "positional arguments"}
    owners: dict[str, list[str]] = {}
    for name, command in commands.items():
        for title in _groups(command).keys() - usual:
            owners.setdefault(title, []).append(name)
    return {title: names for title, names in owners.items() if len(names) > 1}


def _command(name: str, command: argparse.ArgumentParser, shared: dict[str, list[str]]) -> Iterator[str]:
    yield f".SS {name}"
    for number, line in enumerate((command.usage or "").split("\n")):
        if number:
            yield ".br"
        yield _command_line(line.strip())
    yield from description(command.description or "")
    for title, actions in _groups(command).items():
        if title in shared:
            continue
        if title not in ("options", "positional arguments"):
            yield from paragraph(_sentence(f"{title}:"))
        for action in actions:
            yield from tagged(_tag(action), _help(action))
    among = [title for title, names in shared.items() if name in names]
    for title in among:
        yield from paragraph(f"It also has the options of {title}, below.")
    if command.epilog and not among:
        yield from description(command.epilog)


def _shared(title: str, commands: Sequence[tuple[str, argparse.ArgumentParser]]) -> Iterator[str]:
    names = [name for name, _ in commands]
    yield from paragraph(f"Of {_listed(names)}.")
    owners: dict[str, list[str]] = {}
    actions: dict[str, argparse.Action] = {}
    for name, command in commands:
        for action in _groups(command)[title]:
            owners.setdefault(_tag(action), []).append(name)
            actions[_tag(action)] = action
    for tag, action in actions.items():
        only = "" if owners[tag] == names else f" Only of {_listed(owners[tag])}."
        yield from tagged(tag, _help(action) + only)
    for epilog in dict.fromkeys(command.epilog or "" for _, command in commands):
        yield from description(epilog)


def _listed(names: Sequence[str]) -> str:
    """Return the names of commands as an enumeration."""
    return " and ".join(filter(None, [", ".join(f"`{name}`" for name in names[:-1]), f"`{names[-1]}`"]))


def _tag(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    if not action.option_strings:
        return rf"\fI{plain(str(value))}\fP"
    names = ", ".join(rf"\fB{plain(name)}\fP" for name in action.option_strings)
    return rf"{names} \fI{plain(str(value))}\fP" if action.nargs != 0 else names


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%")
    return f"{_sentence(text)}."


_OWSLA_END: Final = [
    ".SH ENVIRONMENT",
    *tagged(r"\fBOWSLA_BROKER\fP, \fBOWSLA_BROKER_PASSWORD_FILE\fP, \fBOWSLA_FROM_DEVICE\fP, ...",
            "Defaults of the options of the broker and its queues, as for the gateway."),
    *tagged(r"\fBOWSLA_CONTROL\fP, \fBOWSLA_HTTP\fP, \fBOWSLA_HTTP_TOKEN_FILE\fP",
            "Defaults of `--control`, `--http` and `--token-file`."),
    ".SH FILES",
    *tagged(r"\fIowsla.sock\fP", "Control socket of the gateway that runs in this folder."),
    ".SH EXIT STATUS",
    *tagged("0", "Done."),
    *tagged("1", "An error, which is a line on standard error; or a negative answer, as the description of the command says."),
    *tagged("2", "Of `owsla swarm`: something did not hold, such as a lost line."),
    *tagged("130", "After Ctrl-C."),
    ".SH EXAMPLES",
    *paragraph("Find a device, and see what it says:"),
    *example(["cd /var/lib/owsla", "owsla device door-7", "owsla trace door-7 --bodies"]),
    *paragraph("Send it a line, and wait until it has been handed over:"),
    *example(["owsla send --broker amqp://owsla@rabbit.example/ \\",
              "    --broker-password-file password --device door-7 --report open"]),
    *paragraph("Test a gateway with 1,000 devices, whose lines a back end sends back:"),
    *example(["owsla echo &", "owsla swarm --ca certs/ca.pem --connections 1000 --rate 500"]),
    ".SH SEE ALSO",
    r"\fBtwistd\-owsla\fP(8)",
]  # fmt: skip

# -- twistd-owsla(8) -------------------------------------------------------------------------------------------------------


def twistd_owsla() -> str:
    """Return twistd-owsla(8)."""
    own = r"\fBtwistd\-owsla\fP [\fIoptions\fP]"
    synopsis = [own, ".br", r"\fBtwistd\fP [\fItwistd\-options\fP] \fBowsla\fP [\fIoptions\fP]"]
    body = [".SH SYNOPSIS", *synopsis, *_TWISTD_DESCRIPTION, ".SH OPTIONS", *paragraph(Options.longdesc), *_TWISTD_RELOAD]
    group = ""
    for option in OPTIONS:
        if option.group != group:
            group = option.group
            body.append(f'.SS "{group}"')
        text = f"Default: {option.default_text}. Reload: {option.reload}."
        text += " Repeatable." if option.repeatable else ""
        text += " Each door can have its own." if option.door else ""
        body += [*tagged(rf"\fB{plain('--' + option.name)}\fP \fI{plain(option.metavar)}\fP", option.help), ".br"]
        body += _lines(inline(text).replace("\n", " "))
        if option.name == "config":
            for flag, meaning in FLAGS_HELP:
                body += tagged(rf"\fB{plain(flag)}\fP", meaning)
    return page("twistd-owsla", 8, "device gateway for RabbitMQ", [*body, *_TWISTD_END])


_TWISTD_DESCRIPTION: Final = [
    ".SH DESCRIPTION",
    *paragraph(
        "Devices connect over TLS and send lines of text. The gateway publishes each line to a queue of RabbitMQ, with "
        "publisher confirms, and writes each message of another queue to the device that it names. Without `--broker` it "
        "starts a small broker in memory, and without `--cert` it makes a development certificate: to try it out."
    ),
    *paragraph(
        "It is a plug-in of `twistd`, the program of Twisted that runs servers. Useful options of twistd come before the word "
        "`owsla`: `-n` stays in the foreground and logs to standard output, and `--pidfile=` writes no pid file. "
        "`twistd-owsla` is the `twistd` of the environment in which Owsla is installed. Its first argument decides: with an "
        "option of twistd, or the word `owsla`, the arguments are those of twistd; otherwise they are options of Owsla, after "
        "`-n --pidfile= owsla`."
    ),
]  # fmt: skip

_TWISTD_RELOAD: Final = [
    *paragraph(
        "`Reload` says what follows another value of an option when a running gateway reads its settings again: "
        "everything at once (yes), connections that are accepted later (new connections), worker processes that are started "
        "later, as in a rolling restart (rolling restart; without workers: a restart), or a new process only (restart)."
    ),
]

_TWISTD_END: Final = [
    ".SH SIGNALS",
    *tagged("SIGTERM, SIGINT", "Stop in order: close the devices one after another, and exit when all lines are confirmed, at "
            "the latest after `--drain-timeout`. A second one stops sooner."),
    *tagged("SIGHUP", "Read the settings and their files again. If there is a fault, nothing changes."),
    *tagged("SIGUSR2", "With `--workers`: replace the worker processes one after another (rolling restart)."),
    ".SH ENVIRONMENT",
    *tagged(r"\fBOWSLA_\fP\fINAME\fP", "Value of an option: `OWSLA_MAX_LINE` is `--max-line`."),
    *tagged(r"\fBOWSLA_CONFIG\fP", "The same as `--config`."),
    *tagged(r"\fBNOTIFY_SOCKET\fP, \fBWATCHDOG_USEC\fP, \fBLISTEN_FDS\fP", "Set by systemd: the gateway reports its state, and "
            "takes sockets for its doors."),
    ".SH FILES",
    *tagged(r"\fI/etc/owsla/owsla.toml\fP", "Settings, where the Debian package is installed. Elsewhere there is no default: "
            "see `--config`."),
    *tagged(r"\fIowsla.sock\fP", "Control socket, in the working folder: see `--control` and owsla(1)."),
    *tagged(r"\fIcerts/\fP", "Development certificates: see `--certs-dir`."),
    ".SH EXIT STATUS",
    *tagged("0", "An orderly stop."),
    *tagged("1", "Settings that cannot be used, a missing file, or a port in use: the last line says which. With `--check`, "
            "a line begins with FAIL."),
    *tagged("70", "The supervisors gave up on a defect in Owsla. Please report it, with the log."),
    ".SH EXAMPLES",
    *paragraph("Try it: a development certificate, a broker in memory, devices on port 8883."),
    *example(["twistd -n --pidfile= owsla"]),
    *paragraph("With RabbitMQ, metrics on port 9100, and as many processes as the machine has cores:"),
    *example(["twistd -n --pidfile= owsla --broker amqps://owsla@rabbit.example/ \\",
              "    --broker-password-file /etc/owsla/password --cert /etc/owsla/fullchain.pem \\",
              "    --key /etc/owsla/key.pem --http 9100 --workers auto"]),
    *paragraph("Check the settings, the files that they name, and the broker, before a restart:"),
    *example(["twistd owsla --check --config /etc/owsla/owsla.toml"]),
    ".SH SEE ALSO",
    r"\fBowsla\fP(1),", r"\fBtwistd\fP(1),", r"\fBrabbitmq\-server\fP(8),", r"\fBsystemd.service\fP(5)",
]  # fmt: skip

# -- files -----------------------------------------------------------------------------------------------------------------

_PAGES: Final = {"owsla.1": owsla, "twistd-owsla.8": twistd_owsla}


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or compare them, and return the exit status."""
    if list(arguments) not in ([], ["--check"]):
        sys.stderr.write("usage: make.py [--check]\n")
        return 1
    status = 0
    for name, make in _PAGES.items():
        path, text = _FOLDER / name, make()
        old = path.read_text() if path.exists() else ""
        if _TITLE.sub(r"\1 DATE \2", old) == text:
            continue
        if arguments:
            sys.stderr.write(f"{path.name} is not current: run packaging/man/make.py\n")
            status = 1
        else:
            path.write_text(text.replace(" DATE ", f" {datetime.now(UTC):%Y-%m-%d} ", 1))
            print(f"wrote {path.name}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
