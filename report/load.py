"""A study's folder, read: what was planned, and what each run has written so far."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

from data.refusal import UserError
from records.audit import FOLDER, AuditJson
from records.card import Card
from records.detection import DetectionJson
from records.ending import FailedJson, FinishedJson, PrunedJson, run_journal
from records.folder import RecordFile
from records.json_file import Damaged
from records.perturbation import PerturbationJson
from records.rows import Answer, BadRow, MeasureRow, StepRow, in_words
from records.spec_json import attacks_in, read_decides
from records.study_json import RunEntry, StudyJson

KEYS = ("run", "stage", "pretrain_objective", "clean_objective", "cleaner", "rate", "seed", "epoch", "step", "images")
RATES = ("top1", "asr")
ROOT = Path(__file__).resolve().parents[1]
AnyFile = TypeVar("AnyFile", bound=RecordFile)
LARGEST_PICTURE = 16 * 2**20  # bytes of a picture that the page takes in


class Table(NamedTuple):
    """Columns, and rows by column; a row may lack some."""

    columns: list[str]
    rows: list[dict[str, Any]]


class Pace(NamedTuple):
    """What a journal's steps took: pairs, and seconds without those of measuring; both 0 if no step says so."""

    pairs: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Record:
    """What one run has written so far. `state` says in words how far it came; `card` and `end` are None where the run's
    folder has none that can be read."""

    run: RunEntry
    measures: list[MeasureRow]
    damaged: int  # lines of the journal that are not as they were written
    card: Card | None
    finished: bool
    state: str
    poison: bytes | None
    answers: bytes | None = None  # answers.png, the pictures that the rows' `answers` are of
    pace: Pace = Pace()
    end: FinishedJson | PrunedJson | None = None
    perturbed: PerturbationJson | None = None
    faults: tuple[str, ...] = ()  # files that are damaged, and so left out
    attack: Mapping[str, Any] = field(default_factory=dict)  # what its spec.json says of it
    audit: AuditJson | None = None
    detection: DetectionJson | None = None  # how its training pairs were scored
    failed: FailedJson | None = None  # why it has not ended, where it can't as it is

    @property
    def ended(self) -> bool:
        """Whether the study is done with it: it is finished, or sweep.stop ended it early."""
        return self.finished or self.end is not None

    @property
    def diverged(self) -> bool:
        """Whether it can't end since its numbers were not finite any more."""
        return self.failed is not None and self.failed.diverged

    def _aim(self, attack: int) -> Mapping[str, Any]:
        aims = attacks_in(self.attack)
        return aims[attack - 1] if attack <= len(aims) else {}

    def trigger(self, attack: int) -> str | None:
        """The kind of trigger of an attack, 1 the first; None if that is not told."""
        trigger = self._aim(attack).get("trigger")
        return trigger.get("kind") if isinstance(trigger, Mapping) else None

    def target(self, attack: int) -> str | None:
        """The one target of an attack, 1 the first; None if that is not told, or there may be several."""
        target = self._aim(attack).get("target")
        return target if isinstance(target, str) and self.trigger(attack) != "multi" else None

    @cached_property
    def counted(self) -> list[MeasureRow]:
        """The rows of evaluations that count: of a set that was measured anew, with other pictures, none of those before."""
        out: list[MeasureRow] = []
        for row in self.measures:
            out = [*((one for one in out if one.images != row.images) if row.anew else out), row]
        return out

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """One row for each evaluation of the run, its keys the columns of results.csv.

        Rows of one moment and one set of images are one evaluation; of a number measured twice (a resumed
        run) the later one counts.
        """
        merged: dict[tuple[float, float, str], dict[str, Any]] = {}
        for row in self.counted:
            numbers = {in_words(name, row.targets): value for name, value in row.numbers().items() if name not in KEYS}
            merged.setdefault((row.epoch, row.step, row.images), dict.fromkeys(RATES)).update(numbers)
        facts = dict(flat(self.run.swept)) | self.run.model_dump(include=set(KEYS))
        facts |= {"control": self.run.control} if self.run.control else {}
        return [{**numbers, **facts, **dict(zip(KEYS[-3:], at, strict=True))} for at, numbers in sorted(merged.items())]

    def answers_at(self, epoch: float) -> list[Answer]:
        """What the model answered at an epoch, as the last row of it with answers says; empty if none does."""
        return next((row.answers for row in reversed(self.counted) if row.epoch == epoch and row.answers), [])


