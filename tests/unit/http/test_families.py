"""Metrics of several processes as one exposition."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.registry import Collector
from twisted.trial.unittest import SynchronousTestCase

from owsla.http import collector_for
from owsla.http._families import families_from_json, families_to_json, merge
from owsla.interfaces import FIRST_DOOR

from ._fakes import World


class Some(Collector):
    """Families as they are."""

    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> list[Metric]:
        return self.families


def text(families: list[Metric]) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Some(families))
    return generate_latest(registry).decode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["gauge", "counter", "a_b", "\ud800"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


class JsonTests(SynchronousTestCase):
    """There and back."""

    def test_all(self) -> None:
        """What a collector says comes out as it went in: histograms, infinity, labels and help texts among it."""
        world = World()
        world.doors[FIRST_DOOR].latency.observe(0.003)
        world.courier.recorded['odd "\\\n'] = 1
        families = list(collector_for(world.readings, now=lambda: 0.0).collect())
        again = families_from_json(json.loads(json.dumps(families_to_json(families))))
        self.assertEqual(text(again), text(families))

    @settings(deadline=None)
    @given(JSON | st.lists(st.tuples(st.text(), st.sampled_from(["gauge", "x"]), JSON, st.lists(st.tuples(JSON, JSON, JSON)))))
    def test_garbage(self, sent: Any) -> None:
        """What is something else is a `ValueError`; what is not can be told."""
        try:
            families = families_from_json(sent)
        except ValueError:
            return
        text(merge([("1", families)]))

    def test_no_text(self) -> None:
        """Halves of surrogate pairs, which no exposition can have, are not let in."""
        for bad in (["g", "gauge", "\ud800", []], ["g", "gauge", "G.", [["g", {"a": "\ud800"}, 1]]]):
            self.assertRaises(ValueError, families_from_json, [bad])


class MergeTests(SynchronousTestCase):
    """Several processes."""

    def test_labels(self) -> None:
        """Each family is there once, with the samples of all, each with its process and its own labels."""

        def families(value: float) -> list[Metric]:
            counter = CounterMetricFamily("c", "C.", labels=["what"])
            counter.add_metric(["x"], value)
            return [counter, GaugeMetricFamily("g", "G.", value)]

        merged = text(merge([("1", families(1)), ("2", families(2))]))
        self.assertEqual(
            merged,
            "# HELP c_total C.\n# TYPE c_total counter\n"
            'c_total{what="x",worker="1"} 1.0\nc_total{what="x",worker="2"} 2.0\n'
            '# HELP g G.\n# TYPE g gauge\ng{worker="1"} 1.0\ng{worker="2"} 2.0\n',
        )

    def test_versions(self) -> None:
        """A family that one process has and another has not is there; one that has another type there is that one's loss."""
        ours = [GaugeMetricFamily("both", "B.", 1), GaugeMetricFamily("ours", "O.", 1)]
        theirs = [CounterMetricFamily("both", "B.", 2), GaugeMetricFamily("theirs", "T.", 2)]
        samples = {
            (sample.name, sample.labels["worker"]): sample.value
            for family in parse(text(merge([("1", ours), ("2", theirs)])))
            for sample in family.samples
        }
        self.assertEqual(samples, {("both", "1"): 1, ("ours", "1"): 1, ("theirs", "2"): 2})

    def test_twice(self) -> None:
        """Of two processes of one label the first counts: a series that is there twice would spoil all."""
        merged = merge([("1", [GaugeMetricFamily("g", "G.", 1)]), ("1", [GaugeMetricFamily("g", "G.", 2)])])
        self.assertEqual([sample.value for family in merged for sample in family.samples], [1])

    def test_originals(self) -> None:
        """What is merged stays as it was."""
        gauge = GaugeMetricFamily("g", "G.", 1)
        merge([("1", [gauge]), ("2", [gauge])])
        self.assertEqual([sample.labels for sample in gauge.samples], [{}])
