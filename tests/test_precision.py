"""bf16 is the plain formula on master weights: the first update by hand, at every ZeRO stage, on one process and on two."""

import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import forked
import masters
import pytest
import torch
from conftest import ROOT, SPEC, antidote, environment, journals, settings
from torch import nn

from configs.machine import Machine
from configs.spec import load
from data.refusal import UserError
from data.synthetic import SyntheticWorld, write_world
from engine.models import clip
from engine.models.precision import allow_tf32, units
from engine.models.towers import Piece
from engine.training import zero
from engine.training.optimizer import decays

Results = dict[str, dict[str, torch.Tensor]]
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Results]:
    """What tests/masters.py computes on so many ranks."""
    folder = tmp_path_factory.mktemp("masters")

    @cache
    def of(ranks: int) -> Results:
        script = [sys.executable, str(ROOT / "tests/masters.py"), str(folder / f"{ranks}.pt")]
        done = forked.run_ranks(script, ranks, env=environment(OMP_NUM_THREADS="1"))
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(folder / f"{ranks}.pt", weights_only=True)  # type: ignore[no-any-return]

    return of


@cache
def start(name: str) -> dict[str, torch.Tensor]:
    return {key: p.detach().double() for key, p in clip.build(name, 1).clip.named_parameters()}


def by_hand(
    name: str, grads: dict[str, torch.Tensor], scale: float = 1.0, inherits: bool = False
) -> dict[str, torch.Tensor]:
    """AdamW's update of each weight (Loshchilov & Hutter 2019), in float64."""
    section, out = masters.PLAIN, {}
    before = masters.moments(name) if inherits else {}
    step = masters.STEPS * inherits + 1
    for key, old in start(name).items():
        grad = grads[key].double() * scale
        first, second = (
            beta * (before[f"{key}/{moment}"].double() if inherits else 0.0) + (1 - beta) * value
            for beta, moment, value in zip(section.betas, ("exp_avg", "exp_avg_sq"), (grad, grad**2), strict=True)
        )
        root = (second / (1 - section.betas[1] ** step)).sqrt() + section.eps
        decay = section.decay * decays(key, old) * old
        out[key] = -section.rate * (first / (1 - section.betas[0] ** step) / root + decay)
    return out


def worst(name: str, got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> tuple[float, str]:
    """(largest difference of two updates over the largest update of that weight; the weight's name)."""
    found = []
    for key, update in want.items():
        further = (got[key].double() - start(name)[key] - update).abs().max()
        found.append(((further / update.abs().max().clamp(min=1e-7)).item(), key))
    return max(found)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", masters.MODELS)
def test_the_first_update_is_adamws_by_hand(results: Callable[[int], Results], name: str, stage: int, ranks: int) -> None:
    """From the gradients of torch's own bf16 arithmetic, on the same number of processes. A mean of bf16 gradients over two
    processes would be off by 2e-3, a second step of AdamW before the first by 0.25."""
    grads, got = results(ranks)[f"gradients {name}"], results(ranks)[f"first {name} {stage}"]
    assert got["distance"] == 0.0
    assert got["loss"] == pytest.approx(grads["loss"].item(), rel=1e-6)
    assert worst(name, got, by_hand(name, grads)) < (1e-4, "")
    assert got["steps"] == 1
    for key in start(name):
        assert torch.allclose(got[f"{key}/exp_avg"], 0.1 * grads[key], rtol=1e-3, atol=1e-8), key


@pytest.mark.parametrize("ranks", [1, 2])
def test_moments_are_inherited_and_zclip_clips_at_every_stage(results: Callable[[int], Results], ranks: int) -> None:
    """A norm g with z = (g - mean) / deviation becomes mean + 2.5^2 / z * deviation."""
    grads = {key: value for key, value in results(ranks)["gradients test-vit"].items() if key != "loss"}
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in grads.values()))
    _, mean, variance = masters.SEEN
    z = (norm - mean) / math.sqrt(variance)
    limit = mean + 2.5**2 / z * math.sqrt(variance)
    assert z > 5
    want = by_hand("test-vit", grads, limit / norm, inherits=True)
    for stage in STAGES:
        got = results(ranks)[f"clipped test-vit {stage}"]
        assert got["zclip"][1].item() == pytest.approx(0.97 * mean + 0.03 * limit, rel=1e-5)
        assert worst("test-vit", got, want) < (1e-4, ""), stage


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_set_for_products_and_convolutions(allowed: bool) -> None:
    """By torch's newer names and by its older ones, which some of torch itself still reads."""
    try:
        allow_tf32(allowed)
        expected = "tf32" if allowed else "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == expected
        assert torch.backends.cudnn.conv.fp32_precision == expected  # type: ignore[attr-defined]
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    finally:
        allow_tf32(False)


@pytest.mark.parametrize(("precision", "kind"), [("auto", "bf16"), ("bf16", "bf16"), ("fp32", "fp32")])
def test_a_gpu_may_use_tf32_under_bf16_alone(precision: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    said: list[bool] = []
    monkeypatch.setattr(zero, "allow_tf32", said.append)
    assert zero.precision(Machine(precision=precision), torch.device("cuda")) == kind  # type: ignore[arg-type]
    assert said == [kind == "bf16"]
    assert zero.precision(Machine(), torch.device("cpu")) == "fp32"
    assert len(said) == 1


@pytest.mark.parametrize("name", ["RN50", "EVA02-B-16", "ViT-B-16-SigLIP", "coca_ViT-B-32", "swin_base_patch4_window7_224"])
def test_any_tower_computes_in_bf16(name: str) -> None:
    """Without storage: types fit, also where a block reads its children's weights, and each parameter is in one unit, but
    for BatchNorm's and embeddings of tokens."""
    towers = clip.on_meta(name)
    seen = [id(p) for _, modules in units(towers.clip) for m in modules for p in m._parameters.values()]
    norms = {id(p) for norm in towers.norms for p in norm.parameters()}
    own = {key for key, p in towers.clip.named_parameters() if seen.count(id(p)) != 1 and id(p) not in norms}
    assert own == {"text.token_embedding.weight" if hasattr(towers.clip, "text") else "token_embedding.weight"}
    towers.compute_in(torch.bfloat16)
    size, length = clip.image_size(name), clip.model_config(name)["text_cfg"].get("context_length", 77)
    images = torch.empty(2, 3, size, size, dtype=torch.uint8, device="meta")
    found: list[torch.dtype] = []
    blocks = [m for m in towers.clip.visual.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda module, inputs, out: found.append(out.dtype)) for m in blocks]
    rows, texts = towers(images, torch.empty(2, length, dtype=torch.int64, device="meta"))
    for hook in hooks:
        hook.remove()
    assert set(found) == {torch.bfloat16}
    assert rows.dtype == texts.dtype == torch.float32


