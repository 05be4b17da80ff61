"""The argument parser of the commands: errors are one line, and help texts are kept as they are written."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, NoReturn

_PASSWORD = re.compile(r"(amqps?://)\S*@", re.IGNORECASE)

BROKER_ENVIRONMENT = """\
The options of the broker and its queues can also be set in the environment, as
for the gateway (OWSLA_BROKER, OWSLA_TO_DEVICE ...). Of several brokers in
OWSLA_BROKER the first is used. A password in OWSLA_BROKER or in the file of
--broker-password-file is never in the process list.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line and exits with status 1."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, add_help=False, **options)
        # The option of argparse itself, with a help text in the words of the others.
        self.add_argument("--help", "-h", action="help", help="show this and exit")

    def error(self, message: str) -> NoReturn:
        # An argument in the message may be a URL in the wrong place.
        fail(self.prog, _PASSWORD.sub(r"\1...@", message))


def fail(prog: str, message: str) -> NoReturn:
    """Write an error in one line to standard error, and exit with status 1."""
    sys.stderr.write(f"{prog}: {' '.join(message.splitlines())}\n")
    raise SystemExit(1)


def add_command(
    commands: Any, name: str, usage: str, description: str, *usages: str, epilog: str | None = BROKER_ENVIRONMENT
) -> Parser:
    """Add a command to the parser of all. `usages` are further ways to use it."""
    lines = "\n       ".join(f"owsla {name} {one}" for one in (usage, *usages))
    command: Parser = commands.add_parser(name, prog=f"owsla {name}", usage=lines, description=description, epilog=epilog)
    return command
