"""The samples of the last hour, in bounded memory.

There are 300 samples of one second, and 360 of ten seconds. The latter are not means of the former: both are differences of
counters, over one and over ten seconds. Samples are kept as JSON text, as clients receive them. With 8 workers a sample has
some 1.8 KB, and all 660 samples take 1.5 MB; without workers they take 0.25 MB.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ._sample import Sampler
from ._snapshot import Snapshots

STEP: Final = 1.0
"""Seconds between two samples."""

COARSE: Final = 10
"""Samples of `STEP` in the time of a coarse sample."""

FINE_SAMPLES: Final = 300
COARSE_SAMPLES: Final = 360


class _Series:
    """Samples of one step."""

    def __init__(self, step: float, length: int) -> None:
        self.step = step
        self.length = length
        self.sampler = Sampler()
        self.samples: deque[tuple[float, str]] = deque(maxlen=length)
        """Monotonic time in seconds and JSON text of each sample, without its `time`."""

    def add(self, clock: float, snapshots: Snapshots) -> str:
        """Take a sample. Return its text."""
        sample = self.sampler.sample(0, snapshots)
        del sample["time"]
        text = json.dumps(sample, separators=(",", ":"))[1:]
        self.samples.append((clock, text))
        return text


class History:
    """The samples of the last five minutes and of the last hour, and the newest one."""

    def __init__(self) -> None:
        self._fine = _Series(STEP, FINE_SAMPLES)
        self._coarse = _Series(STEP * COARSE, COARSE_SAMPLES)
        self._spans: Mapping[str, _Series] = MappingProxyType({"5m": self._fine, "1h": self._coarse})
        self.number = 0
        """Number of samples of one second so far. A client that polls sees by it whether `newest` is another one."""
        self.newest: str | None = None
        """Newest sample of one second as JSON text; `None` before the first one."""

    @property
    def spans(self) -> tuple[str, ...]:
        """Spans that `span` accepts."""
        return tuple(self._spans)

    def add(self, clock: float, time: float, snapshots: Snapshots) -> None:
        """Take a sample. `clock` is the monotonic time, and `time` that since the epoch, both in seconds."""
        self.newest = _with_time(time, self._fine.add(clock, snapshots))
        self.number += 1
        coarse = self._coarse.samples
        if not coarse or clock - coarse[-1][0] >= self._coarse.step - STEP / 2:
            self._coarse.add(clock, snapshots)
        else:
            self._coarse.sampler.note(snapshots)

    def span(self, span: str, clock: float, time: float) -> str:
        """Return the samples of a span, "5m" or "1h", as JSON text: `{"step": ms, "samples": [...]}`, the oldest first.

        `clock` and `time` are the present, as for `add`. The times of the samples are relative to `time`: when the wall clock
        is set, those of the older samples move with it, and their order and distance stay. A moment at which no sample could be
        taken is missing. `KeyError` for another span.
        """
        series = self._spans[span]
        since = clock - series.step * series.length
        samples = ",".join(_with_time(time - (clock - then), text) for then, text in series.samples if then > since)
        return f'{{"step":{round(series.step * 1000)},"samples":[{samples}]}}'


def _with_time(time: float, text: str) -> str:
    return f'{{"time":{round(time * 1000)},{text}'
