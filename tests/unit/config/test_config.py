"""Tests of `owsla.config`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from owsla import __version__
from owsla.config.addresses import BrokerAddress, ManagementAddress
from owsla.config.framings import FramingSpec
from owsla.config.options import OPTIONS
from owsla.config.settings import Settings
from owsla.config.sources import load_settings
from owsla.config.usage import Options
from owsla.errors import ConfigError
from owsla.events import HandlerSpec
from owsla.routing_key import RoutingKey
from owsla.runtime.cpus import usable_cpus

from ..tls._handshakes import ec_key, issue, pem


def _load(*argv: str, **environ: str) -> Settings:
    return load_settings(argv, environ)


class _Files(SynchronousTestCase):
    def new_path(self) -> str:
        # Not mktemp(): under pytest its folders would be left in the current one.
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        return os.path.join(folder, "file")


class BrokerAddressTests(SynchronousTestCase):
    """Broker URLs are read as RabbitMQ's URI specification says."""

    def refused(self, url: str) -> str:
        return str(self.assertRaises(ConfigError, BrokerAddress.parse, url))

    def test_defaults(self) -> None:
        """What a URL leaves out takes RabbitMQ's defaults; amqps has its own port."""
        self.assertEqual(BrokerAddress.parse("amqp://h"), BrokerAddress("h", 5672, "guest", "guest", "/", False))
        self.assertEqual(BrokerAddress.parse("AMQPS://h"), BrokerAddress("h", 5671, "guest", "guest", "/", True))

    def test_all_parts(self) -> None:
        """User name, password and vhost are percent-decoded."""
        self.assertEqual(
            BrokerAddress.parse("amqp://us%40er:p%3Aa%2fs%c3%a9s@host.example:5673/v%2fh"),
            BrokerAddress("host.example", 5673, "us@er", "p:a/s\u00e9s", "v/h", False),
        )

    def test_trailing_slash(self) -> None:
        """A trailing slash means the vhost "/", since RabbitMQ has no vhost with an empty name."""
        self.assertEqual(BrokerAddress.parse("amqp://h/").vhost, "/")
        self.assertEqual(BrokerAddress.parse("amqp://h/%2f").vhost, "/")

    def test_ipv6(self) -> None:
        """IPv6 addresses are in brackets, in and out."""
        address = BrokerAddress.parse("amqp://[::1]:1234/x")
        self.assertEqual((address.host, address.port), ("::1", 1234))
        self.assertEqual(str(address), "amqp://guest@[::1]:1234/x")
        self.assertEqual(BrokerAddress.parse("amqp://[fe80::2]").port, 5672)

    def test_host_names(self) -> None:
        """A name that Twisted connects to is taken as it is: of one label or more, an IPv4 address, or not in ASCII."""
        for host in ("h", "H9-x.test", "rabbit.test.", "10.0.0.1", "a" * 63, "b\u00fccher.test", "xn--bcher-kva.test"):
            self.assertEqual(BrokerAddress.parse(f"amqp://{host}:1").host, host)
            self.assertNotIn("\\", repr(HostnameEndpoint(MemoryReactorClock(), host, 1)), "which it says of a bad one")

    def test_password_is_never_shown(self) -> None:
        """Neither str() nor repr() shows the password."""
        address = BrokerAddress.parse("amqps://us%2fer:secret@h/v%2fh")
        self.assertEqual(str(address), "amqps://us%2Fer@h:5671/v%2Fh")
        self.assertNotIn("secret", repr(address))
        self.assertNotIn("secret", repr(_load("--broker", "amqp://u:secret@h")))

    def test_management(self) -> None:
        """The URL of the management API has RabbitMQ's ports by default, and may have a prefix. Its password is not shown."""
        for url, shown in (
            ("http://h", "http://h:15672"),
            ("HTTPS://h/", "https://h:15671"),
            ("https://u%40:se%3acret@[::1]:443/prefix/", "https://u%40@[::1]:443/prefix"),
            ("http://h:80/api", "http://h:80"),
            ("http://h/a/b/api/", "http://h:15672/a/b"),
        ):
            address = ManagementAddress.parse(url)
            self.assertEqual(str(address), shown)
            self.assertNotIn("se:cret", repr(address))
        address = ManagementAddress.parse("http://u%40:se%3acret@h")
        self.assertEqual((address.username, address.password), ("u@", "se:cret"))

    def test_refused(self) -> None:
        """What isn't such a URL is refused with its own reason, which never quotes the URL."""
        for url, reason in [
            ("secret", "has the form"),
            ("http://u:secret@h", "begins with amqp://"),
            ("amqp://", "no host name"),
            ("amqp://u:secret@", "no host name"),
            ("amqp://:secret@h", "no user name"),
            ("amqp://u:secret@h:0", "port"),
            ("amqp://u:secret@h:65536", "port"),
            ("amqp://u:secret", "port"),
            ("amqp://u:secret@h:\u0663", "port"),
            ("amqp://u:sec/secret@h", "%2f"),
            ("amqp://u:sec@secret@h", "%40"),
            ("amqp://u:secret@h?heartbeat=3", "query"),
            ("amqp://u:secret@h/v#x", "%23"),
            ("amqp://u:secret%@h", "%25"),
            ("amqp://u:secret%ff@h", "password is not UTF-8"),
            ("amqp://u:secret@h/a/b", "vhost"),
            ("amqp://u:secret@h/" + "a" * 256, "255"),
            ("amqp://u:secret@::1", "brackets"),
            ("amqp://u:secret@[::1", "IPv6"),
            ("amqp://u:secret@[host]", "IPv6"),
            ("amqp://u:secret@[::1]5672", "IPv6"),
            ("amqp://u:secret@a b", "host name"),
            ("amqp://u:secret@a,b", "host name"),
            ("amqp://u:secret@rabbit_mq", "underscore"),
            ("amqp://u:secret@a.b_c.local", "underscore"),
            ("amqp://u:secret@foo..bar", "DNS"),
            ("amqp://u:secret@.foo", "DNS"),
            ("amqp://u:secret@-x", "DNS"),
            ("amqp://u:secret@x-", "DNS"),
            ("amqp://u:secret@x!y", "DNS"),
            ("amqp://u:secret@" + "a" * 64, "DNS"),
            ("amqp://u:secret@" + "a." * 127 + "a", "DNS"),
            ("amqp://u:secret@xn--", "DNS"),
            ("amqp://u:secret@\u2603.example", "DNS"),
        ]:
            message = self.refused(url)
            self.assertIn(reason, message, url)
            self.assertNotIn("secret", message)

    @given(*[st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)] * 2)
    def test_str_reads_back(self, user: str, vhost: str) -> None:
        """What str() gives reads back as the same address, but for the password."""
        address = BrokerAddress("h", 1, user, "guest", vhost)
        self.assertEqual(BrokerAddress.parse(str(address)), address)

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """Any text is an address or a ConfigError."""
        with contextlib.suppress(ConfigError):
            BrokerAddress.parse("amqp://" + text)


