"""Doors: descriptions (`--listen`), tables (`[[listen]]`), and what a door has from the top level."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.config.changes import compare_settings
from owsla.config.doors import DoorDescription, door_text, read_door
from owsla.config.settings import Door, Settings
from owsla.config.sources import load_settings
from owsla.errors import ConfigError


def _load(*argv: str, **environ: str) -> Settings:
    return load_settings(argv, environ, certificates="left")


class DescriptionTests(SynchronousTestCase):
    """The syntax of a description."""

    def test_kinds(self) -> None:
        """The kind implies TLS or not, unless the description says otherwise."""
        cases: list[tuple[str, str, dict[str, tuple[str, ...]]]] = [
            ("tls:8884", "8884", {"port": ("8884",), "tls": ("yes",)}),
            ("tcp:9000:interface=127.0.0.1", "9000", {"port": ("9000",), "tls": ("no",), "interface": ("127.0.0.1",)}),
            ("unix:/run/owsla.sock", "owsla.sock", {"port": ("unix:/run/owsla.sock",), "tls": ("no",)}),
            ("unix:s:tls=yes:name=x", "x", {"port": ("unix:s",), "tls": ("yes",)}),
            ("systemd:meters:framing=length\\:2", "meters", {"framing": ("length:2",)}),
            ("name=a:port=1:cert=b:cert=c", "a", {"port": ("1",), "cert": ("b", "c")}),
            (r"tcp:1:interface=\:\:1:device-ack=A\\={seq}", "1",
             {"port": ("1",), "tls": ("no",), "interface": ("::1",), "device-ack": ("A\\={seq}",)}),
        ]  # fmt: skip
        for text, name, texts in cases:
            self.assertEqual(read_door(text), DoorDescription(name, texts), text)

    def test_refused(self) -> None:
        """Any other text is refused with its own reason."""
        for text, reason in [
            ("", "begins with none of tls:, tcp:, unix:, systemd:"),
            ("8883", "begins with none of"),
            ("tls", "a port is missing"),
            ("unix:", "a path is missing"),
            ("systemd:", "a name is missing"),
            ("tcp:1:2", "'2' is not key=value"),
            ("tcp:1:framing=length:2", r"'2' is not key=value; a colon in a value is written \:"),
            ("tcp:1:port=2", "the port is given twice"),
            ("tcp:0", "needs a name"),
            ("tcp:1:name=a b", "'a b' is not a name of a door"),
            ("tcp:1:x=\\", "ends with a backslash"),
        ]:
            self.assertIn(reason, str(self.assertRaises(ConfigError, read_door, text)), text)

    @given(st.dictionaries(st.from_regex(r"[a-z-]{1,8}", fullmatch=True), st.text(), min_size=1))
    def test_any_values(self, items: dict[str, str]) -> None:
        """A table is written so that the same keys and texts are read."""
        items["name"] = "x"
        description = read_door(door_text(items.items()))
        self.assertEqual(description.texts, {key: (text,) for key, text in items.items() if key != "name"})


class DoorTests(SynchronousTestCase):
    """The doors of the settings."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = Path(folder.name, "owsla.toml")

    def from_file(self, content: str, *argv: str) -> Settings:
        self.file.write_text(content)
        return _load(f"--config={self.file}", *argv)

    def refused(self, *argv: str) -> str:
        return str(self.assertRaises(ConfigError, _load, *argv))

    def test_first(self) -> None:
        """The first door is what the top-level options describe."""
        settings = _load("--port", "1")
        self.assertEqual(settings.doors, (Door("default", settings),))

    def test_own_and_inherited(self) -> None:
        """What a door does not say, it has from the top level."""
        settings = _load(
            "--max-line=100", "--idle-timeout=5", r"--listen=tcp:9000:name=meters:framing=length\:2:max-line=50:from-device=m"
        )
        door = settings.doors[1]
        self.assertEqual(door.name, "meters")
        own = door.settings
        self.assertEqual((own.port, own.tls, own.max_line, own.from_device, own.idle_timeout), (9000, False, 50, "m", 5.0))
        self.assertEqual(str(own.framing), "length:2")
        self.assertEqual((settings.port, settings.tls, settings.max_line, str(settings.framing)), (8883, True, 100, "lines"))

    def test_batch_delay_of_another_door(self) -> None:
        """The delay of the first door has an effect if another one, which does not set it, publishes batches."""
        loaded = _load("--batch-delay=1ms", "--listen=tls:1:name=a:batch=9")
        self.assertEqual([(door.settings.batch, door.settings.batch_delay) for door in loaded.doors], [(1, 0.001), (9, 0.001)])

    def test_tables(self) -> None:
        """Tables of a file have the same keys, with booleans, numbers and arrays."""
        settings = self.from_file(
            'max-line = 7\n[[listen]]\nport = 9000\ntls = false\ninterface = "::1"\nproxy-protocol = ["10.0.0.0/8", "::/0"]\n'
            '[[listen]]\nport = "unix:a.sock"\nname = "local"\nsocket-mode = "0600"\n[[listen]]\nname = "passed"\n'
        )
        first, second, third = settings.listen
        self.assertEqual((first.name, first.settings.port, first.settings.tls), ("9000", 9000, False))
        self.assertEqual(first.settings.interface, "::1")
        networks = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::/0"))
        self.assertEqual(first.settings.proxy_protocol, networks)
        self.assertEqual((second.name, second.settings.port, second.settings.socket_mode), ("local", Path("a.sock"), 0o600))
        self.assertEqual((third.name, third.settings.port, third.settings.max_line), ("passed", None, 7))

    def test_command_line_replaces_file(self) -> None:
        """Doors are a list, which a later source replaces."""
        settings = self.from_file("[[listen]]\nport = 9000\n", "--listen=tls:9001", "--listen=tls:9002")
        self.assertEqual([door.name for door in settings.listen], ["9001", "9002"])

    def test_belonging_together(self) -> None:
        """A door with a certificate or an authority of its own takes nothing that belongs to the other one."""
        settings = _load(
            "--cert=a", "--key=b", "--ocsp-response=c", "--client-ca=d", "--client-crl=e",
            "--listen=tls:1:cert=f:key=g", "--listen=tls:2:client-ca=h", "--listen=tls:3:client-ca=off",
        )  # fmt: skip
        first, second, third = (door.settings for door in settings.listen)
        self.assertEqual((first.cert, first.ocsp_response), ((Path("f"),), ()))
        self.assertEqual((first.client_ca, first.client_crl), (Path("d"), Path("e")))
        self.assertEqual((second.client_ca, second.client_crl), (Path("h"), None))
        self.assertEqual((third.client_ca, third.client_crl), (None, None))

    def test_refused(self) -> None:
        """A wrong door is one clear line with its name."""
        for argv, message in [
            (["--listen=tls:1:name=a:max-lin=5"], "--listen a: max-lin: no such option; did you mean max-line?"),
            (["--listen=tls:1:name=a:window=5"], "--listen a: window: is for all doors, and is not set for one"),
            (["--listen=tls:1:name=a:max-line=x"], "--listen a: max-line: 'x' is not a size"),
            (["--listen=tls:1:name=default"], "default is the name of the door that the top-level options describe"),
            (["--listen=tls:1:name=a", "--listen=tls:2:name=a"], "a names two doors"),
            (["--listen=tls:8883:name=a"], "--port and --listen a cannot both use port 8883"),
            (["--listen=unix:s", "--listen=unix:s:name=t"], "--listen s and --listen t cannot both use s"),
            (["--listen=tls:1:name=a:cert=x"], "--listen a: cert: --key must be given too"),
            (["--listen=tcp:1:name=a:client-ca=x"], "--listen a: client-ca: has an effect only with TLS"),
            (["--tls=no", "--client-ca=x"], "--client-ca: has an effect only with TLS, and there is no door with it"),
            (["--listen=tcp:1:name=a:proxy-identity=cn"], "--listen a: proxy-identity: has an effect only with --proxy-prot"),
            (["--proxy-protocol=10.0.0.0/8", "--proxy-identity=cn"], "--proxy-identity: has an effect only without TLS"),
            (["--port=unix:s", "--proxy-protocol=10.0.0.0/8"], "--proxy-protocol: the peers of a unix socket have no address"),
            (["--proxy-protocol=10.0.0.0/8", "--listen=unix:s"], "--listen s: proxy-protocol: the peers of a unix socket"),
            (["--listen=unix:a", "--listen=unix:./a:name=b"], "--listen a and --listen b cannot both use a"),
            ([f"--listen=unix:{'x' * 64}"], "needs a name, as in name=meters"),
            (["--proxy-protocol=off", "--proxy-protocol=10.0.0.0/8"], "--proxy-protocol: either off or networks, not both"),
            (["--proxy-protocol=10.0.0.1/8"], "--proxy-protocol: '10.0.0.1/8' is not a network, as in 10.0.0.0/8: "),
            (["--listen=tls:1:name=a:socket-mode=0600"], "--listen a: socket-mode: has an effect only with a unix socket"),
            (["--socket-mode=999"], "--socket-mode: '999' is not the permissions of a file"),
            (["--listen=unix:s:interface=::1"], "'' is not key=value; a colon in a value is written \\:"),
            ([r"--listen=unix:s:interface=\:\:1"], "--listen s: interface: has an effect only with a port number"),
            (["--listen=tls:1:name=a:batch-delay=1ms"], "--listen a: batch-delay: has an effect only with --batch"),
            (["--batch-delay=1ms", "--listen=tls:1:name=a"], "--batch-delay: has an effect only with --batch"),
            (["--listen=tls:1:name=a:framing=length"], "--listen a: framing: 'length'"),
            ([r"--listen=tls:1:name=a:framing=length\:2:delimiter=x"], "--listen a: delimiter: has an effect only with"),
            (["--listen=tls:1:name=a:from-device=to_device"], "--listen a: from-device: from-device and to-device cannot"),
            (["--listen=tls:1:name=a:from-device-argument=x=1"], "--listen a: the queue 'from_device' has other arguments at"),
            (["--listen=tls:1:name=a:from-device=b:from-device-argument=x=1:from-device-argument=x=2"], "x is given twice"),
            (["--tls=maybe"], "--tls: 'maybe' is not yes or no"),
        ]:
            self.assertIn(message, self.refused(*argv), argv)

    def test_refused_in_a_file(self) -> None:
        """The line names the file, and the door."""
        for content, message in [
            ('[[listen]]\nname = "a"\nport = 1\nmax-lin = 5\n', ": listen: max-lin: no such option"),
            ('[[listen]]\nname = "a"\nport = 1\nmax-line = "x"\n', ": listen a: max-line: 'x' is not a size"),
            ("[[listen]]\nname = 5\n", ": listen: name: the name of a door is text"),
            ("[[listen]]\n", ": listen: the table is empty"),
            ('[[listen]]\nname = "a"\nport = true\n', ": listen: port: a boolean cannot be the value of this option"),
            ("[listen]\nport = 0\n", ": listen: a door without a port number needs a name"),
        ]:
            error = self.assertRaises(ConfigError, self.from_file, content)
            self.assertEqual(str(error)[: len(str(self.file))], str(self.file), content)
            self.assertIn(message, str(error), content)

    def test_door_with_an_exchange(self) -> None:
        """A door may publish to a queue where the others use an exchange, and the other way round."""
        settings = _load(
            "--publish-exchange=x", "--routing-key=k", "--listen=tls:1:from-device=q", "--listen=tls:2:publish-exchange=y"
        )
        first, second = (door.settings for door in settings.listen)
        self.assertEqual((first.publish_exchange, first.from_device), (None, "q"))
        self.assertEqual((second.publish_exchange, second.routing_key.text), ("y", "k"))


