"""JSON files with a value changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; `a__b` is b inside a, None removes."""
    content = json.loads(path.read_text())
    for key, value in values.items():
        *parents, last = key.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    path.write_text(json.dumps(content))
