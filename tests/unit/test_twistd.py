"""Arguments of `twistd-owsla`."""

from __future__ import annotations

from twisted.scripts import twistd
from twisted.trial.unittest import SynchronousTestCase

from owsla.config.options import OPTIONS
from owsla.twistd import with_twistd_options


class ArgumentTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.twistd: dict[str, str] = twistd.ServerOptions().synonyms  # type: ignore[attr-defined]  # it depends on the platform

    def test_options_of_owsla(self) -> None:
        """Options of Owsla alone come after those that a service needs: in the foreground, and without a pid file."""
        for arguments in ([], ["--port", "8883"], ["--from-device", "owsla"], ["--help"], ["--version"], ["--check=offline"]):
            self.assertEqual(with_twistd_options(arguments, self.twistd), ["-n", "--pidfile=", "owsla", *arguments])

    def test_options_of_twistd(self) -> None:
        """Arguments that begin with an option of twistd, or with the word `owsla`, are those of twistd."""
        for arguments in (
            ["-n", "--pidfile=", "owsla", "--port", "8883"],
            ["-noy", "owsla.tac"],
            ["--logfile=owsla.log", "owsla"],
            ["--logfile", "owsla.log", "owsla"],
            ["owsla", "--port", "8883"],
        ):
            self.assertEqual(with_twistd_options(arguments, self.twistd), arguments)

    def test_mistakes(self) -> None:
        """What nobody knows is left to Owsla, which names the mistake."""
        for arguments in (["--prot"], ["-x"], ["-"], ["--"], ["port"]):
            self.assertEqual(with_twistd_options(arguments, self.twistd)[3:], arguments)

    def test_names(self) -> None:
        """No option of Owsla has the name of an option of twistd."""
        self.assertEqual({option.name for option in OPTIONS} & set(self.twistd), set())
