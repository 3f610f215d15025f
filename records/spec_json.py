"""spec.json: all that decides the result of a run, by whose fingerprint the run's folder is named."""

import json
import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from records.json_file import damaged, read_json
from records.study_json import ControlName, StageName

SPEC = "spec.json"


def fingerprint(decides: dict[str, Any]) -> str:
    """The fingerprint of plain values, whatever the order of their keys: 12 hex digits."""
    return blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=6).hexdigest()


def read_decides(folder: Path) -> dict[str, Any] | None:
    """What decides the result of the run in a folder, from its spec.json; None if it has none. Damaged if that is not what
    was written, as its digest or the folder's name tells."""
    path = folder / SPEC
    remedy = f"put a copy of it back, or delete {folder}, and the run begins anew"
    decides = read_json(path, remedy)
    named = re.fullmatch(r"[a-z]+-([0-9a-f]{12})", folder.name)
    if decides is not None and named and named[1] != fingerprint(decides):
        raise damaged(path, "its content is not that of its folder's name", remedy)
    return decides


def stage_of(decides: dict[str, Any]) -> StageName:
    """The stage of a run whose folder holds these values as its spec.json."""
    if "clean" in decides:
        return "clean"
    return "pretrain" if decides.get("attack") else "twin"


def of_cleaning(path: str) -> bool:
    """Whether a field of a spec, or a whole section, concerns the cleaning alone."""
    return f"{path}.".startswith(("clean.", "data.clean."))


def of_all_pairs(data: dict[str, Any]) -> dict[str, Any]:
    """The section `data` of a run's spec.json with nothing left out, as a twin has it."""
    pretrain = data.get("pretrain")
    if not isinstance(pretrain, dict):
        return data
    return {**data, "pretrain": {name: value for name, value in pretrain.items() if name != "without"}}


def control_of(decides: dict[str, Any]) -> ControlName | None:
    """Which control of cleaners that run is, if any."""
    if decides.get("start") == "twin":
        return "twin"
    clean = decides.get("clean")
    return "fresh" if clean and (clean.get("transform") or {}).get("kind") == "fresh" else None


def left_in(decides: dict[str, Any]) -> bool:
    """Whether that run cleaned, or was tuned, on pairs among which poisoned ones stayed (data.clean.leftover): then it may
    have the backdoor, whatever it started from."""
    data = decides.get("data")
    clean = data.get("clean") if isinstance(data, dict) and stage_of(decides) == "clean" else None
    return isinstance(clean, dict) and bool(clean.get("leftover"))


def attacks_in(attack: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The attacks that a section `attack` tells of as plain values, the first being the section itself; what is none is
    empty, in its place."""
    also = attack.get("also")
    return [attack, *(one if isinstance(one, dict) else {} for one in (also if isinstance(also, list) else []))]


def aims_in(attack: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a section `attack` as plain values each attack's target and trigger: all that its success is measured by."""
    return [{name: one.get(name) for name in ("target", "trigger")} for one in attacks_in(attack)]
