"""The health check of the image, and the users and settings of packaging/container/compose.yaml, with a real gateway."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import yaml

from ._support.commands import Commands
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Lab
from ._support.process import free_port
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import reactor_test
from .test_http import ask, http_port

FOLDER = Path(__file__).parents[2] / "packaging" / "container"


def health_check() -> list[str]:
    """Return the arguments of `owsla` in the health check of the image."""
    [command] = re.findall(r"^HEALTHCHECK .* CMD (.+)$", (FOLDER / "Containerfile").read_text(), re.MULTILINE)
    program, *arguments = json.loads(command)
    assert program == "owsla"
    return [str(argument) for argument in arguments]


@reactor_test
async def test_health_check(lab: Lab, embedded: EmbeddedBrokerProcess, commands: Commands) -> None:
    """The check of the image passes while the gateway runs, and fails when it hangs or has gone."""
    owsla = lab.new_owsla(broker=embedded.url)
    await owsla.start()
    env: dict[str, Any] = {"OWSLA_CONTROL": str(owsla.folder / "owsla.sock")}

    async def check(*arguments: str) -> tuple[int, str]:
        command = commands.start(*health_check(), *arguments, **env)
        return await command.ended(), command.output() + command.errors()

    assert await check() == (0, "The gateway is alive.\n")
    assert await check("--ready") == (0, "The gateway is ready.\n")
    owsla.process.signal(signal.SIGSTOP)
    status, said = await check()
    owsla.process.signal(signal.SIGCONT)
    assert (status, said.partition(": no answer within")[2]) == (1, " 5 s: the gateway is stopped, or hangs\n")
    assert await check() == (0, "The gateway is alive.\n")
    assert await owsla.terminate() == 0
    status, said = await check()
    assert (status, said.count("\n")) == (1, 1), said


@reactor_test
async def test_waiting_for_the_broker(lab: Lab, commands: Commands) -> None:
    """A gateway whose broker is away is alive, and not ready: an engine must not restart it."""
    owsla = lab.new_owsla(broker=f"amqp://127.0.0.1:{free_port()}")
    owsla.launch()
    await owsla.wait_for_line("Broker unavailable")
    env: dict[str, Any] = {"OWSLA_CONTROL": str(owsla.folder / "owsla.sock")}
    alive = commands.start(*health_check(), **env)
    assert (await alive.ended(), alive.errors()) == (0, "")
    ready = commands.start(*health_check(), "--ready", **env)
    assert await ready.ended() == 1
    assert ready.errors().endswith("the gateway is not ready: broker_connected, listener_accepting\n")


@reactor_test
async def test_composition(lab: Lab, own_rabbitmq: RabbitMQ, commands: Commands, tmp_path: Path) -> None:
    """With the definitions of `make-secrets` and the settings of the composition, a gateway serves a device, the back end
    echoes, and neither misses a permission. The token opens the API.
    """
    shutil.copytree(FOLDER / "compose", tmp_path / "compose", ignore=shutil.ignore_patterns("secrets"))
    subprocess.run([tmp_path / "compose" / "make-secrets"], check=True, timeout=60)
    secrets = tmp_path / "compose" / "secrets"
    await own_rabbitmq.ctl("import_definitions", str(secrets / "definitions.json"))
    port = own_rabbitmq.url.rpartition(":")[2].partition("/")[0]

    def here(text: str) -> str:
        return text.replace("@rabbitmq/", f"@127.0.0.1:{port}/").replace("/run/secrets", str(secrets))

    settings = tmp_path / "owsla.toml"
    settings.write_text(here((FOLDER / "compose" / "owsla" / "owsla.toml").read_text()))
    owsla = lab.new_owsla(config=settings, http="127.0.0.1:0")
    await owsla.start()
    echo: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["echo"]
    env: dict[str, Any] = {name: here(value) for name, value in echo["environment"].items()}
    backend = commands.start(*echo["entrypoint"][1:], **env)
    await backend.said("answering the lines of from_device")

    device = await lab.device(owsla)
    device.send_line(b"hello")
    assert await device.line() == b"hello"
    asked = commands.start("who-has", "nobody", **env)
    assert (await asked.ended(), asked.errors()) == (1, "")
    token = (secrets / "http-token").read_text().strip()
    owsla_port = await http_port(owsla)
    assert (await ask(owsla_port, "/api/v1/devices"))[0] == 401
    listed = commands.start("devices", "--json", f"--http={owsla_port}", f"--token-file={secrets / 'http-token'}")
    assert await listed.ended() == 0
    assert json.loads(listed.output())["lines_in"] == 1

    assert owsla.lines("permission|#warn") == []
    assert "permission" not in backend.errors()
    assert token not in owsla.output()
    assert await owsla.terminate() == 0
