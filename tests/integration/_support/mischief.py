"""Fault injector: an Owsla with methods that fail on request of the test.

It runs `twistd -y` with a short .tac file. Everything in it is real, except that an order from the test makes a method
raise `Mischief`, before or after its work. Orders and answers are JSON, one per line, on a TCP port of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from inspect import iscoroutinefunction
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal

from twisted.application.service import Application, MultiService
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver

from .device import Plain
from .lab import Lab
from .owsla import UNTIDY, Option, Owsla
from .waiting import pause

When = Literal["before", "after"]

ROOT: Final = Path(__file__).resolve().parents[3]

#: The import of `tests` takes the settings of Owsla out of the environment.
TAC: Final = f"""\
import os

environ = dict(os.environ)
from {__name__} import application_with_mischief

os.environ.update(environ)
application = application_with_mischief()
"""

PIDFILE: Final = "owsla.pid"

#: Seconds between two checks of the certificate; a real day is too long for a test.
EXPIRY_DAY: Final = 2.0


# -- In Owsla's process ------------------------------------------------------------------------------------------------


class Mischief(Exception):
    """Injected error."""


class _Fault:
    """One order: a method that raises a given number of times."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.when: When = order["when"]
        self.text: str = order["text"]
        self.only: dict[str, object] = order["only"]
        self.left: int = order["times"]  # negative: without a limit
        self.struck = 0

    def strike(self, instance: object) -> None:
        if self.left and all(attrgetter(name)(instance) == value for name, value in self.only.items()):
            self.left -= 1
            self.struck += 1
            raise Mischief(self.text)


