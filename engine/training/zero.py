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
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models.precision import allow_tf32
from engine.models.towers import Towers
from engine.training import optimizer


def prepare() -> None:
    """Imports DeepSpeed so that it compiles nothing at the first start and keeps quiet."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of deprecated names
        import deepspeed
        import deepspeed.ops
    if not torch.cuda.is_available():
        # it would build a shared-memory op for minutes, and a process killed meanwhile leaves a lock for ever; on a GPU it
        # builds none, and this table would probe every op for a compiler
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def precision(machine: Machine, device: torch.device) -> str:
    """fp32 or bf16: what the towers compute in; `auto` resolved for this device. Lets a GPU use TF32 under bf16 alone."""
    gpu = device.type == "cuda"
    kind = machine.precision
    if kind == "auto":
        kind = "bf16" if gpu and torch.cuda.is_bf16_supported() else "fp32"
    if gpu:
        allow_tf32(kind == "bf16")
    return kind


@dataclass
class TowerOptimizer:
    """The towers in DeepSpeed's engine, and the AdamW inside it."""

    engine: Any
    adamw: torch.optim.Optimizer
    backward: Callable[[torch.Tensor], Any]  # leaves the towers' gradients, averaged over ranks
    implementation: str = ""  # of AdamW, as machine.adam names it
    zclip: optimizer.ZClip | None = None
    way_back: optimizer.WayBack | None = None

    @property
    def towers(self) -> Any:
        """The towers."""
        return self.engine.module

    def go_back(self) -> None:
        """Before a forward pass: the towers go towards their start, if the stage's optimizer has a path."""
        if self.way_back is not None:
            self.way_back.go(self.towers.parameters())

    def come_forward(self) -> None:
        """After the backward pass: the towers have their own weights again."""
        if self.way_back is not None:
            self.way_back.back(self.towers.parameters())

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate


def wrap(towers: Towers, section: Optimizer, machine: Machine, world: World, rows: int) -> TowerOptimizer:
    """The towers with DeepSpeed and the optimizer around them; `rows` pairs a rank and step.

    DeepSpeed sees float32 at every precision: parameters are the master weights, and gradients are reduced in float32.
    """
    import deepspeed

    kind = precision(machine, world.device)
    if machine.compile:
        towers.compile_blocks()
    if kind == "bf16":
        towers.compute_in(torch.bfloat16)
    if machine.recompute:  # also the casts
        towers.recompute()
    elif towers.whole_pictures:
        towers.recompute_resnet()
    adamw, name = optimizer.adamw(machine.adam, optimizer.groups(towers, section), section, world.device)
    config = {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 1 << 60,
        "gradient_clipping": section.clip or float(section.spikes != "none"),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": machine.zero,
            "reduce_bucket_size": 25_000_000,  # the default of 5e8 is one bucket for a CLIP model: no overlap
            "allgather_bucket_size": 25_000_000,
            "overlap_comm": world.device.type == "cuda",
            # keeps no gathered weights for the backward pass; under bf16 casts are kept, and its bias is a rounding more
            "memory_efficient_linear": kind == "fp32",
        },
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine, *_ = deepspeed.initialize(model=towers, optimizer=adamw, config=config)
    engine.enable_backward_allreduce = machine.zero > 0
    backward = engine.backward if machine.zero else partial(_backward_and_sum, engine, world)
    zclip = optimizer.ZClip() if section.spikes == "zclip" else None
    if machine.zero == 0:  # all tensors in a few kernels, which DeepSpeed clips one by one
        engine.clip_fp32_gradients = partial(_clip, engine, section.clip, zclip)
    elif zclip is not None:
        _adapt(engine, machine, zclip)
    return TowerOptimizer(engine, adamw, backward, name, zclip)


def _backward_and_sum(engine: Any, world: World, loss: torch.Tensor) -> None:
    """The backward pass at stage 0, after which gradients are means over ranks.

    There DeepSpeed would copy all gradients into buckets and back, also for one rank; we sum them where they are, small ones
    together.
    """
    engine.backward(loss / world.size)
    collectives.all_reduce_sum_([p.grad for p in engine.module.parameters() if p.grad is not None])


def _clip(engine: Any, limit: float | None, zclip: optimizer.ZClip | None) -> None:
    """Clips the gradients of stage 0 to a norm, or by ZClip."""
    grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    most = limit if zclip is None else zclip.limit(float(norm)) + 1e-6
    assert most is not None
    torch.nn.utils.clip_grads_with_norm_(engine.module.parameters(), most, norm)


def _adapt(engine: Any, machine: Machine, zclip: optimizer.ZClip) -> None:
    """Makes stages 1 to 3 clip by ZClip: DeepSpeed asks for the norm of the gradient in its step, and clips to a limit that
    it looks up after that."""
    from deepspeed.runtime.utils import combine_grad_norm_groups

    inner = engine.optimizer
    asked = "_get_norm_groups" if machine.zero == 3 else "scaled_global_norm"  # stage 3 joins the norms of its groups itself
    norm_of = getattr(inner, asked)

    def measured(*args: Any, **kwargs: Any) -> Any:
        norm = norm_of(*args, **kwargs)
        whole = combine_grad_norm_groups(norm) if machine.zero == 3 else norm
        inner.clip_grad = zclip.limit(float(whole)) + 1e-6
        return norm

    setattr(inner, asked, measured)
