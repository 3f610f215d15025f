"""What a folder of studies would cost, one line a spec: --dry-run on a folder touches nothing and needs no data."""

import io
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from configs.plan import runs
from configs.spec import Loaded, load
from configs.sweep import Optuna
from data.refusal import UserError
from data.store import NoShards
from engine.estimate.cost import Cost, cost, cost_notes, number, unknown
from engine.estimate.dry_run import pairs_drawn
from engine.estimate.gpus import Assumed
from engine.training.check import at_hand, carries_out, refusals, refuse
from engine.training.inputs import StudyInputs
from engine.training.pairs import StudyPairs
from records.folder import RUNS


def total(loaded: Loaded, stage: str | None, pairs: StudyPairs, notes: set[str], counted: Container[str] = ()) -> Cost:
    """Of all runs of a spec, finished ones too, but for those whose fingerprints are in `counted`."""
    summed = Cost()
    for run in runs(loaded.points, stage):
        if run.fingerprint in counted:
            continue
        drawn = pairs_drawn(run, pairs, notes)
        if drawn is None:
            notes.add(f"{loaded.spec.name}: its pairs are unknown; give data.pretrain.expect")
            summed += unknown(run)
        else:
            summed += cost(run, drawn, notes)
    if isinstance(loaded.spec.sweep.search, Optuna):
        notes.add(f"{loaded.spec.name}: of its search only the first trials are counted")
    return summed


def dry_run_folder(
    folder: Path, settings: list[str], stage: str | None, machine: Assumed, say: Callable[[str], None]
) -> tuple[str, list[str]]:
    """(one table of all specs in a folder, a line for each that would be refused); UserError if it holds none."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise UserError(f"{folder} holds no .yaml file; give a spec, or a folder of specs")
    rows: list[tuple[str, Cost]] = []
    common, counted = Cost(), set[str]()
    broken: list[str] = []
    notes: set[str] = set()
    with TemporaryDirectory() as scratch:
        for path in paths:
            try:
                loaded = load(path, settings, say)
                pairs = _checked(loaded, stage, StudyInputs(RUNS / loaded.spec.name, machine.world, Path(scratch)), notes)
                rows.append((path.name, total(loaded, stage, pairs, notes)))
                common += total(loaded, stage, pairs, notes, counted)
                counted |= {run.fingerprint for run in runs(loaded.points, stage)}
            except UserError as error:
                broken.append(f"{path.name}: {' '.join(str(error).split())}")
    sums = [("total", sum((spec_cost for _, spec_cost in rows), Cost())), ("runs in common done once", common)]
    return _table(folder, rows, sums, sorted(notes), machine.dollars), broken


def _checked(loaded: Loaded, stage: str | None, shared: StudyInputs, notes: set[str]) -> StudyPairs:
    """The pairs of a spec's runs; UserError for what a run would refuse, notes of what is only missing here."""
    sweep, size = loaded.spec.sweep, shared.world.size
    every = runs(loaded.points, stage)
    ranks = [size if carries_out(sweep, run, size) else sweep.processes for run in every]
    refused, missing = at_hand(
        refusals(zip(every, ranks, strict=True), shared), loaded.spec.data.pretrain.expect is not None
    )
    refuse(refused)
    notes |= {f"{error.fault}: not looked at" for error in missing if not isinstance(error, NoShards)}
    return shared.pairs


def _table(
    folder: Path,
    rows: Sequence[tuple[str, Cost]],
    sums: Sequence[tuple[str, Cost]],
    notes: list[str],
    dollars: float | None,
) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"specs in {folder}", title_justify="left")
    heads = ("file", "pre-trainings", "cleanings", "steps", "pairs seen", "GPU-hours", *(["dollars"] if dollars else []))
    for head in heads:
        table.add_column(head, overflow="fold", justify="left" if head == "file" else "right")
    for name, spec_cost in rows:
        table.add_row(name, *_cells(spec_cost, dollars))
    table.add_section()
    for name, summed in sums:
        table.add_row(name, *_cells(summed, dollars))
    out = io.StringIO()
    console = Console(file=out, width=150)
    console.print(table)
    for note in (
        *notes,
        *cost_notes(dollars),
        "studies in one folder take finished runs over from each other (machine.adopt); nothing was written",
    ):
        console.print(note, markup=False, highlight=False)
    return out.getvalue()


def _cells(cost: Cost, dollars: float | None) -> list[str]:
    counts = [number(count) for count in (cost.pretrainings, cost.cleanings, cost.steps, cost.pairs)]
    return [*counts, number(cost.hours), *([number(cost.price(dollars))] if dollars else [])]
