"""DeepSpeed: ZeRO, precision, clipping and the optimizer's step around the towers. The only door to deepspeed,
with engine/training/optimizer.py, which takes its Adam."""

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from configs.machine import Machine
from configs.stage import Optimizer
from data.refusal import UserError
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models.towers import Towers
from engine.training import optimizer
from engine.training.init_weights import MOMENTS, STEPS

ALLOWED = ("LossScaler", "ZeroStageEnum", "fragment_address")  # the classes that a checkpoint of DeepSpeed holds


def prepare() -> None:
    """Imports DeepSpeed so that it loads no pickled code, compiles nothing at the first start and keeps quiet."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of deprecated names
        import deepspeed
        import deepspeed.ops
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    # on CPU it would build a shared-memory op for minutes, and a process killed meanwhile leaves a lock for ever
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])


def precision(machine: Machine, device: torch.device) -> str:
    """fp32, bf16 or fp16; `auto` resolved for this device."""
    if machine.precision != "auto":
        if machine.precision == "fp16" and device.type != "cuda":
            raise UserError("machine.precision is fp16, which needs a GPU; use auto")
        return machine.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


@dataclass
class TowerOptimizer:
    """The towers in DeepSpeed's engine, and the AdamW inside it."""

    engine: Any
    adamw: torch.optim.Optimizer
    backward: Callable[[torch.Tensor], Any]  # leaves the towers' gradients, averaged over ranks
    implementation: str = ""  # of AdamW, as machine.adam names it
    zclip: optimizer.ZClip | None = None

    @property
    def towers(self) -> Any:
        """The towers."""
        return self.engine.module

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate


def wrap(towers: Towers, section: Optimizer, machine: Machine, world: World, rows: int) -> TowerOptimizer:
    """The towers with DeepSpeed and the optimizer around them; `rows` pairs a rank and step."""
    import deepspeed

    kind = precision(machine, world.device)
    if machine.recompute:
        towers.recompute()
    if machine.compile:
        towers.compile_blocks()
    adamw, name = optimizer.adamw(machine.adam, optimizer.groups(towers, section), section, world.device)
    config = {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 1 << 60,
        "gradient_clipping": section.clip or float(section.spikes != "none"),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": kind == "bf16"},
        "fp16": {"enabled": kind == "fp16"},
        "zero_optimization": {
            "stage": machine.zero,
            "reduce_bucket_size": 25_000_000,  # the default of 5e8 is one bucket for a CLIP model: no overlap
            "allgather_bucket_size": 25_000_000,
            "overlap_comm": world.device.type == "cuda",
        },
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine, *_ = deepspeed.initialize(model=towers, optimizer=adamw, config=config)
    for norm in towers.norms:  # running statistics stay in float32, whatever the towers' precision
        for buffer in ("running_mean", "running_var"):
            setattr(norm, buffer, getattr(norm, buffer).float())
    plain = machine.zero == 0 and kind == "fp32"
    engine.enable_backward_allreduce = not plain
    backward = partial(_backward_and_sum, engine, world) if plain else engine.backward
    return TowerOptimizer(
        engine, adamw, backward, name, _adaptive(engine, machine, kind) if section.spikes == "zclip" else None
    )


def _backward_and_sum(engine: Any, world: World, loss: torch.Tensor) -> None:
    """The backward pass at stage 0 in float32, after which gradients are means over ranks.

    There DeepSpeed would copy all gradients into buckets and back, also for one rank; we sum them where they are, small ones
    together.
    """
    engine.backward(loss / world.size)
    collectives.all_reduce_sum_([p.grad for p in engine.module.parameters() if p.grad is not None])


def _adaptive(engine: Any, machine: Machine, kind: str) -> optimizer.ZClip:
    """Makes the engine clip by ZClip: DeepSpeed asks for the norm of the gradient in its step, and clips to a limit that it
    looks up after that."""
    clip = optimizer.ZClip()
    if machine.zero:
        norm_of = engine.optimizer.scaled_global_norm

        def measured(*args: Any, **kwargs: Any) -> Any:
            norm = norm_of(*args, **kwargs)
            engine.optimizer.clip_grad = clip.limit(float(norm) / float(engine.optimizer.loss_scale)) + 1e-6
            return norm

        engine.optimizer.scaled_global_norm = measured
        return clip
    if kind != "fp32":
        raise UserError(f"optimizer.spikes is zclip, which at ZeRO stage 0 works in fp32, not in {kind}; set machine.zero=1")

    def clipped() -> None:
        grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        torch.nn.utils.clip_grads_with_norm_(engine.module.parameters(), clip.limit(float(norm)) + 1e-6, norm)

    engine.clip_fp32_gradients = clipped
    return clip


def full_weights(engine: Any, machine: Machine) -> Any:
    """A context in which the towers' parameters are whole on every rank, also at stage 3."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(engine.module.parameters()), enabled=machine.zero == 3)


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
