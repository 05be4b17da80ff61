"""Comparison of settings: what a running process follows, and what takes a restart."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from owsla.config.changes import compare_settings
from owsla.config.options import BY_NAME, OPTIONS
from owsla.config.settings import Settings
from owsla.config.sources import load_settings
from owsla.tls.development import development_certificates


def load(*argv: str) -> Settings:
    return load_settings(argv, {})


class ChangesTests(SynchronousTestCase):
    def test_nothing(self) -> None:
        """Settings that were read twice are the same."""
        argv = (
            "--broker",
            "amqp://u:p@one/v",
            "--routing-key",
            "{device_id}",
            "--publish-exchange",
            "x",
            "--dialect",
            "turnstile",
        )
        changes = compare_settings(load(*argv), load(*argv))
        self.assertFalse(changes)
        self.assertEqual((changes.settings, changes.applied, changes.rolling, changes.restart), (load(*argv), (), (), ()))

    def test_applied(self) -> None:
        """What can change is named and has its new value; a time in other units is no change."""
        changes = compare_settings(
            load("--idle-timeout", "1h"), load("--idle-timeout", "3600", "--max-rate", "10", "--window", "5")
        )
        self.assertTrue(changes)
        self.assertEqual((changes.applied, changes.rolling, changes.restart), (("window", "max-rate"), (), ()))
        self.assertEqual((changes.settings.window, changes.settings.max_rate), (5, 10.0))

    def test_restart(self) -> None:
        """What takes a restart is named and keeps its value, beside changes that apply."""
        changes = compare_settings(load(), load("--port", "1", "--seq-header", "number", "--max-rate", "10"))
        self.assertEqual((changes.applied, changes.rolling, changes.restart), (("max-rate",), ("seq-header",), ("port",)))
        self.assertEqual(changes.settings, dataclasses.replace(load(), max_rate=10.0))

    def test_again(self) -> None:
        """What takes a restart is named at each comparison with the settings in use, and forgotten when it is taken back."""
        first = compare_settings(load(), load("--port", "1"))
        self.assertEqual(compare_settings(first.settings, load("--port", "1")).restart, ("port",))
        self.assertFalse(compare_settings(first.settings, load()))

    def test_dependent(self) -> None:
        """A setting that was checked together with one that takes a restart waits for it."""
        before, after = load("--device-ack", "ACK {seq}"), load("--device-ack", "ACK|{seq}", "--delimiter", ";")
        changes = compare_settings(before, after)
        self.assertEqual((changes.applied, changes.rolling), ((), ("delimiter", "device-ack")))
        self.assertEqual(changes.settings, before)
        self.assertEqual(compare_settings(before, load("--device-ack", "ACK|{seq}")).applied, ("device-ack",))
        before, after = (
            load("--framing", "fixed:100"),
            load("--framing", "length:1", "--max-line", "50", "--device-ack", "\n{seq}"),
        )
        changes = compare_settings(before, after)
        self.assertEqual((changes.applied, changes.rolling), ((), ("framing", "max-line", "device-ack")))
        self.assertEqual(changes.settings, before)

    def test_brokers(self) -> None:
        """Other hosts, users and passwords of a cluster apply, as long as one place remains."""
        before = load("--broker", "amqp://u:old@one/v", "--broker", "amqp://u:old@two/v")
        for urls in (("u:new@one/v",), ("w:p@one/v", "w:p@three/v"), ("u:old@two/v", "u:old@one/v")):
            after = load(*[f"--broker=amqp://{url}" for url in urls])
            changes = compare_settings(before, after)
            self.assertEqual((changes.applied, changes.rolling, changes.restart), (("broker",), (), ()))
            self.assertEqual(changes.settings, after)

    def test_another_cluster(self) -> None:
        """Brokers without a common host, port and vhost take a restart, and what belongs to them waits."""
        before = load("--broker", "amqp://u:p@one/v", "--broker", "amqp://u:p@two/v")
        for url in ("amqp://u:p@three/v", "amqp://u:p@one/w", "amqp://u:p@one:5673/v"):
            changes = compare_settings(before, load("--broker", url))
            self.assertEqual((changes.applied, changes.rolling, changes.restart), ((), ("broker",), ()))
            self.assertEqual(changes.settings, before)
        changes = compare_settings(before, load("--broker", "amqps://u:p@three/v", "--broker-ca", self.authority()))
        self.assertEqual(changes.rolling, ("broker", "broker-ca"))
        self.assertEqual(changes.settings, before)

    def new_folder(self) -> Path:
        # Not mktemp(): under pytest its folders would be left in the current one.
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        return folder

    def authority(self) -> str:
        return str(development_certificates(self.new_folder(), "localhost").ca)

    def test_password_file(self) -> None:
        """Another password in the file of --broker-password-file is a change of that option, not of the brokers."""
        path = self.new_folder() / "password"
        argv = ("--broker", "amqp://u@one", "--broker", "amqp://u@two", "--broker-password-file", str(path))
        path.write_text("old")
        before = load(*argv)
        self.assertFalse(compare_settings(before, load(*argv)))
        path.write_text("new")
        changes = compare_settings(before, load(*argv))
        self.assertEqual(changes.applied, ("broker-password-file",))
        self.assertEqual([address.password for address in changes.settings.brokers], ["new", "new"])

    def test_embedded_broker(self) -> None:
        """The embedded broker belongs to the whole process, workers included."""
        for before, after in ((load(), load("--broker", "amqp://h")), (load("--broker", "amqp://h"), load())):
            self.assertEqual(compare_settings(before, after).restart, ("broker",))

    def test_needs(self) -> None:
        """An option needs those that may take a restart, and comes into effect in a running process itself."""
        for option in OPTIONS:
            for needed in option.needs:
                self.assertIn(needed, BY_NAME)
                self.assertFalse(option.restart, option.name)

    def test_login_checker(self) -> None:
        """Checkers with the same text are the same. Neither the comparison nor a checker shows the text."""
        path = self.new_folder() / "devices"
        path.write_text("d1:t\n")
        argv = ("--dialect", "login", "--login-checker", f"file:{path}")
        before = load(*argv)
        self.assertFalse(compare_settings(before, load(*argv)))
        changes = compare_settings(
            before, load("--dialect", "login", "--login-checker", f"file:{path.parent}/../{path.parent.name}/devices")
        )
        self.assertEqual(changes.applied, ("login-checker",))
        self.assertNotIn(str(path.parent), repr(changes))
        changes = compare_settings(load(), before)
        self.assertEqual(changes.rolling, ("dialect", "login-checker"))
