"""What `owsla.config` says of options that do not go together, and of names that are none."""

from __future__ import annotations

import contextlib
import io

from twisted.trial.unittest import SynchronousTestCase

from owsla.config.options import OPTIONS
from owsla.config.sources import load_settings, parse_command_line
from owsla.config.usage import Options
from owsla.errors import ConfigError

BROKER = ("--broker", "amqp://h")


def _error(*argv: str, **environ: str) -> str:
    """Why these are refused; empty if they are not."""
    try:
        load_settings(argv, environ)
    except ConfigError as error:
        return str(error)
    return ""


class PortTests(SynchronousTestCase):
    """Two options on one port are refused before anything is bound."""

    def test_refused(self) -> None:
        """The line names both options, and begins with one that was given and where."""
        for argv, message in [
            (["--port", "21002", "--http", "21002"], "--http: --port and --http cannot both use port 21002"),
            (["--port", "21002", "--http", "all:21002"], "--http: --port and --http cannot both use port 21002"),
            (["--http", "8883"], "--http: --port and --http cannot both use port 8883"),
            (
                ["--port", "21002", "--embedded-port", "21002"],
                "--embedded-port: --port and --embedded-port cannot both use port 21002",
            ),
            (["--port", "5672"], "--port: --port and --embedded-port cannot both use port 5672"),
            (
                ["--http", "21002", "--embedded-port", "21002"],
                "--embedded-port: --http and --embedded-port cannot both use port 21002",
            ),
        ]:
            self.assertEqual(_error(*argv), message)

    def test_origin(self) -> None:
        """One that is from the environment is named by its variable."""
        message = "OWSLA_HTTP: --port and --http cannot both use port 21002"
        self.assertEqual(_error("--port", "21002", OWSLA_HTTP="21002"), message)

    def test_overlap(self) -> None:
        """Addresses are in each other's way where one of them is all of its kind, or both are the same."""
        for interface, http, refused in [
            ("127.0.0.1", "127.0.0.1", True),
            ("0.0.0.0", "127.0.0.1", True),
            ("10.0.0.1", "0.0.0.0", True),
            ("10.0.0.1", "all", True),
            ("::", "[::1]", True),
            ("all", "[::1]", True),
            ("10.0.0.1", "127.0.0.1", False),
            ("::1", "127.0.0.1", False),
            ("::", "0.0.0.0", False),
        ]:
            error = _error("--interface", interface, "--port", "21002", "--http", f"{http}:21002", *BROKER)
            self.assertEqual(bool(error), refused, (interface, http, error))

    def test_taken(self) -> None:
        """Any free ports, others, and the port of an embedded broker that there is not, are nobody's trouble."""
        for argv in (
            ["--port", "0", "--http", "0", "--embedded-port", "0"],
            ["--port", "21002", "--http", "21003"],
            ["--port", "5672", *BROKER],
            ["--port", "21002", "--embedded-port", "21002", *BROKER],
            ["--port", "21002", "--embedded-port", "21002", "--interface", "10.0.0.1"],
        ):
            self.assertEqual(_error(*argv), "", argv)


class NameTests(SynchronousTestCase):
    """An option is given by its whole name."""

    def test_abbreviations(self) -> None:
        """The beginning of a name is no option, with its text behind it or after a =; the whole name is the hint."""
        for argv, message in [
            (["--por", "21003"], "--por: no such option; did you mean --port?"),
            (["--por=21003"], "--por: no such option; did you mean --port?"),
            (["--on", "replace"], "--on: more than one option begins like this"),
            (["--on-d", "replace"], "--on-d: no such option; did you mean --on-duplicate?"),
            (["--embedded-p", "1"], "--embedded-p: no such option; did you mean --embedded-port?"),
            (["--broke=amqp://u:secret@h"], "--broke: no such option; did you mean --broker?"),
            (["--=1"], "--: no such option"),
        ]:
            self.assertEqual(_error(*argv), message)

    def test_each(self) -> None:
        """No option is taken without its last letter."""
        for option in OPTIONS:
            self.assertTrue(_error(f"--{option.name[:-1]}", "1").startswith(f"--{option.name[:-1]}: "), option.name)

    def test_flags(self) -> None:
        """Nor are --help and --version; and they take nothing."""
        for argument, message in [
            ("--vers", "owsla: --vers: no such option; did you mean --version?\n"),
            ("--hel", "owsla: --hel: no such option; did you mean --help?\n"),
            ("--version=1", "owsla: --version: takes no value\n"),
            ("--chec", "owsla: --chec: no such option; did you mean --check?\n"),
            ("--check=online", "owsla: --check: 'online' is not offline; without a value the broker is checked, too\n"),
        ]:
            self.assertEqual(_exit_line(argument), message)

    def test_check(self) -> None:
        """--check stands alone or with offline, and takes no other argument for its value."""
        for argv, check in [
            ([], None),
            (["--check"], ""),
            (["--check", "--port", "1"], ""),
            (["--check=offline"], "offline"),
            (["--check", "offline"], "offline"),
        ]:
            self.assertEqual(parse_command_line(argv).check, check, argv)

    def test_url(self) -> None:
        """A URL that is taken for an option is not quoted: there may be a password in it."""
        self.assertEqual(_error("--amqp://u:secret@h"), "a URL: no such option")

    def test_forms(self) -> None:
        """A text is behind the name or after a =, and may be empty or look like an option; of two the later one wins."""
        settings = load_settings(
            ["--port", "1", "--max-line=1000", "--port=2", "--from-device", "--http", "--to-device=a=b"], {}
        )
        self.assertEqual(
            (settings.port, settings.max_line, settings.from_device, settings.to_device, settings.http),
            (2, 1000, "--http", "a=b", None),
        )
        self.assertEqual(_error("--port="), "--port: '' is not a port number (0 to 65535)")

    def test_no_options(self) -> None:
        """What is no option is refused, before an option, behind one and behind --; -- alone is nothing."""
        self.assertEqual(_error("--"), "")
        for argv in (["x", "--port", "1"], ["--port", "1", "x"], ["--", "x"], ["--port", "1", "--", "x", "--port"]):
            self.assertEqual(_error(*argv), "'x': only options are allowed here, such as --port 8883")
        self.assertEqual(_error("-"), "'-': only options are allowed here, such as --port 8883")
        self.assertEqual(_error("--", "--port", "1"), "'--port': only options are allowed here, such as --port 8883")


class LoginTests(SynchronousTestCase):
    def test_no_dialect(self) -> None:
        """The login's checker and its time have no meaning without a dialect."""
        why = "has an effect only with a --dialect that logs devices in"
        self.assertEqual(_error("--login-checker", "file:/dev/null"), f"--login-checker: {why}")
        self.assertEqual(_error("--login-timeout", "5s"), f"--login-timeout: {why}")
        self.assertEqual(_error(OWSLA_LOGIN_TIMEOUT="10s"), f"OWSLA_LOGIN_TIMEOUT: {why}")
        self.assertEqual(_error("--dialect", "login", "--login-timeout", "5s"), "")


def _exit_line(*argv: str) -> str:
    with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.suppress(SystemExit):
        Options().parseOptions(list(argv))
    return stderr.getvalue()
