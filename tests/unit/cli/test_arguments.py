"""The command line of `owsla`, and its errors."""

from __future__ import annotations

import io
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla import __version__
from owsla.cli._arguments import parse, parser
from owsla.cli._defaults import DEFAULT_BROKER, PEEK_COUNT
from owsla.cli._values import seconds
from owsla.cli._who_has import as_objects, as_table

CONNECTION_ID = "01234567-89ab-8cde-8f01-23456789abcd"


class ArgumentsTests(SynchronousTestCase):
    """The command line."""

    def ended(self, arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
        """Parse arguments that end the process: return its status, standard output and standard error."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), self.assertRaises(SystemExit) as caught:
            parse(arguments, environ or {})
        status = caught.exception.code
        assert isinstance(status, int)
        return status, out.getvalue(), err.getvalue()

    def refused(self, *arguments: str, environ: Mapping[str, str] | None = None) -> str:
        """Return the error of a mistake, which is one line."""
        status, out, err = self.ended(arguments, environ)
        self.assertEqual((status, out, err.count("\n"), err[-1:]), (1, "", 1, "\n"))
        return err.rstrip()

    def understood(self, *arguments: str, environ: Mapping[str, str] | None = None) -> tuple[Any, Any, bool]:
        """Return the settings of the command, the arguments of its role, and whether it waits for a broker."""
        run = parse(arguments, environ or {})
        assert isinstance(run, partial)
        _, settings, role = run.args
        return settings, role.keywords, run.keywords["patient"]

    def test_version(self) -> None:
        """`--version` prints the version and exits with 0."""
        self.assertEqual(self.ended(["--version"]), (0, f"owsla {__version__}\n", ""))

    def test_help(self) -> None:
        """Each command has a help text of at most 80 columns that names all of its options."""
        commands = ("devices", "device", "top", "trace", "events", "kick", "reload", "drain", "tree", "health", "completion")
        for arguments in ([], *([one] for one in commands), ["echo"], ["tail"], ["who-has"], ["send"]):
            status, out, err = self.ended([*arguments, "--help"])
            self.assertEqual((status, err), (0, ""))
            self.assertEqual([line for line in out.splitlines() if len(line) > 80], [])
        self.assertIn("--report", out)
        self.assertIn(DEFAULT_BROKER, out)

    def test_times(self) -> None:
        """Times are seconds, or have a unit, as those of the gateway."""
        for text, value in (("20", 20.0), ("0.5", 0.5), ("500ms", 0.5), ("30s", 30.0), ("5m", 300.0), ("1h", 3600.0)):
            self.assertAlmostEqual(seconds(text), value)
        for text in ("", "s", "5x", "5 m5", "m5", "5sm", "0s", "1e9h", "-1s", "inf"):
            with self.assertRaises(ArgumentTypeError):
                seconds(text)

    def test_no_command(self) -> None:
        """Without a command, the error says where they are listed."""
        self.assertEqual(self.refused(), "owsla: no command given: 'owsla --help' lists them")

    def test_mistakes_are_one_line(self) -> None:
        """A mistake is an error in one line with the name of the command, and status 1."""
        for arguments, said in (
            (["eco"], "owsla: argument COMMAND: invalid choice: 'eco'"),
            (["echo", "--prefx=x"], "owsla echo: unrecognized arguments: --prefx=x"),
            (["tail", "--count", "0"], "owsla tail: argument --count: '0' is not a whole number from 1 on"),
            (["tail", "--count", "x\ny"], "owsla tail: argument --count: 'x\\ny' is not a whole number"),
            (["tail", "--count", "10001"], "owsla tail: --count: without --take the maximum is 10000"),
            (["tail", "--take", "--peek"], "owsla tail: argument --peek: not allowed with argument --take"),
            (["tail", "--from-device", "amq.x"], "owsla tail: --from-device: 'amq.x': names that begin with amq."),
            (["send", CONNECTION_ID], "owsla send: the following arguments are required: TEXT"),
            (["send", "a-device", "x"], "owsla send: 'a-device' is not a connection id"),
            (["send", CONNECTION_ID + "\n", "x"], "owsla send: "),
            (["send", CONNECTION_ID, "x", "--seq=-1"], "owsla send: argument --seq: '-1' is not a whole number from 0 on"),
            (["send", CONNECTION_ID, "x", "--expires=nan"], "owsla send: argument --expires: 'nan' is not a number of seconds"),
            (["send", CONNECTION_ID, "x", "--timeout=0"], "owsla send: argument --timeout: '0' is not a number of seconds"),
            (["send", "--device", "d"], "owsla send: the following arguments are required: TEXT"),
            (["send", "--device", "d", CONNECTION_ID, "x"], "owsla send: unrecognized arguments: x"),
            (["send", "--device=", "x"], "owsla send: a device id has 1 to 255 bytes"),
            (["send", "--device", 128 * "é", "x"], "owsla send: a device id has 1 to 255 bytes"),
            (["send", "--device", "d\udce9", "x"], "owsla send: 'd\\udce9' is not a device id: it is not UTF-8"),
            (["send", "--device=d", "--to=all", "x"], "owsla send: argument --to: not allowed with argument --device"),
            (["send", "--device=d", "--seq=1", "x"], "owsla send: --seq: the numbers are those of a connection"),
            (["send", "--to", "all", "x"], "owsla send: --to: use --expires SECONDS too"),
            (["send", "--to=all", "--expires=9", "--report", "-"], "owsla send: --to: with --report TEXT is one line"),
            (["who-has"], "owsla who-has: the following arguments are required: DEVICE_ID"),
            (["who-has", ""], "owsla who-has: a device id has 1 to 255 bytes"),
            (["who-has", "d", "--wait=0"], "owsla who-has: argument --wait: '0' is not a number of seconds"),
            (["echo", "--broker", "http://x"], "owsla echo: --broker: the URL of a broker begins with amqp://"),
            (["echo", "--broker-ca", "/nowhere"], "owsla echo: --broker-ca: /nowhere: no such file"),
            (["echo", "--broker-cert", "/nowhere"], "owsla echo: --broker-cert: /nowhere: no such file"),
            (["echo", "--broker-key", "/dev/null"], "owsla echo: --broker-key: no --broker is amqps://"),
            (["echo", "--broker-password-file", "/nowhere"], "owsla echo: --broker-password-file: /nowhere: no such file"),
        ):
            self.assertTrue(self.refused(*arguments).startswith(said), self.refused(*arguments))

    def test_passwords_are_not_repeated(self) -> None:
        """The error about a URL in the wrong place does not show its password."""
        for arguments in (
            ["amqp://guest:secret@host"],
            ["tail", "amqp://guest:secret@host"],
            ["echo", "--brokr=amqp://u:secret@h"],
        ):
            self.assertNotIn("secret", self.refused(*arguments))

    def test_password_that_is_not_hidden(self) -> None:
        """A warning says that the process list shows the password."""
        err = io.StringIO()
        with redirect_stderr(err):
            parse(["echo", "--broker", "amqp://guest:secret@host"], {}, hidden=False)
        self.assertIn("--broker-password-file", err.getvalue())
        self.assertNotIn("secret", err.getvalue())

    def test_default_broker(self) -> None:
        """Without a broker, or with `embedded`, the broker on this machine is used."""
        for arguments, environ in (([], {}), (["--broker", "embedded"], {}), ([], {"OWSLA_BROKER": "embedded"})):
            settings, _, _ = self.understood("echo", *arguments, environ=environ)
            self.assertEqual([str(one) for one in settings.brokers], ["amqp://guest@127.0.0.1:5672/%2F"])

    def test_broker_from_the_environment(self) -> None:
        """The first broker in `OWSLA_BROKER` is used, unless the command line names one."""
        environ = {"OWSLA_BROKER": "amqp://one:pw@a/x, amqp://two:pw@b"}
        settings, _, _ = self.understood("tail", environ=environ)
        self.assertEqual([str(one) for one in settings.brokers], ["amqp://one@a:5672/x"])
        settings, _, _ = self.understood("tail", "--broker=amqp://c", environ=environ)
        self.assertEqual([str(one) for one in settings.brokers], ["amqp://guest@c:5672/%2F"])
        self.assertIn("OWSLA_BROKER: ", self.refused("tail", environ={"OWSLA_BROKER": "nonsense"}))

    def test_password_file(self) -> None:
        """`--broker-password-file` gives the password, also for the default broker."""
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("from the file\n")
            file.flush()
            settings, _, _ = self.understood("send", CONNECTION_ID, "x", "--broker-password-file", file.name)
        self.assertEqual(settings.brokers[0].password, "from the file")
        self.assertFalse(Path(file.name).exists())

    def test_the_gateways_other_settings_do_not_matter(self) -> None:
        """Other settings of the gateway in the environment are ignored."""
        settings, _, _ = self.understood("echo", environ={"OWSLA_CERT": "/nowhere", "OWSLA_PORT": "x", "OWSLA_CONFIG": "/no"})
        self.assertEqual(len(settings.brokers), 1)

    def test_names_of_queues(self) -> None:
        """Names of queues and of the header come from the command line, the environment, or the defaults, in this order."""
        environ = {"OWSLA_FROM_DEVICE": "up", "OWSLA_SEQ_HEADER": "nr"}
        _, role, patient = self.understood("echo", "--from-device=lines", "--prefix", "é", environ=environ)
        self.assertEqual(role, {"from_device": "lines", "to_device": "to_device", "seq_header": "nr", "prefix": "é".encode()})
        self.assertTrue(patient)

    def test_tail(self) -> None:
        """`tail` gives messages back, does not wait for a broker, and has a limit. `--take` takes, waits, and has none."""
        _, role, patient = self.understood("tail", "--take", "--count", "20000")
        self.assertEqual((role["queue"], role["count"], patient), ("from_device", 20000, True))
        for arguments in ([], ["--peek"]):
            _, role, patient = self.understood("tail", *arguments)
            self.assertEqual((role["count"], role["force"], patient), (PEEK_COUNT, False, False))
        _, role, _ = self.understood("tail", "--force", "--count=3")
        self.assertEqual((role["count"], role["force"]), (3, True))

    def test_tail_shows_any_queue(self) -> None:
        """`tail` shows any queue, such as that of undeliverable messages or `to_device`."""
        for queue in ("to_device.undeliverable", "to_device"):
            _, role, _ = self.understood("tail", "--from-device", queue)
            self.assertEqual(role["queue"], queue)

    def test_send(self) -> None:
        """`send` takes a connection id in upper or lower case, and text as bytes; `-` means standard input."""
        _, role, patient = self.understood("send", CONNECTION_ID.upper(), "caf\udce9", "--seq", "7", "--close", "--expires=1.5")
        options = role["options"]
        self.assertEqual(options.address, {"connection_id": CONNECTION_ID})
        self.assertEqual((options.text, options.seq, options.close, options.expires), (b"caf\xe9", 7, True, 1.5))
        self.assertFalse(patient)
        _, role, _ = self.understood("send", CONNECTION_ID, "-")
        self.assertIsNone(role["options"].text)
        _, role, _ = self.understood("send", "--report", CONNECTION_ID, "--", "--close")
        self.assertEqual((role["options"].text, role["options"].close), (b"--close", False))

    def test_send_by_name(self) -> None:
        """`send` takes a device id or a selector in place of the connection id, before or after the text."""
        for arguments in (["--device", "dö-7", "x"], ["--device=dö-7", "x"], ["x", "--report", "--device", "dö-7"]):
            _, role, _ = self.understood("send", *arguments)
            self.assertEqual((role["options"].address, role["options"].text), ({"device_id": "dö-7"}, b"x"))
            self.assertFalse(role["options"].many)
        _, role, _ = self.understood("send", "--to", "prefix:a b", "--expires", "60", "x")
        self.assertEqual((role["options"].address, role["options"].text), ({"owsla_to": "prefix:a b"}, b"x"))
        self.assertTrue(role["options"].many)
        _, role, _ = self.understood("send", CONNECTION_ID, "--", "--device")
        self.assertEqual((role["options"].address, role["options"].text), ({"connection_id": CONNECTION_ID}, b"--device"))

    def test_who_has(self) -> None:
        """`who-has` asks for each device once, on the exchange that follows the name of the queue."""
        _, role, patient = self.understood("who-has", "b", "a", "b", "--wait=0.5", environ={"OWSLA_TO_DEVICE": "down"})
        options = role["options"]
        self.assertEqual((options.exchange, options.device_ids, options.wait), ("down.all", ("b", "a"), 0.5))
        self.assertIs(options.show, as_table)
        self.assertFalse(patient)
        _, role, _ = self.understood("who-has", "--json", "a")
        self.assertIs(role["options"].show, as_objects)

    def test_parser_has_no_state(self) -> None:
        """A parse does not affect the next one."""
        self.assertEqual(parser().parse_args(["tail", "--peek"]).peek, True)
        self.assertEqual(parser().parse_args(["tail"]).peek, False)
