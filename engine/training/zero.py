"""DeepSpeed: ZeRO, precision, clipping and the optimizer's step around the towers. The only door to deepspeed,
with engine/training/optimizer.py, which takes its Adam."""

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from configs.machine import Machine
from configs.stage import Optimizer
from data.refusal import UserError
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models.towers import Towers
from engine.training import optimizer

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
