"""What a run needs of each rank: bytes of memory, and bytes that it sends in one step.

Memory of a rank = weights, gradients and AdamW's moments in float32 as ZeRO divides them, and the largest gradient twice
while it is made + what the towers keep for the backward pass of one micro-batch, in the type that they compute in (counted
on the meta device, so exact for eager mode) + pictures, features, their gradients and blocks of similarities. With
recompute the towers keep their blocks' inputs and, while a block is computed again, what that one keeps; so does a ResNet
whose BatchNorm groups are larger than a micro-batch, for all pictures of the rank. What an objective learns and remembers
comes on top.

Bytes of a step, per rank and ring: float32 gradients 2 P (W-1)/W, at stage 3 also the weights, plus the features of the
other ranks in a row and a column of the grid (objectives/exchange.py), forward and backward.
"""

from collections import defaultdict
from functools import cache
from typing import Any, NamedTuple

import torch

from configs.plan import Run
from engine.estimate.gpus import Gpu
from engine.models import clip
from engine.models.towers import BLOCKS, Towers
from engine.training.norm_groups import norm_groups
from engine.training.room import objective_bytes
from objectives.exchange import grid
from objectives.tiles import BLOCK, WIDE

BUCKETS = 4 * 4 * 25_000_000  # bytes of DeepSpeed's buckets for gradients, from stage 1 on: four of them


class Kept(NamedTuple):
    """Bytes that the towers keep for the backward pass of n pairs: `fixed` + n `pair`."""

    fixed: int  # casts of the weights, above all
    pair: int

    def of(self, pairs: int) -> int:
        """For so many pairs."""
        return self.fixed + pairs * self.pair


class ModelSize(NamedTuple):
    """Of a model and what an objective makes of it."""

    parameters: int
    learning: int  # parameters that learn
    largest: int  # parameters of the largest tensor of these
    kept: Kept
    recomputed: Kept  # with recompute: outside blocks, their inputs, the block that keeps most
    width: int  # of the embedding
    pixels: int  # of a picture


def compute_type(run: Run, gpu: Gpu | None) -> torch.dtype:
    """What the towers compute in on such a GPU, or on CPU."""
    asked = run.spec.machine.precision
    half = asked == "bf16" or asked == "auto" and gpu is not None and gpu.bf16
    return torch.bfloat16 if half else torch.float32


def rank_memory(run: Run, ranks: int, gpu: Gpu | None) -> int:
    """Bytes that one of so many ranks needs."""
    spec, stage, machine = run.spec, run.settings, run.spec.machine
    pictures, captions = stage.objective.views
    size = model_size(spec.model.name, stage.objective.views, compute_type(run, gpu))
    rows = stage.batch // ranks
    features = rows * size.width * 4
    gathered = max(grid(ranks)) * features
    side = min(BLOCK if gpu is None else WIDE, max(grid(ranks)) * rows)
    # pictures; features, their gradients and gathered blocks of both; a few blocks of similarities
    exchanged = rows * pictures * 3 * size.pixels + 2 * (pictures + captions) * (features + gathered) + 4 * 4 * side**2
    kept = _kept(run, ranks, compute_type(run, gpu)) + objective_bytes(stage.objective, size.width)
    return state_bytes(size, machine.zero, ranks) + kept + exchanged


def _kept(run: Run, ranks: int, dtype: torch.dtype) -> int:
    """Bytes that the towers of a rank keep for the backward pass of one micro-batch."""
    (pictures, captions), machine, rows = run.settings.objective.views, run.spec.machine, run.settings.batch // ranks
    micro = min(rows, machine.micro_batch or rows)

    def kept(views: tuple[int, int], recompute: bool) -> Kept:
        size = model_size(run.spec.model.name, views, dtype)
        return size.recomputed if recompute else size.kept

    groups = norm_groups(run, ranks)
    if groups is None or not groups.whole_pictures:
        return kept((pictures, captions), machine.recompute).of(micro)
    of_captions = kept((0, captions), machine.recompute).of(micro) if captions else 0
    return kept((pictures, 0), True).of(rows) + of_captions


def rank_traffic(run: Run, ranks: int, gpu: Gpu | None) -> float:
    """Bytes that one rank sends in one step."""
    stage = run.settings
    size = model_size(run.spec.model.name, stage.objective.views, compute_type(run, gpu))
    weights = size.parameters if run.spec.machine.zero == 3 else 0
    rows, columns = grid(ranks)
    features = stage.batch // ranks * size.width * 4
    # each view of one side crosses a row or a column of the grid, forward and backward
    exchanged = sum(stage.objective.views) / 2 * 2 * (rows + columns - 2) * features
    return (2 * size.learning + weights) * 4 * (ranks - 1) / ranks + exchanged


