"""Soak test of a gateway under load whose children fail at random: `python -m bench.soak --minutes 30`.

It runs tests/integration/test_soak.py for a longer time, with a RabbitMQ of its own. The exit status is 1 if lines are missing,
if the wrong child was restarted, or if a device was not served.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

TEST = Path(__file__).resolve().parents[1] / "tests" / "integration" / "test_soak.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak test and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="A gateway whose children fail at random.")
    parser.add_argument("--minutes", type=float, default=30.0, help="duration (default: 30)")
    parser.add_argument("--seed", type=int, help="repeat the random choices of a run, though not its timing")
    chosen = parser.parse_args(arguments)
    os.environ["OWSLA_REQUIRE_RABBITMQ"] = "1"
    os.environ["OWSLA_SOAK_MINUTES"] = str(chosen.minutes)
    if chosen.seed is not None:
        os.environ["OWSLA_FAULT_SEED"] = str(chosen.seed)
    return int(pytest.main(["-q", "-s", "--rootdir", str(TEST.parents[2]), str(TEST)]))


if __name__ == "__main__":
    raise SystemExit(main())
