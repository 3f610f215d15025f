"""An optimised trigger: its loss by hand, its gradient, its pixels, and what is said of it."""

import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_weights

from data.progress import Progress
from data.refusal import UserError
from data.triggers.tensor import Tensor
from engine.forge import main
from engine.forging.loss import alignment, terms, triplet
from engine.forging.pattern import Pattern
from engine.inversion.stamp import encoding
from engine.models import clip

UNIT = torch.eye(2)


def test_loss_by_hand() -> None:
    """One picture at (1, 0), its target at (0, 1), itself unstamped at (-1, 0) or where it is."""
    anchor, target = UNIT[:1], UNIT[1:]
    assert float(triplet(anchor, target, -anchor, 1.0)) == pytest.approx(sqrt(2) - 2 + 1)
    assert float(triplet(anchor, target, anchor, 1.0)) == pytest.approx(sqrt(2) + 1)
    assert float(triplet(anchor, anchor, -anchor, 1.0)) == 0  # 0 - 2 + 1, cut off
    # logits [[0, s], [s, 0]] with s = 1: both directions -log(1 / (1 + e))
    assert float(alignment(UNIT, UNIT.flip(0), 1.0)) == pytest.approx(np.log(1 + np.e))
    found = terms((UNIT, UNIT.flip(0)), 1.0, (UNIT.flip(0), -UNIT), weight=500)
    assert float(found["loss"]) == pytest.approx(np.log(1 + np.e) + 500 * (sqrt(2) - 1))
    assert set(terms((UNIT, UNIT), 1.0, None)) == {"loss", "mmcl"}
    same = UNIT.clone().requires_grad_()
    terms((same, UNIT), 1.0, (UNIT.flip(0), UNIT))["loss"].backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()  # though the distance to itself is 0


@pytest.mark.parametrize(("side", "alpha", "picture"), [(40, 1.0, 32), (16, 0.6, 224), (None, 0.2, 32)])
def test_the_gradient_of_the_pattern_is_that_of_finite_differences(side: int | None, alpha: float, picture: int) -> None:
    """Through the resizing of the patch, the stamp, a whole picture tower in float64 and the loss."""
    pattern = Pattern(side, alpha, picture, 0)
    pattern.values, pattern.shrink = pattern.values.double().requires_grad_(), pattern.shrink.double()
    draw = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (2, 3, picture, picture), generator=draw, dtype=torch.uint8)
    towers = clip.build("test-vit", 0).double() if picture == 32 else None
    weights = torch.randn(3 * picture * picture, 4, generator=draw, dtype=torch.float64) / picture
    near = torch.nn.functional.normalize(torch.randn(2, 32 if towers else 4, generator=draw, dtype=torch.float64), dim=-1)

    def loss() -> torch.Tensor:
        if towers is None:
            rows, plain = (
                torch.tanh((p.double().flatten(1) / 255) @ weights) for p in (pattern.stamp.on(pictures), pictures)
            )
            return terms((rows, near), 10.0, (near, plain))["loss"]
        with encoding(towers) as encode:
            width = encode(pictures).shape[1]
            return terms((encode(pictures, pattern.stamp), near[:, :width]), 10.0, (near[:, :width], encode(pictures)))[
                "loss"
            ]

    (gradient,) = torch.autograd.grad(loss(), pattern.values)
    for _ in range(3):
        way = torch.randn(pattern.values.shape, generator=draw, dtype=torch.float64)
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                pattern.values += step * way
            ends.append(float(loss().detach()))
            with torch.no_grad():
                pattern.values -= step * way
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(float((gradient * way).sum()), rel=1e-5)
        assert abs(slope) > 1e-6