def state_bytes(size: ModelSize, zero: int, ranks: int) -> int:
    """Bytes of weights and, for those that learn, of gradients and moments on one rank, all float32 (Rajbhandari et al.
    2020); from stage 1 on DeepSpeed steps a copy of the rank's weights."""
    gradients = 4 / (ranks if zero >= 2 else 1)
    moments = 12 / ranks if zero else 8
    weights = size.parameters * 4 / (ranks if zero >= 3 else 1)
    return int(weights + size.learning * (gradients + moments)) + 8 * size.largest + (BUCKETS if zero else 0)


@cache
def model_size(name: str, views: tuple[int, int], dtype: torch.dtype) -> ModelSize:
    """Counted without allocating the model; without views of the caption the text tower does not learn."""
    towers = clip.on_meta(name)
    learning = towers if views[1] else towers.clip.visual
    parameters, learns = (sum(p.numel() for p in part.parameters()) for part in (towers, learning))
    largest = max(p.numel() for p in learning.parameters())
    parts = [(count, kept_by(name, text, dtype)) for text, count in enumerate(views) if count]
    plain = Kept(sum(kept.plain.fixed for _, kept in parts), sum(count * kept.plain.pair for count, kept in parts))
    blocks = [(kept.block.fixed, count * kept.block.pair) for count, kept in parts]
    largest_block = max(blocks, key=lambda block: block[1])
    outside = Kept(
        sum(kept.outside.fixed for _, kept in parts) + largest_block[0],
        sum(count * kept.outside.pair for count, kept in parts) + largest_block[1],
    )
    width, side = clip.model_config(name)["embed_dim"], clip.image_size(name)
    return ModelSize(parameters, learns, largest, plain, outside, width, side * side)


class TowerKept(NamedTuple):
    """What one tower keeps for the backward pass, by its pictures or captions."""

    plain: Kept
    outside: Kept  # outside its blocks, and their inputs
    block: Kept  # of the block that keeps most


@cache
def kept_by(name: str, text: bool, dtype: torch.dtype) -> TowerKept:
    """Of the picture tower, or the text tower."""
    few, more = (_count(name, text, rows, dtype) for rows in (2, 4))  # BatchNorm refuses one
    return TowerKept(*(Kept(2 * two - four, (four - two) // 2) for two, four in zip(few, more, strict=True)))


@cache
def _computing(name: str, dtype: torch.dtype) -> Towers:
    """The towers on the meta device as they compute in a type."""
    towers = clip.on_meta(name)
    if dtype != torch.float32:
        towers.compute_in(dtype)
    return towers


def _count(name: str, text: bool, rows: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes that a tower keeps of so many pictures or captions: all; outside blocks, with their inputs; in the largest."""
    towers, side = _computing(name, dtype), clip.image_size(name)
    length = clip.model_config(name)["text_cfg"].get("context_length", 77)
    count = Count({parameter.untyped_storage()._cdata for parameter in towers.parameters()})
    hooks = [
        hook
        for module in towers.modules()
        if type(module).__name__ in BLOCKS
        for hook in (module.register_forward_pre_hook(count.enter), module.register_forward_hook(count.leave))
    ]
    with torch.autograd.graph.saved_tensors_hooks(count.keep, lambda tensor: tensor):
        if text:
            towers(None, torch.empty(rows, length, dtype=torch.int32, device="meta"))
        else:
            towers(torch.empty(rows, 3, side, side, dtype=torch.uint8, device="meta"), None)
    for hook in hooks:
        hook.remove()
    blocks = [_bytes(inside) for inside in count.inside.values()]
    return _bytes(count.all), _bytes(count.outside), max(blocks, default=0)


class Count:
    """Storages that are kept for the backward pass, each once, by the block that keeps it first; not the weights'."""

    def __init__(self, weights: set[int]) -> None:
        self.weights = weights
        self.outside: dict[int, torch.UntypedStorage] = {}  # kept outside blocks, or going into one
        self.inside: dict[int, dict[int, torch.UntypedStorage]] = defaultdict(dict)  # by the number of the block
        self.block = 0  # the one at work; 0: none
        self.blocks = 0

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Counts a tensor."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            (self.inside[self.block] if self.block else self.outside)[storage._cdata] = storage
        return tensor

    def enter(self, block: Any, inputs: tuple[Any, ...]) -> None:
        """Called before a block's forward pass."""
        self.blocks += 1
        self.block = self.blocks
        for tensor in inputs:
            if isinstance(tensor, torch.Tensor):
                self.outside[tensor.untyped_storage()._cdata] = tensor.untyped_storage()

    def leave(self, block: Any, inputs: Any, output: Any) -> None:
        """Called after it."""
        self.block = 0

    @property
    def all(self) -> dict[int, torch.UntypedStorage]:
        """All that is kept, or goes into a block."""
        return {**self.outside, **{key: one for inside in self.inside.values() for key, one in inside.items()}}


def _bytes(storages: dict[int, torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages.values())
