"""The program `twistd-owsla`: `twistd` for this one plugin.

    twistd-owsla --port 8883                        is  twistd -n --pidfile= owsla --port 8883
    twistd-owsla -n --logfile=FILE owsla            is  twistd -n --logfile=FILE owsla

There are two differences: signals do no harm from its first line on, and it looks for no other plugins, so that it starts
sooner and writes no `dropin.cache`.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator, Sequence
from typing import Any

from .runtime.early_signals import guard_start


def with_twistd_options(arguments: Sequence[str], twistd_options: Container[str]) -> list[str]:
    """Return the arguments for twistd. They begin with its options or the word `owsla`, or are the options of Owsla alone.

    `twistd_options` are the names of the options of twistd, without dashes. Both have `--help` and `--version`: those of Owsla
    are meant.
    """
    first = arguments[0] if arguments else ""
    name = first[2:].partition("=")[0] if first.startswith("--") else first[1:2] if first.startswith("-") else ""
    if first == "owsla" or (name in twistd_options and name not in ("help", "version")):
        return list(arguments)
    return ["-n", "--pidfile=", "owsla", *arguments]


def main() -> None:
    """Run `twistd-owsla` with the arguments of the process."""
    guard_start()  # before Twisted is imported, which takes most of the start

    from .runtime.openssl import load_openssl

    load_openssl()  # before Twisted's reactors are imported, which do the same

    from twisted.application import app
    from twisted.scripts import twistd

    from twisted.plugins.owsla_plugin import owsla

    class Options(twistd.ServerOptions):  # type: ignore[name-defined,misc]  # it depends on the platform
        """Options of `twistd`, with one command."""

        @property
        def subCommands(self) -> Iterator[tuple[str, None, Any, str]]:
            self.loadedPlugins = {owsla.tapname: owsla}
            yield owsla.tapname, None, lambda: owsla.options(), owsla.description

    sys.argv[1:] = with_twistd_options(sys.argv[1:], Options().synonyms)
    app.run(twistd.runApp, Options)
