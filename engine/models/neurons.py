"""The neurons of a picture tower that can be removed for good, the same for CLIP's ResNets and ViTs.

    block         into      active      onward
    Bottleneck    bn2       act2        conv3      a neuron: an inner channel
    ViT's MLP     c_fc      gelu        c_proj     a neuron: a hidden unit

A neuron gets its weight and bias in `into`, and `onward` alone reads it. With both sides zero it gives f(0) = 0 (ReLU, GELU
and QuickGELU alike), so every gradient on either side is exactly zero, and AdamW, whose decay shrinks zero to zero, leaves
it dead: no mask is needed in the training that follows. Moments from an earlier training would move it, hence they are
refused (configs/stage.py).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from data.refusal import UserError
from engine.models.towers import Towers


@dataclass(frozen=True)
class Block:
    """One block's neurons."""

    into: Any  # its weight and bias have a row for each
    active: nn.Module
    onward: Any  # its weight has a column for each

    def __len__(self) -> int:
        return len(self.into.bias)

    def remove(self, places: torch.Tensor) -> None:
        """Sets what leads into these neurons (int64) and out of them to zero."""
        with torch.no_grad():
            self.into.weight[places] = 0
            self.into.bias[places] = 0
            self.onward.weight[:, places] = 0


@dataclass(frozen=True)
class Neurons:
    """All K of them, numbered block by block."""

    blocks: tuple[Block, ...]

    def __len__(self) -> int:
        return sum(len(block) for block in self.blocks)

    def remove(self, places: torch.Tensor) -> None:
        """Removes these neurons, int64, from the towers."""
        first = 0
        for block in self.blocks:
            last = first + len(block)
            block.remove(places[(places >= first) & (places < last)] - first)
            first = last

    def removed(self, number: int) -> str:
        """That so many were removed, in words, for the run's card."""
        return f"removed {number:,} of {len(self):,} neurons"

    @contextmanager
    def scaled(self, gain: torch.Tensor, shift: torch.Tensor) -> Iterator[None]:
        """Within it, neurons have gain * weight and shift * bias ([K] each, with gradients): the towers keep their own."""
        sizes = [len(block) for block in self.blocks]
        with ExitStack() as stack:
            for block, *own in zip(self.blocks, torch.split(gain, sizes), torch.split(shift, sizes), strict=True):
                stack.enter_context(block.into.register_forward_hook(_Scaled(*own)))
            yield

    @contextmanager
    def watched(self, sums: torch.Tensor) -> Iterator[None]:
        """Within it, each picture that goes through the towers adds its activations to the sums, [K].

        A picture's activation is the mean over places of a ResNet's map, or over the tokens that the block computes: in the
        last block of a ViT that is the one token that is read from it.
        """
        sizes = [len(block) for block in self.blocks]
        with ExitStack() as stack:
            for block, own in zip(self.blocks, torch.split(sums, sizes), strict=True):
                stack.enter_context(block.active.register_forward_hook(_Watched(own)))
            yield


class _Scaled:
    def __init__(self, gain: torch.Tensor, shift: torch.Tensor) -> None:
        self.gain, self.shift = gain, shift

    def __call__(self, into: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        # out = w x + b, so gain * out + (shift - gain) * b = gain * w x + shift * b, whatever w is
        return out * _along(out, self.gain) + _along(out, (self.shift - self.gain) * into.bias)


class _Watched:
    def __init__(self, sums: torch.Tensor) -> None:
        self.sums = sums

    def __call__(self, active: Any, args: Any, out: torch.Tensor) -> None:
        maps = out.ndim == 4  # [n, K, H, W], else [n, L, K]
        self.sums += out.detach().to(self.sums.dtype).mean((2, 3) if maps else 1).sum(0)


def _along(out: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None] if out.ndim == 4 else values


def neurons_of(towers: Towers, name: str, last: bool = False) -> Neurons:
    """The neurons of the picture tower's blocks, or of the last stage's (ResNet) or block (ViT) alone; UserError if this
    model has none of the known kinds."""
    visual = towers.clip.visual
    stages = [getattr(visual, f"layer{i}", None) for i in (1, 2, 3, 4)]
    blocks: list[Block | None]
    if all(isinstance(stage, nn.Sequential) for stage in stages):
        blocks = [_channels(block) for stage in (stages[-1:] if last else stages) for block in stage or ()]
    else:
        transformer = list(getattr(getattr(visual, "transformer", None), "resblocks", None) or ())
        blocks = [_units(block) for block in (transformer[-1:] if last else transformer)]
    known = tuple(block for block in blocks if block is not None)
    if not known or len(known) < len(blocks):
        raise UserError(
            f"transform removes neurons of CLIP's own ResNets and ViTs, and the picture tower of {name} is neither; name a "
            "model such as RN50 or ViT-B-32, or clean without fine_prune and anp"
        )
    return Neurons(known)


def _channels(block: Any) -> Block | None:
    """Of CLIP's Bottleneck."""
    fits = all(hasattr(block, part) for part in ("bn2", "act2", "conv3"))
    return Block(block.bn2, block.act2, block.conv3) if fits else None


def _units(block: Any) -> Block | None:
    """Of an MLP that is two linear layers with one activation between them."""
    parts = [part for part in getattr(block, "mlp", None) or () if not isinstance(part, nn.Identity)]
    if len(parts) != 3 or not all(isinstance(part, nn.Linear) and part.bias is not None for part in parts[::2]):
        return None
    return Block(*parts)
