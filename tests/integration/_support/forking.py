"""A process that has imported what `twistd owsla` and the `owsla` commands need, and forks for each start. See `fork_server`.

Theory of operation
-------------------

    tests ── {"argv", "env", "cwd"}, 2 descriptors ──▶ server ── fork ──▶ twistd, or owsla
    tests ◀── {"pid"}, a pidfd ───────────────────────── server
    tests ── {"reap": pid} ──▶ server ── {"status"} ──▶ tests

The forked process returns from `serve`, and then does what the script does. No reactor is
installed before the fork, no thread runs and no file is open but the standard streams and the socket. A child that has ended
stays a zombie until the tests ask for its status: so its id cannot be that of another process before.

Run by its path and with -P, so that no folder of the tests is in `sys.path` of the gateway.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from typing import Any

if __name__ == "__main__":
    from owsla.runtime.openssl import load_openssl

    load_openssl()  # before Twisted's reactors are imported, as `twistd owsla` does

import twisted.internet.epollreactor
import twisted.scripts.twistd
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins

import owsla.cli._broker_commands
import owsla.cli._tree
import owsla.tap

PR_SET_PDEATHSIG = 1
MESSAGE = 1 << 17


def serve(control: socket.socket) -> dict[str, Any]:
    """Answer requests. Return the request in the process that is forked for it."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, MESSAGE, 2)
        if not data:
            raise SystemExit(0)  # the tests have ended; the kernel kills the children
        request = json.loads(data)
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            control.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
            continue
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            become(request, descriptors, writing)
            return dict(request)
        os.close(writing)
        os.read(reading, 1)  # the child is in a session of its own
        for descriptor in (reading, *descriptors):
            os.close(descriptor)
        pidfd = os.pidfd_open(pid)
        socket.send_fds(control, [json.dumps({"pid": pid}).encode()], [pidfd])
        os.close(pidfd)


def become(request: dict[str, Any], descriptors: list[int], ready: int) -> None:
    """Give this process what a start of the script would have: streams, session, folder, environment and arguments.

    The process list goes on to show the arguments of the server, in which there are no passwords to hide.
    """
    for target, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, target)
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.write(ready, b"\n")
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    argv = request["argv"]
    sys.argv[:] = argv
    sys.path.insert(0, os.path.dirname(argv[0]))
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [folder for folder in folders if folder and folder not in sys.path]
    with open("/proc/self/comm", "w") as comm:
        comm.write(os.path.basename(argv[0]))


def main() -> None:
    """Serve, and run the script in the forked processes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    list(getPlugins(IServiceMaker))  # twistd loads the modules of all services to find that of the command
    control.send(b"{}")
    serve(control)
    control.detach()  # its descriptor is closed
    run = twisted.scripts.twistd.run if os.path.basename(sys.argv[0]) == "twistd" else owsla.cli.main
    sys.exit(run())


if __name__ == "__main__":
    main()