class _Method:
    """Method with injected faults."""

    def __init__(self, target: str) -> None:
        module, path = target.split(":")
        owner, name = path.split(".")
        cls = getattr(import_module(module), owner)
        self.faults: list[_Fault] = []
        setattr(cls, name, self._faulty(getattr(cls, name)))

    def _strike(self, when: When, instance: object) -> None:
        for fault in self.faults:
            if fault.when == when:
                fault.strike(instance)

    def _faulty(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(instance: object, *args: Any, **kwargs: Any) -> Any:
            self._strike("before", instance)
            result = method(instance, *args, **kwargs)
            self._strike("after", instance)
            return result

        @wraps(method)
        async def run(instance: object, *args: Any, **kwargs: Any) -> Any:
            self._strike("before", instance)
            result = await method(instance, *args, **kwargs)
            self._strike("after", instance)
            return result

        return run if iscoroutinefunction(method) else call


class _Orders(LineOnlyReceiver):
    """Protocol for orders: `{"target": …}` creates a fault, `{"fault": number}` queries it, and with `"off"` ends it."""

    delimiter = b"\n"

    def __init__(self, methods: dict[str, _Method], faults: list[_Fault]) -> None:
        self._methods = methods
        self._faults = faults

    def lineReceived(self, line: bytes) -> None:
        order = json.loads(line)
        if "target" in order:
            method = self._methods.get(order["target"])
            if method is None:
                method = self._methods[order["target"]] = _Method(order["target"])
            fault = _Fault(order)
            method.faults.append(fault)
            self._faults.append(fault)
            order["fault"] = len(self._faults) - 1
        fault = self._faults[order["fault"]]
        if order.get("off"):
            fault.left = 0
        self.sendLine(json.dumps({"fault": order["fault"], "struck": fault.struck}).encode())


class _Factory(Factory):
    noisy = False

    def __init__(self) -> None:
        self._methods: dict[str, _Method] = {}
        self._faults: list[_Fault] = []

    def buildProtocol(self, addr: Any) -> _Orders:
        return _Orders(self._methods, self._faults)


class _Ear(MultiService):
    """Service that listens for orders."""

    _log = Logger()

    def startService(self) -> None:
        from twisted.internet import reactor

        listen: Any = reactor
        self._port = listen.listenTCP(0, _Factory(), interface="127.0.0.1")
        self._log.info("Open for mischief on port {port}", port=self._port.getHost().port)
        super().startService()

    def stopService(self) -> Any:
        self._port.stopListening()
        return super().stopService()


def application_with_mischief() -> Any:
    """Return the application of tac/owsla.tac, configured by the environment, with a port for orders."""
    from owsla.config.usage import Options
    from owsla.tap import makeService
    from owsla.tls import expiry

    expiry.DAY = EXPIRY_DAY  # type: ignore[misc]

    options = Options()
    options.parseOptions([])
    application = Application("owsla")
    _Ear().setServiceParent(application)
    makeService(options).setServiceParent(application)
    return application


# -- In the test's process ---------------------------------------------------------------------------------------------


class Fault:
    """Injected fault of a method."""

    def __init__(self, owsla: MischievousOwsla, number: int, target: str, text: str) -> None:
        self._owsla = owsla
        self._number = number
        self._target = target
        self.text = text
        """Text of the exception, unique to this fault."""
        self.struck = 0
        """Number of times that the method raised, at the last query."""

    async def ask(self, **order: Any) -> int:
        """Query the number of times that the method raised."""
        answer = await self._owsla.order({"fault": self._number, **order})
        self.struck = answer["struck"]
        return self.struck

    async def strikes(self, times: int = 1, timeout: float = 20) -> None:
        """Wait until the method has raised this many times."""
        for _ in range(int(timeout / 0.05)):
            if await self.ask() >= times:
                return
            await pause(0.05)
        raise AssertionError(f"{self._target} was struck {self.struck} times within {timeout} s, not {times}")

    async def off(self) -> None:
        """Stop raising."""
        await self.ask(off=True)


class MischievousOwsla(Owsla):
    """Owsla that accepts orders to fail. It serves HTTP, and writes a pid file."""

    def __init__(self, folder: Path, certs_dir: Path, **options: Option) -> None:
        settings: dict[str, Option] = {"port": 0, "interface": "127.0.0.1", "certs_dir": certs_dir, "http": 0, **options}
        env = {f"OWSLA_{name.upper()}": _text(value) for name, value in settings.items() if value is not None}
        super().__init__(
            folder,
            certs_dir,
            env=env | {"PYTHONPATH": str(ROOT)},
            argv=["-n", f"--pidfile={PIDFILE}", "-y", "mischief.tac"],
        )
        self._channel: Plain | None = None
        self._faults: list[Fault] = []

    def launch(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "mischief.tac").write_text(TAC)
        super().launch()

    @property
    def pidfile(self) -> Path:
        return self.folder / PIDFILE

    async def order(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send an order, and return the answer."""
        if self._channel is None:
            port = int((await self.wait_for_line(r"Open for mischief on port (\d+)"))[1])
            self._channel = await Plain(port).connect()
        self._channel.send_raw(json.dumps(order).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await self._channel.lines.get())
        return answer

    async def fail(
        self, target: str, *, times: int = 1, when: When = "before", only: Mapping[str, object] | None = None
    ) -> Fault:
        """Let a method, such as `owsla.device.housekeeping:Housekeeping.tick`, raise `times` times, before or after its work.

        A negative number means always. `only` restricts the fault to objects with such attributes, as in `{"role.name":
        "courier"}`.
        """
        text = f"mischief {len(self._faults)}, in {target.partition(':')[2]}"
        order = {"target": target, "when": when, "text": text, "only": dict(only or {}), "times": times}
        number = (await self.order(order))["fault"]
        fault = Fault(self, number, target, text)
        self._faults.append(fault)
        return fault

    async def hang_up(self) -> None:
        """Close the connection for orders."""
        if self._channel is not None:
            await self._channel.close()

    def entries_with_traceback(self, text: str = "") -> list[str]:
        """Return the log entries with a traceback, and with this text."""
        entries = re.split(r"(?m)^(?=\d{4}-\d\d-\d\d[T ])", self.output())
        return [entry for entry in entries if "Traceback" in entry and text in entry]

    def assert_tidy(self) -> None:
        """Check that the log has one traceback for each raised fault, and no other."""
        if self._process is None:
            return
        rest = self.output()
        for fault in self._faults:
            found = self.entries_with_traceback(f"Mischief: {fault.text}\n")
            for traceback in found:
                rest = rest.replace(traceback, "")
            assert len(found) == fault.struck, f"{fault.text}: {fault.struck} strikes, these tracebacks:\n{''.join(found)}"
        untidy = UNTIDY.search(rest)
        assert not untidy, f"{untidy and untidy[0]!r} in the output of {self._process}:\n{rest}"


class MischiefLab(Lab):
    """Lab whose Owslas accept orders to fail."""

    def new_owsla(self, **options: Any) -> MischievousOwsla:
        owsla = MischievousOwsla(self.folder / f"owsla-{len(self._owslas)}", self.certs_dir, **{**self._options, **options})
        self._owslas.append(owsla)
        self._ends.append(owsla.hang_up)
        return owsla


def _text(value: Option) -> str:
    return str(value) if isinstance(value, (str, int, float, Path)) else ",".join(value or ())
