"""Metrics as values that JSON can hold, and those of several processes as one exposition. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.samples import Sample

LABEL: Final = "worker"
"""Says in each sample of which process it is."""


def families_to_json(families: Iterable[Metric]) -> list[Any]:
    """Families as lists, to be read by `families_from_json`."""
    return [
        [family.name, family.type, family.documentation, [[one.name, one.labels, one.value] for one in family.samples]]
        for family in families
    ]


def families_from_json(sent: Any) -> list[Metric]:
    """The families that were sent. `ValueError`, if they are none."""
    try:
        return [_family(*one) for one in sent]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"these are no metrics: {error}") from None


def _family(name: str, kind: str, text: str, samples: list[Any]) -> Metric:
    family = Metric(_text(name), _text(text), _text(kind))
    family.samples = [Sample(_text(sample), _labels(labels), float(value)) for sample, labels, value in samples]
    return family


def _labels(labels: dict[str, str]) -> dict[str, str]:
    return {_text(label): _text(value) for label, value in labels.items()}


def _text(text: str) -> str:
    if not isinstance(text, str):
        raise ValueError("a name that is no text")
    text.encode()  # or it would fail for all, where the exposition is written
    return text


def merge(parts: Iterable[tuple[str, Iterable[Metric]]]) -> list[Metric]:
    """The families of several processes as one: each family is there once, and each sample says of which process it is.

    `parts` are a label's value for each process, and its families. What means something else in another version (its type
    differs) is left out, and so is a second process of the same label: either would spoil the exposition for all.
    """
    merged: dict[str, Metric] = {}
    seen: set[str] = set()
    for value, families in parts:
        if value in seen:
            continue
        seen.add(value)
        for family in families:
            whole = merged.get(family.name)
            if whole is None:
                whole = merged[family.name] = Metric(family.name, family.documentation, family.type)
            elif whole.type != family.type:
                continue
            whole.samples += [Sample(one.name, {**one.labels, LABEL: value}, one.value) for one in family.samples]
    return list(merged.values())
