"""GPU-hours: the formula by hand, the table of a folder, what is refused."""

from pathlib import Path

import pytest
from conftest import ROOT, SPEC, antidote
from hypothesis import given
from hypothesis import strategies as st

from configs.plan import runs
from configs.spec import load
from engine.estimate import cost
from engine.estimate.cost import Cost, Flop, evaluation_seconds, measured_later, training_seconds
from engine.estimate.dry_run import dry_run
from engine.estimate.dry_run_folder import dry_run_folder, total
from engine.estimate.gpus import Assumed
from engine.run import arguments
from engine.training.inputs import StudyInputs
from engine.training.pairs import StudyPairs

ONE = Assumed(1, None).world

HOST = 2 / 513 - 1 / 351  # seconds: MMCL's time less the difference that a second view makes
SPEED = (12.222939136e9 + 5.549621248e9) / (1 / 351 - 1 / 513)


def test_the_reference_costs_what_was_measured() -> None:
    """6 million pairs, 64 epochs, on 8 GPUs: published 24-28 h with MMCL, 36-40 h with MMCL+SSL, evaluation included."""
    plan = runs(load(ROOT / "specs/cc6m.yaml").points, "pretrain")
    for run, rate, hours in zip(plan, (513, 351), ((24, 28), (36, 40)), strict=True):
        assert training_seconds(run, 1000) == pytest.approx(1000 / rate)
        assert hours[0] < cost.cost(run, 6_000_000, set()).hours / 8 < hours[1]


def test_a_run_by_hand() -> None:
    """MMCL on CC6M: 2,929 steps of 2,048 pairs an epoch; 65 times 50,000 pictures, twice, and 80,000 prompts."""
    run = runs(load(ROOT / "specs/cc6m.yaml").points)[0]
    run_cost = cost.cost(run, 6_000_000, set())
    assert (run_cost.pretrainings, run_cost.cleanings, run_cost.steps, run_cost.pairs) == (1, 0, 2929 * 64, 2929 * 64 * 2048)
    pictures = 50_000 * (HOST + 2 * 12.222939136e9 / SPEED / 3)
    seconds = 2929 * 64 * 2048 / 513 + 65 * (pictures + 80_000 * 5.549621248e9 / SPEED / 3)
    assert run_cost.hours == pytest.approx(seconds / 3600)
    assert cost.number(run_cost.hours) == "209"
    assert run_cost.hours == pytest.approx(209.3, abs=0.1)


@pytest.mark.parametrize(
    ("sets", "views", "passes"),
    [
        (["clean.objective={kind: ssl, text: false}"], (2, 1), 3),
        (["clean.objective={kind: mmcl}", "clean.norms=estimated", "model.name=RN50-quickgelu"], (1, 1), 1),
    ],
)  # fmt: skip
def test_views_and_passes_count(
    spec: Path, monkeypatch: pytest.MonkeyPatch, sets: list[str], views: tuple[int, int], passes: int
) -> None:
    run = runs(load(spec, sets).points, "clean")[0]
    monkeypatch.setattr(cost, "flop", lambda name: Flop(3e9, 1e9))
    monkeypatch.setattr(cost, "speed", lambda: (0.5, 1e9))
    assert training_seconds(run, 10) == pytest.approx(10 * (0.5 + (views[0] * 3 + views[1]) * passes / 3))


def test_k_means_costs_a_pass_more_and_given_labels_do_not(spec: Path) -> None:
    given, made = (
        training_seconds(runs(load(spec, [f"clean.objective={{kind: deep_cluster{more}}}"]).points, "clean")[0], 100)
        for more in (", labels: some.jsonl", "")
    )
    assert made > given


def test_an_unknown_set_is_not_counted_and_said(spec: Path) -> None:
    notes: set[str] = set()
    assert evaluation_seconds(runs(load(spec).points)[0], 10, notes) == 0
    assert "evaluation on 'tiny' is not counted" in notes.pop()


def test_measures_between_epochs_cost_more(spec: Path) -> None:
    names = ["data.test={cifar100: x}", "measure=[{kind: zero_shot, images: cifar100}]"]

    def seconds(steps: int, *sets: str) -> float:
        return evaluation_seconds(runs(load(spec, [*names, *sets]).points, "clean")[0], steps, set())

    once = seconds(10) / 2
    assert seconds(10, "clean.measure_steps=5") == pytest.approx(3 * once), "at the start, after 5 steps and after 10"
    assert seconds(10, "clean.measure_steps=4") == pytest.approx(4 * once), "and after 4, 8 and 10"
    three = "clean.epochs=3"
    assert seconds(30, three, "clean.measure_steps=15") == pytest.approx(5 * once), "after 10, 15, 20 and 30"
    assert seconds(30, three, "clean.measure_steps=10") == pytest.approx(4 * once)
    assert seconds(0, three, "clean.measure_steps=10") == pytest.approx(4 * once)
    assert seconds(9, three, "clean.measure_steps=100") == pytest.approx(4 * once)


