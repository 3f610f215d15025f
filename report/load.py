"""A study's folder, read: what was planned, and what each run has written so far."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ValidationError

from data.refusal import UserError
from records.folder import STOPPED

KEYS = ("run", "stage", "pretrain_objective", "clean_objective", "cleaner", "rate", "seed", "epoch", "step", "images")
RATES = ("top1", "asr")
STEP = b'{"kind": "step"'  # how the journal begins a step's row
ROOT = Path(__file__).resolve().parents[1]
PACE = re.compile(rb'"pairs_per_s": (\d+(?:\.\d+)?), "seconds": (\d+(?:\.\d+)?)')  # as the journal writes it in such a row
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


class Pace(NamedTuple):
    """What a journal's steps took: pairs, and seconds without those of measuring; both 0 if no step tells."""

    pairs: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Record:
    """What one run has written so far. `state` says in words how far it came; `end` is the finished.json of a run that
    ended, or the stopped.json of one that was given up, and empty if it has neither."""

    run: Run
    measures: list[dict[str, Any]]
    damaged: int
    card: dict[str, Any]
    finished: bool
    state: str
    poison: bytes | None
    answers: bytes | None = None  # answers.png, the pictures that the rows' `answers` are of
    pace: Pace = Pace()
    end: dict[str, Any] = field(default_factory=dict)

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
        return f"python -m report {shlex.quote(str(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole))}"


def read_study(folder: Path) -> Study:
    """The study in the folder. Raises UserError for anything that is not one."""
    path = folder / "study.json"
    hint = "Give the folder that engine/run.py wrote, such as runs/demo."
    if not path.is_file():
        raise UserError(f"{folder} is not a study: expected a folder with study.json in it. {hint}")
    try:
        plan = Plan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path} cannot be read: {where}: {first['msg']}. {hint}") from error
    for run in plan.runs:
        if run.run in ("", ".", "..") or Path(run.run).name != run.run:
            raise UserError(f"{path} names the run {run.run!r}, expected the plain name of a folder. {hint}")
    return Study(folder, plan, [_read_run(folder / run.run, run) for run in plan.runs])


def _read_run(folder: Path, run: Run) -> Record:
    """What is in a run's folder; a missing or half-written file is an early state, no error."""
    measures, damaged, last, pace = _read_rows(folder / "metrics.jsonl")
    finished = (folder / "finished.json").is_file()
    state = "finished" if finished else "not started"
    if last and not finished:
        state = f"unfinished, at epoch {last.get('epoch', '?')}, step {last.get('step', '?')}"
    facts, end = _facts(folder / "card.json"), _facts(folder / ("finished.json" if finished else STOPPED))
    poison, answers = _picture(folder / "poison.png"), _picture(folder / "answers.png")
    return Record(run, measures, damaged, facts, finished, state, poison, answers, pace, end)


def _picture(path: Path) -> bytes | None:
    """The file's bytes if it is there and no larger than pictures of ours are."""
    return path.read_bytes() if path.is_file() and path.stat().st_size < LARGEST_PICTURE else None


def _facts(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none, or none whole."""
    return (parse(path.read_bytes()) or {}) if path.is_file() else {}


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], int, dict[str, Any] | None, Pace]:
    """The measures of a journal, how many lines were damaged, its last row, and what its steps took; a last line that was
    cut short is not counted.

    Most lines are steps, of which the report needs their pace alone: a whole one is not parsed.
    """
    if not path.is_file():
        return [], 0, None, Pace()
    lines = path.read_bytes().split(b"\n")
    steps, told = list[bytes](), list[bytes]()
    for line in lines[:-1]:
        if line.startswith(STEP) and line.endswith(b"}"):
            steps.append(line)
        elif line.strip():
            told.append(line)
    rows = [_row(line) for line in told]
    whole = [row for row in [*rows, _row(lines[-1])] if row is not None]
    last = next((row for line in reversed(lines) if (row := _row(line)) is not None), None)
    return [row for row in whole if row.get("kind") == "measure"], rows.count(None), last, _pace(steps, whole)


def _pace(steps: list[bytes], rows: list[dict[str, Any]]) -> Pace:
    """What the steps took, those without a finite loss among them; `steps` are lines, `rows` what else the journal has."""
    found = [(float(at[1]), float(at[2])) for line in steps if (at := PACE.search(line))]
    for row in rows:
        pairs, seconds = number(row, "pairs_per_s"), number(row, "seconds")
        if row.get("kind") in ("step", "bad") and pairs is not None and seconds is not None:
            found.append((pairs, seconds))
    return Pace(sum(pairs * seconds for pairs, seconds in found), sum(seconds for _, seconds in found))


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