class ValueTests(_Files):
    """Each option's text is read, or refused in a sentence that says what and where."""

    def refused(self, *argv: str) -> str:
        return str(self.assertRaises(ConfigError, _load, *argv))

    def test_defaults(self) -> None:
        """With nothing given, every setting is the documented default."""
        self.assertEqual(
            dataclasses.asdict(_load()),
            {
                "watch": 60.0,
                "port": 8883,
                "interface": "",
                "socket_mode": 0o660,
                "listen": (),
                "tls": True,
                "proxy_protocol": (),
                "proxy_identity": False,
                "workers": 1,
                "cert": (),
                "key": (),
                "certs_dir": Path("certs"),
                "client_ca": None,
                "client_cert": "require",
                "client_crl": None,
                "crl_policy": "hard",
                "ocsp_response": (),
                "device_id": "cn",
                "brokers": (),
                "broker_password_file": None,
                "broker_ca": None,
                "broker_cert": None,
                "broker_key": None,
                "broker_management": None,
                "heartbeat": 30,
                "embedded_port": 5672,
                "embedded_memory": 512 * 2**20,
                "from_device": "from_device",
                "from_device_arguments": (),
                "publish_exchange": None,
                "routing_key": RoutingKey("{connection_id}"),
                "to_device": "to_device",
                "to_device_arguments": (),
                "undeliverable_arguments": (),
                "node_queue_arguments": (),
                "seq_header": "from_device_seq",
                "seq_type": "int64",
                "delivery_mode": 2,
                "consumers": 8,
                "prefetch": 500,
                "window": 10000,
                "window_bytes": 16 * 2**20,
                "max_connections": None,
                "max_handshakes": 512,
                "max_per_address": None,
                "max_connect_rate": None,
                "max_flaps": None,
                "deny": None,
                "http": None,
                "log_format": "text",
                "http_token_file": None,
                "http_read_token_file": None,
                "control": None,
                "events": (dataclasses.asdict(HandlerSpec("console")),),
                "handshake_timeout": 15.0,
                "idle_timeout": 1800.0,
                "framing": dataclasses.asdict(FramingSpec()),
                "max_line": 16384,
                "on_long": "close",
                "max_rate": None,
                "linger": 0.002,
                "batch": 1,
                "batch_delay": 0.005,
                "delimiter": b"\n",
                "device_ack": None,
                "dialect": None,
                "login_checker": None,
                "login_timeout": 10.0,
                "on_duplicate": "keep",
                "device_timeout": 1.0,
                "fanout_rate": 1000.0,
                "gap_timeout": 2.0,
                "reorder_limit": 64,
                "write_buffer": 65536,
                "write_timeout": 30.0,
                "undeliverable_limit": 100000,
                "drain_timeout": 30.0,
                "drain_spread": None,
                "node_grace": 10.0,
                "trace_lines": 0.0,
            },
        )

    def test_good_values(self) -> None:
        """Numbers, sizes, times, words and texts are read in the documented forms."""
        for name, text, value in [
            ("port", "0", 0),
            ("port", "65535", 65535),
            ("interface", "all", ""),
            ("interface", "127.0.0.1", "127.0.0.1"),
            ("interface", "::1", "::1"),
            ("workers", "4", 4),
            ("workers", "auto", usable_cpus()),
            ("heartbeat", "1", 1),
            ("heartbeat", "1h", 3600),
            ("embedded-memory", "1MiB", 2**20),
            ("max-line", "1", 1),
            ("max-line", "64KiB", 65536),
            ("max-line", "2mib", 2**21),
            ("write-buffer", "100B", 100),
            ("gap-timeout", "0", 0.0),
            ("gap-timeout", "2", 2.0),
            ("gap-timeout", "0.5", 0.5),
            ("gap-timeout", "500ms", 0.5),
            ("gap-timeout", "30m", 1800.0),
            ("device-timeout", "10m", 600.0),
            ("fanout-rate", "0.5", 0.5),
            ("trace-lines", "off", 0.0),
            ("trace-lines", "0.25", 0.25),
            ("trace-lines", "1", 1.0),
            ("idle-timeout", "off", 0.0),
            ("idle-timeout", "0", 0.0),
            ("max-rate", "0.5", 0.5),
            ("linger", "5ms", 0.005),
            ("linger", "0", 0.0),
            ("batch", "200", 200),
            ("batch", "off", 1),
            ("batch", "1", 1),
            ("max-rate", "off", None),
            ("max-connections", "7", 7),
            ("max-connections", "auto", None),
            ("device-id", "san-uri", "san-uri"),
            ("delivery-mode", "1", 1),
            ("seq-type", "int32", "int32"),
            ("consumers", "64", 64),
            ("prefetch", "65535", 65535),
            ("from-device", "x" * 241, "x" * 241),
            ("seq-header", "\u00e9" * 127, "\u00e9" * 127),
            ("delimiter", r"\r\n", b"\r\n"),
            ("delimiter", "\r\n", b"\r\n"),
            ("delimiter", r"\x00\t\0\\", b"\0\t\0\\"),
            ("delimiter", "\u00e9\udcff", b"\xc3\xa9\xff"),
            ("device-ack", "ACK {seq}", "ACK {seq}"),
            ("device-ack", "off", None),
            ("client-ca", "off", None),
        ]:
            settings = _load(f"--{name}", text)
            self.assertEqual(getattr(settings, name.replace("-", "_")), value, (name, text))

    def test_batch_delay(self) -> None:
        """A batch waits not at all, or up to ten seconds."""
        for text, value in (("0", 0.0), ("10s", 10.0)):
            self.assertEqual(_load("--batch", "2", "--batch-delay", text).batch_delay, value)

    def test_bad_values(self) -> None:
        """What can't be used is refused by name, with what it should have been."""
        for name, text, reason in [
            ("port", "abc", "'abc' is not a port number (0 to 65535)"),
            ("port", "65536", "not a port number"),
            ("port", "-1", "not a port number"),
            ("port", "\u0663", "not a port number"),
            ("port", "9" * 5000, "not a port number"),
            ("interface", "localhost", "IP address"),
            ("workers", "0", "(1 to 256)"),
            ("workers", "all", "(1 to 256)"),
            ("heartbeat", "0", "(1 to 3600)"),
            ("heartbeat", "1.5", "whole number of seconds"),
            ("heartbeat", "2h", "(1 to 3600)"),
            ("max-line", "64KB", "not a size"),
            ("max-line", "0", "not between 1 byte and 16 MiB"),
            ("max-line", "17MiB", "not between"),
            ("gap-timeout", "2 weeks", "not a time"),
            ("gap-timeout", "-1", "not a time"),
            ("gap-timeout", "nan", "not a time"),
            ("gap-timeout", "721h", "longer than"),
            ("device-timeout", "0", "more than 0"),
            ("device-timeout", "11m", "longer than"),
            ("fanout-rate", "0", "devices a second"),
            ("trace-lines", "1.5", "not a share"),
            ("trace-lines", "5%", "'5%' is not a share (0 to 1); did you mean 0.05?"),
            ("trace-lines", "0.1 %", "; did you mean 0.001?"),
            ("handshake-timeout", "0", "more than 0"),
            ("write-timeout", "0", "more than 0"),
            ("max-rate", "0", "more than 0"),
            ("linger", "2", "longer than 1 seconds"),
            ("linger", "-1ms", "not a time"),
            ("batch", "0", "not a number of lines (1 to 10000)"),
            ("batch", "10001", "not a number of lines (1 to 10000)"),
            ("batch-delay", "11s", "longer than 10 seconds"),
            ("max-rate", "inf", "lines a second"),
            ("max-connections", "0", "not a number"),
            ("client-cert", "maybe", "'maybe' is not require or optional"),
            ("device-id", "dn", "'dn' is not cn, san-dns, san-uri or fingerprint"),
            ("delivery-mode", "3", "(1 to 2)"),
            ("consumers", "65", "(1 to 64)"),
            ("from-device", "", "1 to 241 bytes"),
            ("to-device", "x" * 242, "1 to 241 bytes"),
            ("to-device", "amq.x", "reserved for the broker"),
            ("to-device", "\udcff", "not UTF-8"),
            ("publish-exchange", "", "1 to 255 bytes"),
            ("routing-key", "{queue}", "{queue} is none of {connection_id}, {device_id}, {node} and {shard:N}"),
            ("routing-key", "a}", "a brace belongs to a placeholder"),
            ("routing-key", "{shard:0}", "not a number of shards (1 to 65536)"),
            ("routing-key", "x" * 256, "256 bytes long, and AMQP allows 255"),
            ("from-device-argument", "x-max-length", "not NAME=VALUE"),
            ("to-device-argument", "=1", "not NAME=VALUE"),
            ("to-device-argument", "x-queue-type=stream", "stays in a stream"),
            ("from-device-argument", "x-queue-type=stream", "the embedded broker has no streams"),
            ("undeliverable-argument", "x-queue-type=stream", "a stream cannot have the limit of --undeliverable-limit"),
            ("undeliverable-argument", "x-max-length=5", "set by --undeliverable-limit"),
            ("node-queue-argument", "x-expires=1000", "set by Owsla"),
            ("node-queue-argument", "x-max-length=1" + "0" * 18, "not a 64-bit number"),
            ("seq-header", "\u00e9" * 128, "1 to 255 bytes"),
            ("seq-header", "connection_id", "another header"),
            ("delimiter", "", "1 to 16 bytes, not 0"),
            ("delimiter", "x" * 17, "not 17"),
            ("delimiter", r"\q", "escapes"),
            ("delimiter", "\\", "escapes"),
            ("delimiter", r"\x1", "escapes"),
            ("device-ack", "ACK", "no {seq}"),
            ("certs-dir", "", "not a file name"),
            ("broker", "http://u:secret@h", "amqp://"),
            ("cert", "/nonexistent/x", "/nonexistent/x: no such file or directory"),
            ("key", "/", "/: is a directory"),
            ("config", "/nonexistent/x", "/nonexistent/x: no such file or directory"),
            ("broker-management", "rabbit:15672", "http://host:port"),
            ("broker-management", "amqp://u:secret@h", "http://host:port"),
            ("broker-management", "http://u@h", "a user and a password, or neither"),
            ("broker-management", "http://:secret@h", "a user and a password, or neither"),
            ("broker-management", "http://u:se@cret@h", "an @ in the user name or password is written %40"),
            ("broker-management", "http://u:sec/ret@h", "a / in the user name or password is written %2f"),
            ("broker-management", "http://u:secret%@h", "a % in the password is written %25"),
            ("broker-management", "http://h?secret", "no query or fragment"),
            ("broker-management", "http://h:x", "not a number from 1 to 65535"),
            ("broker-management", "http://", "no host name"),
            ("broker-management", "http://h/a b", "written with %"),
            ("broker-ca", "/nonexistent/x", "no such file"),
            ("broker-cert", "/nonexistent/x", "no such file"),
            ("broker-key", "/nonexistent/x", "no such file"),
        ]:
            message = self.refused(f"--{name}", text)
            self.assertTrue(message.startswith(f"--{name}: "), message)
            self.assertIn(reason, message, (name, text))
            self.assertNotIn("secret", message)

    @given(st.sampled_from([option.name for option in OPTIONS if option.metavar not in ("FILE", "FOLDER")]), st.text())
    def test_any_value(self, name: str, text: str) -> None:
        """Any text for any option gives settings or a ConfigError, and nothing else."""
        with contextlib.suppress(ConfigError):
            _load(f"--{name}={text}")

    def test_together(self) -> None:
        """Options that don't go together are refused, in the name of one that was given."""
        for argv, message in [
            (["--client-cert", "optional"], "--client-cert: has an effect only with --client-ca"),
            (["--client-crl", "/dev/null"], "--client-crl: has an effect only with --client-ca"),
            (["--crl-policy", "soft"], "--crl-policy: has an effect only with --client-crl"),
            (["--crl-policy", "soft", "--client-crl", "off"], "--crl-policy: has an effect only with --client-crl"),
            (["--ocsp-response", "/dev/null"], "--ocsp-response: has an effect only with --cert"),
            (["--from-device", "to_device"], "--from-device: from-device and to-device cannot both use the queue 'to_device'"),
            (
                ["--to-device", "q", "--from-device", "q.undeliverable"],
                "--from-device: from-device and to-device cannot both use the queue 'q.undeliverable'",
            ),
            (["--routing-key", "{device_id}"], "--routing-key: has an effect only with --publish-exchange"),
            (["--batch-delay", "1ms"], "--batch-delay: has an effect only with --batch"),
            (["--batch-delay", "1ms", "--batch", "1"], "--batch-delay: has an effect only with --batch"),
            (["--publish-exchange", "x", "--from-device", "q"], "--from-device: has no effect with --publish-exchange"),
            (
                ["--publish-exchange", "x", "--from-device-argument", "x-max-length=1"],
                "--from-device-argument: has no effect with --publish-exchange",
            ),
            (
                ["--to-device-argument", "a=1", "--to-device-argument", "a=2"],
                "--to-device-argument: a is given twice",
            ),
            (["--window-bytes", "1KiB"], "--window-bytes: max-line (16384 bytes) is more than window-bytes (1024 bytes)"),
            (["--device-ack", "a\r{seq}"], "--device-ack: the template contains the end of a line"),
            (["--device-ack", "a|{seq}", "--delimiter", "|"], "--device-ack: the template contains the delimiter"),
            (["--device-ack", "{seq}a", "--delimiter", "aa"], "--device-ack: the template contains the delimiter"),
            (["--device-ack", "{seq}", "--delimiter", "7"], "--device-ack: a delimiter with digits"),
            (["--broker", "embedded", "--broker", "amqp://h"], "--broker: either embedded or URLs, not both"),
            (["--broker-password-file", "/dev/null"], "--broker-password-file: the embedded broker needs no password"),
            (["--broker-ca", "/dev/null", "--broker", "amqp://h"], "--broker-ca: no --broker is amqps://"),
            (["--broker-cert", "/dev/null", "--broker", "amqp://h"], "--broker-cert: no --broker is amqps://"),
            (["--broker-key", "/dev/null"], "--broker-key: no --broker is amqps://"),
            (["--broker-management", "http://h"], "--broker-management: the embedded broker has no management API"),
            (
                ["--broker", "amqp://h", "--broker-management", "http://h", "--broker-ca", "/dev/null"],
                "--broker-ca: no --broker is amqps://",
            ),
            (["--broker-key", "/dev/null", "--broker", "amqps://h"], "--broker-key: --broker-cert must be given too"),
            (["--broker-cert", "/dev/null", "--broker", "amqps://h"], "--broker-cert: --broker-key must be given too"),
            (
                ["--broker-cert", "/dev/null", "--broker", "amqps://h", "--broker-password-file", "/dev/null"],
                "--broker-password-file: no --broker has a user, so the login is with --broker-cert",
            ),
        ]:
            self.assertTrue(self.refused(*argv).startswith(message), self.refused(*argv))

    def test_certificate_needs_key(self) -> None:
        """A certificate without its key, and the reverse, are refused."""
        path = self.new_path()
        Path(path).write_text("")
        self.assertEqual(self.refused("--cert", path), "--cert: --key must be given too")
        self.assertEqual(self.refused("--key", path), "--key: --cert must be given too")
        numbers = "each --cert needs its --key, in the same order (there are 2 and 1)"
        self.assertEqual(self.refused("--cert", path, "--cert", path, "--key", path), f"--cert: {numbers}")

    def test_certificates_are_looked_at(self) -> None:
        """A file without a certificate is refused when the settings are read."""
        path = self.new_path()
        Path(path).write_text("hello")
        reason = f"{path}: there is no certificate in PEM format in this file"
        self.assertEqual(self.refused("--cert", path, "--key", path), reason)
        self.assertEqual(self.refused("--client-ca", path), reason)
        self.assertEqual(self.refused("--broker", "amqps://h", "--broker-ca", path), reason)

    def test_password_file(self) -> None:
        """The password file's line, without its end, is the password of every broker."""
        path = self.new_path()
        for content in ("pass word", "pass word\n", "pass word\r\n"):
            Path(path).write_bytes(content.encode())
            settings = _load("--broker", "amqp://u:x@a", "--broker", "amqp://b", "--broker-password-file", path)
            self.assertEqual([address.password for address in settings.brokers], ["pass word"] * 2)

    def test_broker_certificate(self) -> None:
        """With a client certificate an amqps:// URL without a user is a login with that certificate. Other URLs are not."""
        path, password = self.new_path(), self.new_path()
        Path(path).write_bytes(pem(issue(key := ec_key()), key))
        Path(password).write_text("pass word")
        settings = _load(
            *("--broker", "amqps://a/v", "--broker", "amqps://u:p@b", "--broker", "amqp://c"),
            *("--broker-cert", path, "--broker-key", path, "--broker-password-file", password),
        )
        self.assertEqual(
            [(str(one), one.external, one.password) for one in settings.brokers],
            [
                ("amqps://a:5671/v", True, ""),
                ("amqps://u@b:5671/%2F", False, "pass word"),
                ("amqp://guest@c:5672/%2F", False, "pass word"),
            ],
        )

    def test_broker_management(self) -> None:
        """The management API has its own user and password, or those of the broker; then the first broker needs some."""
        path = self.new_path()
        Path(path).write_bytes(pem(issue(key := ec_key()), key))
        own = ("--broker", "amqps://a", "--broker-cert", path, "--broker-key", path)
        message = self.refused(*own, "--broker-management", "https://a")
        self.assertEqual(
            message, "--broker-management: give a user and a password in the URL, since the first --broker has none"
        )
        settings = _load(*own, "--broker-management", "https://u:secret@a")
        self.assertEqual(settings.broker_management, ManagementAddress("a", 15671, "", "u", "secret", True))
        settings = _load("--broker", "amqp://a", "--broker-management", "https://a", "--broker-ca", path)
        self.assertEqual(settings.broker_ca, Path(path))

    def test_bad_password_file(self) -> None:
        """An empty file, one with more than a line, and one that isn't UTF-8 are refused without quoting them."""
        path = self.new_path()
        for content in (b"", b"\n", b"secret\nsecret\n", b"secret\xff"):
            Path(path).write_bytes(content)
            message = self.refused("--broker", "amqp://h", "--broker-password-file", path)
            self.assertTrue(message.startswith(f"--broker-password-file: {path}: "), message)
            self.assertNotIn("secret", message)

    def test_bad_tokens(self) -> None:
        """A file without a token that clients can send is refused without quoting it, and so are two equal tokens."""
        path = self.new_path()
        for name in ("http-token-file", "http-read-token-file"):
            for content, reason in (
                (b"secret\n", "the token has 6 characters, and needs 16 at least, as in openssl rand -hex 16"),
                (b"", "the file must contain one line, the token"),
                (b"secret-0123456789\nsecret-0123456789\n", "the file must contain one line, the token"),
                (b"secret 0123456789", "a token consists of letters, digits and other characters of ASCII, without spaces"),
                ("secret-0123456789\u00e9".encode(), "a token consists of letters, digits"),
                (b"secret-0123456789\xff", "not UTF-8"),
            ):
                Path(path).write_bytes(content)
                message = self.refused("--http=0", f"--{name}={path}")
                self.assertTrue(message.startswith(f"--{name}: {path}: {reason}"), message)
                self.assertNotIn("secret", message)
            self.assertEqual(self.refused(f"--{name}=/nowhere"), f"--{name}: has an effect only with --http")
        Path(path).write_text("0123456789abcdef\n")
        _load("--http=0", f"--http-token-file={path}")
        message = self.refused("--http=0", f"--http-token-file={path}", f"--http-read-token-file={path}")
        self.assertIn("this is the token of --http-token-file, which may do more", message)

    def test_control(self) -> None:
        """--control is a path, or off. A door cannot have the same path."""
        self.assertEqual(_load("--control=off").control, "off")
        self.assertEqual(_load("--control=a/b").control, Path("a/b"))
        for option in ("--port=unix:x.sock", "--listen=unix:x.sock"):
            self.assertIn("and --control cannot both use x.sock", self.refused(option, "--control=./x.sock"))


