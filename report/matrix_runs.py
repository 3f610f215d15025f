"""The runs of verified studies, each counted once, the rows of the open matrix that they stand in, and the models that they
are of."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

from records.rows import TIMING
from records.spec_json import aims_in, of_all_pairs, stage_of
from records.study_json import ControlName, StudyJson
from report.load import Record, Study
from report.points import Panel, panels
from report.scores import FRESH
from report.submission import Decided, Submission, trained

ROUNDING = 1e-5  # by which a number may differ between machines; one picture of 10,000 is more
OF_CLEANING = ("clean set", "start")  # what tells a row apart from others of the same pre-training


class Run(NamedTuple):
    """A run that counts: as the first study that holds it has it, judged on the images that `images` tells of; `also` is it
    as later studies have it, which may have looked for other things in it."""

    record: Record
    decided: Decided
    images: str
    given: Submission
    also: tuple["Run", ...] = ()

    @property
    def copies(self) -> tuple["Run", ...]:
        """It as each study has it."""
        return (self, *self.also)


class Place(NamedTuple):
    """Of a cell all that decides it but the seeds, as plain values in JSON: the model, the column, what was tried."""

    row: str
    column: str
    search: str


class Models(NamedTuple):
    """The pre-trained models that some runs are or start from, and all that are pre-trained as they are but for the seed and
    the attack: themselves, their twins, others without poison."""

    starts: list[Run]
    alike: list[Run]

    @property
    def twins(self) -> list[Run]:
        """Those that are twins, as a study has them that measured them under an attack of the starts: of another trigger a
        twin's ASR says nothing."""
        asked = {aims_of(one) for one in self.starts}
        seen = (
            [copy for copy in one.copies if aims_of(copy) in asked] for one in self.alike if one.record.run.stage == "twin"
        )
        return [first._replace(also=tuple(others)) for first, *others in filter(None, seen)]


def plain(value: Any) -> str:
    """Plain values as one text, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True)


def aims_of(run: Run) -> str | None:
    """Under which triggers and targets a run's attack success was measured. A twin's own record tells; in those of before
    December 2026 it is the attack of its study's models, if they have one alone, else None."""
    if stage_of(run.decided.whole) != "twin":
        return plain(aims_in(run.decided.attack))
    told = getattr(run.record.end, "measured", {}).get("attack")
    if told is not None:
        return plain(told)
    every = {plain(aims_in(one.attack)) for one in run.given.decided.values() if one.attack}
    return every.pop() if len(every) == 1 else None


def counted_runs(submissions: Sequence[Submission]) -> tuple[dict[tuple[str, str], Run], dict[str, list[Path]]]:
    """Each run once, by its name and its images; and of those that a later study has with other numbers, which study."""
    held: dict[tuple[str, str], list[Run]] = {}
    conflicts: dict[str, list[Path]] = {}
    for given in submissions:
        for record in given.study.records:
            run = Run(record, given.decided[record.run.run], images_of(given.study, record), given)
            copies = held.setdefault((record.run.run, run.images), [])
            alike = [copy for copy in copies if aims_of(copy) == aims_of(run)]  # others measured a twin under another attack
            if alike and _disagree(_numbers(alike[0].record), _numbers(record)):
                conflicts.setdefault(record.run.run, []).append(given.path)
            copies.append(run)
    return {key: first._replace(also=tuple(others)) for key, (first, *others) in held.items()}, conflicts


def as_held(counted: Mapping[tuple[str, str], Run], given: Submission, record: Record) -> Run:
    """A run that counts, as one of the studies that hold it has it: for what was found of it there."""
    return counted[record.run.run, images_of(given.study, record)]._replace(record=record, given=given)


def images_of(study: Study, record: Record) -> str:
    """Of which pictures the compared numbers are: the names of their sets, where those lie, and whose labels."""
    data = study.plan.spec.get("data")
    measured = getattr(record.end, "measured", None) or (data if isinstance(data, dict) else {})
    sets = measured["test"] if isinstance(measured.get("test"), dict) else {}
    names = [name for name in study.compared_images if name is not None]
    return plain({"images": names, "test": {name: sets.get(name) for name in names}, "labels": measured.get("labels")})


def _numbers(record: Record) -> dict[tuple[float, float, str], dict[str, Any]]:
    """What the run measured at each moment, without its timing; of a number measured twice the later one counts."""
    merged: dict[tuple[float, float, str], dict[str, Any]] = {}
    for row in record.counted:
        numbers = {name: value for name, value in row.numbers().items() if name not in TIMING}
        merged.setdefault((row.epoch, row.step, row.images), {}).update(numbers)
    return merged


def _disagree(first: dict[Any, dict[str, Any]], other: dict[Any, dict[str, Any]]) -> bool:
    """Whether a number that both studies measured of a run differs by more than another machine's rounding. Each may have
    measured what the other did not."""
    return any(
        not _alike(numbers[name], other[moment][name])
        for moment, numbers in first.items()
        if moment in other
        for name in numbers.keys() & other[moment].keys()
    )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return bool(one == other)


def row_of(run: Run) -> str:
    """The row that a run stands in: all that decides the pre-trained model that it is or starts from, but the seed; the
    clean set of a cleaning; and the pictures that it is judged on."""
    decided = run.decided
    start = None if decided.pretrain is not None or decided.clean is None else decided.clean.start
    facts = {"start": start, "clean set": decided.data.get("clean"), "images": json.loads(run.images)}
    return plain({**trained(decided, "seed"), **facts, "objective": run.record.run.pretrain_objective})


def parted(row: str) -> tuple[str, bool]:
    """(A row without what is a cleaning's own, whether it has such)."""
    facts = json.loads(row)
    own = {name: facts.pop(name) for name in OF_CLEANING}
    return plain(facts), any(value is not None for value in own.values())


def models_of(runs: Sequence[Run], every: Iterable[Run]) -> Models:
    """The models of some runs, among all runs that count."""
    origins = {run.record.run.start if run.record.run.stage == "clean" else run.record.run.run for run in runs}
    models = [one for one in every if one.images == runs[0].images and stage_of(one.decided.whole) != "clean"]
    starts = [one for one in models if one.record.run.run in origins]
    own = {_untouched(one) for one in starts}
    return Models(starts, [one for one in models if _untouched(one) in own])


def _untouched(run: Run) -> str:
    """What decides a pre-training but its seed, its attack and what it leaves out: a twin leaves out nothing."""
    facts = trained(run.decided, "seed", "attack")
    return plain({**facts, "data": of_all_pairs(facts["data"])})


def study_of(runs: Iterable[Run], what: str = "", scratch: Iterable[Run] = ()) -> Study:
    """The runs as one study, whatever their studies call them and swept; a cleaning is one by `what`, and one of fresh
    weights is judged as cleaners are, unless it is among `scratch`, the control."""
    records = [*(_as_member(run, what) for run in runs), *(_as_member(run, what, FRESH) for run in scratch)]
    return Study(Path(), StudyJson(name="", runs=[record.run for record in records]), records)


def panels_of(models: Models, cleanings: Iterable[Run] = (), what: str = "", scratch: Iterable[Run] = ()) -> list[Panel]:
    """What was measured of the models and cleanings, a panel for each attack."""
    return panels(study_of([*models.starts, *models.twins, *cleanings], what, scratch))


def _as_member(run: Run, what: str, control: ControlName | None = None) -> Record:
    entry = run.record.run
    cleaner = what if entry.stage == "clean" else None
    return replace(run.record, run=entry.model_copy(update={"swept": {}, "cleaner": cleaner, "control": control}))