@dataclass(frozen=True, eq=False)
class Study:
    """A study folder, read."""

    folder: Path
    plan: StudyJson
    records: list[Record]
    probes: list[Record] = field(default_factory=list)  # the runs that probe cleaned models, which are no cleanings

    @cached_property
    def compared_images(self) -> tuple[str | None, str | None]:
        """The images whose top-1 and whose ASR are compared: the first with both, or the first of each."""
        rows = self.results.rows
        tops, asrs = (list(dict.fromkeys(row["images"] for row in rows if row[key] is not None)) for key in RATES)
        both = [images for images in tops if images in asrs]
        return (both or tops or [None])[0], (both or asrs or [None])[0]

    @cached_property
    def results(self) -> Table:
        """All evaluations."""
        rows = [row for record in self.records for row in record.evaluations]
        swept = {key for record in self.records for key, _ in flat(record.run.swept)} - {*KEYS, *RATES}
        others = {key for row in rows for key in row} - {*KEYS, *RATES} - swept
        return Table([*KEYS, *RATES, *sorted(others), *sorted(swept)], rows)

    @property
    def by_target(self) -> list[str]:
        """The columns with ASR of one target among several, under its name."""
        return [column for column in self.results.columns if column.startswith("ASR (")]

    @property
    def again(self) -> str:
        """The command that writes the study's report."""
        whole = self.folder.resolve()
        return f"python -m report {shlex.quote(str(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole))}"


def read_study(folder: Path) -> Study:
    """The study in the folder. Raises UserError for anything that is not one."""
    plan = StudyJson.read(folder)
    if plan is None:
        hint = "Give the folder that engine/run.py wrote, such as runs/demo."
        raise UserError(f"{folder} is not a study: expected a folder with study.json in it. {hint}")
    records = [_read_run(folder / run.run, run) for run in plan.runs]
    own, probes = ([record for record in records if (record.run.after is None) == own] for own in (True, False))
    return Study(folder, plan, own, probes)


def _read_run(folder: Path, run: RunEntry) -> Record:
    """What is in a run's folder; a missing file is an early state, no error, and what is damaged is left out and named."""
    faults: list[str] = []
    finished = (folder / FinishedJson.FILE).is_file()
    end = _read(FinishedJson, folder, faults) if finished else None
    rows, damaged = run_journal(folder)
    pruned = None if finished else _read(PrunedJson, folder, faults)
    state = "finished" if finished else "not started"
    if isinstance(end, FinishedJson) and end.taken_over:
        state = f"finished, taken over from {end.taken_over.study}"
    failed = None if finished or pruned else _read(FailedJson, folder, faults)
    if rows and not finished:
        state = f"unfinished, at epoch {rows[-1].epoch}, step {rows[-1].step}"
    if pruned or failed:
        state = f"stopped early by sweep.stop: {pruned.why}" if pruned else f"failed: {failed.message if failed else ''}"
    poison, answers = (_picture(folder / name, faults) for name in ("poison.png", "answers.png"))
    attack, detection = _attack(folder, faults), _read(DetectionJson, folder, faults)
    audit = _read(AuditJson, folder / FOLDER, faults)
    measures, card = [row for row in rows if isinstance(row, MeasureRow)], _read(Card, folder, faults)
    ended, perturbed = end or pruned, _read(PerturbationJson, folder, faults)
    return Record(
        run, measures, len(damaged), card, finished, state, poison, answers, _pace(rows), ended, perturbed, tuple(faults),
        attack, audit, detection, failed,
    )  # fmt: skip


def _attack(folder: Path, faults: list[str]) -> Mapping[str, Any]:
    try:
        attack = (read_decides(folder) or {}).get("attack")
    except Damaged as damage:
        faults.append(damage.fault)
        return {}
    return attack if isinstance(attack, dict) else {}


def _read(kind: type[AnyFile], folder: Path, faults: list[str]) -> AnyFile | None:
    try:
        return kind.read(folder)
    except Damaged as damage:
        faults.append(damage.fault)
        return None


def _picture(path: Path, faults: list[str]) -> bytes | None:
    """The PNG file's bytes if it is there, whole, and no larger than pictures of ours are."""
    if not path.is_file() or path.stat().st_size >= LARGEST_PICTURE:
        return None
    body = path.read_bytes()
    if not _is_whole_png(body):
        faults.append(f"{path} is damaged")
        return None
    return body


def _is_whole_png(body: bytes) -> bool:
    """Whether each chunk (length, kind, data, CRC) is as it was written, up to the last, IEND (PNG, section 5)."""
    at, kind = 8, b""
    while kind != b"IEND" and at + 12 <= len(body):
        end = at + 12 + int.from_bytes(body[at : at + 4])
        kind, crc = body[at + 4 : at + 8], body[end - 4 : end]
        if crc32(body[at + 4 : end - 4]) != int.from_bytes(crc) or len(crc) < 4:
            return False
        at = end
    return body[:8] == b"\x89PNG\r\n\x1a\n" and kind == b"IEND" and at == len(body)


def _pace(rows: list[StepRow | BadRow | MeasureRow]) -> Pace:
    """What the steps took, those without a finite loss among them."""
    paces = [
        (row.pairs_per_s, row.seconds)
        for row in rows
        if not isinstance(row, MeasureRow) and row.pairs_per_s is not None and row.seconds is not None
    ]
    return Pace(sum(pairs * seconds for pairs, seconds in paces), sum(seconds for _, seconds in paces))


def flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as (dotted key, text) pairs."""
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{key}", text
