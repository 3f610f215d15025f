"""The towers' weights and AdamW's moments by open_clip's names, wherever a ZeRO stage keeps them.

Stage 0: every rank has all of both. Stages 1 and 2: every rank has all weights; AdamW steps one flat tensor a group, cut
over ranks wherever that falls. Stage 3: every rank has equal parts of each parameter, the last filled up. What is read
here is read by name, so any number of processes can set it again at any stage.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from engine.distributed import collectives
from engine.distributed.world import World
from engine.training.init_weights import MOMENTS, STEP, STEPS
from engine.training.tensor_files import Kind
from engine.training.zero import TowerOptimizer

Read = Callable[[str, slice], torch.Tensor]  # a tensor's name, a part of it when flattened -> that part


class Piece(NamedTuple):
    """Where a piece of a parameter lies in a flat tensor of this rank's; AdamW's state is kept under that tensor."""

    flat: torch.Tensor
    there: slice
    own: slice  # of the flattened parameter


@dataclass(frozen=True)
class Place:
    """Where a parameter or a buffer of the towers lies."""

    tensor: torch.Tensor
    shape: torch.Size
    piece: Piece | None  # None: this rank has none
    split_weights: bool  # over ranks
    split_moments: bool
    trains: bool

    @property
    def numel(self) -> int:
        """Its elements, over all ranks."""
        return self.shape.numel()


def places(tower_optimizer: TowerOptimizer, rank: int) -> dict[str, Place]:
    """Where each tensor of open_clip's state dict lies on this rank; the same names on every rank."""
    optimizer = tower_optimizer.engine.optimizer
    out = {}
    for name, tensor in tower_optimizer.towers.clip.state_dict(keep_vars=True).items():
        shape, split_weights, split_moments = tensor.shape, False, False
        piece: Piece | None = Piece(tensor, slice(None), slice(0, tensor.numel()))
        if hasattr(tensor, "ds_id"):
            shape, split_weights, split_moments = tensor.ds_shape, True, True
            flat, start, count = tensor.ds_tensor, 0, tensor.ds_tensor.numel()
            if tensor.requires_grad:
                group, start, count = optimizer.grad_position[optimizer.get_param_id(tensor)]
                flat = optimizer.fp32_partitioned_groups_flat[group]
            own = slice(min(count * rank, shape.numel()), min(count * (rank + 1), shape.numel()))
            piece = Piece(flat, slice(start, start + own.stop - own.start), own)
        elif hasattr(tensor, "_hp_mapping"):
            split_moments, piece = True, _piece(tower_optimizer.adamw, tensor)
        out[name] = Place(tensor, shape, piece, split_weights, split_moments, tensor.requires_grad)
    return out


def _piece(adamw: torch.optim.Optimizer, parameter: torch.Tensor) -> Piece | None:
    """Stages 1 and 2: this rank's piece of a parameter in its group's flat tensor, or none."""
    mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    storage = mapping.hp_fragment.untyped_storage().data_ptr()
    flats = [flat for group in adamw.param_groups for flat in group["params"]]
    flat = next(flat for flat in flats if flat.untyped_storage().data_ptr() == storage)
    there, own = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
    return Piece(flat, slice(there.start, there.start + there.numel), slice(own.start, own.start + own.numel))


def kinds(tower_optimizer: TowerOptimizer, rank: int) -> tuple[dict[str, Kind], dict[str, Kind]]:
    """(dtype and shape of each weight, of each moment and step), as `weights` and `moments` give them."""
    of_weights: dict[str, Kind] = {}
    of_moments: dict[str, Kind] = {}
    for name, place in places(tower_optimizer, rank).items():
        of_weights[name] = Kind(place.tensor.dtype, tuple(place.shape))
        if place.trains:
            of_moments |= {f"{name}/{key}": Kind(torch.float32, tuple(place.shape)) for key in MOMENTS}
            of_moments[f"{name}/{STEP}"] = Kind(torch.float32, ())
    return of_weights, of_moments


def owners(tower_optimizer: TowerOptimizer, world: World) -> dict[str, int]:
    """Which rank writes which weight and which moment: the largest first, each to the rank with the fewest bytes."""
    of_weights, of_moments = kinds(tower_optimizer, world.rank)
    sizes = {name: kind.nbytes for name, kind in (of_weights | of_moments).items()}
    load = [0] * world.size
    out = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        out[name] = load.index(min(load))
        load[out[name]] += sizes[name]
    return out


def on_first_rank(tower_optimizer: TowerOptimizer, world: World) -> dict[str, int]:
    """All to the first rank, as `owners` says it."""
    of_weights, of_moments = kinds(tower_optimizer, world.rank)
    return dict.fromkeys(of_weights | of_moments, 0)


def weights(tower_optimizer: TowerOptimizer, owner: Mapping[str, int], world: World) -> dict[str, torch.Tensor]:
    """The weights and buffers that this rank owns, whole and on the CPU; every rank calls it. At most one tensor more is
    held at a time."""
    out = {}
    for name, place in places(tower_optimizer, world.rank).items():
        source = None if place.piece is None else place.piece.flat
        value = _whole(place, source if place.split_weights else place.tensor, place.split_weights, owner[name], world)
        if value is not None:
            out[name] = value
    return out


