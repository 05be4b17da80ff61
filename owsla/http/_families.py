"""Metric families as JSON values, and merging those of several processes into one exposition. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.samples import Sample

LABEL: Final = "worker"
"""Label for the process of a sample."""


def families_to_json(families: Iterable[Metric]) -> list[Any]:
    """Convert metric families to lists for `families_from_json`."""
    return [
        [family.name, family.type, family.documentation, [[one.name, one.labels, one.value] for one in family.samples]]
        for family in families
    ]


def families_from_json(sent: Any) -> list[Metric]:
    """Convert received lists to metric families. `ValueError` if they are malformed."""
    try:
        return [_family(*one) for one in sent]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"malformed metrics: {error}") from None


def _family(name: str, kind: str, text: str, samples: list[Any]) -> Metric:
    family = Metric(_text(name), _text(text), _text(kind))
    family.samples = [Sample(_text(sample), _labels(labels), float(value)) for sample, labels, value in samples]
    return family


def _labels(labels: dict[str, str]) -> dict[str, str]:
    return {_text(label): _text(value) for label, value in labels.items()}


def _text(text: str) -> str:
    if not isinstance(text, str):
        raise ValueError("a name that is not text")
    text.encode()  # an unpaired surrogate would otherwise fail later, and with it the whole exposition
    return text


def merge(parts: Iterable[tuple[str, Iterable[Metric]]]) -> list[Metric]:
    """Merge the metric families of several processes: one family per name, and a label for the process in each sample.

    `parts` are pairs of label value and families. A family whose type differs between processes (in another version) is left
    out, as is a second process with the same label value. Each would make the whole exposition invalid.
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
