"""Specs: what is accepted, how errors read, what a sweep expands to, what a fingerprint depends on."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
from conftest import ROOT, antidote, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.plan import differences, runs
from configs.source import override, read_source
from configs.spec import Spec, load, schema
from data.refusal import UserError
from engine.estimate.dry_run import alike, dry_run
from engine.estimate.gpus import Assumed
from engine.run import main
from engine.training.inputs import StudyInputs
from records.spec_json import stage_of


def refusal(spec: Path, *sets: str) -> str:
    with pytest.raises(UserError) as caught:
        load(spec, list(sets))
    return str(caught.value)


def test_every_error_is_reported_at_once_with_line_path_and_remedy(spec: Path) -> None:
    text = (
        spec.read_text()
        .replace("seed: 3", "seed: -3")
        .replace("kind: cleanclip", "kind: cleanclap")
        .replace("epochs: 2", "epoch: 2")
    )
    spec.write_text(text)
    words = refusal(spec)
    assert "4 errors in the spec" in words
    assert f"{spec}:2: seed: is -3; expected a whole number of at least 0" in words
    assert (
        "clean.objective: unknown kind 'cleanclap'; did you mean 'cleanclip'? valid: mmcl, ssl, mmcl_ssl, cleanclip" in words
    )
    assert "pretrain.epoch: unknown key; did you mean 'epochs'?" in words
    assert "pretrain.epochs: is missing; add it, for example 'epochs: 6'" in words


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("machine.zero=7", "machine.zero: is 7; expected 0, 1, 2 or 3"),
        ("machine.workers=many", "machine.workers: "),
        ("clean.objective.witin=1", "clean.objective.witin: unknown key; did you mean 'within'?"),
        ("attack.poison.fraction=0.5", "attack.poison: give either count or fraction"),
        ("measure=[{kind: zero_shot, images: imagenet}]", "data.test names tiny; name one of them"),
        (
            "measure=[{kind: geometry, images: tiny}, {kind: zero_shot, images: tiny}, {kind: geometry, images: tiny}]",
            "measure has geometry on 'tiny' 2 times, whose numbers would replace each other",
        ),
        ("sweep={clean.optimizer.rat: [1]}", "no field 'clean.optimizer.rat'; did you mean 'clean.optimizer.rate'?"),
        ("sweep={clean.optimizer.rate: []}", "has no values"),
        ("sweep={clean.optimizer.rate: [1.0, -1.0]}", "clean.optimizer.rate: is -1.0; expected a number of at least 0"),
        ("sweep={machine.zero: [0]}", "can't be swept"),
        ("clean.optimizer.rate=.nan", "clean.optimizer.rate: is nan; expected a number of at least 0"),
        ("clean.optimizer.betas=[0.9, 1.0]", "both betas must lie in [0, 1)"),
        ("name=../x", "name: is '../x'; expected text of letters, digits, '.', '_' and '-', a letter or digit first"),
        ("data.patience=40", "data.patience is 40 minutes, longer than machine.timeout_minutes = 30"),
        ("seed", "is not of the form path=value"),
        ("seed=[", "is not valid YAML"),
    ],
)
def test_impossible_settings_are_refused(spec: Path, setting: str, words: str) -> None:
    assert words in refusal(spec, setting)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x 1\nb: *x\n", ":2: aliases (*name) are not allowed"),
        ("a: 1\na: 2\n", "duplicate key"),
        ("- 1\n", "holds no mapping"),
        ("a: [\n", "is not valid YAML"),
        ("# " + "x" * (1 << 20), "has more than 131,072 bytes"),
    ],
)
def test_yaml_that_is_no_spec_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert words in refusal(path)


def test_a_missing_file_ends_with_code_2_and_no_traceback(tmp_path: Path) -> None:
    out = antidote("--spec", "none.yaml", cwd=tmp_path)
    assert out.returncode == 2
    assert out.stderr.startswith("error: none.yaml: No such file or directory; expected a spec")
    assert "Traceback" not in out.stderr


def test_a_store_is_waited_for_less_long_than_ranks_wait_for_each_other(spec: Path) -> None:
    assert load(spec).spec.wait_seconds == 600
    assert load(spec, ["data.patience=40", "machine.timeout_minutes=60"]).spec.wait_seconds == 2400
    assert load(spec, ["machine.timeout_minutes=1"]).spec.wait_seconds == 54


def test_yaml_is_read_as_version_1_2(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: no\nb: 1e-3\nc: 012\n")
    assert read_source(path).values == {"a": "no", "b": 0.001, "c": 12}


def test_a_sweep_is_a_product_that_trains_each_start_once(spec: Path) -> None:
    sweep = "sweep={pretrain.objective: [{kind: mmcl}, {kind: mmcl_ssl}], clean.optimizer.rate: [1.0, 2.0, 3.0]}"
    points = load(spec, [sweep, "attack.twin=first"]).points
    assert len(points) == 6
    plan = runs(points)
    assert [run.stage for run in plan] == ["pretrain"] * 2 + ["twin"] + ["clean"] * 6
    assert len({run.folder for run in plan}) == 9
    assert {run.start.folder for run in plan if run.start} == {run.folder for run in plan[:2]}
    assert len(runs(load(spec, [sweep, "attack.twin=each"]).points)) == 10
    assert [run.stage for run in runs(points, "clean")] == ["clean"] * 6
    assert [run.stage for run in runs(points, "pretrain")] == ["pretrain"] * 2 + ["twin"]


SEVERAL = "sweep={pretrain.objective: [{kind: mmcl}, {kind: mmcl_ssl}], clean.optimizer.rate: [1.0, 2.0, 3.0]}"


@pytest.mark.parametrize(("twin", "cleaned"), [("first", 3), ("each", 6)])
def test_a_twin_goes_through_the_cleanings_of_its_poisoned_model_and_those_stay_as_they_were(
    spec: Path, twin: str, cleaned: int
) -> None:
    without, plan = (
        runs(load(spec, [SEVERAL, f"attack.twin={twin}", *more]).points) for more in ([], ["attack.clean_twin=true"])
    )
    assert [run.folder for run in plan if not run.of_twin] == [run.folder for run in without]
    controls = [run for run in plan if run.of_twin]
    assert len(controls) == cleaned
    assert len({run.folder for run in plan}) == len(without) + cleaned
    starts = {run.start.folder for run in controls if run.start}
    assert starts == {run.folder for run in plan if run.stage == "twin"}
    first, *_ = controls
    poisoned = plan[plan.index(first) - 1]
    assert differences(poisoned.decides, first.decides) == ["start: None -> twin"]
    assert stage_of(first.decides) == "clean"
    assert (first.title, first.entry().control) == ("clean mmcl twin -> cleanclip rate=1.0", "twin")
    assert poisoned.entry().control is None
    scratch = runs(load(spec, ["clean.transform={kind: fresh}", "attack.twin=first", "attack.clean_twin=true"]).points)
    assert [run.entry().control for run in scratch] == [None, None, "fresh", "twin"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "clean_twin is true, but twin is none, so that there is none to clean; set twin to first or each"),
        (["attack.twin=first", "clean=null"], "attack.clean_twin is true, but there is no clean section; set it to false"),
        (
            ["attack.twin=each", "clean.start={path: x}"],
            "but clean.start names weights, which have no twin; set it to false",
        ),
    ],
)
def test_without_a_twin_none_is_cleaned(spec: Path, more: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(spec, ["attack.clean_twin=true", *more])


@pytest.mark.parametrize(
    ("setting", "stages"),
    [
        ("name=other", set()),
        ("machine.zero=2", set()),
        ("machine.workers=3", set()),
        ("data.made_by=x", set()),
        ("question=why", set()),
        ("clean.epochs=2", {"clean"}),
        ("data.clean.pairs=32", {"clean"}),
        ("attack.poison.count=5", {"pretrain", "clean"}),
        ("pretrain.optimizer.rate=1e-4", {"pretrain", "twin", "clean"}),
        ("seed=4", {"pretrain", "twin", "clean"}),
        ("data.augment.rate=0.2", {"pretrain", "twin", "clean"}),
    ],
)
def test_a_fingerprint_depends_on_what_can_change_the_result(spec: Path, setting: str, stages: set[str]) -> None:
    before, after = (runs(load(spec, ["attack.twin=first", *more]).points) for more in ([], [setting]))
    assert {a.stage for a, b in zip(before, after, strict=True) if a.fingerprint != b.fingerprint} == stages


@pytest.mark.parametrize("more", [[], ["data.clean.held_out=true"], ["attack.poison.count=0"]])
def test_the_stage_of_a_run_is_told_by_what_decides_its_result(spec: Path, more: list[str]) -> None:
    for run in runs(load(spec, ["attack.twin=first", *more]).points):
        assert stage_of(run.decides) == run.stage


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.dictionaries(st.sampled_from("xy"), st.integers())))
def test_differences_of_equal_values_are_none(value: dict[str, object]) -> None:
    assert differences(value, json.loads(json.dumps(value))) == []
    assert differences(value, {**value, "new": 1}) == ["new: None -> 1"]


def test_set_reaches_into_sections_that_are_not_there(spec: Path) -> None:
    source = read_source(spec)
    override(source, "machine.zero=2")
    override(source, "data.test.more=folder")
    assert source.values["machine"]["zero"] == 2
    assert source.values["data"]["test"]["more"] == "folder"


SSL = {"clean.objective": {"kind": "ssl"}}


@pytest.mark.parametrize(
    ("setting", "axes"),
    [
        ("sweep.clean.optimizer.rate=[1.0e-5]", {"clean.optimizer.rate": [1e-5]}),
        ("sweep.pretrain.objective=[{kind: mmcl}]", {"pretrain.objective": [{"kind": "mmcl"}]}),
        ("sweep.seed=[4]", {"seed": [4]}),
        (
            "sweep.cleaner.PAR={clean.objective: {kind: par}}",
            {"cleaner": {"SSL": SSL, "PAR": {"clean.objective": {"kind": "par"}}}},
        ),
        ("sweep.cleaner.SSL.clean.epochs=3", {"cleaner": {"SSL": {"clean.objective": {"kind": "ssl"}, "clean.epochs": 3}}}),
        ("sweep.cleaner.SSL.sweep.clean.epochs=[3]", {"cleaner": {"SSL": {**SSL, "sweep": {"clean.epochs": [3]}}}}),
        ("sweep.slurm.partition=long", {"slurm": {"partition": "long"}}),
    ],
)
def test_an_axis_can_be_set_on_the_command_line(spec: Path, setting: str, axes: dict[str, Any]) -> None:
    with spec.open("a") as file:
        file.write("sweep: {clean.optimizer.rate: [1.0e-3], cleaner: {SSL: {clean.objective: {kind: ssl}}}}\n")
    loaded = load(spec, [setting])
    assert loaded.source.values["sweep"] == {"clean.optimizer.rate": [1e-3], "cleaner": {"SSL": SSL}, **axes}
    assert loaded.points, "and it is a spec"


def test_the_committed_schema_is_the_schema_of_a_spec() -> None:
    assert (ROOT / "configs/spec.schema.json").read_text() == schema(), "run: make schema"


def test_a_dry_run_counts_clean_shards_that_are_there_when_the_others_are_not(world: Path, spec: Path) -> None:
    sets = ["data.pretrain.shards=none/*.tar", "data.pretrain.expect=1000", f"data.clean.shards={world}/train/*.tar"]
    loaded = load(spec, sets)
    machine = Assumed(1, None)
    shared = StudyInputs(spec.parent / "runs/tiny", machine.world, spec.parent)
    text = dry_run(loaded, runs(loaded.points), shared, machine)
    assert "counting on data.pretrain.expect = 1000" in text
    steps, pairs = next(line for line in text.splitlines() if "clean mmcl" in line).split("│")[3:5]
    assert (steps.strip(), pairs.strip()) == ("4", "64")


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "specs").glob("*.yaml")))
def test_every_spec_loads_and_dry_runs(name: str, tmp_path: Path) -> None:
    text = (ROOT / "specs" / name).read_text()
    assert all(word in text for word in ("# Question:", "# Cost:", "# Expect")), (
        "a spec's header says question, cost, expectation"
    )
    out = forked.run(
        [sys.executable, str(ROOT / "engine/run.py"), "--spec", str(ROOT / "specs" / name), "--dry-run"],
        cwd=tmp_path, env=environment(),
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert "nothing was written" in out.stdout
    assert not os.listdir(tmp_path)
    for row in alike(runs(load(ROOT / "specs" / name).points)):
        assert row[0].folder in out.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["specs/demo.yaml"], "give the spec as --spec specs/demo.yaml"),
        (["--spec", "specs/demo.yaml", "seed=1"], "unknown: seed=1"),
        (["--spec", ""], "give --spec FILE, for example --spec specs/demo.yaml"),
        (["--spec", "x" * 300], "File name too long; expected a spec"),
        (["--spec", "."], "--spec is the folder .; a study is one file"),
    ],
)
def test_a_command_line_without_a_spec_is_refused_in_words(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    try:
        code = main(words)
    except SystemExit as ending:
        code = int(ending.code or 0)
    assert code == 2
    assert sentence in capsys.readouterr().err


def test_the_smallest_spec_runs(world: Path, tmp_path: Path) -> None:
    sets = [f"data.pretrain.shards={world}/train/*.tar", f"data.test={{demo: {world}/eval}}", "model.name=test-vit"]
    sets += ["attack.poison.count=12", "pretrain.batch=32", "machine={workers: 0, threads: 1}"]
    words = [word for pair in sets for word in ("--set", pair)]
    out = antidote("--spec", str(ROOT / "specs/minimal.yaml"), *words, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "runs/minimal/report/index.html").is_file()


def test_nothing_can_be_left_out_of_the_smallest_spec() -> None:
    path = ROOT / "specs/minimal.yaml"
    whole = read_source(path)
    assert len(whole.lines) < 30

    def left_out(values: Any, place: tuple[str | int, ...]) -> Any:
        if not place:
            return None
        inner = left_out(values[place[0]], place[1:])
        if isinstance(values, list):
            return [one if i != place[0] else inner for i, one in enumerate(values)]
        return {key: one if key != place[0] else inner for key, one in values.items() if key != place[0] or place[1:]}

    optional = {("data", "pretrain", "expect"), ("measure", 0), ("measure", 1)}
    for place in whole.lines:
        if place not in optional:
            with pytest.raises(ValidationError):
                Spec.model_validate(left_out(whole.values, place))
