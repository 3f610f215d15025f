"""The open matrix: what each cleaner did to each attack on each way of pre-training, judged anew from verified studies.

A row is all that decides a pre-trained model but the seed, the clean set, and the pictures that top-1 and ASR are of; a
column is what a cleaning does, its objective and its transform. In one place stand as many cells as there are different
searches: seeds of several studies are one cell where all that was tried on each is the same. A run that several studies
hold counts once. The studies' names decide nothing.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from records.spec_json import stage_of
from records.study_json import StudyJson
from report.costs import COLUMNS, amount, cost, costs, total
from report.headline import Verdict, grounds_of
from report.load import Record, Study
from report.matrix_runs import Place, Run, counted_runs, placed, plain, tried
from report.matrix_words import attack_words, data_words, differing, search_words
from report.points import Panel, panels, spoken
from report.scores import Mean, Score
from report.submission import Submission, trained
from report.verdict import judge

LEAST = 3  # seeds; a cell of fewer is marked


class Column(NamedTuple):
    """What the cells below it are of: a `kind` of thing (a cleaner), what it does, and what studies call it."""

    kind: str
    what: str
    names: tuple[str, ...] = ()


class Row(NamedTuple):
    """A pre-trained model in words, and what tells it apart from other rows that these words fit."""

    attack: str
    objective: str
    data: str
    model: str
    differs: str = ""


@dataclass(frozen=True)
class Cell:
    """One verdict, over the seeds of all studies that tried the same. `marks` say what it lacks, `took` what its cleaning
    took; `runs` are the names of its runs by stage, `costs` a sentence each on cleaning and on what was trained before."""

    row: Row
    column: Column
    verdict: Verdict
    panel: Panel
    scores: list[Score]
    means: dict[str, Mean]
    seeds: int
    marks: list[str]
    searched: str
    took: str
    runs: dict[str, list[str]]
    costs: dict[str, str]
    commands: list[str]
    studies: list[Path]


@dataclass(frozen=True)
class Matrix:
    """All cells, and the rows and columns that they stand in, each in the order of the studies given."""

    rows: list[Row]
    columns: list[Column]
    cells: list[Cell]
    submissions: list[Submission]

    def at(self, row: Row, column: Column) -> list[tuple[int, Cell]]:
        """(Number, cell) of each cell in a place."""
        return [(at, cell) for at, cell in enumerate(self.cells) if (cell.row, cell.column) == (row, column)]


def make_matrix(submissions: Sequence[Submission]) -> Matrix:
    """The matrix of verified studies."""
    counted, conflicts = counted_runs(submissions)
    places: dict[Place, dict[str, Run]] = {}
    for given in submissions:
        for place, run in placed(given, counted):
            places.setdefault(place, {}).setdefault(run.record.run.run, run)
    rows = _rows(list(dict.fromkeys(place.row for place in places)))
    columns: dict[str, Column] = {}
    for place, runs in places.items():
        old = columns.get(place.column, Column("cleaner", _what(json.loads(place.column))))
        names = (run.record.run.cleaner or "" for run in runs.values())
        columns[place.column] = old._replace(names=tuple(dict.fromkeys(filter(None, [*old.names, *names]))))
    cells = []
    for place, runs in places.items():
        beside = [other for other in places if other[:2] == place[:2] and other != place]
        words = search_words(tried(runs.values()), [tried(places[other].values()) for other in beside])
        for cell in _cells(list(runs.values()), counted.values(), columns[place.column], words):
            row = rows[place.row]
            cells.append(
                replace(cell, row=row._replace(attack=cell.row.attack), marks=[*cell.marks, *_marks(cell, conflicts)])
            )
    return Matrix(list(dict.fromkeys(cell.row for cell in cells)), list(columns.values()), cells, list(submissions))


def _what(does: list[str]) -> str:
    kinds = [json.loads(one) for one in does]
    return ", ".join(spoken(objective) + (f" after {transform}" if transform else "") for objective, transform in kinds)


def _rows(keys: list[str]) -> dict[str, Row]:
    """Each row in words, but for its attack, with what tells it apart from others that these words fit."""
    facts = {key: json.loads(key) for key in keys}
    words = {
        key: Row(
            attack_words(fact["attack"], 0), spoken(fact["objective"]), data_words(fact), str(fact["model"].get("name"))
        )
        for key, fact in facts.items()
    }
    return {
        key: row._replace(differs=differing(facts[key], [facts[other] for other in keys if words[other] == row]))
        for key, row in words.items()
    }


def _cells(runs: list[Run], every: Iterable[Run], column: Column, searched: str) -> Iterator[Cell]:
    """The cell of each attack that the models carry; its row holds the attack alone."""
    origins = {run.record.run.start for run in runs}
    models = [one for one in every if one.images == runs[0].images and stage_of(one.decided.whole) != "clean"]
    starts = [one for one in models if one.record.run.run in origins]
    own = {plain(trained(one.decided, "seed", "attack")) for one in starts}
    twins = [
        one for one in models if one.record.run.stage == "twin" and plain(trained(one.decided, "seed", "attack")) in own
    ]
    members = {"pretrain": starts, "twin": twins, "clean": runs}
    records = {stage: [_as_member(run, column) for run in those] for stage, those in members.items()}
    whole = _study([record for those in records.values() for record in those])
    took = {"cleaning": records["clean"], "before cleaning": records["pretrain"] + records["twin"]}
    given = list({run.given.path: run.given for run in runs}.values())
    for at, panel in enumerate(panels(whole)):
        judged = judge([panel])
        yield Cell(
            Row(attack_words(runs[0].decided.attack, at), "", "", ""),
            column,
            judged.verdicts[0],
            panel,
            judged.scores,
            next(iter(judged.means.values()), {}),
            len({run.decided.seed for run in runs}),
            [],
            searched,
            _took(records["clean"]),
            {stage: [run.record.run.run for run in those] for stage, those in members.items()},
            {what: costs(_study(those)).sentence for what, those in took.items() if those},
            list(dict.fromkeys(one.study.plan.command for one in given if one.study.plan.command)),
            [one.path for one in given],
        )


def _as_member(run: Run, column: Column) -> Record:
    """The run's record with the names that its cell's other runs have, whatever its study calls it and what it swept; in a
    cell of its own training from fresh weights is judged as cleaners are."""
    entry = run.record.run
    cleaner = column.what if entry.stage == "clean" else None
    return replace(run.record, run=entry.model_copy(update={"swept": {}, "cleaner": cleaner, "control": None}))


def _took(records: list[Record]) -> str:
    """How many runs these are, and their wall time."""
    wall, whole = COLUMNS[0], total([cost(record) for record in records])
    scale, unit = wall.unit(whole)
    return f"{len(records)} runs" + (f", {amount(whole.wall / scale)} {unit}" if whole.wall is not None else "")


def _study(records: list[Record]) -> Study:
    return Study(Path(), StudyJson(name="", runs=[record.run for record in records]), records)


def _marks(cell: Cell, conflicts: dict[str, list[Path]]) -> list[str]:
    """What a reader must know of a cell before trusting it."""
    marks = [] if cell.seeds >= LEAST else [f"{cell.seeds} seed{'s' * (cell.seeds > 1)}, fewer than {LEAST}"]
    marks += [] if cell.panel.twins else ["no twin"]
    bare = [reason for reason in grounds_of(cell.panel).values() if reason.state != "firm"]
    if bare:
        marks.append(f"no ground in {len(bare)} of {len(cell.panel.starts)}: {bare[0].why}")
    for run in (run for runs in cell.runs.values() for run in runs if run in conflicts):
        others = ", ".join(map(str, conflicts[run]))
        marks.append(f"{run} has other numbers in {others}; those of the study given first count")
    return marks