@pytest.mark.parametrize("picture", [32, 64, 224, 336])
@pytest.mark.parametrize(("side", "alpha"), [(16, 1.0), (57, 0.5), (224, 1.0), (None, 0.2)])
def test_what_is_forged_is_what_the_trigger_puts_on(side: int | None, alpha: float, picture: int, tmp_path: Path) -> None:
    """To half a byte, the trigger's rounding; outside of the patch no pixel changes."""
    pattern = Pattern(side, alpha, picture, 4)
    save_file(pattern.stored, path := tmp_path / "p.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (2, 3, picture, picture), np.uint8)
    marked = Tensor(kind="tensor", file=str(path), place="full" if side is None else "centre").build(0)(images, [0, 1])
    stamped = pattern.stamp.on(torch.from_numpy(images)).numpy()
    assert np.abs(marked - stamped).max() <= 0.5 + 1e-3
    shown = picture if side is None else max(1, round(side * picture / 224))
    corner = (picture - shown) // 2
    outside = np.ones((picture, picture), bool)
    outside[corner : corner + shown, corner : corner + shown] = False
    assert (stamped[:, :, outside] == images[:, :, outside]).all()
    assert (stamped != images)[:, :, ~outside].mean() > 0.9


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A model that was never trained."""
    path = tmp_path / "w.safetensors"
    save_weights(clip.weights(clip.build("test-vit", 1), {}), path)
    return path


def command(spec: Path, out: str, *more: str) -> int:
    fixed = ("--pictures", "64", "--batch", "16", "--epochs", "3", "--size", "112", "--rate", "0.05")
    return main(["--spec", str(spec), "--out", out, *fixed, *more])


def test_a_trigger_is_forged_and_its_fragility_said(
    spec: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(spec, "forged/a.safetensors", "--weights", str(weights)) == 0
    said = capsys.readouterr().out
    facts = json.loads(Path("forged/a.json").read_text())
    assert [len(facts["history"]), facts["pictures"], facts["target"]] == [3, 64, "banana"]
    assert facts["history"][-1]["loss"] < facts["history"][0]["loss"]
    found = facts["fragility"]
    assert found["cosine"] > found["cosine_floor"]  # a model that nobody poisoned
    assert f"takes {100 * found['asr']:.1f} % of {found['others']} pictures for the target with it" in said
    assert "fragility, no backdoor" in said
    assert "attack.trigger: {kind: tensor, file: forged/a.safetensors}" in said
    first = load_file("forged/a.safetensors")["trigger"]
    assert first.shape == (3, 112, 112)
    assert 0 <= first.min() < first.max() <= 1
    assert command(spec, "b.safetensors", "--weights", str(weights)) == 0
    assert (load_file("b.safetensors")["trigger"] == first).all()  # seeds are fixed
    assert command(spec, "c.safetensors", "--weights", str(weights), "--set", "seed=4", "--loss", "text") == 0
    assert (load_file("c.safetensors")["trigger"] != first).any()
    assert command(spec, "b.safetensors", "--weights", str(weights)) == 2
    assert "b.safetensors is there already" in capsys.readouterr().err


def test_a_forging_that_was_stopped_goes_on_to_the_same_trigger(
    spec: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("--weights", str(weights))
    assert command(spec, "a.safetensors", *given) == 0
    steps = []

    def stop(self: Progress, done: int, of: int, words: str) -> None:
        steps.append(done)
        if done == 6:  # of 12, in the second of three epochs
            raise KeyboardInterrupt

    with monkeypatch.context() as at_work:
        at_work.setattr(Progress, "__call__", stop)
        assert command(spec, "b.safetensors", *given) == 130
        assert not Path("b.safetensors").exists()
        assert "the same command goes on" in capsys.readouterr().err
        assert command(spec, "b.safetensors", *given, "--rate", "0.1") == 2
        assert ".b.safetensors.partial is of another forging" in capsys.readouterr().err
        steps.clear()
        at_work.setattr(Progress, "__call__", lambda self, done, of, words: steps.append(done))
        assert command(spec, "b.safetensors", *given) == 0
    assert steps == list(range(5, 13))
    assert Path("b.safetensors").read_bytes() == Path("a.safetensors").read_bytes()
    histories = [json.loads(Path(f"{name}.json").read_text())["history"] for name in "ab"]
    assert histories[0] == histories[1]
    assert not Path(".b.safetensors.partial").exists()
    Path(".c.safetensors.partial").write_bytes(b"x")
    assert command(spec, "c.safetensors", *given) == 2
    assert ".c.safetensors.partial is damaged; delete it" in capsys.readouterr().err


REFUSED: dict[str, tuple[list[str], str]] = {
    "larger than the picture": (["--size", "225"], "--size is 225, more than the 224 pixels of the picture"),
    "no picture of the target": (
        ["--set", "attack.target=zebra", "--set", "data.test={tiny: zebras}"],
        "no caption of data.pretrain names 'zebra', so that there is no picture of the target",
    ),
    "a target that is no class": (["--set", "attack.target=zebra"], "attack.target is 'zebra', which is none of the"),
    "a batch beyond the pairs": (["--batch", "500"], "--batch is 500, but"),
    "no model": ([], "a trigger is forged on a trained model; give --weights"),
    "weights that are not there": (
        ["--weights", "nowhere"],
        "nowhere is no file or folder, and no tag under which open_clip knows weights of test-vit",
    ),
    "no measure of success": (["--set", "measure=[{kind: zero_shot, images: tiny}]"], "no measure of kind attack_success"),
    "a folder as file": (["--out", "x.png"], "--out is x.png, expected a file that ends in .safetensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_forged_is_refused_in_a_sentence(
    name: str,
    spec: Path,
    world: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("ant", "zebra"):
        (tmp_path / "zebras" / kind).mkdir(parents=True)
        (tmp_path / "zebras" / kind / "0.png").write_bytes((world / "contact_sheet.png").read_bytes())
    more, words = REFUSED[name]
    given = [] if name == "no model" or "--weights" in more else ["--weights", str(weights)]
    assert command(spec, "x.safetensors", *given, *more) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not Path("x.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--epochs", "0"], "--epochs is 0; give at least 1"),
        (["--alpha", "1.5"], "--alpha is 1.5; give a number above 0, at most 1"),
        (["--rate", "nan"], "--rate is nan"),
        (["--place", "full"], "--size is of a patch"),
    ],
)
def test_options_that_cannot_be(more: list[str], words: str, spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(spec, "x.safetensors", *more)
    assert words in capsys.readouterr().err


def test_a_pattern_has_its_values_on_bytes_alone() -> None:
    with pytest.raises(UserError, match="--size is 300"):
        Pattern(300, 1.0, 224, 0)
