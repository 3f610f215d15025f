"""What a run needs of each rank: bytes of memory, and bytes that it sends in one step.

Memory of a rank = weights, gradients and AdamW's states as ZeRO splits them + what the towers keep for backward of one
micro-batch (counted on the meta device, so exact for eager mode) + features, their gradients and blocks of similarities.

Bytes of a step, per rank and ring: gradients 2 P (W-1)/W, at stage 3 also the weights, plus the features of the other ranks
in a row and a column of the grid (objectives/exchange.py), forward and backward.
"""

from functools import cache
from typing import NamedTuple

import torch

from configs.plan import Run
from engine.models import clip
from objectives.exchange import grid
from objectives.tiles import BLOCK


class ModelSize(NamedTuple):
    """Of a model and what an objective makes of it."""

    parameters: int
    learning: int  # parameters that learn
    kept: int  # bytes kept for backward, a pair
    width: int  # of the embedding


def rank_memory(run: Run, ranks: int) -> int:
    """Bytes that one of so many ranks needs."""
    spec, stage = run.spec, run.settings
    size = model_size(spec.model.name, stage.objective.views)
    rows = stage.batch // ranks
    features = rows * size.width * 4
    gathered = max(grid(ranks)) * features
    activations = min(rows, spec.machine.micro_batch or rows) * size.kept
    # features, their gradients and gathered blocks of both; a few blocks of similarities
    exchanged = 2 * sum(stage.objective.views) * (features + gathered) + 16 * BLOCK**2
    return state_bytes(size, spec.machine.zero, spec.machine.precision, ranks) + activations + exchanged


def rank_traffic(run: Run, ranks: int) -> float:
    """Bytes that one rank sends in one step, at two bytes a gradient element on GPUs and four on CPU."""
    stage = run.settings
    size = model_size(run.spec.model.name, stage.objective.views)
    each = 2 if torch.cuda.is_available() else 4
    weights = size.parameters if run.spec.machine.zero == 3 else 0
    rows, columns = grid(ranks)
    features = stage.batch // ranks * size.width * 4
    # each view of one side crosses a row or a column of the grid, forward and backward
    exchanged = sum(stage.objective.views) / 2 * 2 * (rows + columns - 2) * features
    return (2 * size.learning + weights) * each * (ranks - 1) / ranks + exchanged


@cache
def model_size(name: str, views: tuple[int, int]) -> ModelSize:
    """Counted without allocating the model; without views of the caption the text tower does not learn."""
    towers = clip.on_meta(name)
    side, length = clip.image_size(name), clip.model_config(name)["text_cfg"].get("context_length", 77)
    images, captions = (2 * count for count in views)  # two pairs: BatchNorm refuses one
    weights = {parameter.untyped_storage()._cdata for parameter in towers.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # by storage: two views of one are kept once

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features, _ = towers(
            torch.empty(images, 3, side, side, dtype=torch.uint8, device="meta"),
            torch.empty(captions, length, dtype=torch.int32, device="meta") if captions else None,
        )
    learning = towers if captions else towers.clip.visual
    parameters, learns = (sum(p.numel() for p in part.parameters()) for part in (towers, learning))
    return ModelSize(parameters, learns, sum(storage.nbytes() for storage in kept.values()) // 2, features.shape[-1])


def state_bytes(size: ModelSize, zero: int, precision: str, ranks: int) -> int:
    """Bytes of weights, and for those that learn of gradients, float32 master weights and moments, on one rank (Rajbhandari
    et al. 2020)."""
    half = precision in ("bf16", "fp16") or (precision == "auto" and torch.cuda.is_available())
    weights, gradients = (2, 2) if half else (4, 4)
    optimizer = 12 if half or zero else 8
    each = gradients / (ranks if zero >= 2 else 1) + optimizer / (ranks if zero else 1)
    return int(size.parameters * weights / (ranks if zero >= 3 else 1) + size.learning * each)
