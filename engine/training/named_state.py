"""A learner's weights and AdamW's moments by open_clip's names, wherever a ZeRO stage keeps them."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.refusal import UserError
from engine.distributed import collectives
from engine.training.init_weights import MOMENTS, STEPS
from engine.training.zero import TowerOptimizer


def moments(tower_optimizer: TowerOptimizer) -> dict[str, torch.Tensor]:
    """AdamW's moments of the towers as `NAME/exp_avg` and `NAME/exp_avg_sq` by open_clip's names, whole on every rank, and
    `steps`; empty before the first step, or where this precision and stage keep none by name."""
    engine, adamw = tower_optimizer.engine, tower_optimizer.adamw
    if not adamw.state:
        return {}
    out = {}
    for name, parameter in engine.module.clip.named_parameters():
        for key in MOMENTS if parameter.requires_grad else ():
            if hasattr(parameter, "ds_id"):
                value = engine.optimizer.get_full_hp_param(parameter, key)
            elif hasattr(parameter, "_hp_mapping"):
                value = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
                for part in _parts(adamw, parameter):
                    value[part.own] = adamw.state[part.flat][key][part.there]
                collectives.all_reduce_sum_([value])
            elif parameter in adamw.state:
                value = adamw.state[parameter][key]
            else:
                return {}
            shape = getattr(parameter, "ds_shape", parameter.shape)
            out[f"{name}/{key}"] = value.detach().float().cpu().reshape(shape).contiguous()
    state = next(iter(adamw.state.values()))
    return {**out, STEPS: torch.as_tensor(float(state.get("step", adamw.param_groups[0].get("step", 0))))}


def set_moments(tower_optimizer: TowerOptimizer, named: dict[str, dict[str, torch.Tensor]], steps: float) -> None:
    """Gives AdamW these moments before its first step, each rank its part of them; UserError where DeepSpeed keeps none by
    name."""
    engine, adamw = tower_optimizer.engine, tower_optimizer.adamw
    for name, parameter in engine.module.clip.named_parameters():
        if not parameter.requires_grad or name not in named:
            continue
        for key, value in named[name].items():
            if hasattr(parameter, "ds_id"):  # stage 3: each parameter in equal parts, the last filled up
                group, offset, count = engine.optimizer.grad_position[engine.optimizer.get_param_id(parameter)]
                state = _state_after(adamw, engine.optimizer.fp32_partitioned_groups_flat[group], steps)
                rank = engine.optimizer._get_param_partition_rank(parameter)
                mine = value.flatten()[count * rank : count * (rank + 1)]
                state[key][offset : offset + len(mine)] = mine.to(state[key].device)
            elif hasattr(parameter, "_hp_mapping"):
                for part in _parts(adamw, parameter):
                    _state_after(adamw, part.flat, steps)[key][part.there] = value.flatten()[part.own].to(part.flat.device)
            elif any(parameter is other for group in adamw.param_groups for other in group["params"]):
                _state_after(adamw, parameter, steps)[key].copy_(value)
            else:
                raise UserError("optimizer.state can't be inherited at this precision and ZeRO stage; set machine.zero=1")


class _Part(NamedTuple):
    """Where a piece of a parameter lies in a flat tensor of this rank's."""

    flat: torch.Tensor
    there: slice
    own: slice  # of the flattened parameter


def _parts(adamw: torch.optim.Optimizer, parameter: torch.Tensor) -> list[_Part]:
    """Stages 1 and 2: a group's parameters are one flat tensor, cut over ranks wherever that falls; this rank's piece, or
    none."""
    mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return []
    storage = mapping.hp_fragment.untyped_storage().data_ptr()
    flats = [flat for group in adamw.param_groups for flat in group["params"]]
    flat = next(flat for flat in flats if flat.untyped_storage().data_ptr() == storage)
    there, own = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
    return [_Part(flat, slice(there.start, there.start + there.numel), slice(own.start, own.start + own.numel))]


def _state_after(adamw: torch.optim.Optimizer, parameter: torch.Tensor, steps: float) -> dict[str, Any]:
    """AdamW's state of a parameter, zero so far, after so many steps."""
    if not adamw.state[parameter]:
        ours = isinstance(adamw, torch.optim.AdamW)  # DeepSpeed's count in whole numbers
        step = torch.tensor(steps, dtype=torch.float32, device=parameter.device) if ours else int(steps)
        adamw.state[parameter] = {"step": step, **{key: torch.zeros_like(parameter) for key in MOMENTS}}
    state: dict[str, Any] = adamw.state[parameter]
    return state


def save(engine: Any, folder: Path, tag: str) -> None:
    """DeepSpeed's own files under folder/tag; the commit is engine/training/checkpoint.py's work, so no `latest`."""
    engine.save_checkpoint(str(folder), tag=tag, save_latest=False)


def load(engine: Any, folder: Path, tag: str) -> None:
    """The state that `save` wrote, on every rank."""
    path, _ = engine.load_checkpoint(str(folder), tag=tag)
    if path is None:
        raise UserError(f"DeepSpeed found no checkpoint in {folder / tag}")
