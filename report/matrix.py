"""The open matrix: what was done to each attack on each way of pre-training, judged anew from verified studies.

A row is all that decides a pre-trained model but the seed, the clean set, and the pictures that top-1 and ASR are of; a
column is of one of the kinds in report/columns: what a cleaning does, a detector, an audit. In one place stand as many cells
as there are different searches: seeds of several studies are one cell where all that was asked or tried is the same. A run
that several studies hold counts once, and a search whose runs are all part of a larger one is no cell of its own. The
studies' names decide nothing. What depends on no clean set stands in every row of its pre-training.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from report.columns.contract import Group, Kind, Said, Value
from report.columns.registry import KINDS
from report.costs import costs
from report.headline import grounds_of
from report.matrix_runs import Place, counted_runs, models_of, parted, study_of
from report.matrix_words import attack_words, data_words, differing
from report.points import spoken
from report.submission import Submission

LEAST = 3  # seeds; a cell of fewer is marked


class Column(NamedTuple):
    """What the cells below it are of: a `kind` of thing (a cleaner), what it is, and what studies call it."""

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
    """What is said of one place, over the seeds of all studies that asked the same; `stands` are the rows that it stands in.
    `marks` say what it lacks; `runs` are the names of its runs by stage, `costs` a sentence each."""

    row: Row
    stands: tuple[Row, ...]
    column: Column
    said: Said
    tried: str
    seeds: int
    marks: list[str]
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
        return [(at, cell) for at, cell in enumerate(self.cells) if row in cell.stands and cell.column == column]


def make_matrix(submissions: Sequence[Submission]) -> Matrix:
    """The matrix of verified studies."""
    counted, conflicts = counted_runs(submissions)
    places: dict[tuple[Kind, Place], dict[str, Value]] = {}
    for kind in KINDS:
        for given in submissions:
            for value in kind.values(given, counted):
                name = value.run.record.run.run
                first = places.setdefault((kind, value.place), {}).setdefault(name, value)
                if first.numbers != value.numbers:
                    conflicts.setdefault(name, []).append(given.path)
    places = {at: values for at, values in places.items() if not _part_of_another(at, places)}
    rows = _rows(list(dict.fromkeys(place.row for _, place in places)))
    columns: dict[tuple[Kind, str], Column] = {}
    for (kind, place), values in places.items():
        old = columns.get((kind, place.column), Column(kind.name, kind.what(place.column)))
        names = dict.fromkeys(filter(None, [*old.names, *(value.called for value in values.values())]))
        columns[kind, place.column] = old._replace(names=tuple(names))
    made = list[tuple[str, Cell]]()
    for (kind, place), values in places.items():
        row = [
            (there, list(others.values()))
            for (other, there), others in places.items()
            if other is kind and there[0] == place[0]
        ]
        beside = [others for there, others in row if there[:2] == place[:2] and there != place]
        models = models_of([value.run for value in values.values()], counted.values())
        group = Group(list(values.values()), models, beside, [value for _, others in row for value in others])
        for cell in _cells(kind, group, columns[kind, place.column], conflicts):
            words = attack_words(group.runs[0].decided.attack, cell.said.attack or 0)
            made.append((place.row, replace(cell, row=rows[place.row]._replace(attack=words))))
    cells = _stood(made)
    rows_in = list(dict.fromkeys(row for cell in cells for row in cell.stands))
    return Matrix(rows_in, list(columns.values()), cells, list(submissions))


def _part_of_another(at: tuple[Kind, Place], places: Mapping[tuple[Kind, Place], Mapping[str, Value]]) -> bool:
    """Whether all values of a place are among those of a larger search in the same row and column."""
    kind, place = at
    ours = {name: value.numbers for name, value in places[at].items()}
    beside = (values for (other, there), values in places.items() if other is kind and there[:2] == place[:2])
    return any(
        len(ours) < len(values) and all(name in values and values[name].numbers == ours[name] for name in ours)
        for values in beside
    )


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


def _cells(kind: Kind, group: Group, column: Column, conflicts: dict[str, list[Path]]) -> Iterator[Cell]:
    """The cells of one place; their row is not told yet."""
    runs = {"pretrain": group.models.starts, "twin": group.models.twins, "clean": []}
    runs["clean"] = [run for run in group.runs if run.record.run.stage == "clean"]
    names = {stage: [run.record.run.run for run in those] for stage, those in runs.items()}
    given = list({run.given.path: run.given for run in group.runs}.values())
    before, earlier = runs["pretrain"] + runs["twin"], "before cleaning" if runs["clean"] else "pre-training"
    seeds, tried = len({run.decided.seed for run in group.runs}), kind.tried(group)
    for said in kind.cells(group, column.what):
        marks = [] if seeds >= LEAST else [f"{seeds} seed{'s' * (seeds > 1)}, fewer than {LEAST}"]
        yield Cell(
            row=Row("", "", "", ""),
            stands=(),
            column=column,
            said=said,
            tried=tried,
            seeds=seeds,
            marks=[*marks, *_lacks(said), *_conflicts(names, conflicts)],
            runs=names,
            costs={**said.costs, **({earlier: costs(study_of(before)).sentence} if before else {})},
            commands=list(dict.fromkeys(filter(None, [*(one.study.plan.command for one in given), *said.commands]))),
            studies=[one.path for one in given],
        )


def _lacks(said: Said) -> Iterator[str]:
    """What a reader must know of a cell before trusting it."""
    if not said.panel.twins:
        yield "no twin"
    bare = [reason for reason in grounds_of(said.panel).values() if reason.state != "firm"]
    if bare:
        yield f"no ground in {len(bare)} of {len(said.panel.starts)}: {bare[0].why}"
    yield from said.marks


def _conflicts(names: dict[str, list[str]], conflicts: dict[str, list[Path]]) -> Iterator[str]:
    for run in (run for runs in names.values() for run in runs if run in conflicts):
        others = ", ".join(map(str, dict.fromkeys(conflicts[run])))
        yield f"{run} has other numbers in {others}; those of the study given first count"


def _stood(made: Sequence[tuple[str, Cell]]) -> list[Cell]:
    """The cells with the rows that they stand in: one that depends on no clean set in all rows of its pre-training, or in a
    row of its own where no cleaning has one."""
    parts = [(*parted(row), cell) for row, cell in made]
    own = [(home, cell) for home, cleaned, cell in parts if cleaned]
    out = []
    for home, cleaned, cell in parts:
        at = cell.said.attack
        alike = [one.row for there, one in own if there == home and (at is None or one.said.attack == at)]
        out.append(replace(cell, stands=(cell.row,) if cleaned or not alike else tuple(dict.fromkeys(alike))))
    return out
