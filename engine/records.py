"""A study's folder, read: what was planned, and what each run has written so far."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from data.refusal import Refusal

KEYS = ("run", "stage", "pretrain_objective", "clean_objective", "cleaner", "rate", "seed", "epoch", "step", "images")
RATES = ("top1", "asr")
STEP = b'{"kind": "step"'  # how the journal begins a step's row
LARGEST_PICTURE = 16 * 2**20  # bytes of a poison.png that the page takes in


class Run(BaseModel, frozen=True):
    """One run as study.json lists it."""

    run: str
    stage: Literal["pretrain", "twin", "clean"]
    start: str | None = None
    pretrain_objective: str
    clean_objective: str | None = None
    cleaner: str | None = None  # what the sweep calls it, or its objective
    cleaning: tuple[str, ...] = ()  # the names in `swept` that concern the cleaning alone
    rate: float | None = None
    seed: int | None = None
    swept: dict[str, Any] = {}


class Plan(BaseModel, frozen=True):
    """study.json: what was asked, and the runs that answer it."""

    name: str
    command: str = ""
    question: str | None = None
    target: str | None = None
    spec: dict[str, Any] = {}
    runs: list[Run]


@dataclass(frozen=True, eq=False)
class Record:
    """What one run has written so far; `state` says in words how far it came."""

    run: Run
    measures: list[dict[str, Any]]
    damaged: int
    card: dict[str, Any]
    finished: bool
    state: str
    poison: bytes | None

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """One row for each evaluation of the run, its keys the columns of results.csv.

        Rows of one moment and one set of images are one evaluation; of a number measured twice (a resumed
        run) the later one counts.
        """
        merged: dict[tuple[float, float, str], dict[str, Any]] = {}
        for row in self.measures:
            at = (number(row, "epoch") or 0, number(row, "step") or 0, str(row.get("images", "")))
            numbers = {key: n for key in row if key not in KEYS and (n := number(row, key)) is not None}
            merged.setdefault(at, dict.fromkeys(RATES)).update(numbers)
        facts = dict(flat(self.run.swept)) | self.run.model_dump(include=set(KEYS))
        return [{**numbers, **facts, **dict(zip(KEYS[-3:], at, strict=True))} for at, numbers in sorted(merged.items())]


@dataclass(frozen=True, eq=False)
class Study:
    """A study folder, read."""

    folder: Path
    plan: Plan
    records: list[Record]


def read_study(folder: Path) -> Study:
    """The study in the folder. Raises Refusal for anything that is not one."""
    path = folder / "study.json"
    hint = "Give the folder that engine/run.py wrote, such as runs/demo."
    if not path.is_file():
        raise Refusal(f"{folder} is not a study: expected a folder with study.json in it. {hint}")
    try:
        plan = Plan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise Refusal(f"{path} cannot be read: {where}: {first['msg']}. {hint}") from error
    for run in plan.runs:
        if run.run in ("", ".", "..") or Path(run.run).name != run.run:
            raise Refusal(f"{path} names the run {run.run!r}, expected the plain name of a folder. {hint}")
    return Study(folder, plan, [_read_run(folder / run.run, run) for run in plan.runs])


def _read_run(folder: Path, run: Run) -> Record:
    """What is in a run's folder; a missing or half-written file is an early state, no error."""
    measures, damaged, last = _read_rows(folder / "metrics.jsonl")
    finished = (folder / "finished.json").is_file()
    state = "finished" if finished else "not started"
    if last and not finished:
        state = f"unfinished, at epoch {last.get('epoch', '?')}, step {last.get('step', '?')}"
    card = folder / "card.json"
    facts = parse(card.read_bytes()) if card.is_file() else None
    poison = folder / "poison.png"
    picture = poison.read_bytes() if poison.is_file() and poison.stat().st_size < LARGEST_PICTURE else None
    return Record(run, measures, damaged, facts or {}, finished, state, picture)


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], int, dict[str, Any] | None]:
    """The measures of a journal, how many lines were damaged, and its last row; a last line cut short is not counted.

    Most lines are steps, of which the report needs no number: a whole one is not parsed.
    """
    if not path.is_file():
        return [], 0, None
    lines = path.read_bytes().split(b"\n")
    told = [line for line in lines[:-1] if line.strip() and not (line.startswith(STEP) and line.endswith(b"}"))]
    rows = [_row(line) for line in told]
    whole = [row for row in [*rows, _row(lines[-1])] if row is not None]
    last = next((row for line in reversed(lines) if (row := _row(line)) is not None), None)
    return [row for row in whole if row.get("kind") == "measure"], rows.count(None), last


def _row(line: bytes) -> dict[str, Any] | None:
    return parse(line.decode("utf-8", "replace"))


def parse(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object in the text, or None if there is none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def number(row: dict[str, Any], key: str) -> float | None:
    """The row's finite number under the key, or None."""
    value = row.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 else None


def flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as (dotted key, text) pairs."""
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{key}", text
