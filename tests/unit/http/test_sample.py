"""Samples: differences of snapshots."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.http._histogram import SECONDS, quantile
from owsla.http._sample import Sampler
from owsla.http._snapshot import Snapshot, Snapshots

NONE = (0,) * (len(SECONDS) + 1)
START = Snapshot(process="1-0", clock=1000.0, cpu=5.0, late_count=0, late=(), latency=NONE)


def later(snapshot: Snapshot, seconds: float = 1.0, *, late: tuple[float, ...] = (), **changes: Any) -> Snapshot:
    """A snapshot of the same process after some time. `late` has the new measurements of lateness."""
    return replace(
        snapshot,
        clock=snapshot.clock + seconds,
        late_count=snapshot.late_count + len(late),
        late=(*snapshot.late, *late)[-32:],
        **changes,
    )


def confirms(**buckets: int) -> tuple[int, ...]:
    """Counts per bucket: `b1=5` is five confirms in the bucket that ends at the bound with the index 1."""
    return tuple(buckets.get(f"b{index}", 0) for index in range(len(NONE)))


class ProcessTests(SynchronousTestCase):
    """A process without workers."""

    def setUp(self) -> None:
        self.sampler = Sampler()

    def sample(self, snapshot: Snapshot) -> dict[str, Any]:
        return self.sampler.sample(0, Snapshots(snapshot))

    def test_first(self) -> None:
        """The first sample has the values of the moment. What takes two snapshots is not known, which is not 0."""
        self.assertEqual(
            self.sampler.sample(1_700_000_000_123, Snapshots(replace(START, devices=7, unconfirmed=3))),
            {
                "time": 1_700_000_000_123,
                "devices": 7,
                "unconfirmed": 3,
                "connects": None,
                "handshakes": None,
                "failed_handshakes": None,
                "lines_in": None,
                "lines_out": None,
                "p50": None,
                "p99": None,
                "lateness": None,
                "cpu": None,
                "workers": None,
                "parent": None,
                "missing": [],
            },
        )

    def test_rates(self) -> None:
        """Rates are per second of the monotonic clock, however far apart the samples are."""
        self.sample(replace(START, lines_in=1000))
        sample = self.sample(
            later(START, 2.5, lines_in=1025, lines_out=5, connects=4, handshakes=3, failed_handshakes=1, cpu=6.0)
        )
        self.assertEqual(
            [sample[name] for name in ("lines_in", "lines_out", "connects", "handshakes", "failed_handshakes", "cpu")],
            [10, 2, 1.6, 1.2, 0.4, 0.4],
        )

    def test_latency(self) -> None:
        """The quantiles are those of the confirms since the sample before; without any there are none."""
        first = replace(START, latency=confirms(b9=1000))
        self.sample(first)
        second = later(first, latency=confirms(b1=100, b9=1000))
        sample = self.sample(second)
        self.assertEqual((sample["p50"], sample["p99"]), (0.8, 1))
        sample = self.sample(later(second))
        self.assertEqual((sample["p50"], sample["p99"]), (None, None))

    def test_lateness(self) -> None:
        """It is the worst since the sample before, and no older one."""
        first = later(START, late=(0.9, 0.001))
        self.sample(first)
        second = later(first, late=(0.002, 0.2503, 0.001))
        self.assertEqual(self.sample(second)["lateness"], 250.3)
        third = later(second, late=(0.0015,))
        self.assertEqual(self.sample(third)["lateness"], 1.5)
        self.assertIsNone(self.sample(later(third))["lateness"])

    def test_noted_lateness(self) -> None:
        """What was noted between two samples counts, even if it is no longer in the snapshot of the sample."""
        self.sample(START)
        snapshot = later(START, late=(0.5,))
        for _ in range(10):
            self.sampler.note(Snapshots(snapshot))
            snapshot = later(snapshot, late=(0.01,) * 10)
        self.assertNotIn(0.5, snapshot.late)
        self.assertEqual(self.sample(snapshot)["lateness"], 500)
        self.assertEqual(self.sample(later(snapshot, late=(0.02,)))["lateness"], 20)

    def test_same_moment(self) -> None:
        """Two snapshots of one moment make no rates, and no failure."""
        self.sample(START)
        self.assertIsNone(self.sample(START)["lines_in"])


class WorkersTests(SynchronousTestCase):
    """A parent with workers."""

    def setUp(self) -> None:
        self.sampler = Sampler()
        self.own = replace(START, process="parent", latency=())

    def sample(self, **workers: Snapshot | None) -> dict[str, Any]:
        sample = self.sampler.sample(0, Snapshots(self.own, workers))
        self.own = later(self.own, cpu=self.own.cpu + 0.1, late=(0.003,))
        return sample

    def test_sums(self) -> None:
        """Values of all are sums, quantiles of all confirms together, and the worst lateness. Each worker has its own."""
        one, two = replace(START, process="a"), replace(START, process="b")
        self.sample(one=one, two=two)
        one = later(one, lines_in=10, devices=1, late=(0.01,), cpu=5.5, latency=confirms(b0=90))
        two = later(two, 2.0, lines_in=30, devices=2, late=(0.02,), cpu=6.5, latency=confirms(b5=10))
        sample = self.sample(one=one, two=two)
        self.assertEqual((sample["lines_in"], sample["devices"], sample["lateness"]), (25, 3, 20))
        self.assertEqual([sample["workers"][name]["lines_in"] for name in ("one", "two")], [10, 15])
        self.assertEqual([sample["workers"][name]["lateness"] for name in ("one", "two")], [10, 20])
        self.assertEqual((sample["p50"], sample["p99"]), (0.3, 23.5))
        self.assertEqual((sample["workers"]["one"]["p99"], sample["workers"]["two"]["p50"]), (0.5, 17.5))
        self.assertEqual((sample["cpu"], sample["parent"]), (0.5 + 0.75 + 0.1, {"lateness": 3, "cpu": 0.1}))

    def test_no_answer(self) -> None:
        """A worker that does not answer is a gap, and is named. Its rates are right when it answers again."""
        one, two = replace(START, process="a", devices=5), replace(START, process="b", devices=7)
        self.sample(one=one, two=two)
        sample = self.sample(one=later(one, lines_in=4), two=None)
        self.assertEqual((sample["devices"], sample["lines_in"]), (5, 4))
        self.assertEqual((sample["workers"]["two"], sample["missing"]), (None, ["two"]))
        sample = self.sample(one=later(one, 2.0, lines_in=8), two=later(two, 2.0, lines_in=20))
        self.assertEqual((sample["workers"]["two"]["lines_in"], sample["missing"]), (10, []))
        self.assertEqual(sample["lines_in"], 14)

    def test_nobody_answers(self) -> None:
        """Then nothing is known of devices, which is not the same as none."""
        self.sample(one=replace(START, devices=5))
        sample = self.sample(one=None)
        self.assertEqual((sample["devices"], sample["lines_in"], sample["cpu"]), (None, None, 0.1))

    def test_replaced(self) -> None:
        """A new process of a worker begins again: its counters are not compared with those of the old one."""
        old = replace(START, process="old", lines_in=1_000_000, late_count=900)
        self.sample(one=old)
        new = later(START, process="new", lines_in=50, cpu=0.2, late=(0.004,))
        sample = self.sample(one=new)
        self.assertEqual((sample["lines_in"], sample["cpu"], sample["lateness"]), (None, 0.1, 4))
        self.assertEqual(self.sample(one=later(new, lines_in=57))["lines_in"], 7)

    def test_replaced_beside_another(self) -> None:
        """Meanwhile the values of all are those of the others."""
        old, other = replace(START, process="old"), replace(START, process="other")
        self.sample(one=old, two=other)
        new, other = replace(START, process="new"), later(other, lines_in=3, latency=confirms(b1=10))
        sample = self.sample(one=new, two=other)
        self.assertEqual((sample["lines_in"], sample["p50"], sample["workers"]["one"]["lines_in"]), (3, 0.8, None))

    def test_gone(self) -> None:
        """Nothing is kept of a worker that is no longer there."""
        self.sample(one=START)
        self.sample()
        self.assertIsNone(self.sample(one=later(START, lines_in=9))["lines_in"])


class QuantileTests(SynchronousTestCase):
    """Quantiles of buckets."""

    def test_interpolation(self) -> None:
        """It is what histogram_quantile of Prometheus 2.42 says for the same buckets."""
        bounds = (1.0, 2.0, 4.0)
        for q, counts, expected in (
            (0.5, (4, 0, 0, 0), 0.5),
            (0.5, (1, 1, 2, 0), 2.0),
            (0.75, (1, 1, 2, 0), 3.0),
            (0.99, (0, 0, 0, 5), 4.0),
            (0.5, (0, 0, 0, 0), None),
        ):
            self.assertEqual(quantile(q, counts, bounds), expected, (q, counts))

    @given(st.lists(st.integers(0, 50), min_size=16, max_size=16).filter(any), st.floats(0.01, 1.0))
    def test_bounds(self, counts: list[int], q: float) -> None:
        """It lies within the bucket that holds the value of this rank."""
        result = quantile(q, counts)
        assert result is not None
        rank = q * sum(counts)
        index = next(index for index, below in enumerate(accumulate(counts)) if below >= rank - 1e-9)
        lower = 0.0 if index == 0 else SECONDS[index - 1]
        upper = SECONDS[min(index, len(SECONDS) - 1)]
        self.assertLessEqual(lower - 1e-9, result)
        self.assertLessEqual(result, upper + 1e-9)
