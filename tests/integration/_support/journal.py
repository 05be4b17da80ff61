"""The file of `--events json:FILE`, read while a gateway writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def events_in(journal: Path) -> list[dict[str, Any]]:
    """Return the events in a file so far; none if it does not exist yet. A last line that is half written is left out."""
    if not journal.exists():
        return []
    complete = journal.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in complete.splitlines()]
