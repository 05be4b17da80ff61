"""Findings: each is true, and says nothing where all is well."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.desk._findings import Facts, findings, refusals


def found(**facts: Any) -> list[str]:
    """Return the findings about a connection of an hour that works, but for some facts."""
    usual: dict[str, Any] = {"age": 3600, "lines_in": 5, "bytes_in": 50, "lines_out": 5, "last_in": 10, "last_out": 9.9}
    return findings(Facts(**{**usual, **facts}))


class FindingTests(SynchronousTestCase):
    def one(self, expected: str, **facts: Any) -> None:
        """Expect one finding that begins as given."""
        [finding] = found(**facts)
        self.assertTrue(finding.startswith(expected), finding)

    def test_nothing(self) -> None:
        """There is no finding about a connection that works, new or old, busy or quiet."""
        self.assertEqual(found(), [])
        self.assertEqual(found(last_in=86400, last_out=86400), [], "the answer to the last line is a second old")
        self.assertEqual(found(last_in=45, last_out=40), [], "the answer was slow")
        self.assertEqual(found(last_out=0.1, untaken=50, unconfirmed=3, last_in=0.1), [], "all of it is on its way")
        self.assertEqual(found(age=0.5, lines_in=0, lines_out=0, bytes_in=0, last_in=None, last_out=None), [])
        self.assertEqual(found(age=0.5, lines_in=1, lines_out=0, last_in=0.2, last_out=None), [])

    def test_silent_device(self) -> None:
        """A device that has sent nothing, no end of a line, or nothing since a message, is found to be silent."""
        nothing = {"lines_in": 0, "bytes_in": 0, "last_in": None}
        self.one("It has sent nothing since it connected 60 min ago.", **nothing)
        self.one("It has sent 7 bytes, but not the end of a line ('\\r\\n', --delimiter).", **{
            **nothing, "bytes_in": 7, "unpublished": 7, "delimiter": b"\r\n"
        })  # fmt: skip
        self.one("It has sent 7 bytes, but not a whole --framing", **{**nothing, "bytes_in": 7, "unpublished": 7})
        self.one(
            "It has sent nothing since the last message to it, 40 s ago. Its last line came 2 min ago.",
            last_in=120,
            last_out=40,
        )
        self.assertEqual(found(last_in=120, last_out=20), [], "the message is new")
        self.assertEqual(found(**nothing, pauses=("broker",), served=True)[1:], [], "what it has sent is not read")

    def test_not_answered(self) -> None:
        """Lines without any message back are a finding, unless a message is on its way or the lines are."""
        unanswered = {"lines_out": 0, "last_out": None}
        sentence = "It has sent 5 lines and no message was ever sent to it: no back end answers"
        self.one(sentence, **unanswered)
        self.assertNotIn(sentence, str(found(**unanswered, held=1, missing=0)))
        self.assertNotIn(sentence, str(found(**unanswered, slow=1, waiting=1)))
        self.assertNotIn(sentence, str(found(**unanswered, held_back=True)))
        self.assertNotIn(sentence, str(found(**unanswered, pauses=("broker",))))
        self.assertEqual(found(**{**unanswered, "age": 0.5, "last_in": 0.1}), [], "back ends have had no time to answer")

    def test_not_read(self) -> None:
        """The reason for which a device is not read is a finding."""
        self.one("It is not read: its lines cannot be published now", pauses=("broker",), served=False)
        self.one("It is not read: too many lines of all devices are unconfirmed", pauses=("broker",))
        self.one("It is not read: it sends faster than RabbitMQ confirms", pauses=("share",))
        self.one(
            "It is not read all the time: it sends more than 5 lines a second (--max-rate).", pauses=("rate",), max_rate=5.0
        )
        self.one("It is not read any more: the gateway stops", pauses=("draining",))
        self.one("Its lines are held back by its dialect", held_back=True)
        self.one("RabbitMQ has not confirmed the last of its lines yet: 3.", unconfirmed=3)

    def test_not_written(self) -> None:
        """A device that takes nothing, or takes it slowly, or is not reachable, is a finding."""
        slow = {"slow": 12.0, "write_timeout": 30.0}
        self.one(
            "It has taken nothing that was written to it for 7 s; 2 messages (80 bytes) wait.",
            **slow,
            stuck=7.0,
            waiting=2,
            waiting_bytes=80,
        )
        self.one("It reads slower than messages arrive: its socket has been full for 12 s.", **slow)
        self.one("Its system has not acknowledged 52 bytes written to it 10 s ago or before", untaken=52, last_out=9.9)

    def test_missing_number(self) -> None:
        """Messages that wait for a missing number are a finding, with that number."""
        self.one(
            "Messages to it wait for 500 ms for the one with to_device_seq 3, which has not arrived: 4. The missing one is "
            "skipped after 2 s (--gap-timeout).",
            held=4,
            missing=3,
            missing_for=0.5,
            gap_timeout=2.0,
        )

    def test_same_device(self) -> None:
        """Other connections of the same device id are a finding: messages by name go to the newest."""
        self.one("Its device id has 2 open connections: messages for the device id go to the newest, this one.", same_device=2)
        self.one(
            "Its device id has 2 open connections: messages for the device id go to the newest, 4f-1.",
            same_device=2,
            newest="4f-1",
        )

    def test_closing(self) -> None:
        """A connection that is being closed says why, first of all."""
        first = found(closing="closed by the back end", same_device=2)[0]
        self.assertEqual(
            first, "The connection is being closed (closed by the back end). The device has not closed its side yet."
        )

    def test_refusals(self) -> None:
        """A device that may not connect now says why."""
        self.assertEqual(refusals(denied_device=False, denied_address=False, held_off=0), [])
        self.assertEqual(
            refusals(denied_device=True, denied_address=True, held_off=42),
            [
                "Connections of this device id are refused: the list of --deny has it.",
                "Connections from this address are refused: the list of --deny has it.",
                "Connections of this device id are refused for another 42 s: it connected too often (--max-flaps).",
            ],
        )
