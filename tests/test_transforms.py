"""Removing neurons of the picture tower: for good, the right ones, the same on any number of processes."""

import copy
import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import SELDOM, antidote, journals
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from configs.stage import Stage
from configs.start import Anp, AnyTransform, FinePrune, Fresh, Line, Rounded
from data.loader import Workers
from data.pipeline import Batch
from data.refusal import UserError
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models import clip
from engine.models.neurons import Block, Neurons, neurons_of
from engine.models.towers import Towers
from engine.models.transforms.anp import NeuronLoss, adversarial_noise, learned_masks, mask_gradient
from engine.models.transforms.contract import CleanPairs, TransformInputs
from engine.models.transforms.fine_prune import activations
from engine.models.transforms.registry import TRANSFORMS
from engine.models.transforms.registry import build as build_transform
from objectives.contract import Features
from objectives.exchange import SINGLE_RANK, Exchange
from objectives.learned import initial
from objectives.mmcl import Mmcl, mmcl

MODELS = ("test-vit", "test-resnet")
ONE = World(0, 1, 0, 1, torch.device("cpu"))
SCALE = torch.tensor([2.6592])


class Pairs:
    """48 random pairs in batches of 16, as data.pipeline gives them by (epoch, step)."""

    steps, batch, batch_bytes = 3, 16, 0

    def __init__(self) -> None:
        draw = np.random.default_rng(5)
        self.images = torch.from_numpy(draw.integers(0, 256, (48, 1, 3, 32, 32), np.uint8))
        self.tokens = torch.zeros(48, 1, 16, dtype=torch.int32)
        self.tokens[:, 0, :5] = torch.from_numpy(draw.integers(1, 40000, (48, 5), np.int32))
        self.tokens[:, 0, 0], self.tokens[:, 0, 5] = 49406, 49407

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        mine = slice(at[1] * self.batch, (at[1] + 1) * self.batch)
        keys = [str(i) for i in range(48)][mine]
        return Batch(self.images[mine], self.tokens[mine], torch.arange(48)[mine], keys, torch.zeros(16).bool(), [])


def clean(dataset: Any = None) -> CleanPairs:
    return CleanPairs(dataset or Pairs(), Pairs.batch, Workers(0), eval_rows=7, grad_rows=16)


def inputs(name: str) -> TransformInputs:
    return TransformInputs(name, 3, initial(Mmcl(kind="mmcl"), 1, 0), clean(), ONE)


def build(name: str) -> Towers:
    """Towers whose BatchNorms have gains, biases and statistics that matter."""
    towers = clip.build(name, 1)
    draw = torch.Generator().manual_seed(2)
    for norm in towers.norms:
        for values, low, high in ((norm.weight, 0.5, 1.5), (norm.bias, -0.5, 0.5), (norm.running_var, 0.5, 1.5)):
            values.data.uniform_(low, high, generator=draw)
    for block in neurons_of(towers, name).blocks:
        block.into.bias.data.uniform_(-0.5, 0.5, generator=draw)
    return towers