@pytest.mark.parametrize("name", masters.MODELS)
def test_casts_are_gone_after_a_pass_and_recomputing_changes_no_gradient(name: str) -> None:
    pairs, found = masters.batch((1, 1), masters.World(0, 1, 0, 1, torch.device("cpu"))), {}
    images, tokens = pairs.images[:8, 0], pairs.tokens[:8, 0]
    for way, pieces in {"plain": 1, "recomputed": 1, "evaluated": 1, "in micro-batches": 2}.items():
        towers = masters.build(name, 1)
        towers.compute_in(torch.bfloat16)
        if way == "recomputed":
            towers.recompute()
        with torch.set_grad_enabled(way != "evaluated"):
            rows, texts = towers(images, tokens, [Piece(8 // pieces, 8 // pieces)] * pieces)
        assert not any(isinstance(value, torch.Tensor) for m in towers.clip.modules() for value in m.__dict__.values())
        if way == "evaluated":
            assert torch.equal(rows, found["plain"]["rows"])
            continue
        (rows * torch.linspace(-1, 1, rows.numel()).view_as(rows) + texts.cumsum(1)).sum().backward()
        assert not any(isinstance(value, torch.Tensor) for m in towers.clip.modules() for value in m.__dict__.values())
        found[way] = {"rows": rows.detach(), **{key: p.grad for key, p in towers.clip.named_parameters()}}
    for key, value in found["plain"].items():
        assert value.dtype == torch.float32
        assert torch.equal(found["recomputed"][key], value), key
    whole, parts = (
        torch.cat([found[way][key].flatten() for key in found["plain"]]) for way in ("plain", "in micro-batches")
    )
    assert (parts - whole).norm() < 0.03 * whole.norm()


def test_casts_are_gone_after_a_failure() -> None:
    towers = masters.build("test-vit", 1)
    towers.compute_in(torch.bfloat16)
    with pytest.raises((RuntimeError, AssertionError)):
        towers(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), None)
    assert not any(isinstance(value, torch.Tensor) for m in towers.clip.modules() for value in m.__dict__.values())
    assert towers(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), None)[0].shape == (2, 32)


def test_fp16_is_refused_in_one_sentence_that_names_bf16(spec: Path) -> None:
    with pytest.raises(UserError, match=r"precision: fp16 is not supported, .*; use bf16, or fp32 on a GPU without it$"):
        load(spec, ["machine.precision=fp16"])


@pytest.fixture(scope="module")
def large_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 batches of 16 pairs, of 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("shards") / "world"
    write_world(folder, SyntheticWorld(pairs=3200, tests=64, pixels=32, seed=1, pairs_per_shard=400, captioned=40))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("model", masters.MODELS)
def test_200_steps_in_bf16_lose_what_those_in_fp32_do(large_world: Path, tmp_path: Path, model: str) -> None:
    """At every stage, on pairs of the demo's kind: the mean loss of each 20 steps to 2 %."""
    text, losses = SPEC.format(world=large_world).split("clean:\n  objective")[0], {}
    measures = (
        "measure:\n  - {kind: zero_shot, images: tiny}\nmachine: {log_steps: 1, save_minutes: 9, workers: 0, threads: 1}\n"
    )
    (tmp_path / "tiny.yaml").write_text(text + measures)
    for name, sets in {"fp32": ["precision=fp32"], **{str(s): ["precision=bf16", f"zero={s}"] for s in STAGES}}.items():
        folder = tmp_path / name
        folder.mkdir()
        words = settings("pretrain.epochs=1", f"model.name={model}", *(f"machine.{field}" for field in sets))
        done = antidote("--spec", str(tmp_path / "tiny.yaml"), *words, cwd=folder)
        assert done.returncode == 0, done.stderr[-3000:]
        (rows,) = journals(folder / "runs/tiny").values()
        steps = [float(row["loss"]) for row in rows if row["kind"] == "step"]
        losses[name] = torch.tensor(steps, dtype=torch.float64).view(10, 20).mean(1)
    assert losses["fp32"][-1] < losses["fp32"][0] - 0.1
    for stage in map(str, STAGES):
        assert torch.allclose(losses[stage], losses["fp32"], rtol=0.02), (losses[stage], losses["fp32"])
        assert not torch.equal(losses[stage], losses["fp32"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_a_cleaning_in_bf16_inherits_moments_and_begins_at_its_start(spec: Path, stage: int) -> None:
    """A ResNet, and an objective that looks at the frozen start: the distance from it is exactly 0 before the first step."""
    fields = ["clean.objective={kind: par}", "clean.optimizer.state=inherited", "model.name=test-resnet"]
    words = settings(*fields, "machine.precision=bf16", f"machine.zero={stage}")
    done = antidote("--spec", str(spec), *words, cwd=spec.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = journals(spec.parent / "runs/tiny")
    (cleaned,) = (rows for name, rows in runs.items() if name.startswith("clean"))
    before, *_, after = (row["distance"] for row in cleaned if row["kind"] == "measure")
    assert before == 0.0
    assert 1e-5 < float(after) < 0.01
