"""poison.json: a poison plan as a file, verified when it is read.

{"plan": head, "entries": [...]}: the pairs in the order of their draw, a line each. The head's `digest` is the plan's, its
`file` that of everything else in the file.
"""

import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

from data.disk import flush, writing
from data.poison_plan import PoisonPlan
from data.refusal import UserError
from data.shards import Index

WHOLE = "file"
HEAD = {"spec", "seed", "data", "pairs", "digest"}  # all that a head of before November 2026 holds


def write_plan(path: Path, plan: PoisonPlan, index: Index, fingerprint: str) -> None:
    """Writes the plan for the pre-training of a fingerprint, whole or not at all."""
    head = {"spec": fingerprint, "seed": plan.seed, "data": index.digest, "pairs": len(plan), "digest": plan.digest}
    rows = [{**entry.row(), "shard": os.path.basename(index.path(sample))} for sample, entry in plan.entries.items()]
    head[WHOLE] = _digest(head, rows)
    lines = ",\n".join(json.dumps(row) for row in rows)
    fresh = path.with_name(f".{path.name}")
    with writing(path.parent, "the poison plan"):
        fresh.write_text(json.dumps({"plan": head, "entries": []})[:-2] + "\n" + lines + "\n]}\n")
        flush(fresh)
        os.replace(fresh, path)


def read_plan(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the head, the entries) of a plan's file; UserError if it is not what was written."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise _damaged(path) from None
    return verified(content, path)


def verified(content: Any, path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the head, the entries) of a plan's parsed file; UserError if they are not what was written, as far as a file of
    before November 2026 can tell."""
    head, rows = (content.get("plan"), content.get("entries")) if isinstance(content, dict) else (None, None)
    if not isinstance(head, dict) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _damaged(path)
    given = {name: value for name, value in head.items() if name != WHOLE}
    if WHOLE in head and head[WHOLE] != _digest(given, rows):
        raise _damaged(path)
    if WHOLE not in head and (not head.keys() <= HEAD or "digest" in head and head["digest"] != _of_entries(rows)):
        raise _damaged(path)
    return head, rows


def _digest(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    return blake2b(json.dumps([head, rows], sort_keys=True).encode(), digest_size=16).hexdigest()


def _of_entries(rows: list[dict[str, Any]]) -> str:
    """PoisonPlan.digest of the entries in a file."""
    plain = [{name: value for name, value in row.items() if name != "shard"} for row in rows]
    return blake2b(json.dumps(sorted(plain, key=lambda row: str(row.get("key")))).encode(), digest_size=16).hexdigest()


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is not the poison plan that was written; put a copy of it back, or make it anew with engine.poison"
    )
