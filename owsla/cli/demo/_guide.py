"""The text of the demo for the person: what to open, and what to try. Pure."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ._fleet import DOOR, GUEST, PRINTER, TOKEN, meter
from ._plan import HOST, Plan


def page_url(plan: Plan, token: str) -> str:
    """Return the address of the page with its token. A browser does not send what is behind the `#`."""
    return f"http://{HOST}:{plan.http_port}/#token={token}"


def guide(plan: Plan, folder: Path, token: str, program: Sequence[str]) -> str:
    """Return what to open, and commands to try from any folder."""
    lines = ["", "Open", f"    {page_url(plan, token)}", "", "Try in another terminal"]
    for what, command in commands(plan, folder, program):
        lines += [f"  {what}", f"    {command}"]
    lines += ["", f"The log of the gateway is {folder}/gateway.log. Ctrl-C ends the demo and removes {folder}.", ""]
    return "\n".join(lines) + "\n"


def commands(plan: Plan, folder: Path, program: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the commands to try, each with what it is for. Each may be pasted into a shell."""
    control = ["--control", str(folder / "owsla.sock")]
    names = {name for name, _ in plan.fleet.devices()}
    yield "who is connected:", shlex.join([*program, "devices", *control])
    if PRINTER in names:
        yield "what is wrong with a slow device:", shlex.join([*program, "device", PRINTER, *control])
    yield "what a device says and hears:", shlex.join([*program, "trace", meter(1), "--bodies", *control])
    yield "what happens:", shlex.join([*program, "events", "--follow", *control])
    target = DOOR if DOOR in names else meter(1)
    broker = plan.broker_options(folder, "to-device")
    yield (
        "send a line to a device, which answers it:" if target == DOOR else "send a line to a device:",
        shlex.join([*program, "send", "--device", target, "open", *broker]),
    )
    if shutil.which("openssl") is not None:
        client = ["openssl", "s_client", "-quiet", "-CAfile", f"{folder}/certs/ca.pem", "-connect", f"{HOST}:{plan.port}"]
        yield "be a device: type lines, and the back end answers:", f"(echo HELLO {GUEST} {TOKEN}; cat) | {shlex.join(client)}"


def own_command() -> list[str]:
    """Return the command that starts `owsla` from a shell in any folder.

    The name alone is enough if the shell finds it without an active virtual environment, as the one of `pipx install`.
    """
    script = Path(sys.executable).with_name("owsla")
    if not script.exists():
        script = Path(sys.argv[0])  # a console script that belongs to no environment, as of pip install --user
    found = shutil.which("owsla")
    active = sys.prefix != sys.base_prefix and found is not None and os.path.dirname(found) == os.path.dirname(sys.executable)
    if found is not None and not active and os.path.realpath(found) == os.path.realpath(script):
        return ["owsla"]
    return [os.path.abspath(script)]
