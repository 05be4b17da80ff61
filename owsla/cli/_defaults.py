"""Default values of options, which the help texts name and the commands use."""

from __future__ import annotations

from typing import Final

DEFAULT_BROKER: Final = "amqp://guest:guest@127.0.0.1:5672/%2f"
"""Address of the embedded broker, and of a RabbitMQ that was just installed."""

PEEK_COUNT: Final = 100
"""Number of lines that `tail` shows and gives back: some screens full."""
PEEK_MOST: Final = 10_000
"""Maximum number of lines that `tail` gives back: it keeps them in memory, and from all other consumers, until it ends."""
