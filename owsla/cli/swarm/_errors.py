"""The error of a swarm that cannot run."""


class SwarmError(Exception):
    """A swarm cannot run, or has nothing to report; the text says why in one line."""
