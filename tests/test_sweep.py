"""Sweeps: what they expand to, how they draw and search, what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import samples
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.plan import runs
from configs.spec import Loaded, load
from configs.sweep import Arm, Optuna, Range, arms, size
from data.refusal import UserError
from engine.study.search import propose, proposed, suggestions


def swept(spec: Path, sweep: dict[str, Any], *more: str) -> Loaded:
    return load(spec, [f"sweep={json.dumps(sweep)}", *more])


RATE = "clean.optimizer.rate"
RANDOM = {"kind": "random", "trials": 2}
MMCL, PAR = {"kind": "mmcl"}, {"kind": "par"}


@pytest.mark.parametrize("section", ["clean", "clean.optimizer", "data.clean"])
def test_a_choice_that_sets_a_whole_section_of_the_cleaning_concerns_the_cleaning_alone(spec: Path, section: str) -> None:
    """Two cleaners are two cleaners of one pre-training, however their fields are written."""
    values: dict[str, Any] = {"clean.optimizer": {"rate": 1e-4}, "data.clean": {"pairs": 32}}
    whole = {"objective": MMCL, "epochs": 1, "batch": 16, "optimizer": {"rate": 1e-4}}
    first = values.get(section, whole)
    second = {**first, **({"pairs": 48} if "pairs" in first else {"rate": 2e-4} if "rate" in first else {"epochs": 2})}
    plan = list(runs(swept(spec, {"cleaner": {"A": {section: first}, "B": {section: second}}}).points))
    cleanings = [run.entry() for run in plan if run.stage == "clean"]
    assert [(run.cleaner, run.cleaning) for run in cleanings] == [("A", ("cleaner",)), ("B", ("cleaner",))]
    assert [run.entry().swept for run in plan if run.stage == "pretrain"] == [{}]


def test_named_axes_set_several_fields_and_sweep_further_ones(spec: Path) -> None:
    loaded = swept(
        spec,
        {
            "arm": {
                "MMCL": {"pretrain.objective": MMCL, "pretrain.batch": 32},
                "MMCL+SSL": {"pretrain.objective": {"kind": "mmcl_ssl"}},
            },
            "cleaner": {
                "CleanCLIP": {"clean.objective": {"kind": "cleanclip"}, "sweep": {RATE: [1e-4, 2e-4, 3e-4]}},
                "PAR": {"clean.objective": PAR, "clean.optimizer": {"rate": 5e-5, "decay": 1e-4}},
            },
            "seed": [0, 1],
        },
    )
    assert len(loaded.points) == size(loaded.spec.sweep) == 2 * (3 + 1) * 2
    plan = runs(loaded.points)
    assert [run.stage for run in plan] == ["pretrain"] * 4 + ["clean"] * 16
    first, last = plan[0], plan[-1]
    assert (first.settings.batch, last.spec.pretrain and last.spec.pretrain.batch) == (32, 16)
    assert last.cleaner == "PAR"
    assert last.settings.optimizer.rate == 5e-5
    assert last.settings.optimizer.decay == 1e-4
    assert last.title == "clean mmcl_ssl arm=MMCL+SSL -> PAR seed=1"
    assert first.title == "pretrain mmcl arm=MMCL seed=0"
    assert first.entry().swept == {"arm": "MMCL", "seed": 0}
    assert [run.title for run in plan if run.cleaner == "CleanCLIP"][0] == (
        "clean mmcl arm=MMCL -> CleanCLIP seed=0 rate=0.0001"
    )
    assert len({run.title for run in plan}) == len(plan)


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("detect.detectors", "list all detectors in detect.detectors, which score pairs that are encoded once"),
        ("detect.budget", "judged at several shares each, and sweep data.pretrain.without"),
        ("detect.budget.share", "scores change no training"),
        ("after.epochs", "its lists, such as after.retune, say what is tried on each chosen model"),
        ("machine.zero", "it changes no result; set it with --set"),
        ("sweep.limit", "under a name of your own may each have a `sweep`"),
    ],
)
def test_what_can_not_be_swept_is_refused_with_what_to_do_instead(spec: Path, path: str, instead: str) -> None:
    for sweep in ({path: [1, 2]}, {"arm": {"a": {path: 1}, "b": {path: 2}}}):
        with pytest.raises(UserError, match=rf"no field '{path}'; it can't be swept: .*") as caught:
            swept(spec, sweep)
        assert instead in str(caught.value)


IDLE: dict[str, list[Any]] = {
    "data.test.tiny": ["x", "y"],
    "data.labels": ["correct", "published"],
    "data.patience": [1, 2],
    "data.made_by": ["this", "that"],
    "data.schemes": [[], ["s3"]],
    "data.pretrain.expect": [1, 2],
    "question": ["is it?", "or not?"],
    "measure": [[{"kind": "zero_shot", "images": "tiny"}], [{"kind": "geometry", "images": "tiny"}]],
    "attack.twin": ["first", "none"],
    "pretrain.measure_steps": [1, 2],
    "attack.proxy": [None, {"target": "cup", "trigger": {"kind": "solid"}}],
}


@pytest.mark.parametrize("path", IDLE)
def test_an_axis_whose_values_would_all_be_one_run_is_refused(spec: Path, path: str) -> None:
    """Only the first would be carried out, and nobody told; beside a field that counts it stands with that."""
    values = IDLE[path]
    one, other = (runs(load(spec, [f"{path}={json.dumps(value)}"]).points)[0] for value in values)
    assert one == other
    for sweep in ({path: values}, {"arm": {str(n): {path: value} for n, value in enumerate(values)}}):
        with pytest.raises(UserError, match=f"'{path}' changes no training, so that its values would be one run"):
            swept(spec, sweep)
    both = {"arm": {str(n): {path: value, "pretrain.batch": 16 << n} for n, value in enumerate(values)}}
    assert len([run for run in runs(swept(spec, both).points, "pretrain") if run.stage == "pretrain"]) == 2


def test_points_share_their_equal_parts(spec: Path) -> None:
    """A study of ten thousand runs holds little more than one: as plain values each point is what it is by itself."""
    axes = {"seed": [1, 2], RATE: {"low": 1e-5, "high": 1e-3, "points": 40}, "clean.objective": [MMCL, PAR]}
    loaded = swept(spec, axes)
    specs = [point.spec for point in loaded.points]
    cleanings = [one.clean for one in specs if one.clean is not None]
    assert len(specs) == len(cleanings) == 160
    for part in ("data", "attack", "model", "pretrain", "machine", "sweep"):
        assert len({id(getattr(one, part)) for one in specs}) == 1, part
    assert len({id(one.measure[0]) for one in specs}) == 1
    assert len({id(one.optimizer) for one in cleanings}) == 40
    assert len({id(one.objective) for one in cleanings}) == 2
    assert len({id(one) for one in cleanings}) == 80
    for point in loaded.points[::23]:
        alone = load(spec, [f"{path}={json.dumps(value)}" for path, value in point.swept.items()]).points[0].spec
        assert point.spec == alone
        assert point.spec.model_dump_json() == alone.model_dump_json()
        assert (point.spec.data.model_fields_set, type(point.spec.measure)) == (alone.data.model_fields_set, tuple)


def test_a_section_may_be_swept_with_a_field_of_it(spec: Path) -> None:
    loaded = swept(spec, {RATE: [1e-4], "arm": {"a": {"clean.optimizer": {"rate": 1.0, "warmup": 7}}}})
    assert loaded.points[0].spec.clean is not None
    assert loaded.points[0].spec.clean.optimizer.rate == 1e-4
    assert loaded.points[0].spec.clean.optimizer.warmup == 7


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ({"low": 1e-5, "high": 1e-3, "scale": "log", "points": 3}, [1e-5, 1e-4, 1e-3]),
        ({"low": 0.0, "high": 1.0, "points": 5}, [0, 0.25, 0.5, 0.75, 1]),
        ({"low": 1, "high": 3, "whole": True, "points": 5}, [1, 2, 3]),
        ({"low": 2.0, "high": 2.0, "points": 4}, [2.0]),
    ],
)
def test_a_range_on_a_grid(axis: dict[str, Any], values: list[float]) -> None:
    assert Range(**axis).values() == values


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-9, 1e3), st.floats(1, 1e6), st.sampled_from(["linear", "log"]), st.floats(0, 1))
def test_a_range_never_leaves_its_bounds(low: float, factor: float, scale: Any, share: float) -> None:
    axis = Range(low=low, high=low * factor, scale=scale)
    assert low <= axis.at(share) <= low * factor


def test_random_search_draws_the_same_for_the_same_seed_and_searches_each_arm(spec: Path) -> None:
    sweep: dict[str, Any] = {
        "pretrain.objective": [MMCL, {"kind": "mmcl_ssl"}],
        RATE: {"low": 1e-6, "high": 1e-2, "scale": "log"},
        "clean.epochs": {"low": 1, "high": 4, "whole": True},
        "search": {"kind": "random", "trials": 6},
    }
    first, again = (swept(spec, sweep).points for _ in range(2))
    assert [point.swept for point in first] == [point.swept for point in again]
    assert len(first) == 12
    rates = [point.swept[RATE] for point in first]
    assert len(set(rates)) == 12, "arms draw their own"
    assert all(1e-6 <= rate <= 1e-2 for rate in rates)
    assert all(rate == float(f"{rate:.6g}") for rate in rates)
    other = swept(spec, {**sweep, "search": {"kind": "random", "trials": 6, "seed": 1}}).points
    assert [point.swept for point in other] != [point.swept for point in first]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({"clean.optimiser.rate": [1.0]}, "no field 'clean.optimiser.rate'; did you mean 'clean.optimizer.rate'?"),
        ({"clean.transform.shrnk": [1.0]}, "did you mean 'clean.transform.shrink'?"),
        ({"seed": []}, "'seed' has no values; give at least one"),
        ({"arm": {}}, "'arm' has no choices; give at least one"),
        ({"clean.objective": {"a": {RATE: 1.0}}}, "'clean.objective' is a field, which takes values or a range"),
        ({"arm": {"a": {"clean.epoch": 1}}}, "no field 'clean.epoch'; did you mean 'clean.epochs'?"),
        ({"arm": {"a": {"sweep": {RATE: []}}}}, f"'arm: a': '{RATE}' has no values"),
        ({"arm": {"a": {RATE: 1.0}}, RATE: [1.0]}, f"'{RATE}' is set by 'arm: a' and by another axis; leave one out"),
        ({"arm": {"a": {RATE: 1.0}}, "b": {"c": {RATE: 1.0}}}, "is set by 'b: c' and by another axis"),
        ({RATE: {"low": 1.0, "high": 2.0}}, "is a range; give points, how many of it are taken"),
        ({RATE: {"low": 2.0, "high": 1.0}}, "low is 2 and high 1; expected low <= high"),
        ({"seed": [*range(101)], "clean.epochs": [1, 2], "limit": 200}, "202 combinations, more than sweep.limit = 200"),
        ({"seed": [*range(101)], "clean.epochs": [*range(100)]}, "10,100 combinations, more than sweep.limit = 10,000"),
        ({"search": RANDOM, "seed": [1]}, "seed 1 leaves nothing to search; sweep a field of clean"),
        ({"search": RANDOM, "arm": {"a": {"sweep": {"seed": [1, 2]}}}, RATE: [1.0]}, "can't be searched; cross it"),
        ({"search": {"kind": "randon", "trials": 2}}, "unknown kind 'randon'; did you mean 'random'?"),
        ({"executor": "cluster"}, "sweep.executor: is 'cluster'; expected 'here', 'local' or 'slurm'"),
    ],
)  # fmt: skip
def test_sweeps_that_make_no_sense_are_refused(spec: Path, sweep: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        swept(spec, sweep)
    assert words in str(caught.value)


def test_counting_is_expanding(spec: Path) -> None:
    sweep = {"seed": [1, 2], "arm": {"a": {"sweep": {RATE: [1.0, 2.0]}}, "b": {}}, "clean.epochs": [1, 2, 3]}
    loaded = swept(spec, sweep)
    assert size(loaded.spec.sweep) == len(loaded.points) == 2 * 3 * 3


# search by what runs reached


def test_a_search_finds_what_a_smooth_goal_has_its_peak_at() -> None:
    """Thirty trials of a goal that peaks at a rate of 1e-3; the later half is nearer than a random trial."""
    arm = Arm(axes={RATE: Range(low=1e-6, high=1.0, scale="log"), "clean.objective": [MMCL, PAR]})
    search = Optuna(kind="optuna", trials=40, together=5)
    ended: list[tuple[dict[str, Any], list[float] | None]] = [(arm.drawn(0, i), None) for i in range(5)]

    def goal(trial: dict[str, Any]) -> list[float]:
        return [(trial["clean.objective"] == PAR) - abs(math.log10(trial[RATE]) + 3)]

    ended = [(trial, goal(trial)) for trial, _ in ended]
    while len(ended) < 40:
        ended += [(trial, goal(trial)) for trial in suggestions(search, arm, ended, 5)]
    early, late = ended[:5], ended[20:]
    assert sum(value[0] for _, value in late if value) / 20 > sum(value[0] for _, value in early if value) / 5
    assert max(value[0] for _, value in late if value) > 0.7
    assert suggestions(search, arm, ended, 3) == suggestions(search, arm, ended, 3)
    assert suggestions(search, arm, [*ended, (ended[0][0], None)], 3), "a trial that failed is no end"


def test_a_search_for_both_rates_trades_one_for_the_other() -> None:
    """Both rates are best at 1e-3; half of the later trials are near it."""
    arm = Arm(axes={RATE: Range(low=1e-6, high=1.0, scale="log")})
    search = Optuna(kind="optuna", trials=40, together=5, goal="both")

    def rates(trial: dict[str, Any]) -> list[float]:
        away = abs(math.log10(trial[RATE]) + 3) / 3
        return [1 - away, away]

    ended: list[tuple[dict[str, Any], list[float] | None]] = [
        (trial, rates(trial)) for trial in (arm.drawn(0, i) for i in range(5))
    ]
    while len(ended) < 40:
        ended += [(trial, rates(trial)) for trial in suggestions(search, arm, ended, 5)]
    late = sorted(values[0] for _, values in ended[20:] if values)
    assert late[10] > 0.8


def finish(folder: Path, name: str, top1: float, asr: float) -> None:
    home = folder / name
    home.mkdir(parents=True)
    rows = [{"kind": "measure", "images": "tiny", "epoch": e, "step": e, "top1": top1, "asr": asr} for e in (0, 1)]
    (home / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples.end(home)
    (home / "weights.safetensors").write_text("")


def test_generations_are_proposed_once_when_the_one_before_has_ended(spec: Path, tmp_path: Path) -> None:
    sweep = {RATE: {"low": 1e-6, "high": 1e-2, "scale": "log"}, "search": {"kind": "optuna", "trials": 7, "together": 3}}
    loaded = swept(spec, sweep)
    assert len(loaded.points) == 3
    assert not propose(loaded, tmp_path), "the first ones are open"
    known = list(loaded.points)
    for count in (6, 7):
        for number, run in enumerate(runs(known, "clean")):
            if not (tmp_path / run.folder).exists():
                finish(tmp_path, run.folder, 0.1 * number, 0.01)
        assert propose(loaded, tmp_path)
        known = [*loaded.points, *proposed(loaded, tmp_path)]
        assert len(known) == count
        assert not propose(loaded, tmp_path)
        assert [*loaded.points, *proposed(swept(spec, sweep), tmp_path)] == known, "another process sees the same"
    for run in runs(known, "clean"):
        if not (tmp_path / run.folder).exists():
            finish(tmp_path, run.folder, 0.5, 0.01)
    assert not propose(loaded, tmp_path)
    assert len({point.swept[RATE] for point in known}) == 7
    assert len(list(arms(loaded.spec.sweep))) == 1