class SourceTests(_Files):
    """The file, the environment and the command line set the same options."""

    def file(self, content: str) -> str:
        path = self.new_path()
        Path(path).write_bytes(content.encode("utf-8", "surrogateescape"))
        return path

    def refused(self, content: str) -> str:
        path = self.file(content)
        return str(self.assertRaises(ConfigError, _load, "--config", path)).replace(path, "FILE")

    def test_precedence(self) -> None:
        """Defaults give way to the file, the file to the environment, the environment to the command line."""
        path = self.file("port = 1\nprefetch = 1\nwindow = 1\n")
        settings = _load("--config", path, "--window", "3", OWSLA_WINDOW="2", OWSLA_PREFETCH="2")
        self.assertEqual((settings.port, settings.prefetch, settings.window, settings.consumers), (1, 2, 3, 8))

    def test_config_from_environment(self) -> None:
        """OWSLA_CONFIG names the file, and --config wins over it."""
        one, two = self.file("port = 1"), self.file("port = 2")
        self.assertEqual(_load(OWSLA_CONFIG=one).port, 1)
        self.assertEqual(_load("--config", two, OWSLA_CONFIG=one).port, 2)

    def test_last_of_several(self) -> None:
        """Of an option given twice on the command line the last counts, as everywhere."""
        self.assertEqual(_load("--port", "1", "--port=2").port, 2)

    def test_repeated(self) -> None:
        """Brokers are repeated on the command line, an array in the file, separated by commas in the environment."""
        expected = (BrokerAddress("a"), BrokerAddress("b", vhost="x"))
        self.assertEqual(_load("--broker", "amqp://a", "--broker", "amqp://b/x").brokers, expected)
        self.assertEqual(_load(OWSLA_BROKER="amqp://a, amqp://b/x").brokers, expected)
        self.assertEqual(_load("--config", self.file('broker = ["amqp://a", "amqp://b/x"]')).brokers, expected)
        self.assertEqual(_load("--config", self.file('broker = "amqp://a"')).brokers, expected[:1])

    def test_comma_in_a_list(self) -> None:
        """In the environment a comma within one of several is %2c, whatever the option; only there."""
        arguments = _load(OWSLA_TO_DEVICE_ARGUMENT="a=x%2cy, b=%2C").to_device_arguments
        self.assertEqual(arguments, (("a", "x,y"), ("b", ",")))
        specs = _load(OWSLA_EVENTS="json:one%2ctwo.json,database:sqlite:///a%2cb.db").events
        self.assertEqual([str(spec) for spec in specs], ["json:one,two.json", "database:/a,b.db"])
        self.assertEqual(_load(OWSLA_BROKER="amqp://u:a%2cb%40c@h").brokers[0].password, "a,b@c")
        self.assertEqual(_load("--to-device-argument", "a=x%2cy").to_device_arguments, (("a", "x%2cy"),))

    def test_arguments_of_queues(self) -> None:
        """Their values are whole numbers, true and false, or text; in quotes they are text in any case."""
        expected = (("a", 5), ("b", -1), ("c", True), ("d", False), ("e", "quorum"), ("f", "5"), ("g", ""), ("h", "x=y"))
        texts = ("a=5", "b=-1", "c=true", "d=false", "e=quorum", 'f="5"', "g=", "h=x=y")
        argv = [f"--from-device-argument={text}" for text in texts]
        self.assertEqual(_load(*argv).from_device_arguments, expected)
        self.assertEqual(_load(OWSLA_NODE_QUEUE_ARGUMENT=",".join(texts)).node_queue_arguments, expected)
        path = self.file("to-device-argument = ['x-queue-type=quorum', 'x-max-length=7']")
        self.assertEqual(_load("--config", path).to_device_arguments, (("x-queue-type", "quorum"), ("x-max-length", 7)))

    def test_repeated_replaces(self) -> None:
        """A later source replaces the whole list; embedded undoes it."""
        path = self.file('broker = ["amqp://a"]')
        self.assertEqual(_load("--config", path, OWSLA_BROKER="amqp://b").brokers, (BrokerAddress("b"),))
        self.assertEqual(_load("--config", path, "--broker", "embedded").brokers, ())

    def test_toml_types(self) -> None:
        """TOML's own integers, floats and strings are taken."""
        path = self.file('max-line = 1000\ngap-timeout = 0.25\nidle-timeout = "1h"\ndelimiter = "\\r\\n"\nmax-rate = 5\n')
        settings = _load("--config", path)
        self.assertEqual((settings.max_line, settings.gap_timeout, settings.idle_timeout), (1000, 0.25, 3600.0))
        self.assertEqual((settings.delimiter, settings.max_rate), (b"\r\n", 5.0))

    def test_bad_file(self) -> None:
        """What is wrong in a file is named with the file and the key."""
        for content, message in [
            ("port = 'abc'", "FILE: port: 'abc' is not a port number (0 to 65535)"),
            ("port = -1", "FILE: port: '-1' is not a port number (0 to 65535)"),
            ("port = 1.5", "FILE: port: '1.5' is not a port number (0 to 65535)"),
            ("port = true", "FILE: port: a boolean cannot be the value of this option"),
            ("port = [1]", "FILE: port: an array cannot be the value of this option"),
            ("[port]\nx = 1", "FILE: port: a table cannot be the value of this option"),
            ("port = 2020-01-01", "FILE: port: a date or time cannot be the value of this option"),
            ("broker = []", "FILE: broker: the array is empty"),
            ("broker = [[]]", "FILE: broker: an array cannot be the value of this option"),
            ("broker = 'http://u:secret@h'", "FILE: broker: the URL of a broker begins with amqp:// or amqps://"),
            ("prot = 1", "FILE: prot: no such option; did you mean port?"),
            ("max_line = 1", "FILE: max_line: no such option; did you mean max-line?"),
            ("config = 'x'", "FILE: config: no such option"),
            ("port =", "FILE: Invalid value (at end of document)"),
            ("port = 1 # \udcff", "FILE: not UTF-8"),
            ("port = " + "9" * 5000, "FILE: "),
        ]:
            self.assertTrue(self.refused(content).startswith(message), self.refused(content))

    def test_environment_is_named(self) -> None:
        """A bad value from the environment is named by its variable."""
        error = self.assertRaises(ConfigError, _load, OWSLA_MAX_LINE="x")
        self.assertTrue(str(error).startswith("OWSLA_MAX_LINE: 'x' is not a size"), error)

    def test_empty_variable(self) -> None:
        """An empty variable is as good as none."""
        self.assertEqual(_load(OWSLA_PORT="").port, 8883)

    def test_unknown_variable(self) -> None:
        """An unknown OWSLA_ variable is only warned of, with the nearest name and without its value."""
        warnings: list[str] = []
        load_settings([], {"OWSLA_PROT": "secret", "PORT": "1"}, warnings.append)
        self.assertEqual(warnings, ["OWSLA_PROT: no option has this name, ignored; did you mean OWSLA_PORT?"])

    def test_broker_of_the_environment(self) -> None:
        """A variable that replaces the broker of the file is warned of, without a password; an option speaks for itself."""
        with TemporaryDirectory() as folder:
            file = Path(folder) / "owsla.toml"
            file.write_text('broker = "amqp://u:secret@file"')
            variable = {"OWSLA_BROKER": "amqp://u:secret@environment"}
            for argv, environ, expected in (
                ([], variable, [f"OWSLA_BROKER: used in place of the one in the file: {file}: broker"]),
                ([], {}, []),
                (["--broker=amqp://option"], variable, []),
            ):
                warnings: list[str] = []
                load_settings([f"--config={file}", *argv], environ, warnings.append)
                self.assertEqual(warnings, expected)
            file.write_text("port = 9000")
            load_settings([f"--config={file}"], variable, self.fail)

    def test_warning_is_a_line(self) -> None:
        """The warning is one line on standard error."""
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            _load(OWSLA_QQQQQQ="1")
        self.assertEqual(stderr.getvalue(), "owsla: OWSLA_QQQQQQ: no option has this name, ignored\n")

    def test_bad_command_line(self) -> None:
        """Unknown and ambiguous options, missing values and extra arguments are refused; URLs are not quoted."""
        for argv, message in [
            (["--prot", "1"], "--prot: no such option; did you mean --port?"),
            (["--xyzzy"], "--xyzzy: no such option"),
            (["-p", "1"], "-p: no such option"),
            (["--port"], "--port: a value is missing"),
            (["--c", "1"], "--c: more than one option begins like this"),
            (["x"], "'x': only options are allowed here"),
            (["amqp://u:secret@h"], "a URL: only options are allowed here"),
            (["--brokr=amqp://u:secret@h"], "--brokr: no such option; did you mean --broker?"),
        ]:
            error = str(self.assertRaises(ConfigError, load_settings, argv, {}))
            self.assertTrue(error.startswith(message), error)
            self.assertNotIn("secret", error)