def moments(tower_optimizer: TowerOptimizer, owner: Mapping[str, int], world: World) -> dict[str, torch.Tensor]:
    """AdamW's moments and step of the parameters that this rank owns, as NAME/exp_avg, NAME/exp_avg_sq [shape] and NAME/step
    []; nothing before the first step. Every rank calls it; at most one tensor more is held at a time."""
    placed = {name: place for name, place in places(tower_optimizer, world.rank).items() if place.trains}
    steps = _steps(tower_optimizer.adamw, placed)
    out: dict[str, torch.Tensor] = {}
    for name, place in placed.items() if steps else ():
        state = {} if place.piece is None else tower_optimizer.adamw.state.get(place.piece.flat, {})
        for key in MOMENTS:
            value = _whole(place, state.get(key), place.split_moments, owner[f"{name}/{key}"], world)
            if value is not None:
                out[f"{name}/{key}"] = value
        if owner[f"{name}/{STEP}"] == world.rank:
            out[f"{name}/{STEP}"] = torch.tensor(steps.get(name, 0.0))
    return out


def _whole(place: Place, source: torch.Tensor | None, split: bool, owner: int, world: World) -> torch.Tensor | None:
    """The whole tensor on its owner's CPU, None elsewhere; `source` is where this rank's piece lies, or all of it."""
    if not split:
        value = torch.zeros(place.shape) if source is None else source.detach()
    else:
        value = torch.full((place.numel,), -0.0, device=place.tensor.device)  # x + -0.0 is x to the bit, for -0.0 too
        if place.piece is not None and source is not None:
            value[place.piece.own] = source.detach()[place.piece.there]
        collectives.reduce_sum_(value, owner)
    return value.reshape(place.shape).cpu().contiguous() if owner == world.rank else None


def _steps(adamw: torch.optim.Optimizer, placed: Mapping[str, Place]) -> dict[str, float]:
    """How many steps AdamW has taken with each parameter, the same on all ranks; without those that it never stepped."""
    states = {name: adamw.state.get(place.piece.flat, {}) for name, place in placed.items() if place.piece is not None}
    steps = {name: float(state[STEP]) for name, state in states.items() if STEP in state}
    if not isinstance(adamw, torch.optim.AdamW):  # DeepSpeed counts in the last parameter of a group alone
        steps = dict.fromkeys(steps, max(steps.values(), default=0.0))
    return {name: step for part in collectives.gather_objects(steps) for name, step in part.items()}


def set_weights(tower_optimizer: TowerOptimizer, read: Read, world: World) -> None:
    """Gives the towers these weights and buffers before a step, each rank its part of them; AdamW goes on from them."""
    placed = places(tower_optimizer, world.rank)
    for name, place in placed.items():
        if not place.split_weights:
            place.tensor.data.copy_(read(name, slice(0, place.numel)).view(place.shape))
        if place.piece is None or place.piece.flat is place.tensor:
            continue
        flat, there, own = place.piece
        flat.data[there] = read(name, own).to(flat.device)
        if place.split_weights and place.trains:  # the forward gathers from here, which may be another copy
            place.tensor.ds_tensor.data[: own.stop - own.start] = flat.data[there]  # type: ignore[attr-defined]
    split = [place.tensor for place in placed.values() if place.split_weights]
    if split:  # small parameters are kept whole from step to step
        kept = tower_optimizer.engine.optimizer.persistent_parameters
        split[0].partition(split)  # type: ignore[attr-defined]
        if kept:
            kept[0].all_gather(kept)


def set_moments(tower_optimizer: TowerOptimizer, read: Read, steps: Mapping[str, float], world: World) -> None:
    """Gives AdamW the moments NAME/exp_avg and NAME/exp_avg_sq of the parameters in `steps`, and their steps, each rank its
    part of them."""
    adamw = tower_optimizer.adamw
    counts: dict[int, float] = {}
    for name, place in places(tower_optimizer, world.rank).items():
        if place.piece is None or not place.trains or name not in steps:
            continue
        flat, there, own = place.piece
        counts[id(flat)] = max(steps[name], counts.get(id(flat), 0.0))
        state = _state_after(adamw, flat, counts[id(flat)])
        for key in MOMENTS:
            part = read(f"{name}/{key}", own)
            state[key][there] = (part if place.split_moments else part.view(place.shape)).to(flat.device)


def inheritable(tower_optimizer: TowerOptimizer, world: World) -> dict[str, torch.Tensor]:
    """The moments, with one count of steps for all, as a run keeps them beside its weights; on the first rank."""
    out = moments(tower_optimizer, on_first_rank(tower_optimizer, world), world)
    steps = [out.pop(name) for name in list(out) if name.endswith(f"/{STEP}")]
    return {**out, STEPS: torch.stack(steps).max()} if out else {}


def inherit(tower_optimizer: TowerOptimizer, inherited: Mapping[str, torch.Tensor], world: World) -> None:
    """Takes what `inheritable` gave, before the first step."""
    names = [name.removesuffix(f"/{MOMENTS[0]}") for name in inherited if name.endswith(f"/{MOMENTS[0]}")]
    steps = dict.fromkeys(names, float(inherited[STEPS]))
    set_moments(tower_optimizer, lambda name, own: inherited[name].flatten()[own], steps, world)


def _state_after(adamw: torch.optim.Optimizer, parameter: torch.Tensor, steps: float) -> dict[str, Any]:
    """AdamW's state of a parameter after so many steps, its moments as they were, or zero."""
    if not adamw.state[parameter]:
        adamw.state[parameter] = {key: torch.zeros_like(parameter) for key in MOMENTS}
    state: dict[str, Any] = adamw.state[parameter]
    if isinstance(adamw, torch.optim.AdamW):
        on_device = adamw.defaults["fused"] or adamw.defaults["capturable"]
        state[STEP] = torch.tensor(steps, dtype=torch.float32, device=parameter.device if on_device else "cpu")
    else:  # DeepSpeed counts in whole numbers
        state[STEP] = int(steps)
    return state
