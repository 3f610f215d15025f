"""What a run trains, as it is before its first step: towers with the start's weights, DeepSpeed around them, the learner."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from configs.stage import Optimizer
from data.seeding import derive_seed
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models import clip
from engine.models.towers import Towers
from engine.models.transforms.registry import build as build_transform
from engine.training import checkpoint, named_state, zero
from engine.training.finite import refuse_not_finite
from engine.training.head import Head
from engine.training.init_weights import load_start, moments_of, path_of, published_decay, start_normalization
from engine.training.inputs import RunInputs, sorter
from engine.training.learner import Learner
from engine.training.loss_core import LossCore, loss_core
from engine.training.norm_groups import NormGroups, norm_groups, set_norm_groups
from engine.training.optimizer import Schedule, WayBack
from engine.training.pair_losses import noted_epochs, pair_losses
from engine.training.step_inputs import Annotations, MicroBatches
from records.card import Card

OTHER_START = "nothing can be learned from them; start from other weights, or make these anew"


@dataclass(frozen=True)
class BuildFacts:
    """What the run's card says of what was built."""

    parameters: int
    precision: str
    norms: NormGroups | None  # None without BatchNorm
    transformed: str | None  # what the transform did, in words, where its section alone does not say it
    implementation: str
    cuts: bool
    core: LossCore


@dataclass(frozen=True)
class Built:
    """The learner before its first step, facts for the card, and a cleaning's start: the towers' parameters by open_clip's
    names, on the first rank's CPU."""

    learner: Learner
    facts: BuildFacts
    start_weights: Mapping[str, torch.Tensor]


def build(inputs: RunInputs, world: World) -> Built:
    """Everything that a run trains; UserError where the spec asks for what its model or its start can't give."""
    run, machine, stage = inputs.run, inputs.run.spec.machine, inputs.run.settings
    towers = clip.build(run.spec.model.name, run.spec.seed)
    towers.cuts = towers.trims and machine.trim_text != "never"
    scalars, source = load_start_weights(inputs, towers)
    start_weights = _copied(towers) if run.stage == "clean" and world.first else {}
    frozen = _frozen(towers).to(world.device) if "start" in stage.objective.needs else None
    moments, section = _moments(inputs, source)
    norms = _set_norms(inputs, towers, world)
    towers.to(world.device)
    way_back = WayBack(stage.optimizer.path.rho, towers.parameters()) if stage.optimizer.path else None
    scalars, words = _transform(inputs, towers, scalars, world)
    if not stage.objective.moves_texts:
        towers.freeze_texts()
    parameters = sum(p.numel() for p in towers.parameters())
    precision = zero.precision(machine, world.device)
    _assert_equal_on_ranks(inputs, world, towers, (precision, norms, words))
    tower_optimizer = zero.wrap(towers, section, machine, world, stage.batch // world.size)
    tower_optimizer.way_back = way_back
    if frozen is not None and precision == "bf16":
        frozen.compute_in(torch.bfloat16)
    try:
        core = loss_core(inputs.folder, world, precision, clip.model_config(run.spec.model.name)["embed_dim"])
        learner = _learner(inputs, world, tower_optimizer, scalars, moments, (frozen, core))
    except BaseException:
        tower_optimizer.engine.destroy()
        raise
    facts = BuildFacts(parameters, precision, norms, words, tower_optimizer.implementation, towers.cuts, core)
    return Built(learner, facts, start_weights)


def _learner(  # noqa: PLR0913  (what `build` has made)
    inputs: RunInputs,
    world: World,
    tower_optimizer: zero.TowerOptimizer,
    scalars: dict[str, torch.Tensor],
    moments: dict[str, torch.Tensor],
    others: tuple[Towers | None, LossCore],
) -> Learner:
    """The learner before its first step, with the moments that it starts from; `others`: a frozen start and the core."""
    run, machine, stage = inputs.run, inputs.run.spec.machine, inputs.run.settings
    width = clip.model_config(run.spec.model.name)["embed_dim"]
    head = Head.build(stage, width, scalars, derive_seed(run.spec.seed, "head"), world.device)
    if moments:
        named_state.inherit(tower_optimizer, moments, world)
        head.set_moments(moments)
    frozen, core = others
    return Learner(
        tower_optimizer,
        head,
        stage,
        Schedule(stage.optimizer, inputs.steps, inputs.pairs.steps),
        world,
        # ZeRO-3 needs equal calls on all ranks, compiled code few shapes
        MicroBatches(machine.micro_batch, by_length=machine.zero < 3 and not machine.compile),
        Annotations(inputs.labels, inputs.flags, "poisoned" in stage.objective.needs, sorter(run) is not None),
        frozen,
        core.core,
        pair_losses if noted_epochs(inputs) else None,
    )


def load_start_weights(inputs: RunInputs, towers: Towers) -> tuple[dict[str, torch.Tensor], Path | None]:
    """Loads what the run starts from into the towers; (the scale and the bias in it, its file; {} and None without one)."""
    run = inputs.run
    if run.start is not None:
        path = inputs.folder.parent / run.start.folder / "weights.safetensors"
    elif run.settings.start is not None:
        path = path_of(run.settings.start, run.spec.model.name)
    else:
        return {}, None
    towers.normalize(start_normalization(run.settings.start, path, run.spec.model.name))
    scalars = load_start(towers, path, run.spec.model.name)
    refuse_not_finite({**towers.clip.state_dict(), **scalars}, path, OTHER_START)
    return scalars, path


def _copied(towers: Towers) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in towers.clip.named_parameters()}


