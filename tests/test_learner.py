"""The learner alone, without DeepSpeed: what is learned beside the towers, steps that are not taken, state."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from exactness import PAIRS, Plain, batch, build, stage_of

from engine.distributed.world import World
from engine.models import clip
from engine.models.towers import Towers
from engine.training.head import Head
from engine.training.kmeans import spherical
from engine.training.learner import Learner
from engine.training.optimizer import Schedule, WayBack, ZClip, decays, rate_at
from engine.training.step_inputs import Annotations
from engine.training.zero import TowerOptimizer

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


class Stepping(Plain):
    """With AdamW's steps, the fused kernel's as in a real run."""

    def __init__(self, towers: Towers) -> None:
        super().__init__(towers)
        self.optimizer = torch.optim.AdamW(towers.parameters(), lr=1.0, fused=True)  # type: ignore[assignment]

    def step(self) -> None:
        self.optimizer.step()


def make_learner(fields: dict[str, Any], name: str = "test-vit", zclip: ZClip | None = None) -> Learner:
    stage = stage_of(fields)
    towers = build(name, stage.objective.views[0])
    engine = Stepping(towers)
    width = clip.model_config(name)["embed_dim"]
    return Learner(
        TowerOptimizer(engine, engine.optimizer, engine.backward, zclip=zclip),
        Head.build(stage, width, {}, 3, ALONE.device),
        stage,
        Schedule(stage.optimizer, 10, 5),
        ALONE,
        annotations=Annotations(np.arange(PAIRS) % 3),
    )


def everything(of: Learner) -> dict[str, torch.Tensor]:
    parts = {
        **dict(of.tower_optimizer.towers.named_parameters()),
        **dict(of.tower_optimizer.towers.named_buffers()),
        **of.head.parameters,
        **of.memory,
    }
    return {name: value.detach().clone() for name, value in parts.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in a.items() if not torch.equal(b[name], value)]


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("name", ["test-vit", "test-resnet"])
def test_a_step_without_a_finite_loss_is_not_taken(waits: bool, name: str) -> None:
    """Whether the host asks, or the optimizer is told on the device: weights, scale, statistics and pool stay as they
    were."""
    learner = make_learner({"kind": "roclip", "pool": 60}, name)
    learner.waits = waits
    pairs = batch((1, 1), ALONE)
    assert bool(learner.learn(pairs, 0).taken)
    before = everything(learner)
    whole = learner.tower_optimizer.towers.mean
    learner.tower_optimizer.towers.mean = whole * math.nan
    outcome = learner.learn(pairs, 1)
    assert not bool(outcome.taken)
    assert not math.isfinite(outcome.terms["loss"].item())
    assert not same(before, everything(learner))
    learner.tower_optimizer.towers.mean = whole
    for parameter in learner.tower_optimizer.towers.parameters():
        parameter.grad = None
    assert bool(learner.learn(pairs, 2).taken)
    assert same(before, everything(learner))


def test_scale_and_bias_are_clamped_after_the_step() -> None:
    learner = make_learner({"kind": "siglip"})
    assert learner.head.parameters["scale"].exp().item() == pytest.approx(10)
    for step, (scale, bias) in enumerate([(4.6, -99.9), (0.001, 99.9)]):
        learner.head.parameters["scale"].data.fill_(scale)
        learner.head.parameters["bias"].data.fill_(bias)
        learner.learn(batch((1, 1), ALONE), step)  # at rate 1, so that each moves by about 1
        assert 1.0 <= learner.head.parameters["scale"].exp().item() <= 100.0 + 1e-4
        assert -100.0 <= learner.head.parameters["bias"].item() <= 100.0


def test_state_goes_round_through_a_checkpoint() -> None:
    fields = {"kind": "sum", "parts": [{"objective": {"kind": "roclip", "pool": 60}},
              {"objective": {"kind": "deep_cluster", "classes": 3, "within": 0.0}}]}  # fmt: skip
    clip = ZClip()
    learner, other = make_learner(fields, zclip=clip), make_learner(fields, zclip=ZClip())
    clip.limit(3.0)
    for step in range(2):
        learner.learn(batch((1, 1), ALONE), step)
    state = {name: value.clone() for name, value in learner.state().items()}
    other.annotations.labels = None
    other.restore(state)
    assert all(torch.equal(value, state[name]) for name, value in other.state().items())
    assert other.state().keys() == state.keys()
    assert other.annotations.labels is not None
    assert "memory/roclip.pool" in state
    assert state["note/zclip"].tolist() == [1.0, 3.0, 0.0]


def test_the_state_holds_which_pairs_are_risky() -> None:
    fields = {"kind": "safeclip", "unimodal": 0, "pool": 60}
    learner, other = make_learner(fields), make_learner(fields)
    for one in (learner, other):
        one.annotations.reflags = True
    learner.annotations.flags = np.arange(48) % 3 == 0
    learner.learn(batch((2, 2), ALONE), 0)
    other.annotations.flags = None
    other.restore({name: value.clone() for name, value in learner.state().items()})
    assert other.annotations.flags is not None
    assert np.array_equal(other.annotations.flags, learner.annotations.flags)


def test_a_new_head_forgets_its_moments_and_leaves_the_rest() -> None:
    learner = make_learner({"kind": "deep_cluster", "classes": 3, "within": 0.0})
    learner.learn(batch((1, 1), ALONE), 0)
    scale, head = learner.head.parameters["scale"].item(), learner.head.parameters["cluster.weight"].detach().clone()
    learner.head.renew("cluster.", 11)
    assert learner.head.parameters["cluster.weight"] not in learner.head.optimizer.state
    assert learner.head.parameters["scale"] in learner.head.optimizer.state
    assert learner.head.parameters["scale"].item() == scale
    assert not torch.equal(learner.head.parameters["cluster.weight"], head)
    assert learner.head.parameters["cluster.bias"].abs().max() == 0
    learner.learn(batch((1, 1), ALONE), 1)


def test_spherical_k_means_finds_separated_clusters_whatever_their_length() -> None:
    draw = np.random.default_rng(0)
    centres = np.eye(4, 6)
    truth = draw.integers(0, 4, 200)
    rows = (centres[truth] + 0.05 * draw.normal(size=(200, 6))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = min((spherical(rows, 4, 20, seed) for seed in range(5)), key=lambda labels: -len(set(labels.tolist())))
    pairs = {(int(a), int(b)) for a, b in zip(truth, labels, strict=True)}
    assert len(pairs) == 4
    assert (spherical(rows, 4, 20, 1) == spherical(rows, 4, 20, 1)).all()


def test_the_published_offset_starts_one_epoch_late() -> None:
    """4 epochs of 10 steps, 10 of warm-up: the published schedule has no warm-up, and rises again at the end."""
    plain = stage_of({"kind": "mmcl"}).optimizer.model_copy(update={"rate": 1.0, "warmup": 10})
    late = plain.model_copy(update={"offset": "published"})
    assert rate_at(0, 40, plain, 10) == pytest.approx(0.1)
    assert [rate_at(t, 40, late, 10) for t in range(30)] == [rate_at(t + 10, 40, plain, 10) for t in range(30)]
    assert rate_at(0, 40, late, 10) == 1.0
    assert rate_at(39, 40, late, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi * 39 / 30)))
    assert rate_at(39, 40, late, 10) > rate_at(31, 40, late, 10)


def test_the_published_rule_decays_what_the_paper_decayed() -> None:
    named = dict(clip.build("test-resnet", 0).named_parameters())
    ours, published = ({n for n, p in named.items() if decays(n, p, rule)} for rule in ("matrices", "published"))
    assert published - ours >= {"clip.positional_embedding", "clip.visual.attnpool.positional_embedding"}
    assert "clip.visual.layer1.0.downsample.1.weight" in published - ours  # a BatchNorm's gain
    assert not any("bias" in n or ".bn" in n or "ln_" in n for n in published)
    assert {"clip.token_embedding.weight", "clip.visual.conv1.weight"} <= ours


def test_a_step_on_the_path_to_the_start_by_hand() -> None:
    """theta (3, 4), start 0, loss half the squared norm, rate 0.1, rho 0.5: the gradient is that at (2.7, 3.6), so theta
    becomes (2.73, 3.64). What is not trained is not moved, and does not count in the norm."""
    theta, fixed = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    path = WayBack(0.5, [theta, fixed])
    theta.data, fixed.data = torch.tensor([3.0, 4.0]), torch.tensor([100.0])
    before, descent = theta.detach().clone(), torch.optim.SGD([theta], lr=0.1)
    path.go([theta, fixed])
    assert theta.tolist() == pytest.approx([2.7, 3.6])
    (0.5 * theta.square().sum()).backward()  # type: ignore[no-untyped-call]
    path.back([theta, fixed])
    assert torch.equal(theta, before)
    assert fixed.item() == 100
    descent.step()
    assert theta.tolist() == pytest.approx([2.73, 3.64])
    path.back([theta, fixed])
    assert theta.tolist() == pytest.approx([2.73, 3.64])  # the step is not taken back
    theta.data.zero_()
    path.go([theta, fixed])
    assert theta.tolist() == [0, 0]


def test_the_learner_steps_its_own_weights_by_the_gradient_on_the_path() -> None:
    """A batch of which no step is taken leaves the weights to the bit; the first step from the start is one without a path,
    the second is not, and is that by the gradient at the moved weights."""
    pairs = batch((1, 1), ALONE)
    with_path, without, moved = (make_learner({"kind": "mmcl"}) for _ in range(3))
    for learner in (with_path, without, moved):
        parameters = learner.tower_optimizer.towers.parameters()
        learner.tower_optimizer.adamw = torch.optim.SGD(parameters, lr=0.1)
        learner.tower_optimizer.engine.optimizer = learner.tower_optimizer.adamw
        learner.waits = True
    towers = with_path.tower_optimizer.towers
    with_path.tower_optimizer.way_back = WayBack(20.0, towers.parameters())
    for learner in (with_path, without):
        learner.learn(pairs, 0)
        learner.tower_optimizer.adamw.zero_grad()
    assert not same(everything(with_path), everything(without))
    start, own = with_path.tower_optimizer.way_back.start, [p.detach().clone() for p in towers.parameters()]
    norm = torch.cat([(a - b).flatten() for a, b in zip(start, own, strict=True)]).norm()
    for there, a, b in zip(moved.tower_optimizer.towers.parameters(), start, own, strict=True):
        there.data.copy_(b + 20 * (a - b) / norm)
    moved.head.parameters["scale"].data.copy_(without.head.parameters["scale"].data)
    for learner in (with_path, without, moved):
        learner.learn(pairs, 1)
    got = torch.cat([(p.detach() - before).flatten() for p, before in zip(towers.parameters(), own, strict=True)])
    steps = [
        -with_path.schedule.rate(1) * torch.cat([p.grad.flatten() for p in one.tower_optimizer.towers.parameters()])
        for one in (moved, without)
    ]
    assert torch.allclose(got, steps[0], atol=2e-6)
    assert (got - steps[1]).norm() > 0.1 * got.norm()
    before, towers.mean = everything(with_path), towers.mean * math.nan
    assert not bool(with_path.learn(pairs, 2).taken)
    assert not same(before, everything(with_path))


def test_zclip_by_hand() -> None:
    """25 norms 1 and 3 in turn: mean 1.96, deviation sqrt(0.9984) = 0.9992. A norm of 12 has z = 10.0480 > 2.5, so it
    becomes 1.96 + 6.25 / 10.0480 * 0.9992 = 2.5815; 2 is left as it is."""
    clip = ZClip()
    assert [clip.limit(1.0 + 2 * (i % 2)) for i in range(25)] == [1.0 + 2 * (i % 2) for i in range(25)]
    seen, mean, variance = clip.state.tolist()
    assert (seen, mean, variance) == pytest.approx((25, 1.96, 0.9984))
    assert clip.limit(12.0) == pytest.approx(2.5815, abs=1e-4)
    kept = clip.state.clone()
    assert clip.state[1].item() == pytest.approx(0.97 * 1.96 + 0.03 * 2.5815, abs=1e-5)
    assert clip.limit(2.0) == 2.0
    assert not torch.equal(kept, clip.state)
    assert math.isinf(clip.limit(math.inf))
