"""Cleaners and their controls on the tiny world: what a setting must leave alone, what it must change, what is refused."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SELDOM, SPEC, antidote, journals, settings
from safetensors.torch import load_file, save_file

from configs.plan import runs
from configs.spec import load
from data.refusal import UserError
from engine.models import clip
from engine.training import init_weights as start
from engine.training.build import load_start_weights
from engine.training.optimizer import decays

CHOICES = """\
sweep:
  arm:
    plain: {clean.objective: {kind: mmcl}}
    still: {clean.optimizer: {rate: 0.0, decay: 100.0}, clean.objective: {kind: cleanclip}}
    none: {clean.epochs: 0}
    same: {clean.objective: {kind: mmcl}, clean.transform: {kind: shrink_perturb, shrink: 1.0, perturb: 0.0}}
    shrunk: {clean.epochs: 0, clean.transform: {kind: shrink_perturb, shrink: 0.9, perturb: 0.5}}
    scratch: {clean.epochs: 0, clean.transform: {kind: fresh}}
    par0: {clean.objective: {kind: par, tau: 0.0, learn_scale: true}}
    par: {clean.objective: {kind: par, learn_scale: true}}
    often: {clean.objective: {kind: mmcl}, clean.measure_steps: 3}
    heavy: {clean.objective: {kind: mmcl}, clean.optimizer: {rate: 1.0e-3, decay: 100.0}}
    heavy_inherited: {clean.objective: {kind: mmcl}, clean.optimizer: {rate: 1.0e-3, decay: 100.0, state: inherited}}
    heavy_published: {clean.objective: {kind: mmcl}, clean.optimizer: {rate: 1.0e-3, decay: 100.0, state: published}}
    inherited: {clean.objective: {kind: mmcl}, clean.optimizer.state: inherited}
    late: {clean.objective: {kind: mmcl}, clean.optimizer.offset: published}
"""
NORMS = """\
sweep:
  arm:
    trained: {clean.norms: trained}
    frozen: {clean.norms: frozen}
    frozen_still: {clean.norms: frozen, clean.optimizer.rate: 0.0}
    estimated: {clean.norms: estimated}
"""


class Study:
    """A finished study whose cleanings are named by the choice that they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = {
            run["swept"]["arm"]: run
            for run in json.loads((folder / "study.json").read_text())["runs"]
            if run["swept"].get("arm") and run["stage"] == "clean"
        }
        self.rows = journals(folder)
        self.begun = next(folder.glob("pretrain-*"), folder)

    def journal(self, arm: str, kind: str | None = None) -> list[dict[str, Any]]:
        rows = self.rows[self.runs[arm]["run"]]
        return [row for row in rows if kind is None or row["kind"] == kind]

    def weights(self, arm: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / self.runs[arm]["run"] / "weights.safetensors")

    @property
    def start(self) -> dict[str, torch.Tensor]:
        return load_file(self.begun / "weights.safetensors")


def study(world: Path, folder: Path, more: str, *sets: str) -> Study:
    (folder / "tiny.yaml").write_text(SPEC.format(world=world) + more)
    out = antidote("--spec", "tiny.yaml", *SELDOM, *settings(*sets), cwd=folder)
    assert out.returncode == 0, out.stderr
    return Study(folder / "runs/tiny")


