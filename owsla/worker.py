"""Entry point of a worker, which its parent starts (`twistd owsla --workers`):

    python -m owsla.worker worker-2

The parent passes descriptors: the channel between the two, the memory of the workers' connection counts, and the socket of each
door. The worker reads its settings itself: from the parent's arguments, which come through the channel because there may be a
password in them, from the environment, and from the file. After a change of the file a fresh worker therefore has the new
settings.
"""

from __future__ import annotations

import gc
import signal

if __name__ == "__main__":
    # Before anything else is imported, which takes a second. A terminal, or systemd, sends these signals to all processes, but
    # here they are for the parent.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()  # until the modules are imported, as in `owsla.runtime.imports.without_collection`

    from owsla.runtime.openssl import load_openssl

    load_openssl()  # before Twisted's reactors are imported, which do the same

import os
import socket
import sys
from typing import Any, cast

from twisted.internet.defer import ensureDeferred
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver, globalLogBeginner

from .config.addresses import BrokerAddress
from .errors import ConfigError
from .runtime.clock import use_monotonic_clock
from .runtime.files import Files
from .runtime.process import set_exit_status
from .runtime.resolver import resolve_in_daemon_threads
from .runtime.sockets import ListeningSocket, loopback
from .wiring.configuration import load_configuration
from .wiring.node import make_node
from .wiring.shutdown import NodeService
from .workers import CHANNEL_FD, FIRST_DOOR_FD, LOADS_FD, Inherited, Loads, LogToParent, ParentLink, read_first


def main() -> None:
    """Run a worker for the whole life of its process."""
    gc.freeze()
    gc.enable()
    channel = socket.socket(fileno=CHANNEL_FD)
    for descriptor in (CHANNEL_FD, LOADS_FD):
        os.set_inheritable(descriptor, False)
    channel.setblocking(True)
    try:
        start = read_first(channel)
    except (EOFError, OSError):
        return  # the parent is gone
    doors: dict[str, socket.socket] = {
        name: ListeningSocket(fileno=FIRST_DOOR_FD + at) for at, name in enumerate(start["doors"])
    }
    for sock in doors.values():
        sock.set_inheritable(False)
        sock.setblocking(False)
    _name_process(f"worker-{start['number']}")

    from twisted.internet import reactor as _reactor  # importing it installs a reactor

    reactor: Any = _reactor
    use_monotonic_clock(reactor)
    resolve_in_daemon_threads(reactor)
    link = _connect(reactor, channel, start["number"])
    log = LogToParent(link.channel, reactor.callFromThread)
    # Standard streams, too: a dialect that prints would block on a parent that hangs.
    globalLogBeginner.beginLoggingTo([cast(ILogObserver, log)])
    _start_node(reactor, start, link, doors, log)
    reactor.run(installSignalHandlers=False)
    # The channel is closed. What the interpreter still has to say goes to the pipe that the parent reads.
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def _connect(reactor: Any, channel: socket.socket, number: int) -> ParentLink:
    """Have the reactor serve the channel to the parent."""
    link = ParentLink(reactor, number)
    factory = Factory.forProtocol(lambda: link.channel)
    factory.noisy = False
    channel.setblocking(False)
    reactor.adoptStreamConnection(channel.fileno(), socket.AF_UNIX, factory)
    channel.close()  # the reactor has duplicated it
    return link


def _start_node(
    reactor: Any, start: dict[str, Any], link: ParentLink, doors: dict[str, socket.socket], log: LogToParent
) -> None:
    """Start the node of this worker once the reactor runs; or tell the parent why that cannot be."""
    try:
        configuration = load_configuration(
            start["argv"],
            warn=lambda text: None,  # the parent has printed the warnings
            files=Files.from_wire(start.get("files", {})),
            make_certificates=False,
        )
        broker_port = start["broker_port"]
        broker = BrokerAddress(loopback(), broker_port) if broker_port else None
        load = Loads(LOADS_FD, start["count"]).of(start["number"])
        service = make_node(reactor, configuration, log, Inherited(link, doors, broker, load))
    except ConfigError as error:
        link.channel.send("fatal", text=str(error))
        reactor.addSystemEventTrigger("before", "shutdown", link.channel.close)
        reactor.callWhenRunning(reactor.stop)
        set_exit_status(1)
    else:
        reactor.callWhenRunning(service.startService)
        reactor.addSystemEventTrigger("before", "shutdown", lambda: ensureDeferred(_stop(service, link)))


async def _stop(service: NodeService, link: ParentLink) -> None:
    """Stop in order, and send the parent the last lines of the log."""
    await service.stopService()
    await link.channel.close()


def _name_process(name: str) -> None:
    """Set the name that `top` and `ps -o comm` show; `ps -f` shows the arguments."""
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(f"owsla {name}"[:15])
    except OSError:
        pass  # not Linux


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"owsla.worker is started by twistd owsla --workers, which gives it descriptor {CHANNEL_FD}: {error}")
