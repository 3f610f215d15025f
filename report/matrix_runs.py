"""The runs of verified studies, each counted once, and the place in the open matrix that each stands in."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from records.rows import TIMING
from report.load import Record, Study
from report.submission import Decided, Submission, trained

OF_MACHINE = ("executor", "jobs", "processes", "slurm")  # what of a sweep decides nothing


class Run(NamedTuple):
    """A run that counts: as the first study that holds it has it, judged on the images that `images` tells of."""

    record: Record
    decided: Decided
    images: str
    given: Submission


class Place(NamedTuple):
    """Of a cell all that decides it but the seeds, as plain values in JSON: the model, the cleaner, what was tried."""

    row: str
    column: str
    search: str


def plain(value: Any) -> str:
    """Plain values as one text, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True)


def counted_runs(submissions: Sequence[Submission]) -> tuple[dict[tuple[str, str], Run], dict[str, list[Path]]]:
    """Each run once, by its name and its images; and of those that a later study has with other numbers, which study."""
    counted: dict[tuple[str, str], Run] = {}
    conflicts: dict[str, list[Path]] = {}
    for given in submissions:
        for record in given.study.records:
            run = Run(record, given.decided[record.run.run], _images(given.study, record), given)
            first = counted.setdefault((record.run.run, run.images), run)
            if _numbers(first.record) != _numbers(record):
                conflicts.setdefault(record.run.run, []).append(given.path)
    return counted, conflicts


def _images(study: Study, record: Record) -> str:
    """Of which pictures the compared numbers are: the names of their sets, where those lie, and whose labels."""
    data = study.plan.spec.get("data")
    measured = getattr(record.end, "measured", None) or (data if isinstance(data, dict) else {})
    sets = measured["test"] if isinstance(measured.get("test"), dict) else {}
    names = [name for name in study.compared_images if name is not None]
    return plain({"images": names, "test": {name: sets.get(name) for name in names}, "labels": measured.get("labels")})


def _numbers(record: Record) -> list[Any]:
    """What the run measured, without its timing."""
    return [
        (row.epoch, row.step, row.images, {name: value for name, value in row.numbers().items() if name not in TIMING})
        for row in record.measures
    ]


def placed(given: Submission, counted: dict[tuple[str, str], Run]) -> Iterator[tuple[Place, Run]]:
    """The place of each cleaning run of a study; one of a twin has none."""
    groups: dict[tuple[str, str], dict[int, list[Run]]] = {}
    for record in given.study.records:
        if record.run.stage == "clean" and record.run.control != "twin":
            run = counted[record.run.run, _images(given.study, record)]
            seeds = groups.setdefault((_row(run), record.run.cleaner or ""), {})
            seeds.setdefault(run.decided.seed, []).append(run)
    for (row, _), seeds in groups.items():
        column = plain(sorted({plain(_does(run)) for runs in seeds.values() for run in runs}))
        for runs in seeds.values():
            search = _design(given) or plain(sorted(map(plain, tried(runs))))
            for run in runs:
                yield Place(row, column, search), run


def _design(given: Submission) -> str:
    """What decides the runs of a sweep that proposes others for each seed; empty of a grid, whose runs say it themselves."""
    spec = given.study.plan.spec
    sweep = spec.get("sweep")
    search = sweep.get("search") if isinstance(sweep, dict) else None
    if not isinstance(sweep, dict) or not isinstance(search, dict) or search.get("kind", "grid") == "grid":
        return ""
    own = {name: value for name, value in sweep.items() if name not in OF_MACHINE}
    return plain({"sweep": own, "clean": spec.get("clean")})


def _row(run: Run) -> str:
    decided = run.decided
    start = None if decided.pretrain is not None or decided.clean is None else decided.clean.start
    facts = {"start": start, "clean set": decided.data.get("clean"), "images": json.loads(run.images)}
    return plain({**trained(decided, "seed"), **facts, "objective": run.record.run.pretrain_objective})


def _does(run: Run) -> tuple[str, str]:
    """What a cleaning run does: its objective, and what it does to the weights before."""
    clean = run.decided.clean
    assert clean is not None
    return clean.objective.kind, clean.transform.kind if clean.transform else ""


def tried(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The different `clean` sections of the runs."""
    sections = (run.decided.whole["clean"] for run in runs)
    return list({plain(section): section for section in sections}.values())