@pytest.fixture(scope="module")
def arms(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study(world, tmp_path_factory.mktemp("arms"), CHOICES, "clean.epochs=2", "clean.optimizer.warmup=2")


@pytest.fixture(scope="module")
def norms(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    sets = ("model={name: test-resnet, norm_group: 4}", "clean.epochs=2", "pretrain.epochs=1")
    return study(world, tmp_path_factory.mktemp("norms"), NORMS, *sets)


def measured(rows: list[dict[str, Any]]) -> list[tuple[float, float, float]]:
    return [(row["epoch"], row["top1"], row["asr"]) for row in rows if row["kind"] == "measure"]


def numbers(rows: list[dict[str, Any]], kind: str = "step") -> list[dict[str, Any]]:
    names = ("step", "loss", "mmcl", "scale", "top1", "asr")
    return [{name: row[name] for name in names if name in row} for row in rows if row["kind"] == kind]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# what theory says must not change


def test_a_rate_of_0_changes_nothing_whatever_the_decay(arms: Study) -> None:
    assert equal(arms.weights("still"), arms.start)
    points = [point[1:] for point in measured(arms.journal("still"))]
    assert len(points) == 3
    assert len(set(points)) == 1
    last = measured(arms.rows[arms.begun.name])[-1]
    assert points[0] == last[1:]


def test_no_epochs_leave_the_start_and_its_metrics(arms: Study) -> None:
    assert equal(arms.weights("none"), arms.start)
    assert [point[1:] for point in measured(arms.journal("none"))] == [measured(arms.rows[arms.begun.name])[-1][1:]]


def test_shrinking_by_1_and_perturbing_by_0_is_no_transformation(arms: Study) -> None:
    assert arms.journal("same") == arms.journal("plain")
    assert equal(arms.weights("same"), arms.weights("plain"))
    assert not equal(arms.weights("plain"), arms.start)


def test_par_that_pushes_no_further_than_0_is_fine_tuning(arms: Study) -> None:
    for kind in ("step", "measure"):
        assert numbers(arms.journal("par0"), kind) == numbers(arms.journal("plain"), kind)
    assert numbers(arms.journal("par")) != numbers(arms.journal("plain"))
    assert all(row["away_images"] > 0 for row in arms.journal("par", "step")[1:])


def test_measuring_between_epochs_changes_no_step(arms: Study) -> None:
    often, plain = arms.journal("often"), arms.journal("plain")
    assert [row for row in often if row["kind"] == "step"] == [row for row in plain if row["kind"] == "step"]
    assert [row["epoch"] for row in often if row["kind"] == "measure"] == [0, 0.75, 1, 1.5, 2]
    assert [row for row in often if row["kind"] != "measure" or row["epoch"] == int(row["epoch"])] == plain
    assert equal(arms.weights("often"), arms.weights("plain"))


# what must change, and how


def test_the_distance_is_that_of_the_weights_from_their_start(arms: Study) -> None:
    start, weights = arms.start, arms.weights("plain")
    names = [name for name in start if not name.startswith("logit_")]
    moved = sum(float((weights[name] - start[name]).double().square().sum()) for name in names)
    whole = sum(float(start[name].double().square().sum()) for name in names)
    first, *_, last = (row["distance"] for row in arms.journal("plain", "measure"))
    assert first == 0
    assert last == pytest.approx((moved / whole) ** 0.5, rel=1e-5)
    assert last > 0
    assert {row["distance"] for row in arms.journal("still", "measure")} == {0.0}


@pytest.mark.parametrize("numbers", [1, start.CACHED, start.CACHED + 1, 3 * start.CACHED])
def test_the_distance_counts_every_number_once_however_many(numbers: int) -> None:
    begun = {"a": torch.full((numbers, 2), 3.0), "b": torch.tensor(4.0), "none": torch.empty(0)}
    moved = {"a": begun["a"] + 1, "b": begun["b"], "none": begun["none"], "new": torch.ones(7)}
    assert start.distance(moved, begun) == pytest.approx(math.sqrt(2 * numbers / (18 * numbers + 16)), rel=1e-15)
    assert start.distance(moved, moved) == 0.0 == start.distance(moved, {})
    assert start.distance({"a": moved["a"].T}, {"a": begun["a"].T}) == pytest.approx(1 / 3, rel=1e-15)


def test_shrink_and_perturb_by_its_formula(arms: Study) -> None:
    from data.seeding import derive_seed

    fresh = clip.build("test-vit", derive_seed(3, "perturb"))
    theirs = dict(fresh.clip.named_parameters()) | {"logit_scale": torch.tensor(math.log(1 / 0.07))}
    for name, value in arms.weights("shrunk").items():
        assert torch.allclose(value, 0.9 * arms.start[name] + 0.5 * theirs[name], atol=1e-6), name


def test_a_fresh_transform_leaves_nothing_of_the_start(arms: Study) -> None:
    from data.seeding import derive_seed

    fresh = clip.build("test-vit", derive_seed(3, "fresh"))
    theirs = dict(fresh.clip.named_parameters()) | {"logit_scale": torch.tensor(math.log(1 / 0.07))}
    assert equal(arms.weights("scratch"), {name: value.detach() for name, value in theirs.items()})
    assert not arms.start.keys() ^ theirs.keys()
    assert not any(torch.equal(arms.start[name], value) for name, value in theirs.items() if value.ndim > 1)


def size(weights: dict[str, torch.Tensor]) -> float:
    """The norm of what decays."""
    return math.sqrt(sum(float(v.square().sum()) for k, v in weights.items() if decays(k, v)))


def test_weight_decay_acts_in_cleaning_unless_the_published_form_overrules_it(arms: Study) -> None:
    """Eight steps of decay 100 at a rate of 1e-3 and its cosine shrink weights by over a fifth; the published code restores
    the decay of the pre-training with AdamW's state, 0.1, so that the one asked for does nothing."""
    for arm in ("heavy", "heavy_inherited"):
        assert size(arms.weights(arm)) < 0.8 * size(arms.start), arm
    assert size(arms.weights("heavy_published")) > 0.95 * size(arms.start)


def test_warm_up_acts_in_cleaning_unless_the_published_form_skips_it(arms: Study) -> None:
    """Two steps of warm-up to 1e-4; published, the schedule stands at step 5 of 8 when the first step is taken."""
    rates = [row["rate"] for row in arms.journal("plain", "step")]
    assert rates[:2] == [5e-5, 1e-4]
    late = [row["rate"] for row in arms.journal("late", "step")]
    assert late[0] == pytest.approx(1e-4 * 0.5 * (1 + math.cos(math.pi * 2 / 6)))
    assert late[-1] > late[4] == 0.0


def test_inherited_moments_make_another_first_step(arms: Study) -> None:
    plain, inherited = arms.journal("plain", "step"), arms.journal("inherited", "step")
    assert plain[0]["loss"] == inherited[0]["loss"]
    assert plain[1]["loss"] != inherited[1]["loss"]


def statistics(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if "running" in key}


def others(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if "running" not in key and "num_batches" not in key}


def test_batch_norm_is_trained_frozen_or_alone_estimated(norms: Study) -> None:
    moved = {
        arm: (
            not equal(statistics(norms.weights(arm)), statistics(norms.start)),
            not equal(others(norms.weights(arm)), others(norms.start)),
        )
        for arm in norms.runs
    }
    assert moved == {
        "trained": (True, True), "frozen": (False, True), "frozen_still": (False, False), "estimated": (True, False),
    }  # fmt: skip
    assert len({point[1:] for point in measured(norms.journal("frozen_still"))}) == 1
    assert all(row["rate"] == 0 for row in norms.journal("estimated", "step"))


def test_estimated_statistics_are_those_of_training_at_a_rate_of_0(norms: Study, world: Path, tmp_path: Path) -> None:
    more = "sweep:\n  arm:\n    still: {clean.optimizer.rate: 0.0}\n"
    sets = ("model={name: test-resnet, norm_group: 4}", "clean.epochs=2", "pretrain.epochs=1")
    still = study(world, tmp_path, more, *sets)
    for key, value in statistics(norms.weights("estimated")).items():
        assert torch.allclose(value, statistics(still.weights("still"))[key], atol=1e-6), key


# weights from elsewhere


def published(arms: Study, path: Path, prefix: str = "module.") -> None:
    """A file as the code of arXiv 2311.14948 writes it: DDP's names, AdamW's state over two groups."""
    weights, moments = arms.start, load_file(arms.begun / start.BESIDE)
    order = [name for decaying in (False, True) for name in weights if decays(name, weights[name], "published") == decaying]
    state = {
        i: {
            "step": moments[start.STEPS],
            **{key: moments[f"{name}/{key}"].reshape(weights[name].shape) for key in start.MOMENTS},
        }
        for i, name in enumerate(order)
    }
    few = sum(not decays(name, weights[name], "published") for name in order)
    groups = [
        {"weight_decay": 0.0, "lr": 1e-3, "params": list(range(few))},
        {"weight_decay": 0.1, "lr": 1e-3, "params": list(range(few, len(order)))},
    ]
    torch.save(
        {"epoch": 2, "name": "x", "state_dict": {f"{prefix}{key}": value for key, value in weights.items()},
         "optimizer": {"state": state, "param_groups": groups}},
        path,
    )  # fmt: skip


def test_every_form_of_the_same_weights_cleans_alike(arms: Study, world: Path, tmp_path: Path) -> None:
    """A run's folder, its export to open_clip, the published form with and without `module.`: the same journal as from the
    run itself, moments included."""
    from engine.export import export

    export(arms.begun, tmp_path / "export")
    published(arms, tmp_path / "ddp.pt")
    published(arms, tmp_path / "plain.pt", "")
    (tmp_path / "tiny.yaml").write_text(SPEC.format(world=world))
    choices = {
        "folder": {"clean.start": {"path": str(arms.begun)}},
        "export": {"clean.start": {"path": str(tmp_path / "export")}},
        "plain": {"clean.start": {"path": str(tmp_path / "plain.pt")}},
        "ddp": {"clean.start": {"path": str(tmp_path / "ddp.pt")}},
        "moments": {"clean.start": {"path": str(arms.begun)}, "clean.optimizer.state": "inherited"},
        "ddp_moments": {"clean.start": {"path": str(tmp_path / "ddp.pt")}, "clean.optimizer.state": "inherited"},
    }
    sweep = settings(f"sweep={json.dumps({'arm': choices})}")
    words = [
        *settings("pretrain=null", "clean.objective={kind: mmcl}", "clean.epochs=2", "clean.optimizer.warmup=2"),
        *sweep,
    ]
    # weights of one digest are one start, wherever they lie
    starts = [[*words[1::2][:4], f"clean.start.path={path}"] for path in (arms.begun, tmp_path / "export")]
    folder, exported = (runs(load(tmp_path / "tiny.yaml", sets).points)[-1].fingerprint for sets in starts)
    assert folder == exported
    out = antidote("--spec", "tiny.yaml", *SELDOM, *words, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    found = Study(tmp_path / "runs/tiny")
    for arm in ("folder", "plain", "ddp"):
        assert found.journal(arm) == arms.journal("plain"), arm
        assert equal(found.weights(arm), arms.weights("plain")), arm
    for arm in ("moments", "ddp_moments"):
        assert numbers(found.journal(arm)) == numbers(arms.journal("inherited")), arm
    page = (tmp_path / "runs/tiny/report/index.html").read_text()
    assert "ddp" in page


class Evil:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


OTHERS = {
    "list.pt": [1, 2],
    "number.pt": {"state_dict": 5},
    "keys.pt": {"state_dict": {1: torch.ones(2), ("a", 2): torch.ones(2), "x": "y"}},
    "scale.pt": None,
}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("evil.pt", "holds pickled code, not tensors alone, and is not opened"),
        ("cut.pt", "can't be read as weights"),
        ("cut.safetensors", "is no whole safetensors file"),
        ("other.safetensors", "holds another architecture than test-vit"),
        ("none.pt", "holds no weights; expected a run's folder, a folder of open_clip's"),
        ("list.pt", "holds a list; expected a dict of tensors"),
        ("number.pt", "holds a int; expected a dict of tensors"),
        ("keys.pt", "holds another architecture than test-vit"),
        ("empty.pt", "can't be read as weights"),
        ("zeros.pt", "can't be read as weights"),
        ("empty.safetensors", "is no whole safetensors file"),
        ("scale.pt", r"first logit_scale ([3] there, [] in test-vit)"),
    ],
)
def test_weights_that_cannot_be_started_from_are_refused(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    state = clip.weights(clip.build("test-vit", 0), {})
    if name == "evil.pt":
        torch.save({"state_dict": state, "arguments": Evil()}, path)
    elif name in OTHERS:
        torch.save(OTHERS[name] if name != "scale.pt" else {**state, "logit_scale": torch.ones(3)}, path)
    elif name.startswith(("empty", "zeros")):
        path.write_bytes(bytes(1000 if name == "zeros.pt" else 0))
    elif name == "other.safetensors":
        save_file(clip.weights(clip.build("test-resnet", 0), {}), path)
    elif name != "none.pt":
        save_file(state, path) if name.endswith("tensors") else torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError) as caught:
        start.load_start(clip.build("test-vit", 1), start.path_of(start.Start(path=str(path)), "test-vit"), "test-vit")
    assert words in str(caught.value)
    assert "code ran" not in capsys.readouterr().out
    if name == "other.safetensors":
        assert re.search(r"first \S+ \((\[.*?\]|missing) there, \[.*?\] in test-vit\), ", str(caught.value))


@pytest.mark.parametrize("name", ["visual.proj", "logit_scale", "token_embedding.weight"])
def test_a_start_that_is_not_finite_is_refused(name: str, tmp_path: Path) -> None:
    state = clip.weights(clip.build("test-vit", 0), {"scale": torch.ones(1)})
    state[name].view(-1)[-1] = float("nan")
    save_file(state, tmp_path / "x.safetensors")
    of = SimpleNamespace(start=start.Start(path=str(tmp_path / "x.safetensors")))
    run = SimpleNamespace(start=None, settings=of, spec=SimpleNamespace(model=SimpleNamespace(name="test-vit")))
    with pytest.raises(UserError, match="numbers that are not finite; nothing can be learned from them"):
        load_start_weights(SimpleNamespace(run=run), clip.build("test-vit", 1))  # type: ignore[arg-type]


def test_a_digest_that_does_not_fit_and_a_tag_that_is_none_are_refused(tmp_path: Path, spec: Path) -> None:
    save_file(clip.weights(clip.build("test-vit", 0), {}), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"clean.start.digest is 0123456789ab, but .* has"):
        load(spec, ["pretrain=null", f"clean.start={{path: {tmp_path}/x.safetensors, digest: 0123456789ab}}"])
    with pytest.raises(
        UserError, match="start.pretrained is 'opena', which open_clip does not know for RN50; did you mean 'openai'?"
    ):
        clip.pretrained("RN50", "opena")
    with pytest.raises(UserError, match="give pretrain, or clean.start"):
        load(spec, ["pretrain=null"])


def test_moments_that_are_not_there_are_named(arms: Study, tmp_path: Path) -> None:
    save_file(arms.start, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds no optimizer.safetensors; use optimizer.state: fresh"):
        start.moments_of(tmp_path / "x.safetensors")
    torch.save({"state_dict": arms.start}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="holds none; use optimizer.state: fresh"):
        start.moments_of(tmp_path / "x.pt")


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 3])
def test_moments_are_inherited_alike_on_two_processes_under_zero(
    arms: Study, world: Path, tmp_path: Path, zero: int
) -> None:
    """Both ways: gathered from two ranks' parts at the end of pre-training, given to two ranks' parts for cleaning."""
    (tmp_path / "tiny.yaml").write_text(SPEC.format(world=world))
    words = settings(
        "clean.objective={kind: mmcl}", "clean.epochs=2", "clean.optimizer={rate: 1.0e-4, warmup: 2, state: inherited}"
    )
    out = antidote("--spec", "tiny.yaml", *SELDOM, *words, *settings(f"machine.zero={zero}"), cwd=tmp_path, processes=2)
    assert out.returncode == 0, out.stderr
    mine = load_file(next((tmp_path / "runs/tiny").glob("pretrain-*")) / start.BESIDE)
    theirs = load_file(arms.begun / start.BESIDE)
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        assert key.endswith(("in_proj_bias/exp_avg", "in_proj_bias/exp_avg_sq")) or torch.allclose(
            mine[key], value, atol=1e-5
        ), key
    rows = next(rows for name, rows in journals(tmp_path / "runs/tiny").items() if name.startswith("clean"))
    for a, b in zip(numbers(rows), numbers(arms.journal("inherited")), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


# controls


def test_a_cleaned_twin_begins_at_the_twin_may_inherit_its_moments_and_says_that_it_was_never_poisoned(
    world: Path, tmp_path: Path
) -> None:
    from engine.export import main
    from engine.study.status import StatusReader

    more = "sweep:\n  arm:\n    plain: {clean.objective: {kind: mmcl}}\n    inherited: {clean.optimizer.state: inherited}\n"
    study(world, tmp_path, more, "pretrain.epochs=1", "attack.twin=first", "attack.clean_twin=true")
    folder = tmp_path / "runs/tiny"
    rows, entries = journals(folder), json.loads((folder / "study.json").read_text())["runs"]
    (twin,) = (entry["run"] for entry in entries if entry["stage"] == "twin")
    cleaned = [entry["run"] for entry in entries if entry["start"] == twin]
    assert [entry["run"] for entry in entries if entry["control"] == "twin"] == cleaned
    ended = {run: [point[1:] for point in measured(rows[run])] for run in (twin, *cleaned)}
    assert [ended[run][0] for run in cleaned] == [ended[twin][-1]] * 2
    assert len({rows[run][-1]["distance"] for run in cleaned}) == 2
    reached = {run.run: len(run.points) for run in StatusReader(folder).read().runs}
    assert [reached[run] for run in cleaned] == [0, 0], "a control is never the best so far"
    assert sum(reached.values()) == 2
    assert main([str(folder / cleaned[0]), str(tmp_path / "out")]) == 0
    assert "pre-trained without poison, then cleaned" in (tmp_path / "out/README.md").read_text()


# clean sets


def test_clean_shards_with_poisoned_pairs_are_refused_unless_that_is_meant(world: Path, spec: Path) -> None:
    shards = f"data.clean.shards={world}/train/*.tar"
    out = antidote("--spec", str(spec), *settings(shards, "pretrain.epochs=0"), cwd=spec.parent)
    assert out.returncode == 2
    assert "12 of the 192 pairs of data.clean.shards" in out.stderr
    assert "set data.clean.leftover" in out.stderr
    choices = {f"left{n}": {"data.clean.leftover": n} for n in (0, 2)}
    words = settings(shards, "pretrain.epochs=0", "data.clean.pairs=null", f"sweep={json.dumps({'arm': choices})}")
    out = antidote("--spec", str(spec), *words, cwd=spec.parent)
    assert out.returncode == 0, out.stderr
    found = Study(spec.parent / "runs/tiny")
    cards = {arm: json.loads((found.folder / run["run"] / "card.json").read_text()) for arm, run in found.runs.items()}
    assert [(card["pairs"], card["poisoned_pairs"]) for card in cards.values()] == [(180, 0), (182, 2)]
    first = json.loads((found.begun / "poison.json").read_text())["entries"][:2]
    stays = json.loads((found.folder / found.runs["left2"]["run"] / "poison.json").read_text())["entries"]
    assert [entry["key"] for entry in stays] == [entry["key"] for entry in first]


def test_views_may_differ_in_the_cleaning_alone(arms: Study, world: Path, tmp_path: Path) -> None:
    more = "sweep:\n  arm:\n    light: {clean.objective: {kind: mmcl}, data.clean.augment: {first: [noise], noise: 0.2}}\n"
    light = study(world, tmp_path, more, "clean.epochs=2", "clean.optimizer.warmup=2")
    assert light.begun.name == arms.begun.name
    assert light.journal("light", "step")[0]["loss"] != arms.journal("plain", "step")[0]["loss"]
