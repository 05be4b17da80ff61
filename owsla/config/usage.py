"""The options of `twistd owsla`, as Twisted's `usage.Options`: command line, help and errors."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import MutableMapping, Sequence
from typing import Any, Final, NoReturn, TextIO

from twisted.python import usage

from owsla import __version__
from owsla.config.options import OPTIONS, Option
from owsla.config.settings import Settings
from owsla.config.sources import OFFLINE, load_settings, parse_command_line, write_warning
from owsla.errors import ConfigError, one_line
from owsla.runtime.files import Files
from owsla.runtime.process import pid_file_fault, remove_own_pid_file
from owsla.runtime.process_title import hide_passwords, mask_passwords

_DEFAULT_PID_FILE: Final = "twistd.pid"
"""Pid file of twistd without `--pidfile`, in the working folder."""

_INSTEAD: Final = (
    ("broker", "--broker-password-file"),
    ("broker-management", "OWSLA_BROKER_MANAGEMENT"),
    ("events", "OWSLA_EVENTS"),
)
"""Options whose texts may have a password, and what does not show it in the process list."""

FLAGS_HELP = (
    ("--help", "Show this help and exit."),
    ("--version", "Show the version and exit."),
    (
        "--check[=offline]",
        "Check the settings, the files that they name, and the broker: login, permissions and queues. Print a line for each "
        "check, change nothing, and exit: with status 1 if a line begins with FAIL, or else with 0. offline leaves the broker "
        "out.",
    ),
)


def exit_with(error: ConfigError, stream: TextIO | None = None) -> NoReturn:
    """Write an error to standard error, as one line, and exit with status 1."""
    (sys.stderr if stream is None else stream).write(f"owsla: {one_line(str(error))}\n")
    raise SystemExit(1)


def _print_and_exit(text: str) -> NoReturn:
    """Print a text and exit with status 0, also if the reader of a pipe has gone, as in `twistd owsla --help | head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The interpreter flushes standard output once more when it exits, and would report the same error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


class Options(usage.Options):
    """The options of `twistd owsla`. After `parseOptions`, `settings` is what `makeService` needs.

    An error of the user is one line on standard error and exit status 1. No `UsageError` is raised, because twistd would print
    the whole help for it, with the error somewhere below.
    """

    synopsis = "[options]"
    longdesc = (
        "Each option can also be set in the environment (OWSLA_MAX_LINE for --max-line; the values of options that can be "
        "repeated are separated by commas) and in the file of --config. The command line overrides the environment, and the "
        "environment the file. Times: 500ms, 30s, 30m, 1h; a bare number is seconds. Sizes: 64KiB, 16MiB; a bare number "
        "is bytes. A password in --broker is hidden from the process list once Owsla has started; a password in "
        "--broker-password-file or OWSLA_BROKER never appears there."
    )
    # Shell completion reads this attribute; parseOptions does not.
    optParameters = [[option.name, None, None, option.help] for option in OPTIONS]

    settings: Settings
    files: Files
    """Contents of the files that `settings` name."""
    arguments: Sequence[str]
    """The arguments that `settings` were read from. Worker processes read them again."""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read `options` (or the arguments of the process) and all other sources into `settings`."""
        arguments = sys.argv[1:] if options is None else list(options)
        if "--_shell-completion" in arguments[-2:-1]:
            super().parseOptions(arguments)
            return
        hidden = hide_passwords()
        try:
            command_line = parse_command_line(arguments)
            if "help" in command_line.flags:
                _print_and_exit(str(self))
            if "version" in command_line.flags:
                self.opt_version()
            if command_line.check is not None:
                self.check(arguments, broker=command_line.check != OFFLINE)
            self.files = Files()
            self.settings = load_settings(arguments, files=self.files)
        except ConfigError as error:
            exit_with(error)
        self.arguments = arguments
        if self.parent is not None:
            self._prepare_pid_file(self.parent)
        for name, instead in _INSTEAD:
            texts = command_line.given[name].texts if name in command_line.given else ()
            if not hidden and any(mask_passwords(text) != text for text in texts):
                write_warning(f"--{name}: its password stays visible in the process list here; use {instead}")

    def _prepare_pid_file(self, twistd: MutableMapping[str, Any]) -> None:
        """Remove a stale pid file, and do without the default one if it cannot be written. `twistd` are its own options.

        A chroot would have another file by that name.
        """
        path = twistd.get("pidfile")
        if not path or twistd.get("chroot"):
            return
        remove_own_pid_file(path)
        # twistd changes to that folder before it writes the file.
        fault = pid_file_fault(os.path.join(twistd.get("rundir") or "", path))
        if fault and path != _DEFAULT_PID_FILE:
            exit_with(ConfigError(f"twistd --pidfile={path}: {fault}"))
        if fault:
            write_warning(f"{path} cannot be written: {fault}; no pid file is written (twistd --pidfile=)")
            twistd["pidfile"] = ""

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        _print_and_exit(f"owsla {__version__}")

    def check(self, arguments: Sequence[str], *, broker: bool) -> NoReturn:
        """Check the settings in `arguments` and all other sources, and exit. `broker`: also check the broker.

        A check connects to the broker, which is not for this package: see `owsla.tap`.
        """
        raise NotImplementedError

    def getUsage(self, width: int | None = None) -> str:
        """Return the help, grouped by subject. The one of `usage.Options` is a single list."""
        if not width:
            columns = os.environ.get("COLUMNS", "")
            width = int(columns) if columns.isdigit() else 80
        width = max(width, 60)
        lines = textwrap.wrap(self.longdesc, width)
        group = ""
        for option in OPTIONS:
            if option.group != group:
                group = option.group
                lines += ["", f"{group}:"]
            lines += _help_lines(f"--{option.name} {option.metavar}", _help_text(option), width)
            if option.name == "config":
                for flag, text in FLAGS_HELP:
                    lines += _help_lines(flag, text, width)
        return "\n".join(lines) + "\n"


def _help_text(option: Option) -> str:
    return f"{option.help} [{option.default_text}]"


def _help_lines(left: str, text: str, width: int) -> list[str]:
    indent = " " * 30
    wrapped = textwrap.wrap(text, width - len(indent), break_on_hyphens=False)
    left = f"  {left}"
    if len(left) <= len(indent) - 2:
        return [left.ljust(len(indent)) + wrapped[0], *(indent + line for line in wrapped[1:])]
    return [left, *(indent + line for line in wrapped)]