def _frozen(towers: Towers) -> Towers:
    return copy.deepcopy(towers).requires_grad_(False).eval()


def _set_norms(inputs: RunInputs, towers: Towers, world: World) -> NormGroups | None:
    """Sets how BatchNorm takes its statistics; how its groups lie, None if there is no BatchNorm."""
    groups = norm_groups(inputs.run, world.size)
    if groups is not None:
        set_norm_groups(towers, groups, inputs.run.settings)
    return groups


def _transform(
    inputs: RunInputs, towers: Towers, scalars: dict[str, torch.Tensor], world: World
) -> tuple[dict[str, torch.Tensor], str | None]:
    """Does to the towers what the stage's transform says; (the scale and the bias after it, what was done, in words).

    A run that goes on takes its weights from its checkpoint: what was done to the start's is in them.
    """
    transform = inputs.run.settings.transform
    if collectives.on_rank_0(lambda: bool(checkpoint.committed(inputs.folder / "checkpoints"))):
        card = collectives.on_rank_0(lambda: Card.read_whole(inputs.folder))
        return scalars, card.transformed if card else None
    if transform is None:
        return scalars, None
    return build_transform(transform)(towers, scalars, inputs.transform_inputs(world))


def _moments(inputs: RunInputs, source: Path | None) -> tuple[dict[str, torch.Tensor], Optimizer]:
    """(AdamW's moments before the first step, if it inherits them; the optimizer's settings with the decay that acts)."""
    section = inputs.run.settings.optimizer
    if section.state == "fresh":
        return {}, section
    assert source is not None
    moments, decay = moments_of(source)
    refuse_not_finite(moments, source, OTHER_START)
    if section.state == "inherited":
        return moments, section
    return moments, section.model_copy(update={"decay": published_decay(source, decay)})


def _assert_equal_on_ranks(inputs: RunInputs, world: World, towers: Towers, further: tuple[object, ...]) -> None:
    """Ends the run if ranks have built different things."""
    shapes = repr([(name, tuple(p.shape)) for name, p in towers.named_parameters()])
    collectives.assert_equal_on_ranks(
        {
            "parameters": sum(p.numel() for p in towers.parameters()),
            **dict(zip(("precision", "groups", "transformed"), further, strict=True)),
            "shapes": sha256(shapes.encode()).hexdigest()[:12],
            "pairs a process": inputs.run.settings.batch // world.size,
            "views": inputs.run.settings.objective.views,
            "data digest": inputs.pairs.index.digest,
        }
    )
