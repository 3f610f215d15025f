"""metrics.jsonl, a run's journal: one JSON object a line."""

import json
from pathlib import Path
from typing import Any

TIMING = ("pairs_per_s", "seconds", "costs")  # what may differ between two runs of the same spec
FILE = "metrics.jsonl"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut by a kill is left out."""
    rows = []
    for line in path.read_text("utf-8").splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows
