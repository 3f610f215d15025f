"""What a search by Optuna tries next: a function of what the runs before reached, so that any process can ask.

Trials of an arm are proposed `together` at a time. A generation is proposed when the one before has ended, from that one and
all before it, and kept in the study's folder; so the same study finds the same runs on one machine or on many.

    runs/NAME/search/ARM-GENERATION.json     {"arm": labels, "trials": [{path: value}, ...]}
"""

import json
import os
import warnings
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from configs.plan import Run, runs
from configs.spec import Loaded, Point
from configs.sweep import Arm, Optuna, Range
from data.seeding import derive_seed
from engine.study.points import measured_points
from measures.frontier import worth
from records.ending import FailedJson, PrunedJson
from records.folder import finished, read_json, write_json
from records.rows import FILE, read_rows


def _file(folder: Path, arm: Arm, generation: int) -> Path:
    name = blake2b(repr(arm.labels).encode(), digest_size=4).hexdigest()
    return folder / "search" / f"{name}-{generation:04d}.json"


def _trials(loaded: Loaded, folder: Path, arm: Arm) -> list[list[dict[str, Any]]]:
    """What has been proposed for an arm, generation by generation."""
    search = loaded.spec.sweep.search
    assert isinstance(search, Optuna)
    out = [[arm.drawn(search.seed, trial) for trial in range(min(search.trials, search.together))]]
    while told := read_json(_file(folder, arm, len(out))).get("trials"):
        out.append(told)
    return out


def proposed(loaded: Loaded, folder: Path) -> list[Point]:
    """The points that the search has proposed so far, after the first ones of each arm."""
    later = [(arm, one) for arm in loaded.arms for part in _trials(loaded, folder, arm)[1:] for one in part]
    return [loaded.point(arm, one) for arm, one in later]


def propose(loaded: Loaded, folder: Path) -> bool:
    """Proposes the next generation of each arm that has trials left and whose runs have ended; whether any was."""
    search, new = loaded.spec.sweep.search, False
    assert isinstance(search, Optuna)
    for arm in loaded.arms:
        parts = _trials(loaded, folder, arm)
        trials = [one for part in parts for one in part]
        left = search.trials - len(trials)
        if left <= 0:
            continue
        told = [(one, _reached(loaded, folder, arm, one)) for one in trials]
        if any(value == "open" for _, value in told):
            continue
        path = _file(folder, arm, len(parts))
        chosen = suggestions(search, arm, told, min(left, search.together))
        for one in chosen:
            try:
                loaded.point(arm, one)
            except ValidationError as error:
                raise AssertionError(f"{one} is no spec: {error}") from error  # the first trials were
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}-{os.getpid()}")
        write_json(fresh, {"arm": json.loads(json.dumps(arm.labels, default=str)), "trials": chosen})
        try:
            os.link(fresh, path)  # whoever is first: what he proposed is tried
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
        new = True
    return new


def _reached(loaded: Loaded, folder: Path, arm: Arm, one: dict[str, Any]) -> Any:
    """What the run of a trial reached: its goal's values, None if it failed, "open" if it has not ended."""
    search = loaded.spec.sweep.search
    assert isinstance(search, Optuna)
    run: Run = runs([loaded.point(arm, one)], "clean")[0]
    home = folder / run.folder
    if not finished(home) and not (home / PrunedJson.FILE).is_file():
        blocked = run.start is not None and (folder / run.start.folder / FailedJson.FILE).is_file()
        return None if (home / FailedJson.FILE).is_file() or blocked else "open"
    points = measured_points(read_rows(home / FILE))
    if search.goal == "capped":
        value = worth(points, search.cap)
        return None if value is None else [value]
    return [points[-1].top1, points[-1].asr] if points else None


def suggestions(
    search: Optuna, arm: Arm, told: list[tuple[dict[str, Any], list[float] | None]], count: int
) -> list[dict[str, Any]]:
    """`count` further trials of an arm after those told of, with what each reached (None: it failed)."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

    def distribution(axis: list[Any] | Range) -> BaseDistribution:
        if not isinstance(axis, Range):
            return CategoricalDistribution(list(range(len(axis))))
        kind = IntDistribution if axis.whole else FloatDistribution
        return kind(axis.tidy(axis.low), axis.tidy(axis.high), log=axis.scale == "log")  # type: ignore[arg-type]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spaces = {path: distribution(axis) for path, axis in arm.axes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options that Optuna still calls experimental
        sampler = optuna.samplers.TPESampler(
            seed=derive_seed(search.seed, "optuna", repr(arm.labels), len(told)) % 2**31,
            n_startup_trials=search.together,
            multivariate=True,
            constant_liar=True,
        )
    up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    study = optuna.create_study(sampler=sampler, directions=[up] if search.goal == "capped" else [up, down])
    for one, values in told:
        params = {path: axis.index(one[path]) if isinstance(axis, list) else one[path] for path, axis in arm.axes.items()}
        state = optuna.trial.TrialState.FAIL if values is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, values=values, state=state))
    out = []
    for _ in range(count):
        trial = study.ask(spaces)
        out.append(
            {
                path: axis[trial.params[path]] if isinstance(axis, list) else axis.tidy(trial.params[path])
                for path, axis in arm.axes.items()
            }
        )
    return out