@contextlib.contextmanager
def _environment(environ: Mapping[str, str]) -> Iterator[None]:
    """The process's environment with these, and without any other of Owsla's variables."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith("OWSLA_")}
    with mock.patch.dict(os.environ, {**rest, **environ}, clear=True):
        yield


class OptionsTests(SynchronousTestCase):
    """What ``twistd owsla`` parses its options with."""

    def setUp(self) -> None:
        environment = _environment({})
        environment.__enter__()
        self.addCleanup(environment.__exit__, None, None, None)

    def run_options(self, *argv: str) -> tuple[object, str, str]:
        """The exit status, standard output and standard error of parsing ``argv``."""
        with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
            error = self.assertRaises(SystemExit, Options().parseOptions, list(argv))
        return error.code, stdout.getvalue(), stderr.getvalue()

    def test_settings(self) -> None:
        """After parsing there are settings, from the environment too."""
        options = Options()
        with _environment({"OWSLA_PREFETCH": "5"}):
            options.parseOptions(["--port", "0"])
        self.assertEqual((options.settings.port, options.settings.prefetch), (0, 5))

    def test_error_is_one_line(self) -> None:
        """A user's error is exactly one line on standard error, and exit status 1."""
        self.assertEqual(
            self.run_options("--port", "abc"), (1, "", "owsla: --port: 'abc' is not a port number (0 to 65535)\n")
        )
        for argv in (["--nope"], ["x\ny"], ["--config", "a\nb"], ["--delimiter", ""], ["--broker", "x\ny"]):
            code, stdout, stderr = self.run_options(*argv)
            self.assertEqual((code, stdout, len(stderr.splitlines())), (1, "", 1), stderr)
            self.assertTrue(stderr.startswith("owsla: ") and stderr.endswith("\n"), stderr)

    def test_error_stays_alone(self) -> None:
        """An unknown variable in the environment adds no second line to an error."""
        with _environment({"OWSLA_QQQQQQ": "1"}):
            self.assertEqual(len(self.run_options("--port", "abc")[2].splitlines()), 1)

    def test_version(self) -> None:
        """--version says which Owsla it is."""
        self.assertEqual(self.run_options("--version"), (0, f"owsla {__version__}\n", ""))

    def test_help(self) -> None:
        """--help names every option with its default, in at most 80 columns."""
        with _environment({"COLUMNS": "80"}):
            code, stdout, stderr = self.run_options("--help")
        self.assertEqual((code, stderr), (0, ""))
        self.assertLessEqual(max(map(len, stdout.splitlines())), 80)
        flat = " ".join(stdout.split())
        for option in OPTIONS:
            self.assertIn(f"--{option.name} {option.metavar} ", flat)
            self.assertIn(f"{option.help} [{option.default_text}]", flat)
        self.assertTrue(stdout.isascii(), "the help is printable in any locale")

    def test_help_into_a_closed_pipe(self) -> None:
        """A reader that closes the pipe before the end of the help, as head does, causes no traceback."""
        reading, writing = os.pipe()
        os.close(reading)
        try:
            ended = subprocess.run(
                [
                    sys.executable, "-c",
                    "import sys; from owsla.config.usage import Options; Options().parseOptions(sys.argv[1:])", "--help",
                ],
                stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False,
            )  # fmt: skip
        finally:
            os.close(writing)
        self.assertEqual((ended.returncode, ended.stderr), (0, b""))

    def test_help_before_errors(self) -> None:
        """--help works beside a value that can't be used."""
        self.assertEqual(self.run_options("--port", "abc", "--help")[0], 0)

    def test_documented(self) -> None:
        """docs/options.md has each option with the default and the meaning that the help gives, and what a reload does."""
        page = (Path(__file__).parents[3] / "docs" / "options.md").read_text()
        for option in OPTIONS:
            default = option.default_text if option.default is None else f"`{option.default}`"
            meaning = re.sub(r"\\[\w\\]+", lambda escape: f"`{escape[0]}`", option.help)
            self.assertIn(f"| `--{option.name}` | {default} | {meaning} | {option.reload} |\n", page)

    def test_settings_have_every_option(self) -> None:
        """Every option but --config is a field of the settings, and the reverse."""
        names = {field.name for field in dataclasses.fields(Settings)}
        self.assertEqual(names, {option.field for option in OPTIONS if option.name != "config"})


