"""Tests. What is said here is for both runners, trial and pytest."""

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's matter: a test is not for the time.
settings.register_profile("owsla", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("owsla")
