"""Tests. What is said here is for both runners, trial and pytest."""

import os
from typing import Final

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's matter: a test is not for the time.
settings.register_profile("owsla", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("owsla")

_OWSLA: Final = "OWSLA_"
_TESTS: Final = "TESTS_OF_"
"""What the names of the variables begin with while tests run. The workers of pytest-xdist inherit them under these names."""

for _name in [name for name in os.environ if name.startswith(_OWSLA)]:
    # A gateway takes them for its settings, and no test is for those of the person who runs it.
    os.environ[_TESTS + _name] = os.environ.pop(_name)


def variable(name: str) -> str:
    """Return the variable OWSLA_`name` of the environment that the tests were started in, or "" if there is none."""
    return os.environ.get(_TESTS + _OWSLA + name) or os.environ.get(_OWSLA + name, "")


ONE_WAY: Final = variable("ONE_WAY") == "1"
"""Whether tests that hold for both brokers run with RabbitMQ alone, and those that hold with and without batches without."""


def is_required(program: str) -> bool:
    """Return whether a test fails without this program (OWSLA_REQUIRE_`program`=1), instead of being skipped."""
    return variable(f"REQUIRE_{program}") == "1"
