"""Tests of the desk of a process, and of the desk of a parent."""

from __future__ import annotations

from typing import Any, cast
from unittest.mock import patch

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk import NO_ARGS, Args, NodeDesk, ParentDesk, UnknownQuestion
from owsla.desk import _desk as module
from owsla.desk._asking import TIME_LIMIT


class Worker:
    """A worker that answers with its desk, or hangs."""

    state = "ready"

    def __init__(self, number: int, desk: NodeDesk | None) -> None:
        self.number = number
        self.name = f"worker-{number}"
        self._desk = desk

    def ask(self, what: str, args: Args = NO_ARGS) -> Deferred[Any]:
        return Deferred() if self._desk is None else self._desk.answer(what, args).addErrback(lambda failure: None)


class NodeDeskTests(SynchronousTestCase):
    def test_answers(self) -> None:
        """A question is answered with its arguments, at once or later. Nobody is missing."""
        later: Deferred[dict[str, Any]] = Deferred()
        desk = NodeDesk({"now": lambda args: {"a": args["b"]}, "later": lambda args: later})
        self.assertEqual(self.successResultOf(desk.ask("now", {"b": 1})), {"a": 1, "missing": []})
        asked = desk.ask("later")
        self.assertNoResult(asked)
        later.callback({"a": 2})
        self.assertEqual(self.successResultOf(asked), {"a": 2, "missing": []})

    def test_unknown(self) -> None:
        """A question that it does not know fails, as one does whose answer raises."""
        self.failureResultOf(NodeDesk({}).ask("dance"), UnknownQuestion)
        self.failureResultOf(NodeDesk({"bad": lambda args: cast("Any", 1 // 0)}).ask("bad"), ZeroDivisionError)


class ParentDeskTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.workers: list[Worker] = []
        self.own = NodeDesk({"events": lambda args: {"names": ["own"]}})
        merges = dict.fromkeys(("close", "devices", "events"), self.merge)
        self.enterContext(patch.object(module, "MERGES", merges))
        self.desk = ParentDesk(cast("Any", self.clock), lambda: self.workers, self.own)

    def merge(self, answers: Any, args: Args) -> dict[str, Any]:
        return {"names": [(name, *answer["names"]) for name, answer in answers], **args}

    def worker(self, number: int, *questions: str) -> Worker:
        return Worker(number, NodeDesk({what: lambda args: {"names": [f"node {number}"]} for what in questions}))

    def test_merged(self) -> None:
        """The answers of all workers are merged, and of the parent itself if it knows the question."""
        self.workers = [self.worker(1, "devices", "events"), self.worker(2, "devices", "events")]
        self.assertEqual(
            self.successResultOf(self.desk.ask("devices", {"x": 1})),
            {"names": [("worker-1", "node 1"), ("worker-2", "node 2")], "x": 1, "missing": []},
        )
        self.assertEqual(
            self.successResultOf(self.desk.ask("events"))["names"],
            [("parent", "own"), ("worker-1", "node 1"), ("worker-2", "node 2")],
        )

    def test_missing(self) -> None:
        """A worker that hangs is named after the time limit, and at once later; so is one that does not know the question."""
        self.workers = [self.worker(1), Worker(2, None), self.worker(3, "devices")]
        asked = self.desk.ask("devices")
        self.assertNoResult(asked)
        self.clock.advance(TIME_LIMIT)
        expected = {"names": [("worker-3", "node 3")], "missing": ["worker-1", "worker-2"]}
        self.assertEqual(self.successResultOf(asked), expected)
        self.assertEqual(self.successResultOf(self.desk.ask("devices")), expected)

    def test_action(self) -> None:
        """An action is sent to a worker that has not answered one in time, and waits for it again."""
        hanging = Worker(1, None)
        self.workers = [hanging]
        for _ in range(2):
            asked = self.desk.ask("close", {"id": "x", "all": True})
            self.assertNoResult(asked)
            self.clock.advance(TIME_LIMIT)
            self.assertEqual(self.successResultOf(asked)["missing"], ["worker-1"])

    def test_unknown(self) -> None:
        """A question that cannot be merged is unknown, and no worker is asked."""
        self.workers = [cast("Any", None)]
        self.failureResultOf(self.desk.ask("dance"), UnknownQuestion)

    def test_own_answer_fails(self) -> None:
        """The fault of the parent's own answer is the result."""
        self.desk = ParentDesk(cast("Any", self.clock), list, NodeDesk({"events": lambda args: {"names": 1 // 0}}))
        self.failureResultOf(self.desk.ask("events"), ZeroDivisionError)

    def test_own_answer_first(self) -> None:
        """If the own answer fails, no worker is asked: it would begin a trace that nobody reads."""
        self.workers = [cast("Any", None)]
        self.desk = ParentDesk(cast("Any", self.clock), lambda: self.workers, NodeDesk({"events": lambda args: {"n": 1 // 0}}))
        self.failureResultOf(self.desk.ask("events"), ZeroDivisionError)
