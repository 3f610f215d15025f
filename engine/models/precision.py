"""Forward passes in bf16 of weights that stay float32.

The parameters of a model are the master weights at every precision: what the optimizer steps, checkpoints, exports and
distances see. Under bf16 a *unit* of the model (a block, or a module outside the blocks) casts its parameters and its inputs
when it is called, all parameters in one kernel, and the gradients of the casts reach the masters in float32 the same way.
BatchNorm's gain, bias and statistics are not cast, nor are embeddings of tokens, of which few rows are read.

The casts stand in the modules' own __dict__, which Python reads before nn.Module's parameters. So whoever lists parameters
(DeepSpeed's hooks at ZeRO stage 3, between a unit's modules) sees the masters, and a block that reads its children's
weights sees the casts.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

ALIGNMENT = 128  # elements: each cast begins where matrix kernels want it
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Casts:
    """Makes a model compute in `dtype`; its modules' forward passes are wrapped once, at construction."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.present: list[tuple[nn.Module, str]] = []  # casts that stand in their modules now
        self.keeps = False
        for unit, modules in units(model):
            if unit is not model and any(_names(module) for module in modules):
                unit.forward = _InUnit(self, unit.forward, modules)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within it a unit that is called again reads the same casts."""
        assert not self.present
        self.keeps = True
        try:
            yield
        finally:
            self.keeps = False
            self.drop()

    def put(self, modules: Iterable[nn.Module]) -> None:
        """Lets these modules read casts of their own parameters, and of buffers such as masks, until `drop`."""
        places = [(module, name) for module in modules for name in _names(module)]
        if not places or places[0][1] in places[0][0].__dict__:
            return
        # one by one: at ZeRO stage 3 reading a parameter of a block makes DeepSpeed gather it with the block from now on
        values = [getattr(module, name) for module, name in places]
        for (module, name), cast in zip(places, _Cast.apply(self.dtype, *values), strict=True):
            module.__dict__[name] = cast
        self.present += places

    def drop(self) -> None:
        """All modules read their own parameters again."""
        for module, name in self.present:
            del module.__dict__[name]
        self.present.clear()


class _InUnit:
    """The forward pass of a unit."""

    def __init__(self, casts: Casts, forward: Callable[..., Any], modules: Sequence[nn.Module]) -> None:
        self.casts, self.forward, self.modules = casts, forward, modules

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        casts = self.casts
        inputs = tuple(_lowered(value, casts.dtype) for value in inputs)
        named = {name: _lowered(value, casts.dtype) for name, value in named.items()}
        casts.put(self.modules)
        try:
            return self.forward(*inputs, **named)
        finally:
            if not casts.keeps:  # computed again in the backward pass
                casts.drop()


class _Cast(torch.autograd.Function):
    """Casts tensors to a type; their gradients come back in the tensors' own."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = values[0].dtype
        copies = _copies(values, dtype)
        ctx.mark_non_differentiable(*(copy for copy, value in zip(copies, values, strict=True) if not value.requires_grad))
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        copies = iter(_copies([gradient for gradient in gradients if gradient is not None], ctx.dtype))
        return None, *(None if gradient is None else next(copies) for gradient in gradients)


def units(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Each unit of a model, and the modules whose parameters it casts: blocks (what a list or a sequence holds) and modules
    without blocks with all that is in them; of any other module what it owns itself."""
    if isinstance(model, nn.Embedding | _BatchNorm):
        return
    if not any(isinstance(module, CONTAINERS) for module in model.modules()):
        yield model, list(model.modules())
        return
    if isinstance(model, CONTAINERS):
        yield from ((child, list(child.modules())) for child in model.children())
        return
    yield model, [model]
    for child in model.children():
        yield from units(child)


def _names(module: nn.Module) -> list[str]:
    if isinstance(module, _BatchNorm):
        return []
    both = (*module._parameters.items(), *module._buffers.items())
    return [name for name, value in both if value is not None and value.is_floating_point()]


def _lowered(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _copies(values: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Copies in one tensor, which lie as the values do, by one kernel."""
    if not values:
        return []
    room = [-(-value.numel() // ALIGNMENT) * ALIGNMENT for value in values]
    parts = torch.split(values[0].new_empty(sum(room), dtype=dtype), room)
    copies = [
        part.as_strided(value.size(), value.stride() if _dense(value) else value.contiguous().stride())
        for part, value in zip(parts, values, strict=True)
    ]
    torch._foreach_copy_(copies, list(values))
    return copies


def _dense(value: torch.Tensor) -> bool:
    return value.is_contiguous() or value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)


def allow_tf32(allowed: bool) -> None:
    """Whether a GPU may round the factors of float32 products and convolutions to TF32's 10 bits: off where fp32 is asked
    for, on under bf16, where what the loss multiplies has been rounded to 7 bits before.

    torch leaves it on for convolutions. Its older and newer settings are set alike, as reading one alone is an error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some releases warn of the older ones
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed
    newer: Any = torch.backends
    newer.cudnn.conv.fp32_precision = newer.cudnn.rnn.fp32_precision = "tf32" if allowed else "ieee"
    newer.mkldnn.matmul.fp32_precision = "ieee"  # on a CPU never
