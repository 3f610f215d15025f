"""What a search by Optuna tries next, and which runs the median rule ends early: both functions of what other runs reached,
so that any process can ask.

Each arm, a combination of what is not searched, has trials of its own, proposed `together` at a time. Such a generation is
proposed when the one before has ended, from that one and all before it, and kept in the study's folder; so the same study
finds the same runs on one machine or on many.

    runs/NAME/search/ARM-GENERATION.json     {"arm": labels, "trials": [{path: value}, ...]}
"""

import json
import os
import sys
import warnings
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from configs.plan import Run, runs
from configs.spec import Loaded, Point
from configs.sweep import Arm, Median, Optuna, Range
from data.seeding import derive_seed
from engine.study.points import measured_points
from measures.frontier import worth
from records.ending import FailedJson, PrunedJson, run_rows
from records.folder import finished
from records.json_file import Damaged, damaged, read_json, write_json
from records.rows import MeasureRow

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Trial = dict[str, Any]  # the value of each searched field by its path


class Generation(BaseModel):
    """What a generation's file holds."""

    arm: dict[str, Any]
    trials: list[Trial] = Field(min_length=1)


def _file(folder: Path, arm: Arm, generation: int) -> Path:
    name = blake2b(repr(arm.labels).encode(), digest_size=4).hexdigest()
    return folder / "search" / f"{name}-{generation:04d}.json"


def _generations(loaded: Loaded, folder: Path, arm: Arm) -> list[list[Trial]]:
    """The trials that have been proposed for an arm, generation by generation."""
    search = loaded.spec.sweep.search
    assert isinstance(search, Optuna)
    out = [[arm.drawn(search.seed, number) for number in range(min(search.trials, search.together))]]
    while (trials := _kept(loaded, arm, _file(folder, arm, len(out)))) is not None:
        out.append(trials)
    return out


def _kept(loaded: Loaded, arm: Arm, path: Path) -> list[Trial] | None:
    """The trials in a generation's file; None if there is none. One that is damaged is set aside: what follows from the
    generations before it is proposed anew, and is the same."""
    try:
        content = read_json(path, "set aside, and proposed anew")
        if content is None:
            return None
        try:
            generation = Generation.model_validate(content)
            for trial in generation.trials:
                if trial.keys() != arm.axes.keys() or not all(_is_of(axis, trial[path]) for path, axis in arm.axes.items()):
                    raise ValueError(f"{str(trial)[:100]} is no trial of its arm")
                loaded.point(arm, trial)
        except ValueError as error:
            raise damaged(path, str(error).splitlines()[0], "set aside, and proposed anew") from None
    except Damaged as damage:
        print(damage, file=sys.stderr, flush=True)
        with suppress(FileNotFoundError):  # another process was first
            path.replace(path.with_name(f"aside-{path.name}.{os.getpid()}"))  # no .json: it is no generation any more
        return None
    return generation.trials


def _is_of(axis: list[Any] | Range, value: Any) -> bool:
    """Whether an axis may take a value."""
    if isinstance(axis, Range):
        return isinstance(value, int | float) and axis.low <= value <= axis.high
    return value in axis


def proposed(loaded: Loaded, folder: Path) -> list[Point]:
    """The points that the search has proposed so far, after the first ones of each arm."""
    return [
        loaded.point(arm, trial)
        for arm in loaded.arms
        for generation in _generations(loaded, folder, arm)[1:]
        for trial in generation
    ]


def propose(loaded: Loaded, folder: Path) -> bool:
    """Proposes the next generation of each arm that has trials left and whose runs have ended; whether any was."""
    search, proposed_any = loaded.spec.sweep.search, False
    assert isinstance(search, Optuna)
    for arm in loaded.arms:
        generations = _generations(loaded, folder, arm)
        trials = [trial for generation in generations for trial in generation]
        missing = search.trials - len(trials)
        if missing <= 0:
            continue
        outcomes = [(trial, _outcome(loaded, folder, arm, trial)) for trial in trials]
        ended = [(trial, outcome) for trial, outcome in outcomes if outcome != "open"]
        if len(ended) < len(outcomes):
            continue
        fresh = suggestions(search, arm, ended, min(missing, search.together))
        for trial in fresh:
            try:
                loaded.point(arm, trial)
            except ValidationError as error:
                raise AssertionError(f"{trial} is no spec: {error}") from error  # the first trials were
        _keep(_file(folder, arm, len(generations)), arm, fresh)
        proposed_any = True
    return proposed_any


