"""Programs with all of Python's checks: every warning is an error, and development mode looks for leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ._support.commands import Commands
from ._support.lab import Broker, Lab
from ._support.waiting import reactor_test

#: As `python -X dev -W error`, for workers, too. txamqp calls a deprecated function of Twisted.
STRICT = {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error,ignore::DeprecationWarning:txamqp.protocol"}


@pytest.mark.parametrize("workers", [1, 2])
@reactor_test
async def test_gateway(lab: Lab, broker: Broker, commands: Commands, tmp_path: Path, workers: int) -> None:
    """A gateway starts, serves a device, answers commands, reloads and stops, without a warning."""
    config = tmp_path / "owsla.toml"
    config.write_text("")
    strictly: dict[str, Any] = {"program": True, "env": STRICT}
    events = ["console", f"json:{tmp_path / 'events'}"]
    gateway = await lab.gateway(broker.url, workers=workers, config=config, http="127.0.0.1:0", events=events, **strictly)
    await gateway.round_trip(await lab.device(gateway))
    config.write_text('max-rate = "1000"\n')
    for name in ("reload", "devices", "tree"):
        command = commands.start(name, program=True, OWSLA_CONTROL=str(gateway.owsla.folder / "owsla.sock"), **STRICT)
        assert await command.ended() == 0, command.errors()
        assert "Warning" not in command.errors()
    assert await gateway.owsla.terminate() == 0
    assert "Warning" not in gateway.owsla.output()


@reactor_test
async def test_help(commands: Commands) -> None:
    """The command prints its help without a warning."""
    command = commands.start("--help", program=True, **STRICT)
    assert await command.ended() == 0
    assert not command.errors()