class ChangedDoorTests(SynchronousTestCase):
    """Doors in a reload."""

    def changes(self, before: list[str], after: list[str]) -> tuple[tuple[str, ...], ...]:
        self.result = compare_settings(_load(*before), _load(*after))
        return self.result.applied, self.result.rolling, self.result.restart

    def test_own_option(self) -> None:
        """An option of a door is named with the door, and follows the same rules as at the top level."""
        changed = self.changes(
            ["--listen=tls:1:name=a:max-line=5:from-device=q"], ["--listen=tls:2:name=a:max-line=6:from-device=r"]
        )
        self.assertEqual(changed, (("a.max-line",), ("a.from-device",), ("a.port",)))
        own = self.result.settings.listen[0].settings
        self.assertEqual((own.max_line, own.from_device, own.port), (6, "q", 1))
        renewed = self.result.renewed.listen[0].settings
        self.assertEqual((renewed.max_line, renewed.from_device, renewed.port), (6, "r", 1))

    def test_tls_goes(self) -> None:
        """The certificates of a door that is to have no TLS stay until it has none: it goes on with TLS until the restart."""
        tls = ["--cert=a", "--key=b", "--client-ca=c", "--client-crl=d", "--device-id=san-dns", "--client-cert=optional"]
        waiting = ("tls", "cert", "key", "client-ca", "client-cert", "device-id", "client-crl")
        self.assertEqual(self.changes(tls, ["--tls=no"]), ((), (), waiting))
        self.assertEqual(self.result.settings.client_ca, Path("c"))
        self.assertEqual(self.changes(["--tls=no"], tls), ((), (), waiting))
        before, after = "--listen=tls:1:name=a:client-ca=c", "--listen=tcp:1:name=a"
        self.assertEqual(self.changes([before], [after]), ((), (), ("a.tls", "a.client-ca")))
        self.assertEqual(self.result.settings.listen[0].settings.client_ca, Path("c"))

    def test_inherited_option(self) -> None:
        """A door that follows the top level is not mentioned beside it."""
        changed = self.changes(["--listen=tls:1:name=a"], ["--max-line=6", "--listen=tls:1:name=a"])
        self.assertEqual(changed, (("max-line",), (), ()))
        self.assertEqual(self.result.settings.listen[0].settings.max_line, 6)

    def test_proxies(self) -> None:
        """A door follows other trusted proxies. That it expects a header, or none, takes a restart."""
        door = "--listen=tcp:1:name=a"
        header, other = f"{door}:proxy-protocol=10.0.0.0/8", f"{door}:proxy-protocol=10.0.0.0/9"
        self.assertEqual(self.changes([header], [other]), (("a.proxy-protocol",), (), ()))
        self.assertEqual(self.changes([header], [door]), ((), (), ("a.proxy-protocol",)))
        self.assertEqual(self.changes([door], [header]), ((), (), ("a.proxy-protocol",)))

    def test_doors_come_and_go(self) -> None:
        """Another set of doors takes a restart. Until then the present ones stay, and follow their descriptions."""
        before = ["--listen=tls:1:name=a", "--listen=tls:2:name=b:max-line=7"]
        changed = self.changes(before, ["--listen=tls:3:name=c", "--listen=tls:1:name=a:max-line=6"])
        self.assertEqual(changed, (("a.max-line",), (), ("listen",)))
        doors = self.result.settings.listen
        self.assertEqual([(door.name, door.settings.max_line) for door in doors], [("a", 6), ("b", 7)])
        self.assertEqual([door.settings.port for door in doors], [1, 2])

    def test_another_order(self) -> None:
        """The order of doors means nothing."""
        first, second = "--listen=tls:1:name=a", "--listen=tls:2:name=b:max-line=7"
        self.assertEqual(self.changes([first, second], [second, first]), ((), (), ()))
        self.assertEqual([door.name for door in self.result.settings.listen], ["a", "b"])

    def test_node_options(self) -> None:
        """Settings that no door can have are those of the process, in each door."""
        self.changes(["--listen=tls:1:name=a"], ["--window=20000", "--http=9100", "--listen=tls:1:name=a:max-line=6"])
        door = self.result.settings.listen[0].settings
        self.assertEqual((door.window, door.http, door.max_line), (20000, None, 6))

    def test_only_own_options_differ(self) -> None:
        """The fields of a door's settings are those of the process, but for the doors themselves."""
        settings = _load("--listen=tls:1:name=a:max-line=6")
        own = settings.listen[0].settings
        self.assertEqual(dataclasses.replace(own, port=8883, max_line=16384), dataclasses.replace(settings, listen=()))
