"""Arguments of the figures, and the systems that they name."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

from twisted.trial.unittest import SynchronousTestCase

from bench.figures import systems
from bench.figures_arguments import command_line, read_arguments


def names(*words: str) -> list[str]:
    return [system.name for system in systems(read_arguments(words))]


class SystemsTests(SynchronousTestCase):
    def test_default(self) -> None:
        """Without arguments Owsla is measured with a message for each line, with batches, and with two workers."""
        self.assertEqual(names(), ["Owsla", "Owsla, --batch 200", "Owsla, --workers 2"])

    def test_all(self) -> None:
        """Variants, the number of workers, other systems and MQTT can be chosen."""
        self.assertEqual(
            names("--variants", "batch,batch-workers", "--batch", "50", "--workers", "3", "--beside", "go=x {port}", "--mqtt"),
            ["Owsla, --batch 50", "Owsla, --workers 3, --batch 50", "go", "RabbitMQ MQTT"],
        )

    def test_command(self) -> None:
        """The options --batch and --workers are given to the variants of that name only."""
        plain, batch, workers = systems(read_arguments(["--batch", "50", "--workers", "4"]))
        self.assertNotIn("--batch", plain.command)
        self.assertTrue(batch.command.endswith(" --batch 50"))
        self.assertNotIn("--batch", workers.command)
        for system, processes in ((plain, 1), (batch, 1), (workers, 4)):
            self.assertEqual(system.processes, processes)
            self.assertIn(f" --workers {processes} ", system.command)


class ArgumentTests(SynchronousTestCase):
    def refused(self, *words: str) -> str:
        text = io.StringIO()
        with redirect_stderr(text):
            self.assertRaises(SystemExit, read_arguments, words)
        return text.getvalue().splitlines()[-1]

    def test_refused(self) -> None:
        """Unknown names and values that cannot be measured are refused, with the name of the argument."""
        for words in (
            ("--only", "memory,speed"),
            ("--variants", "fast"),
            ("--beside", "go"),
            ("--beside", "go=gateway"),
            ("--beside", "=gateway {port}"),
            ("--seconds", "0"),
            ("--latency-seconds", "-1"),
            ("--held-minutes", "0"),
            ("--batch", "1"),
            ("--workers", "1"),
        ):
            self.assertIn(words[0], self.refused(*words))

    def test_command_line(self) -> None:
        """The command in the result has no passwords and no paths of other systems."""
        given = [
            "--runs",
            "2",
            "--beside",
            "go=/home/me/gateway {port}",
            "--beside=b c=x",
            "--broker",
            "amqp://me:secret@host/",
        ]
        self.assertEqual(
            command_line([*given, "--output", "/tmp/x", "--mqtt"]),
            "python -m bench.figures --runs 2 --beside go=… --beside 'b c=…' --broker '…host/' --mqtt",
        )
        self.assertEqual(command_line(["--broker", "own"]), "python -m bench.figures")
