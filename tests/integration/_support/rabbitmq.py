"""RabbitMQ nodes of the tests, alone or as a cluster, with their own names, ports, data folders, cookie and epmd."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from twisted.internet.defer import Deferred, gatherResults

from .process import ChildProcess, accepts, free_port
from .rabbitmqctl import RabbitMQCtl
from .waiting import until

#: Debian's /usr/sbin wrappers change the user and lose the environment: prefer the scripts that they wrap.
_SCRIPTS = Path("/usr/lib/rabbitmq/bin")

#: Seconds for a node to boot: 3 to 4 on two idle cores.
BOOT = 240

#: Erlang flags for the server: load the modules of RabbitMQ and of its dependencies together. The boot loads all of them, but
#: one by one: each load looks through all folders and copies Erlang's table of functions, which costs 3 s of CPU time.
PRELOAD = {
    "ERL_AFLAGS": """-eval '
Modules = fun
    Next([], _, Found) -> Found;
    Next([Name | Names], Seen, Found) ->
        case lists:member(Name, Seen) orelse code:where_is_file(atom_to_list(Name) ++ ".app") of
            true -> Next(Names, Seen, Found);
            non_existing -> Next(Names, Seen, Found);
            File ->
                {ok, [{application, Name, Keys}]} = file:consult(File),
                More = proplists:get_value(applications, Keys, []),
                Next(More ++ Names, [Name | Seen], proplists:get_value(modules, Keys, []) ++ Found)
        end
end,
code:ensure_modules_loaded(Modules([rabbit], [], [])).
'"""
}


def _script(name: str) -> str | None:
    path = _SCRIPTS / name
    return str(path) if path.exists() else shutil.which(name)


def node_name() -> str:
    """Return a name that no other node has."""
    return f"owsla-{secrets.token_hex(4)}@localhost"


def installed() -> bool:
    """Return whether RabbitMQ is installed."""
    return _script("rabbitmq-server") is not None and shutil.which("epmd") is not None


