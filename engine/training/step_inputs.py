"""What a step needs on the device, sent there before its forward pass.

Pages of memory that are not pinned, or a copy issued behind the forward pass, would make the host wait until the device is
done with it.
"""

from dataclasses import dataclass

import numpy as np
import torch

from data.pipeline import Batch
from engine.models.towers import Cut, Piece, cut_of

TowerInputs = tuple[torch.Tensor, torch.Tensor | None, list[Piece]]  # pictures, tokens, micro-batches


@dataclass(frozen=True)
class MicroBatches:
    """How a batch is divided on its way through the towers."""

    pairs: int | None = None  # of a micro-batch; None: all at once
    by_length: bool = True  # whether captions run in groups of similar length

    def pieces(self, tokens: torch.Tensor, views: int, device: torch.device) -> list[Piece]:
        """The micro-batches of pairs with so many views of the picture and these captions [B, U, L], a pair's views in
        turn."""
        pairs, captions = self.pairs or len(tokens), tokens.shape[1]
        pieces = []
        for part in torch.split(tokens, pairs):
            cut = cut_of(part.flatten(0, 1), self.by_length) if captions else None
            sent = None if cut is None else Cut(cut.parts, *(None if at is None else to(device, at) for at in cut[1:]))
            pieces.append(Piece(len(part) * views, len(part) * captions, sent))
        return pieces


@dataclass
class Annotations:
    """What is known of pairs beyond picture and caption, by sample; None where the objective asks for none."""

    labels: np.ndarray | None = None  # int64, -1 for none
    flags: np.ndarray | None = None  # bool
    poisoned: bool = False  # whether the objective asks which are in the poison plan; the batch tells
    reflags: bool = False  # whether flags are made anew before epochs, and so are a part of the run's state

    def of(self, samples: torch.Tensor, device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(labels [B], flags [B]) of some samples."""
        rows = samples.numpy()
        labels, flags = (None if of is None else to(device, torch.from_numpy(of[rows])) for of in (self.labels, self.flags))
        return labels, flags


@dataclass(frozen=True)
class StepInputs:
    """A batch on the device: what the towers take, what the frozen start takes, labels [B], flags [B], poisoned [B]."""

    towers: TowerInputs
    start: TowerInputs | None
    labels: torch.Tensor | None
    flags: torch.Tensor | None
    poisoned: torch.Tensor | None


def send(
    batch: Batch, micro_batches: MicroBatches, annotations: Annotations, starts: bool, device: torch.device
) -> StepInputs:
    """A batch, sent; pictures and tokens with a pair's views one after the other, None for the tokens of no captions. For
    the start, where there is one, the first view alone."""
    pictures, tokens = batch.pictures(device), batch.tokens.to(device, non_blocking=True)

    def inputs(views: slice) -> TowerInputs:
        images, texts, host = pictures[:, views], tokens[:, views], batch.tokens[:, views]
        pieces = micro_batches.pieces(host, images.shape[1], device)
        return images.flatten(0, 1), texts.flatten(0, 1) if texts.shape[1] else None, pieces

    labels, flags = annotations.of(batch.samples, device)
    poisoned = to(device, batch.poisoned) if annotations.poisoned else None
    return StepInputs(inputs(slice(None)), inputs(slice(1)) if starts else None, labels, flags, poisoned)


def to(device: torch.device, value: torch.Tensor) -> torch.Tensor:
    """A tensor of the host's on the device, without waiting for it."""
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