@given(st.integers(0, 40), st.integers(0, 6), st.none() | st.integers(1, 60))
def test_a_run_is_measured_as_often_as_the_loop_measures_it(each: int, epochs: int, every: int | None) -> None:
    steps = each * epochs
    ends = [done for done in range(1, steps + 1) if done % each == 0 or every and done % every == 0]
    assert measured_later(steps, epochs, every) == (len(ends) if steps else epochs)


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def cells(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if name in line and "│" in line)
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_the_table_of_a_folder_sums_its_rows(world: Path, tmp_path: Path, scratch: Path) -> None:
    for number in (1, 2):
        text = SPEC.format(world=world).replace("epochs: 2", f"epochs: {number}")
        (tmp_path / f"{number}.yaml").write_text(text + "sweep: {clean.optimizer.rate: [1.0e-4, 1.0e-3]}\n")
    text, broken = dry_run_folder(tmp_path, [], None, Assumed(1, None, 1000.0), print)
    assert broken == []
    assert cells(text, "1.yaml")[:4] == ["1", "2", "20", "320"], "12 steps of 16 pairs, and twice 4"
    assert cells(text, "2.yaml")[:4] == ["1", "2", "32", "512"]
    assert cells(text, "total")[:4] == ["2", "4", "52", "832"]
    pairs = StudyPairs(tmp_path, ONE, scratch)
    whole = sum((total(load(tmp_path / f"{n}.yaml"), None, pairs, set()) for n in (1, 2)), Cost())
    assert cells(text, "total")[4:] == [cost.number(whole.hours), cost.number(whole.price(1000.0))]
    assert "dollars at 1000 a GPU-hour" in text
    without, _ = dry_run_folder(tmp_path, ["clean.epochs=0"], "clean", Assumed(1, None), print)
    assert cells(without, "total")[:4] == ["0", "4", "0", "0"]
    assert "dollars" not in without.replace("--dollars RATE", "")
    assert "A100-40GB" in without


def test_a_folder_with_a_broken_spec_shows_the_others_and_exits_with_2(world: Path, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(SPEC.format(world=world))
    (tmp_path / "wrong.yaml").write_text(SPEC.format(world=world).replace("epochs: 2", "epoch: 2"))
    (tmp_path / "no.yaml").write_text("- a list\n")
    out = antidote("--spec", ".", "--dry-run", cwd=tmp_path)
    assert out.returncode == 2
    assert cells(out.stdout, "good.yaml")[:2] == ["1", "1"]
    errors = [line for line in out.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1].strip() for line in errors] == ["no.yaml", "wrong.yaml"]
    assert "did you mean 'epochs'?" in errors[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.yaml", "no.yaml", "wrong.yaml"], "nothing was written"


def test_a_folder_is_no_study(tmp_path: Path) -> None:
    out = antidote("--spec", ".", cwd=tmp_path)
    assert (out.returncode, out.stdout) == (2, "")
    assert "a study is one file: give one of it, or add --dry-run" in out.stderr
    empty = antidote("--spec", ".", "--dry-run", cwd=tmp_path)
    assert empty.returncode == 2
    assert "holds no .yaml file" in empty.stderr


@pytest.mark.parametrize("words", [["--dollars", "2"], ["--dry-run", "--dollars", "0"], ["--dry-run", "--dollars", "nan"]])
def test_a_price_that_says_nothing_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(["--spec", "specs", *words])
    assert "the price of one GPU-hour, above 0, and goes with --dry-run" in capsys.readouterr().err


def test_the_plan_of_one_spec_shows_its_price(spec: Path, tmp_path: Path) -> None:
    loaded = load(spec, ["data.test={tiny: x, imagenet: y}", "measure=[{kind: zero_shot, images: imagenet}]"])
    machine = Assumed(1, None, 100.0)
    shared = StudyInputs(spec.parent / "runs/tiny", machine.world, tmp_path)
    text = dry_run(loaded, runs(loaded.points), shared, machine)
    line = next(line for line in text.splitlines() if line.startswith("in all"))
    hours, price = (float(word.replace(",", "")) for word in line.split() if word[0].isdigit())
    assert hours * 100 == pytest.approx(price, abs=6)
    assert "GPU-h" in text


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "?"), (0, "0"), (7, "7"), (0.0, "0.0"), (2e-4, "0.0002"), (0.06, "0.1"), (9.96, "10.0"), (1234.5, "1,234")],
)
def test_a_cost_is_told_as_far_as_it_is_known(value: float | None, words: str) -> None:
    assert cost.number(value) == words


def test_a_sum_with_what_is_not_known_is_not_known() -> None:
    known, not_known = Cost(1, 0, 10, 160, 0.5), Cost(0, 1, None, None, None)
    assert known + not_known + known == Cost(2, 1, None, None, None)
    assert not_known.price(2.0) is None