class ArgumentTests(SynchronousTestCase):
    """Passwords given in arguments are not to be seen in the process list."""

    def setUp(self) -> None:
        self.enterContext(_environment({}))

    def test_process(self) -> None:
        """In a real process, the password is gone from the process list once the options are parsed."""
        program = (
            "import sys; from owsla.config.usage import Options; o = Options(); o.parseOptions(sys.argv[1:]);"
            "print(o.settings.brokers[0].password, flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", program, "--port", "0", "--broker", "amqp://u:s3cret@h/v", "--window=3"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            password = process.stdout.readline()
            assert process.stderr is not None
            area = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            process.stdin.close()
            warnings = process.stderr.read()
        self.assertEqual((password, warnings), (b"s3cret\n", b""))
        self.assertTrue(area.rstrip(b"\0").endswith(b" --port 0 --broker amqp://u:***@h/v --window=3"), area)

    def test_unsupported(self) -> None:
        """Where it can't be hidden, that is said in a line and everything goes on."""
        options = Options()
        with (
            mock.patch("owsla.config.usage.hide_passwords", return_value=False),
            contextlib.redirect_stderr(io.StringIO()) as stderr,
        ):
            options.parseOptions(["--broker", "amqp://u:secret@h"])
        self.assertEqual(options.settings.brokers[0].password, "secret")
        self.assertEqual(
            stderr.getvalue(),
            "owsla: --broker: its password stays visible in the process list here; use --broker-password-file\n",
        )

    def test_unsupported_management(self) -> None:
        """The same for the password of the management API."""
        with (
            mock.patch("owsla.config.usage.hide_passwords", return_value=False),
            contextlib.redirect_stderr(io.StringIO()) as stderr,
        ):
            Options().parseOptions(["--broker", "amqp://h", "--broker-management", "http://u:secret@h"])
        warning = "its password stays visible in the process list here; use OWSLA_BROKER_MANAGEMENT"
        self.assertEqual(stderr.getvalue(), f"owsla: --broker-management: {warning}\n")

    def test_unsupported_parameter(self) -> None:
        """The same for a database's password among its URL's parameters, and nothing is said of a URL without one."""
        for url, warnings in (("postgresql://h/d?user=u&password=s3cret", 1), ("postgresql://u@h/d", 0)):
            with (
                mock.patch("owsla.config.usage.hide_passwords", return_value=False),
                contextlib.redirect_stderr(io.StringIO()) as stderr,
            ):
                Options().parseOptions(["--events", f"database:{url}"])
            self.assertEqual(stderr.getvalue().count("OWSLA_EVENTS"), warnings, stderr.getvalue())
