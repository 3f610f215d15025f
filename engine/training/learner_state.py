"""What a checkpoint holds of a learner, in safetensors files that any number of processes can load at any ZeRO stage.

weights-RANK-NN.safetensors      the share of a rank: weights and buffers by open_clip's names, with its logit_scale
optimizer-RANK-NN.safetensors    their moments and steps: NAME/exp_avg, NAME/exp_avg_sq, NAME/step
learner.safetensors              what is learned beside the towers, the same on every rank

There are no random states: whatever is drawn while a run trains is drawn from names (data/seeding.py, `RunState.seed`).
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch

from data.refusal import UserError
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models import clip
from engine.training import named_state
from engine.training.init_weights import STEP
from engine.training.learner import Learner
from engine.training.tensor_files import Kind, TensorFiles, in_files

WEIGHTS, OPTIMIZER, LEARNER = "weights", "optimizer", "learner"


def share(learner: Learner, world: World) -> dict[str, dict[str, torch.Tensor]]:
    """The files that this rank writes, by name, on the CPU; every rank calls it. UserError if ranks have learned different
    things beside the towers."""
    state = learner.state()
    collectives.assert_equal_on_ranks({"state beside the towers": _digest(state)})
    towers = learner.tower_optimizer
    owner = named_state.owners(towers, world)
    weights = named_state.weights(towers, owner, world)
    if world.first:
        weights |= clip.scalars(learner.head.parameters)
    moments = named_state.moments(towers, owner, world)
    files = in_files(f"{WEIGHTS}-{world.rank:04d}", weights) | in_files(f"{OPTIMIZER}-{world.rank:04d}", moments)
    return files | ({f"{LEARNER}.safetensors": state} if world.first else {})


def _kinds(tensors: Mapping[str, torch.Tensor]) -> dict[str, Kind]:
    return {name: Kind(value.dtype, tuple(value.shape)) for name, value in tensors.items()}


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    whole = sha256()
    for name, kind in sorted(_kinds(state).items()):
        whole.update(f"{name} {kind} ".encode())
        whole.update(state[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()[:16]


def restore(learner: Learner, path: Path, world: World) -> None:
    """Sets the learner to a checkpoint's state, each rank its part. UserError, before anything is set, if the checkpoint
    holds other tensors than this learner."""
    towers = learner.tower_optimizer
    weights, moments = (TensorFiles(path.glob(f"{stem}-*.safetensors")) for stem in (WEIGHTS, OPTIMIZER))
    of_weights, of_moments = named_state.kinds(towers, world.rank)
    of_weights |= _kinds(clip.scalars(learner.head.parameters))
    _check(path, weights.kinds(), of_weights)
    if there := moments.kinds():  # none before the first step
        _check(path, there, of_moments)
    beside = TensorFiles([path / f"{LEARNER}.safetensors"])
    state = {name: beside.whole(name).clone() for name in beside.kinds()}
    begun = tuple(
        name for name in state if name.startswith("adam/") or name in ("labels", "flags")
    )  # not there before a step
    own = {name: value for name, value in learner.state().items() if name not in begun}
    _check(path, {name: kind for name, kind in beside.kinds().items() if name not in begun}, _kinds(own))
    named_state.set_weights(towers, weights.flat, world)
    steps = {name.removesuffix(f"/{STEP}"): float(moments.whole(name)) for name in there if name.endswith(f"/{STEP}")}
    named_state.set_moments(towers, moments.flat, steps, world)
    learner.restore(state)


def _check(path: Path, there: Mapping[str, Kind], expected: Mapping[str, Kind]) -> None:
    wrong = [
        f"{name} is {there.get(name, 'missing')}, expected {expected.get(name, 'none')}"
        for name in sorted(there.keys() | expected.keys())
        if there.get(name) != expected.get(name)
    ]
    if wrong:
        raise UserError(
            f"{path} does not fit this model: {len(wrong)} tensors differ, first {'; '.join(wrong[:3])}; go on with the "
            f"versions in its manifest.json, or delete {path.parent.parent} to begin anew"
        )