def is_over(loaded: Loaded, folder: Path) -> bool:
    """Whether all trials of every arm have been proposed."""
    search = loaded.spec.sweep.search
    assert isinstance(search, Optuna)
    proposed_so_far = [sum(map(len, _generations(loaded, folder, arm))) for arm in loaded.arms]
    return all(count >= search.trials for count in proposed_so_far)


def _keep(path: Path, arm: Arm, trials: list[Trial]) -> None:
    """Writes a generation, unless another process was first: then what that one proposed is tried."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}-{os.getpid()}")
    write_json(staged, {"arm": json.loads(json.dumps(arm.labels, default=str)), "trials": trials})
    try:
        os.link(staged, path)
    except FileExistsError:
        pass
    finally:
        staged.unlink()


def _outcome(loaded: Loaded, folder: Path, arm: Arm, trial: Trial) -> list[float] | None | Literal["open"]:
    """What the run of a trial reached: its goal's values, None if it failed, "open" if it has not ended."""
    search = loaded.spec.sweep.search
    assert isinstance(search, Optuna)
    run: Run = runs([loaded.point(arm, trial)], "clean", loaded.places)[0]
    home = folder / run.folder
    if not finished(home) and not (home / PrunedJson.FILE).is_file():
        blocked = run.start is not None and (folder / run.start.folder / FailedJson.FILE).is_file()
        return None if (home / FailedJson.FILE).is_file() or blocked else "open"
    points = measured_points(run_rows(home))
    if search.goal == "capped":
        value = worth(points, search.cap)
        return None if value is None else [value]
    return [points[-1].top1, points[-1].asr] if points else None


def suggestions(search: Optuna, arm: Arm, ended: list[tuple[Trial, list[float] | None]], count: int) -> list[Trial]:
    """`count` further trials of an arm after those that ended, given with what each reached (None: it failed)."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spaces = {path: _distribution(axis) for path, axis in arm.axes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options that Optuna still calls experimental
        sampler = optuna.samplers.TPESampler(
            seed=derive_seed(search.seed, "optuna", repr(arm.labels), len(ended)) % 2**31,
            n_startup_trials=search.together,
            multivariate=True,
            constant_liar=True,
        )
    up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    study = optuna.create_study(sampler=sampler, directions=[up] if search.goal == "capped" else [up, down])
    axes = arm.axes.items()
    for trial, values in ended:
        params = {path: axis.index(trial[path]) if isinstance(axis, list) else trial[path] for path, axis in axes}
        state = optuna.trial.TrialState.FAIL if values is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, values=values, state=state))
    out = []
    for _ in range(count):
        params = study.ask(spaces).params
        out.append({path: axis[params[path]] if isinstance(axis, list) else axis.tidy(params[path]) for path, axis in axes})
    return out


def _distribution(axis: list[Any] | Range) -> "BaseDistribution":
    """An axis as Optuna knows it; of a list, the places in it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(axis, Range):
        return CategoricalDistribution(list(range(len(axis))))
    kind = IntDistribution if axis.whole else FloatDistribution
    return kind(axis.tidy(axis.low), axis.tidy(axis.high), log=axis.scale == "log")  # type: ignore[arg-type]


def prune_reason(rule: Median, folder: Path, siblings: list[Path], epoch: float) -> str | None:
    """Why the run in a folder should end after this epoch; None if it should go on. The median rule (Golovin et al. 2017,
    section 3.2), for points of two rates."""
    if epoch < rule.after:
        return None
    journals = [run_rows(sibling) for sibling in siblings]
    as_far = [rows for rows in journals if any(isinstance(row, MeasureRow) and row.epoch >= epoch for row in rows)]
    others = [worth(measured_points(rows, epoch), rule.cap) for rows in as_far]
    own = worth(measured_points(run_rows(folder), epoch), rule.cap)
    if own is None or len(others) < rule.runs:
        return None
    middle = median(value for value in others if value is not None)
    if own >= middle:
        return None
    return f"after epoch {epoch:g} its best of {own:.4f} was below {middle:.4f}, the median of {len(others)} others'"