def loss(towers: Towers, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    rows, texts = towers(images, tokens)
    return mmcl(1.0, Features((rows,), (texts,), {"scale": SCALE.to(rows)}), Exchange(SINGLE_RANK))["loss"]


@cache
def _fitted(name: str) -> Towers:
    towers, pairs = build(name).train(), Pairs()
    adam = torch.optim.AdamW(towers.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(60):
        descend(towers, adam, pairs[(1, step % pairs.steps)])
    return towers.eval()


def fitted(name: str) -> Towers:
    """Towers that tell the 48 pairs apart, after 60 steps of AdamW."""
    return copy.deepcopy(_fitted(name))


def descend(towers: Towers, adam: torch.optim.Optimizer, one: Batch) -> None:
    adam.zero_grad()
    loss(towers, one.images[:, 0], one.tokens[:, 0]).backward()  # type: ignore[no-untyped-call]
    adam.step()
    towers.update_running_stats()


def sides(neurons: Neurons) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(weights and bias that lead into it, weights that lead out of it) of each neuron, flat."""
    out = []
    for block in neurons.blocks:
        for i in range(len(block)):
            into = torch.cat([block.into.weight[i].flatten(), block.into.bias[i : i + 1]])
            out.append((into.detach().clone(), block.onward.weight[:, i].flatten().detach().clone()))
    return out


def dead(neurons: Neurons) -> list[int]:
    """The neurons that are exactly zero on both sides."""
    return [i for i, (into, onward) in enumerate(sides(neurons)) if not into.any() and not onward.any()]


def state(towers: Towers) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in towers.state_dict().items()}


@pytest.mark.parametrize(("name", "all_of_them", "last"), [("test-vit", 128, 128), ("test-resnet", 60, 32)])
def test_neurons_are_those_of_all_blocks_or_of_the_last(name: str, all_of_them: int, last: int) -> None:
    towers = clip.build(name, 0)
    assert (len(neurons_of(towers, name)), len(neurons_of(towers, name, last=True))) == (all_of_them, last)


@settings(max_examples=4, deadline=None)
@given(st.sampled_from(MODELS), st.sets(st.integers(0, 59), min_size=1, max_size=20), st.floats(0, 1))
def test_removed_neurons_stay_exactly_zero_in_training_and_others_move(name: str, places: set[int], decay: float) -> None:
    towers, pairs = build(name).train(), Pairs()
    for norm in towers.norms:
        norm.rows = 8
    neurons = neurons_of(towers, name)
    neurons.remove(torch.tensor(sorted(places)))
    before = sides(neurons)
    adam = torch.optim.AdamW(towers.parameters(), lr=1e-2, weight_decay=decay, fused=True)
    for step in range(4):
        descend(towers, adam, pairs[(1, step % pairs.steps)])
    assert dead(neurons) == sorted(places)
    for i, (then, now) in enumerate(zip(before, sides(neurons), strict=True)):
        assert i in places or not any(torch.equal(a, b) for a, b in zip(then, now, strict=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_a_tower_without_neurons_is_the_tower_with_their_activations_masked(name: str, training: bool) -> None:
    towers, images = build(name).double().train(training), Pairs().images[:16, 0]
    neurons = neurons_of(towers, name)
    kept = torch.rand(len(neurons), generator=torch.Generator().manual_seed(0)) > 0.4
    hooks = []
    for block, own in zip(neurons.blocks, torch.split(kept, [len(b) for b in neurons.blocks]), strict=True):

        def masked(module: nn.Module, given: Any, out: torch.Tensor, own: torch.Tensor = own) -> torch.Tensor:
            return out * (own[:, None, None] if out.ndim == 4 else own)

        hooks.append(block.active.register_forward_hook(masked))
    want = towers(images, None)[0]
    for hook in hooks:
        hook.remove()
    assert not torch.allclose(towers(images, None)[0], want, atol=1e-4)
    neurons.remove((~kept).nonzero()[:, 0])
    assert torch.allclose(towers(images, None)[0], want, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_scaled_neurons_are_those_with_scaled_weights_and_biases(name: str) -> None:
    towers, images = build(name).double().eval(), Pairs().images[:16, 0]
    neurons = neurons_of(towers, name)
    before = towers(images, None)[0]
    draw = torch.Generator().manual_seed(0)
    gain, shift = torch.rand(2, len(neurons), generator=draw, dtype=torch.float64) * 2
    with neurons.scaled(torch.ones_like(gain), torch.ones_like(gain)):
        assert torch.equal(towers(images, None)[0], before)
    with neurons.scaled(gain, shift):
        got = towers(images, None)[0]
    assert torch.equal(towers(images, None)[0], before)
    sizes = [len(block) for block in neurons.blocks]
    for block, g, s in zip(neurons.blocks, torch.split(gain, sizes), torch.split(shift, sizes), strict=True):
        block.into.weight.data *= g.view(-1, *[1] * (block.into.weight.ndim - 1))
        block.into.bias.data *= s
    assert torch.allclose(towers(images, None)[0], got, atol=1e-12)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(MODELS), st.lists(st.integers(0, 40), min_size=128, max_size=128), st.floats(0, 0.99))
def test_fine_pruning_removes_the_share_with_the_lowest_activations(name: str, levels: list[int], share: float) -> None:
    """Weights of zero and biases of b >= 0 give every picture the activation f(b), which grows with b."""
    towers = build(name)
    neurons = neurons_of(towers, name, last=True)
    for block in neurons.blocks:
        block.into.weight.data.zero_()
        block.into.bias.data.copy_(torch.tensor(levels[: len(block)]) / 10 + 1)
    _, words = build_transform(FinePrune(kind="fine_prune", share=share, pairs=20))(towers, {}, inputs(name))
    expected = sorted(range(len(neurons)), key=lambda i: (levels[i], i))[: int(share * len(neurons) + 1e-9)]
    assert dead(neurons) == sorted(expected)
    assert words == f"removed {len(expected)} of {len(neurons)} neurons"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("pairs", "used"), [(5, 5), (20, 20), (1000, 48)])
def test_activations_are_means_over_the_first_pairs(name: str, pairs: int, used: int) -> None:
    towers = build(name).train()
    neurons = neurons_of(towers, name, last=True)
    seen: list[torch.Tensor] = []
    got = activations(neurons, towers, clean(), pairs, ONE)
    assert all(module.training for module in towers.modules())
    (block,) = neurons.blocks
    hook = block.active.register_forward_hook(lambda module, given, out: seen.append(out.detach()))
    with torch.no_grad():
        towers.eval()(Pairs().images[:used, 0], None)
    hook.remove()
    want = seen[0].mean((0, 2, 3)) if seen[0].ndim == 4 else seen[0].mean((0, 1))
    assert torch.allclose(got.float(), want, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_of_two_ranks_each_adds_its_part(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 of 48 pairs in batches of 16: rank 0 holds pairs 0-7 and 16-19, rank 1 holds pairs 8-15 and nothing more."""
    towers = build(name)
    neurons = neurons_of(towers, name, last=True)
    want = activations(neurons, towers, clean(), 20, ONE)
    monkeypatch.setattr(collectives, "all_reduce_sum_", lambda tensors: None)
    total = torch.zeros_like(want)
    for rank in (0, 1):
        whole = Pairs().__getitem__

        class Part(Pairs):
            def __getitem__(self, at: tuple[int, int], whole: Any = whole, rank: int = rank) -> Batch:
                batch, mine = whole(at), slice(rank * 8, rank * 8 + 8)
                return Batch(batch.images[mine], batch.tokens[mine], batch.samples[mine], [], batch.poisoned[mine], [])

        total += activations(neurons, towers, clean(Part()), 20, World(rank, 2, 0, 1, ONE.device))
    assert torch.allclose(total, want, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("section", [FinePrune(kind="fine_prune", share=0), Anp(kind="anp", steps=0, threshold=1)])
def test_no_share_and_no_steps_change_no_bit(name: str, section: FinePrune | Anp) -> None:
    towers = build(name).train()
    towers.freeze_texts()
    before, asks = state(towers), [parameter.requires_grad for parameter in towers.parameters()]
    found = {"scale": torch.tensor([1.0])}
    kept, words = build_transform(section)(towers, found, inputs(name))
    assert kept == found
    assert words == f"removed 0 of {len(neurons_of(towers, name, last=section.kind == 'fine_prune'))} neurons"
    assert all(torch.equal(value, before[key]) for key, value in towers.state_dict().items())
    assert all(module.training for module in towers.modules())
    assert [parameter.requires_grad for parameter in towers.parameters()] == asks


def neuron_loss(name: str, towers: Towers, rows: int = 16) -> NeuronLoss:
    return NeuronLoss(towers.eval(), neurons_of(towers, name), SCALE.to(next(towers.parameters()).dtype), SINGLE_RANK, rows)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [5, 16])
def test_the_gradient_in_the_masks_is_that_of_finite_differences(name: str, rows: int) -> None:
    """In float64, of the whole loss, with the perturbation held; all pictures at once and in micro-batches."""
    towers, one = build(name).double(), Pairs()[(1, 0)]
    here, images = neuron_loss(name, towers, rows), one.images[:, 0]
    texts, count = here.texts(one.tokens[:, 0]), len(here.neurons)
    draw = torch.Generator().manual_seed(1)
    masks = torch.rand(count, generator=draw, dtype=torch.float64)
    noise = adversarial_noise(0.4, here, images, texts, masks, draw)
    assert noise.abs().max() <= 0.4
    slope = mask_gradient(0.2, here, images, texts, masks, noise)[1]
    assert slope.abs().max() > 1e-4
    way = torch.randn(count, generator=draw, dtype=torch.float64)
    ends = [mask_gradient(0.2, here, images, texts, masks + h * way, noise)[0] for h in (1e-6, -1e-6)]
    assert torch.allclose((ends[0] - ends[1]) / 2e-6, slope @ way, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_perturbation_raises_the_loss(name: str) -> None:
    towers, one = fitted(name), Pairs()[(1, 0)]
    here, images = neuron_loss(name, towers), one.images[:, 0]
    texts, masks = here.texts(one.tokens[:, 0]), torch.ones(len(here.neurons))
    noise = adversarial_noise(0.4, here, images, texts, masks, torch.Generator().manual_seed(1))
    plain = here.gradients(images, texts, masks, masks)[0]
    assert here.gradients(images, texts, masks + noise[0], 1 + noise[1])[0] > 1.5 * plain


def plant(block: Block, place: int, towers: Towers) -> None:
    """Makes a hidden unit sleep on clean pairs and hurt when woken, as a backdoor's do: w x is about 10 on every picture,
    w x + b at most -3, and what it sends on is large. 1.4 w x + 0.6 b is well above 0.

    Of a ViT alone: in a tiny ResNet the perturbation of all 60 channels ruins the loss by itself, so none stands out.
    """
    seen: list[torch.Tensor] = []
    hook = block.into.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    with torch.no_grad():
        towers(Pairs().images[:, 0], None)
        hook.remove()
        mean = seen[0].flatten(0, 1).mean(0)
        block.into.weight[place] = 10 * mean / mean.square().sum()
        block.into.bias[place] = -(seen[0] @ block.into.weight[place]).max() - 3
        onward = block.onward.weight[:, place]
        onward.copy_(5 * torch.randn(onward.shape, generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("planted", [7, 20])
def test_a_neuron_that_sleeps_on_clean_pairs_and_hurts_when_woken_is_the_first_masked(planted: int) -> None:
    towers = fitted("test-vit")
    plant(neurons_of(towers, "test-vit").blocks[0], planted, towers)
    here, section = neuron_loss("test-vit", towers), Anp(kind="anp", steps=5, rate=0.2)
    masks = learned_masks(section, here, clean(), ONE, seed=3)
    assert masks[planted] < 0.2
    assert torch.cat([masks[:planted], masks[planted + 1 :]]).min() > 0.9
    assert torch.equal(masks, learned_masks(section, here, clean(), ONE, seed=3))


@pytest.mark.parametrize("name", MODELS)
def test_masks_do_not_depend_on_the_micro_batch(name: str) -> None:
    towers, section = build(name), Anp(kind="anp", steps=2, rate=0.2)
    masks, parts = (learned_masks(section, neuron_loss(name, towers, rows), clean(), ONE, seed=3) for rows in (16, 5))
    assert (masks != 1).any()
    assert torch.allclose(masks, parts, atol=1e-3)


def test_anp_removes_the_planted_neuron_alone_and_leaves_the_others_as_they_were() -> None:
    towers = fitted("test-vit")
    neurons = neurons_of(towers, "test-vit")
    plant(neurons.blocks[0], 7, towers)
    before = sides(neurons)
    found, words = build_transform(Anp(kind="anp", steps=5))(towers, {"scale": SCALE}, inputs("test-vit"))
    assert words == "removed 1 of 128 neurons"
    assert found == {"scale": SCALE}
    assert dead(neurons) == [7]
    for i, (then, now) in enumerate(zip(before, sides(neurons), strict=True)):
        assert i == 7 or all(torch.equal(a, b) for a, b in zip(then, now, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_fresh_weights_are_fresh_in_running_statistics_and_scale_too_and_come_from_the_seed_alone(name: str) -> None:
    towers = fitted(name)  # its running statistics have moved, where it has any
    before, asks = state(towers), [p.requires_grad for p in towers.parameters()]
    assert build_transform(Fresh(kind="fresh"))(towers, {"scale": SCALE + 1, "bias": SCALE}, inputs(name)) == ({}, None)
    first, other = state(towers), state(build(name))
    assert not any(
        torch.equal(first[key], other[key]) for key in first if first[key].ndim > 1
    )  # not the pre-training's draw
    for norm in towers.norms:
        assert not norm.running_mean.any()
        assert bool((norm.running_var == 1).all())
    build_transform(Fresh(kind="fresh"))(towers, {}, inputs(name))
    assert all(torch.equal(value, first[key]) for key, value in towers.state_dict().items())
    assert any(not torch.equal(before[key], value) for key, value in first.items())
    assert [p.requires_grad for p in towers.parameters()] == asks


@pytest.mark.parametrize(
    "field", [{"norms": "frozen"}, {"norms": "estimated"}, {"state": "inherited"}, {"state": "published"}]
)
def test_fresh_weights_take_nothing_of_the_start(field: dict[str, str]) -> None:
    optimizer = {"rate": 1} | {key: value for key, value in field.items() if key == "state"}
    norms = {key: value for key, value in field.items() if key == "norms"}
    fields = {"objective": {"kind": "mmcl"}, "epochs": 1, "batch": 8, "optimizer": optimizer, "transform": {"kind": "fresh"}}
    with pytest.raises(
        ValidationError, match="is [a-z]+, but transform fresh leaves nothing of the start; use (fresh|trained)"
    ):
        Stage.model_validate(fields | norms)


def test_every_transform_of_a_spec_has_its_function_and_can_be_sent_to_a_worker() -> None:
    sections = get_args(get_args(AnyTransform)[0])
    assert set(TRANSFORMS) == set(sections)
    for section in sections:
        further: dict[Any, Any] = {Line: {"to": {"path": "other"}}, Rounded: {"format": "int8"}}.get(section, {})
        made = section(kind=get_args(section.model_fields["kind"].annotation)[0], **further)
        built = pickle.loads(pickle.dumps(build_transform(made)))
        assert built.func is TRANSFORMS[section]


def test_what_has_no_such_neurons_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="the picture tower of convnext_tiny is neither; name a model such as RN50"):
        neurons_of(clip.on_meta("convnext_tiny"), "convnext_tiny")
    fields = {"objective": {"kind": "mmcl"}, "epochs": 1, "batch": 8, "optimizer": {"rate": 1, "state": "inherited"}}
    with pytest.raises(ValidationError, match="would move the neurons that transform anp removes; use fresh"):
        Stage.model_validate({**fields, "transform": {"kind": "anp"}})
    towers = build("test-vit")
    with pytest.raises(UserError, match="the loss of anp at budget 1e\\+30 and rate 0.2 is not finite; lower them"):
        build_transform(Anp(kind="anp", steps=1, budget=1e30))(towers, {}, inputs("test-vit"))


def test_whole_studies_prune_alike_on_one_process_and_two(spec: Path) -> None:
    """Both cleaners after one pre-training; removed neurons are dead in the final weights, and the same."""
    kinds = "[{kind: fine_prune, pairs: 40}, {kind: anp, steps: 5, rate: 20, threshold: 0.9}]"
    text = spec.read_text() + f"sweep: {{clean.transform: {kinds}}}\n"
    studies = []
    for count in (0, 2):
        folder = spec.parent / str(count)
        folder.mkdir()
        (folder / "tiny.yaml").write_text(text)
        out = antidote("--spec", "tiny.yaml", *SELDOM, cwd=folder, processes=count)
        assert out.returncode == 0, out.stderr
        studies.append(folder / "runs/tiny")
    rows, others = (journals(study) for study in studies)
    removed = {}
    for run in sorted(name for name in rows if name.startswith("clean")):
        for a, b in zip(rows[run], others[run], strict=True):
            same = [name for name in a if name in b and not isinstance(a[name], str | list)]
            assert [b[name] for name in same] == pytest.approx([a[name] for name in same], rel=1e-4)
        lost = []
        for study in studies:
            card = json.loads((study / run / "card.json").read_text())
            towers = clip.build("test-vit", 0)
            clip.load_weights(towers, study / run / "weights.safetensors")
            lost.append(dead(neurons_of(towers, "test-vit")))
            assert card["transformed"] == f"removed {len(lost[-1])} of 128 neurons"
        assert lost[0] == lost[1]
        removed[card["transform"]["kind"]] = len(lost[0])
    assert removed["fine_prune"] == 25
    assert 0 < removed["anp"] < 128
