"""Options of `owsla swarm --protocol mqtt`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.cli._arguments import parser
from owsla.cli.swarm._planning import plan
from owsla.errors import ConfigError


class MQTTArgumentTests(SynchronousTestCase):
    def test_contradictions(self) -> None:
        """Options of lines, and a number of unacknowledged lines that packet identifiers do not allow, are refused."""
        for option, value in (
            ("--framing", "netstring"),
            ("--delimiter", ";"),
            ("--device-ack", "ACK {seq}"),
            ("--in-flight", "65536"),
            ("--in-flight", "0"),
        ):
            mode = "echo" if value == "65536" else "flood"
            args = parser().parse_args(["swarm", "--protocol", "mqtt", "--mode", mode, "--rate", "9", option, value])
            with self.assertRaises(ConfigError) as caught:
                plan(args)
            self.assertTrue(str(caught.exception).startswith(option), caught.exception)
