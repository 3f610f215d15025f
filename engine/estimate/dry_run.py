"""What a study would do, before it does it: --dry-run touches nothing and needs no data."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator

from configs.plan import Run
from configs.spec import Loaded
from configs.sweep import Optuna
from data.refusal import Missing, UserError
from data.store import NoShards
from data.without import Without
from engine.estimate.cost import Cost, cost, cost_notes, number, unknown
from engine.estimate.fit import fit_notes
from engine.estimate.gpus import GIB, Assumed
from engine.estimate.memory import compute_type, model_size, rank_memory, rank_traffic
from engine.persistence.choice import groups
from engine.training.checkpoint import committed
from engine.training.elsewhere import finished_elsewhere
from engine.training.inputs import StudyInputs
from engine.training.labelled_inputs import read
from engine.training.pairs import StudyPairs
from records.folder import finished

COLUMNS = ("run", "what", "steps", "pairs", "poisoned", "parameters", "memory/rank", "bytes/rank/step", "GPU-h", "state")
ROWS = 200  # of the table at most; a grid may have ten thousand
TEXT_COLUMNS = ("run", "what", "state")
FINISHED = "finished"


def dry_run(
    loaded: Loaded, runs: Iterable[Run], shared: StudyInputs, machine: Assumed, missing: Iterable[UserError] = ()
) -> str:
    """The plan of every run as text: a table, runs that differ by their rate alone in one row; then notes, also of what is
    `missing` here, and what it means for this machine."""
    from rich.console import Console
    from rich.table import Table

    spec, dollars, runs = loaded.spec, machine.dollars, list(runs)
    table = Table(title=f"study {spec.name}: {shared.study}", title_justify="left")
    for column in COLUMNS:
        table.add_column(
            column, overflow="fold", justify="left" if column in TEXT_COLUMNS else "right", no_wrap=column == "run"
        )
    notes = {f"{error.fault}: not looked at" for error in missing if not isinstance(error, NoShards)}
    total, left, count, to_do, rows, sized = Cost(), Cost(), 0, 0, alike(runs), set[str]()
    for row in rows:
        pairs = pairs_drawn(row[0], shared.pairs, notes)
        if row[0].detect is not None:
            notes.add("detect scores the pairs of each pre-training: a forward pass over them, which is not counted")
        run_cost = unknown(row[0]) if pairs is None else cost(row[0], pairs, notes)
        states = [_state(one, shared) for one in row]
        for state in states:
            total, count = total + run_cost, count + 1
            if not state.startswith(FINISHED):
                left, to_do = left + run_cost, to_do + 1
        if table.row_count < ROWS:
            table.add_row(*_cells(row, shared, pairs, run_cost, machine, notes), _states(states))
        if machine.gpu is not None and (what := _memory_of(row[0])) not in sized:
            sized.add(what)
            notes |= set(fit_notes(row[0], machine))
    if (more := len(rows) - table.row_count) > 0:
        notes.add(f"{more:,} further rows are not shown; the sum counts them")
    notes |= set(still_to_come(loaded, runs))
    out = io.StringIO()
    console = Console(file=out, width=150)
    console.print(table)
    price = "" if dollars is None else f", {number(total.price(dollars))} dollars"
    hours = number(total.hours)
    together = f" for {count:,} runs, those of a row together" if len(rows) < count else ""
    runs_left = f"{to_do:,} run{'s' * (to_do != 1)}"
    done = f"; still to do: {number(left.hours)} for {runs_left}" if to_do < count else ""
    for note in (*sorted(notes), f"in all {hours} GPU-hours{price}{together}{done}", *cost_notes(dollars)):
        console.print(note, markup=False, highlight=False)
    where = f" with {machine.gpu.name} each" if machine.gpu is not None else ""
    world = machine.processes
    console.print(
        f"{world} process{'es' * (world > 1)}{where}, ZeRO stage {spec.machine.zero}; nothing was written", highlight=False
    )
    return out.getvalue()


def still_to_come(loaded: Loaded, runs: list[Run]) -> Iterator[str]:
    """What must be said of runs that are not known yet."""
    if isinstance(search := loaded.spec.sweep.search, Optuna):
        yield (
            f"the search proposes {search.trials:,} cleanings for each of {len(loaded.arms):,} combinations of what is not "
            "searched; the table lists those known so far"
        )
    if loaded.spec.after is not None:
        yield (
            f"of each of {len(groups(runs)):,} starts and cleaners a cleaned model is probed when its cleanings have ended; "
            "the table lists the probes known so far"
        )


def _memory_of(run: Run) -> str:
    """All that the memory of a rank depends on."""
    spec, stage = run.spec, run.settings
    return repr((spec.model, spec.machine, stage.objective, stage.batch, stage.norms))


def alike(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs in their order, those together that differ by their own learning rate alone."""
    rows: dict[str, list[Run]] = {}
    for run in runs:
        section = "clean" if run.stage == "clean" else "pretrain"
        decides = run.decides
        decides[section]["optimizer"]["rate"] = None  # decides is made anew each time it is asked for
        rows.setdefault(json.dumps([run.stage, decides]), []).append(run)
    return list(rows.values())


def pairs_drawn(run: Run, pairs: StudyPairs, notes: set[str]) -> int | None:
    """The pairs of one epoch, less the last, partial batch: from the shards, or as the spec expects, or None."""
    total, poisoned = _pairs(run, pairs, notes)
    if run.stage != "clean" or total is None:
        return total
    clean = run.spec.data.clean
    return min(clean.pairs or total, total - (0 if clean.shards else poisoned or 0))


