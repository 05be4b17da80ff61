"""Entry point of `twistd owsla`: from its options to the service that it runs.

twistd owsla --port 8883
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from twisted.application.service import Service
from twisted.logger import Logger

from .checking.command import check
from .config import usage
from .config.usage import exit_with
from .errors import ConfigError
from .log import install_log
from .runtime.clock import use_monotonic_clock
from .runtime.cpus import Cpus
from .runtime.early_signals import defer_stop
from .runtime.orphans import reap_orphans_of_process_1
from .runtime.resolver import resolve_in_daemon_threads
from .wiring.configuration import configure
from .wiring.node import make_node
from .wiring.parent import make_parent

__all__ = ["Options", "makeService"]

_log = Logger(namespace="owsla")


class Options(usage.Options):
    """The options of `twistd owsla`, with the check of `--check`, which runs before twistd does anything."""

    def check(self, arguments: Sequence[str], *, broker: bool) -> NoReturn:
        from twisted.internet import reactor

        raise SystemExit(check(reactor, arguments, broker=broker))


def makeService(options: usage.Options) -> Service:
    """Return the service of `twistd owsla`. A user's error ends the process with one line."""
    from twisted.internet import reactor  # importing it installs a reactor

    defer_stop()
    use_monotonic_clock(reactor)
    resolve_in_daemon_threads(reactor)
    reap_orphans_of_process_1(reactor)
    service: Service
    try:
        logged = install_log(reactor, options.parent, options.settings.log_format)
        log, stdout = logged.log, logged.stdout
        configuration = configure(options.arguments, options.settings, options.files)
        if isinstance(workers := configuration.settings.workers, Cpus):
            _log.info("{workers}", workers=workers.describe())
        if configuration.settings.worker_count > 1:
            service = make_parent(reactor, configuration, log, stdout)
        else:
            service = make_node(reactor, configuration, log, stdout=stdout)
    except ConfigError as error:
        exit_with(error)
    service.setServiceParent(logged)
    return logged