class Epmd:
    """Erlang's name server, by which the nodes of a cluster, and `rabbitmqctl`, find each other."""

    def __init__(self, folder: Path) -> None:
        """Use `folder` as home of the nodes: the Erlang cookie is in there."""
        self.folder = folder
        self.port = free_port()
        self._process: ChildProcess | None = None
        folder.mkdir(parents=True, exist_ok=True)
        cookie = folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16).upper())  # nodes that start at once would each create one
        cookie.chmod(0o400)

    @property
    def env(self) -> Mapping[str, str]:
        return {"HOME": str(self.folder), "ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(self.port)}

    async def start(self) -> None:
        """Start epmd, unless it runs."""
        if self._process is None or self._process.poll() is not None:
            epmd = shutil.which("epmd")
            assert epmd is not None
            env = {**os.environ, **self.env}
            self._process = ChildProcess([epmd, "-port", str(self.port)], output=self.folder / "epmd.log", env=env)
            await until(lambda: accepts(self.port), what="epmd")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()


class RabbitMQ:
    """One real RabbitMQ node in `folder`, reached at `url` by guest/guest. Its data survive `kill` and `restart`."""

    def __init__(
        self,
        folder: Path,
        *,
        config: str = "",
        plugins: Sequence[str] = (),
        name: str | None = None,
        epmd: Epmd | None = None,
        port: int | None = None,
    ) -> None:
        """Add the lines `config` to rabbitmq.conf. The caller closes `epmd`, if given. `port` is a free one by default."""
        self.folder = folder
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self._dist_port = free_port()
        self.node = name or node_name()
        self._epmd = epmd or Epmd(folder)
        self._own_epmd = epmd is None
        self._beam: ChildProcess | None = None
        self._starts = 0
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        (folder / "rabbitmq.conf").write_text(f"log.console = true\nlog.file = false\n{config}")
        self._env = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        self._env |= {
            **self._epmd.env,
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),  # missing: no configuration of the machine is read
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": self.host,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # No busy waiting: the schedulers would use the cores of the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
            # The script replaces itself by the Erlang machine: signals reach the right process.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        self._ctl = RabbitMQCtl(folder, self.node, self._env)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{self.host}:{self.port}/%2f"

    @property
    def pid(self) -> int:
        assert self._beam is not None
        return self._beam.pid

    @property
    def running(self) -> bool:
        return self._beam is not None and self._beam.poll() is None

    async def start(self) -> None:
        """Start the node and wait until it accepts connections."""
        await self._epmd.start()
        script = _script("rabbitmq-server")
        assert script is not None
        self._starts += 1
        log = self.folder / f"server.{self._starts}.log"
        self._beam = ChildProcess([script], output=log, env=self._env | PRELOAD)
        await self._beam.wait_for_line("Server startup complete", BOOT)

    async def stop(self) -> None:
        """Stop the node in order."""
        if self._beam is not None:
            self._beam.signal(signal.SIGCONT)
            await self._beam.stop(60)

    async def kill(self) -> None:
        """Kill the node without a shutdown."""
        assert self._beam is not None
        self._beam.kill()

    def end(self) -> None:
        """Kill the node, if it runs."""
        self._ctl.close()
        if self._beam is not None:
            self._beam.kill()

    async def restart(self) -> None:
        """Stop the node in order and start it again with its data."""
        await self.stop()
        await self.start()

    def pause(self) -> None:
        """Suspend the Erlang machine (SIGSTOP): its sockets stay open and do not answer."""
        assert self._beam is not None
        self._beam.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue a suspended node."""
        assert self._beam is not None
        self._beam.signal(signal.SIGCONT)

    async def ctl(self, *arguments: str, timeout: float = 180) -> str:
        """Run a command of `rabbitmqctl` on this node and return its output."""
        return await self._ctl.run(*arguments, timeout=timeout)

    async def streams(self, *arguments: str) -> None:
        """Run a command of `rabbitmq-streams` on this node."""
        script = _script("rabbitmq-streams")
        assert script is not None
        process = ChildProcess([script, *arguments], output=self.folder / "streams.log", env=self._env)
        assert await process.wait(60) == 0, process.output()

    async def version(self) -> tuple[int, int]:
        """Return the version, major and minor."""
        major, minor, *_ = (await self.ctl("eval", "rabbit_misc:version().")).strip().strip('"').split(".")
        return int(major), int(minor)

    def write_ctl(self, path: Path) -> None:
        """Write a shell script that runs `rabbitmqctl` on this node."""
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self._env.items() if name != "PATH")
        path.write_text(f'#!/bin/sh\n{exports}exec {_script("rabbitmqctl")} "$@"\n')
        path.chmod(0o755)

    async def close(self) -> None:
        """Stop every process of this node, epmd too."""
        self._ctl.close()
        try:
            await self.stop()
        finally:
            if self._beam is not None:
                self._beam.kill()
            if self._own_epmd:
                self._epmd.close()


def _join(first: str, name: str) -> str:
    """Return the configuration by which a new node joins the first, which is much quicker than `rabbitmqctl join_cluster`.

    RabbitMQ 4 wants to reach all nodes of the list before it creates or joins a cluster. So the first node has none, and the
    others do not name each other.
    """
    if name == first:
        return ""
    key = "cluster_formation.classic_config.nodes"
    return f"cluster_formation.peer_discovery_backend = classic_config\n{key}.1 = {first}\n{key}.2 = {name}\n"


class Cluster:
    """Cluster of several RabbitMQ nodes on this machine. Each may be killed, and started again."""

    def __init__(self, folder: Path, size: int = 3, *, plugins: Sequence[str] = ()) -> None:
        self._epmd = Epmd(folder)
        names = [node_name() for _ in range(size)]
        self.nodes = [
            RabbitMQ(folder / f"node-{number}", config=_join(names[0], name), plugins=plugins, name=name, epmd=self._epmd)
            for number, name in enumerate(names, 1)
        ]

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    async def start(self) -> None:
        """Start all nodes, and wait until they form a cluster: some 20 s on two cores."""
        await self._epmd.start()
        first, *others = self.nodes
        await first.start()
        await gatherResults([Deferred.fromCoroutine(node.start()) for node in others])
        await first.ctl("await_online_nodes", str(len(self.nodes)))

    async def close(self) -> None:
        """Kill every node: the data are not needed any more."""
        for node in self.nodes:
            node.end()
        self._epmd.close()