def _cells(  # noqa: PLR0913  (what a row is made of)
    row: list[Run], shared: StudyInputs, pairs: int | None, run_cost: Cost, machine: Assumed, notes: set[str]
) -> list[str]:
    """The cells of a row without that of its state; numbers are each run's."""
    run, more = row[0], len(row) > 1
    poisoned = _pairs(run, shared.pairs, notes)[1]
    poisoned_cell = "" if run.stage == "clean" or poisoned is None else f"{0 if run.stage == 'twin' else poisoned:,}"
    if run.whole is not None and poisoned is None:
        poisoned_cell = "?"
    memory = rank_memory(run, machine.processes, machine.gpu)
    size = model_size(run.spec.model.name, run.settings.objective.views, compute_type(run, machine.gpu))
    too_large = machine.gpu is not None and memory > machine.gpu.usable
    times = f"{len(row)} x " if more else ""
    return [
        f"{run.folder} +{len(row) - 1}" if more else run.folder,
        title(row),
        number(run_cost.steps),
        number(pairs),
        poisoned_cell,
        f"{size.parameters:,}",
        f"{memory / GIB:.2f} GiB{' too large' * too_large}",
        f"{rank_traffic(run, machine.processes, machine.gpu) / 1e6:,.1f} MB",
        "?" if run_cost.hours is None else f"{times}{number(run_cost.hours)}",
    ]


def title(row: list[Run]) -> str:
    """The runs in words; of several the range of their rates."""
    if len(row) == 1:
        return row[0].title
    rates = [run.settings.optimizer.rate for run in row]
    words = "".join(row[0].title.rsplit(f" rate={rates[0]}", 1))  # the last: a pre-training may have one too
    return f"{words} {len(row)} rates, {min(rates):g} to {max(rates):g}"


def _states(states: list[str]) -> str:
    """How far runs are: of several how many are in which state."""
    counts = Counter(states)
    if len(states) == 1:
        return states[0]
    return ", ".join(f"{number} of {len(states)} {state}" for state, number in counts.items())


def _pairs(run: Run, study: StudyPairs, notes: set[str]) -> tuple[int | None, int | None]:
    """(pairs that the run draws from, poisoned pairs); from the shards, or as the spec expects, or None."""
    data = run.spec.data
    if run.stage == "clean" and data.clean.labelled is not None:
        return _labelled(data.clean.labelled, data.clean.pairs, notes), None
    made_by = f"; make them with: {data.made_by}" if data.made_by else ""
    source = data.pretrain
    pairs = _in_shards(source.patterns, run, source.expect, f"data.pretrain.expect = {source.expect}{made_by}", study, notes)
    if pairs is not None and data.clean.held_out and not data.clean.shards and run.stage != "clean":
        pairs -= data.clean.pairs or 0
    poisoned = None if pairs is None else sum(aim.poison.number(pairs) for aim in run.spec.attack.aims)
    if run.stage == "pretrain" and run.left_out is not None:
        return _kept(run, run.left_out, study, pairs, poisoned)
    if run.stage == "clean" and (shards := data.clean.shards):
        pairs = _in_shards(shards, run, data.clean.pairs, f"data.clean.pairs = {data.clean.pairs}", study, notes)
    return pairs, poisoned


def _kept(
    run: Run, without: Without, study: StudyPairs, pairs: int | None, poisoned: int | None
) -> tuple[int | None, int | None]:
    """(pairs that are left of so many, poisoned pairs among them); None for what only the pairs or their scores tell."""
    try:
        chosen = study.of(run, planned=True)
    except Missing:
        out = poisoned if without.plan else None if pairs is None else without.number(pairs)
        return None if pairs is None or out is None else pairs - out, 0 if without.plan else None
    out = len(chosen.out) if chosen.out is not None else 0
    return None if pairs is None else pairs - out, chosen.poisoned_left if run.scored is None else None


def _in_shards(  # noqa: PLR0913  (two of them are words for the note)
    shards: str | dict[str, str], run: Run, expected: int | None, said_by: str, study: StudyPairs, notes: set[str]
) -> int | None:
    """The pairs in some shards; what the spec expects, with a note of where it says so, if they are not at hand."""
    try:
        return len(study.index(shards, run.spec.data))
    except Missing as error:
        told = f"counting on {said_by}" if expected is not None else "its pairs are unknown"
        notes.add(f"{error.fault}: {told}")
        return expected


def _labelled(folder: str, expected: int | None, notes: set[str]) -> int | None:
    """The labelled pictures in a folder; what the spec expects, with a note, where they can't be read."""
    try:
        return len(read(folder))
    except Missing as error:
        notes.add(f"{error.fault}: counting on data.clean.pairs = {expected}")
        return expected


def _state(run: Run, shared: StudyInputs) -> str:
    folder = shared.study / run.folder
    if finished(folder):
        return FINISHED
    if not folder.exists() and run.spec.machine.adopt:  # what is begun here is not taken over
        for other, why in finished_elsewhere(run, folder, shared.pairs.digest(run)):
            if why is None:
                return f"{FINISHED} in {other.parent.name}"
    checkpoints = committed(folder / "checkpoints")
    return f"at step {int(checkpoints[-1].name.removeprefix('step-')):,}" if checkpoints else "to do"
