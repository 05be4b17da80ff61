"""`rabbitmqctl` as a process that stays: its start costs a second of CPU time, a command in it a hundredth.

The commands are those of the real program: its archive is loaded into an Erlang machine, which reads a list of arguments for
each command from its standard input and calls the function that the program itself calls.
"""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from twisted.internet.defer import DeferredLock

from .process import ChildProcess

#: Home of the installed RabbitMQ: Debian has one version in there.
_HOMES = Path("/usr/lib/rabbitmq/lib")

#: Reads `{Token, [Argument, ...]}.` until the end of its input, and prints a line `Token Status` behind the output.
_LOOP = """
{ok, _} = application:ensure_all_started(elixir),
ok = application:load(rabbitmqctl),
Run = fun(Arguments) ->
    try 'Elixir.RabbitMQCtl':main([unicode:characters_to_binary(Argument) || Argument <- Arguments]) of
        _ -> 0
    catch
        exit:{shutdown, Status} -> Status
    end
end,
Loop = fun Next() ->
    case io:read("") of
        {ok, {Token, Arguments}} -> io:format("~n~ts ~w~n", [Token, Run(Arguments)]), Next();
        eof -> halt(0)
    end
end,
Loop().
"""

#: One scheduler, without busy waiting: the process is idle nearly all the time.
_FLAGS = ["+B", "+S", "1:1", "+SDcpu", "1:1", "+SDio", "1", "+sbwt", "none", "-boot", "no_dot_erlang", "-noshell", "-hidden"]


def _home() -> Path:
    homes = sorted(_HOMES.glob("rabbitmq_server-*"))
    assert homes, f"no RabbitMQ in {_HOMES}"
    return homes[-1]


class RabbitMQCtl:
    """`rabbitmqctl` for one node. It starts with the first command; its environment has the node's cookie and epmd.

    `through` makes the command line that runs a command on the host of the node.
    """

    def __init__(
        self,
        folder: Path,
        node: str,
        env: Mapping[str, str],
        *,
        through: Callable[..., list[str]] = lambda *command: [*command],
    ) -> None:
        self._folder = folder
        self._node = node
        self._env = env
        self._through = through
        self._process: ChildProcess | None = None
        self._stdin = -1
        self._turn: DeferredLock = DeferredLock()
        self._starts = 0

    async def run(self, *arguments: str, timeout: float) -> str:
        """Run a command and return its output; raise AssertionError if it fails."""
        await self._turn.acquire()
        try:
            return await self._run(arguments, timeout)
        finally:
            self._turn.release()

    async def _run(self, arguments: tuple[str, ...], timeout: float) -> str:
        process = self._running()
        before = len(process.output())
        token = secrets.token_hex(8)
        command = [[*map(ord, argument)] for argument in ("--silent", "--node", self._node, *arguments)]
        os.write(self._stdin, f'{{"{token}", {command}}}.\n'.encode())  # in Erlang, too, a string is a list of numbers
        try:
            end = await process.wait_for_line(rf"^{token} (\d+)$", timeout, start=before)
        except BaseException:
            self.close()  # it is stuck; the next command starts another one
            raise
        output = process.output()[before:].partition(f"\n{token} ")[0]
        assert end[1] == "0", f"rabbitmqctl {' '.join(arguments)}: status {end[1]}\n{output}"
        return output

    def close(self) -> None:
        """End the process, if it runs."""
        if self._process is not None:
            self._process.kill()
            os.close(self._stdin)
            self._process = None

    def _running(self) -> ChildProcess:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        home = _home()
        archive = home / "escript" / "rabbitmqctl"
        code = self._folder / "rabbitmqctl"
        if not code.exists():
            with zipfile.ZipFile(archive) as members:
                members.extractall(code)
        # RabbitMQ 4 has a folder for each application in there.
        folders = sorted({str(application.parent) for application in code.rglob("*.app")})
        self._starts += 1
        stdin, self._stdin = os.pipe()
        try:
            self._process = ChildProcess(
                self._through("erl", *_FLAGS, "-pa", *folders, "-eval", _LOOP, "-extra", str(archive)),
                output=self._folder / f"ctl.{self._starts}.log",
                env={**self._env, "ERL_LIBS": str(home / "plugins")},
                stdin=stdin,
            )
        finally:
            os.close(stdin)
        return self._process
