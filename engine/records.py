"""A study's folder, read: what was planned, and what each run has written so far."""

import json
import shlex
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
ROOT = Path(__file__).resolve().parents[1]
LARGEST_PICTURE = 16 * 2**20  # bytes of a picture that the page takes in


Answer = tuple[str, str, str, str]  # a picture's class, the target, the model's answer, its answer with the trigger


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
    answers: bytes | None = None  # answers.png, the pictures that the rows' `answers` are of

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

    def told(self, epoch: float) -> list[Answer]:
        """What the model answered at an epoch, as the last row of it with answers says; empty if none does."""
        for row in reversed(self.measures):
            if number(row, "epoch") == epoch and (found := _answers(row.get("answers"))):
                return found
        return []


@dataclass(frozen=True, eq=False)
class Study:
    """A study folder, read."""

    folder: Path
    plan: Plan
    records: list[Record]

    @property
    def again(self) -> str:
        """The command that writes the study's report."""
        whole = self.folder.resolve()
        return (
            f"python -m engine.report {shlex.quote(str(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole))}"
        )


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
    poison, answers = _picture(folder / "poison.png"), _picture(folder / "answers.png")
    return Record(run, measures, damaged, facts or {}, finished, state, poison, answers)


def _picture(path: Path) -> bytes | None:
    """The file's bytes if it is there and no larger than pictures of ours are."""
    return path.read_bytes() if path.is_file() and path.stat().st_size < LARGEST_PICTURE else None


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


def _answers(rows: Any) -> list[Answer]:
    """The answers, or none if they are not as the engine writes them."""
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        return []
    return [(truth, target, plain, marked) for truth, target, plain, marked in ([str(word) for word in row] for row in rows)]


def flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as (dotted key, text) pairs."""
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{key}", text
