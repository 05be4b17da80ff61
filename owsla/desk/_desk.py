"""The desk of one process, and the desk of a parent for all its workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed

from ..interfaces import Clock
from ._asking import Answers, WorkerHandle, WorkerQueries
from ._merging import ACTIONS, CHECKS, MERGES, STEPS
from ._types import JSON, NO_ARGS, PARENT, AnswerFunction, Args, BadArgument, NamedAnswers


class UnknownQuestion(LookupError):
    """A question that this version does not know."""


class Desk(Protocol):
    """Receiver of questions about a gateway."""

    def ask(self, what: str, args: Args = NO_ARGS) -> Deferred[JSON]:
        """Ask a question. The Deferred fires with the answer.

        `missing` in the answer has the names of the workers that did not answer in time. The Deferred fails with
        `UnknownQuestion`, or with `BadArgument`.
        """


class NodeDesk:
    """Desk of one process."""

    def __init__(self, answers: Mapping[str, AnswerFunction]) -> None:
        """`answers` has a function for each kind of question."""
        self._answers = dict(answers)

    def knows(self, what: str) -> bool:
        """Return whether this kind of question can be answered."""
        return what in self._answers

    def answer(self, what: str, args: Args) -> Deferred[JSON]:
        """Answer a question, without `missing`. The Deferred fails with `UnknownQuestion` or `BadArgument`."""
        answer = self._answers.get(what)
        if answer is None:
            return fail(UnknownQuestion(what))
        answered: Deferred[JSON] = maybeDeferred(cast(Callable[[Args], JSON], answer), args)
        return answered

    def ask(self, what: str, args: Args = NO_ARGS) -> Deferred[JSON]:
        return self.answer(what, args).addCallback(lambda answer: {**answer, "missing": []})


class ParentDesk:
    """Desk of a parent: it asks its workers, and merges their answers."""

    def __init__(self, clock: Clock, workers: Callable[[], Sequence[WorkerHandle]], own: NodeDesk) -> None:
        """`own` answers for the process of the parent, which has events, but no devices."""
        self._queries = WorkerQueries(clock, workers)
        self._own = own

    def ask(self, what: str, args: Args = NO_ARGS) -> Deferred[JSON]:
        if what not in MERGES:
            return fail(UnknownQuestion(what))
        try:
            if what in CHECKS:
                CHECKS[what](args)
        except BadArgument:
            return fail()
        steps = STEPS.get(what)
        return self._ask_all(what, args) if steps is None else steps(self._ask_all, args)

    def _ask_all(self, what: str, args: Args) -> Deferred[JSON]:
        """Ask all workers, and merge their answers."""
        merge = MERGES[what]

        def ask(own: NamedAnswers) -> Deferred[JSON]:
            asked = self._queries.ask(what, args, action=what in ACTIONS)
            return asked.addCallback(lambda sent: {**merge([*own, *_answered(sent)], args), "missing": _missing(sent)})

        # The parent refuses a trace too many. Workers that were asked before would log the same error, or begin the trace.
        return self._own_answer(what, args).addCallback(ask)

    def _own_answer(self, what: str, args: Args) -> Deferred[NamedAnswers]:
        if not self._own.knows(what):
            return succeed([])
        return self._own.answer(what, args).addCallback(lambda answer: [(PARENT, answer)])


# During a rolling restart a worker of another version may not know a question: it answers `None`.


def _answered(sent: Answers) -> NamedAnswers:
    return [(worker.name, answer) for worker, answer in sent if isinstance(answer, dict)]


def _missing(sent: Answers) -> list[str]:
    return [worker.name for worker, answer in sent if not isinstance(answer, dict)]
