"""Types of the questions and answers of the desk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred

JSON: TypeAlias = dict[str, Any]
"""An object of JSON values."""

Args: TypeAlias = Mapping[str, Any]
"""Arguments of a question: JSON values by name."""

NO_ARGS: Final[Args] = MappingProxyType({})

AnswerFunction: TypeAlias = Callable[[Args], JSON | Deferred[JSON]]
"""A function that answers one kind of question in a process."""

NamedAnswers: TypeAlias = Sequence[tuple[str, JSON]]
"""Answers, each with the name of its worker, or `PARENT`."""

PARENT: Final = "parent"
"""Name of the parent in `NamedAnswers`."""

Merge: TypeAlias = Callable[[NamedAnswers, Args], JSON]
"""A function that makes one answer of several. It gets the arguments of the question, too."""


def named(key: str, answers: NamedAnswers) -> Iterator[JSON]:
    """Yield the events in a field of several answers, each with the name of its worker; those of a parent have none."""
    for name, answer in answers:
        for event in answer.get(key, ()):
            yield {**event, "worker": None if name == PARENT else name}


class BadArgument(ValueError):
    """An argument of a question cannot be used. The message is a sentence for people."""
