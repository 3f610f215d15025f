"""losses.f32: the loss of every pair in the first epochs of a pre-training, where its spec's detectors ask for it.

    float32 [E, N]        by epoch and by place in the index, NaN for a pair that was in no batch of that epoch

A pair's loss is its part of the batch's MMCL over its first view, whatever the objective; it is noted beside the step and
changes nothing in it. A run that goes on from a checkpoint writes the same numbers to the same places again.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.disk import writing
from data.refusal import UserError
from data.shards import Index
from engine.distributed import collectives
from engine.distributed.world import World
from engine.training.inputs import RunInputs
from objectives.contract import Features
from objectives.exchange import Group
from records.ending import verify_files

FILE = "losses.f32"
ROWS = 1024  # pairs that are compared with the whole batch at once


@dataclass(frozen=True)
class PairLosses:
    """Where a run's losses go; E epochs, N pairs in the index."""

    path: Path
    shape: tuple[int, int]
    epoch_steps: int

    @classmethod
    def of(cls, inputs: RunInputs, world: World) -> "PairLosses | None":
        """Those of a run; None if nothing asks for them."""
        if (epochs := noted_epochs(inputs)) == 0:
            return None
        losses = cls(inputs.folder / FILE, (epochs, len(inputs.pairs.index)), inputs.pairs.steps)
        collectives.on_rank_0(losses._open)
        return losses

    def _open(self) -> None:
        """Makes the file if it is not there, or is another index's."""
        if self.path.is_file() and self.path.stat().st_size == 4 * self.shape[0] * self.shape[1]:
            return
        with writing(self.path.parent, "the pairs' losses"), self.path.open("wb") as file:
            row = np.full(self.shape[1], np.nan, np.float32)
            for _ in range(self.shape[0]):
                file.write(row.tobytes())

    def add(self, steps: list[int], samples: list[torch.Tensor], losses: list[torch.Tensor]) -> None:
        """Notes what this rank's pairs had in some steps (from 0); all ranks call it."""
        early = [at for at, step in enumerate(steps) if step < self.shape[0] * self.epoch_steps]
        if not early:
            return
        own = torch.stack([torch.stack([samples[at].double(), losses[at].detach().cpu().double()]) for at in early])
        whole = collectives.gather_rows(own[None])  # [ranks, steps, 2, B]
        collectives.on_rank_0(lambda: self._write([steps[at] for at in early], whole))

    def _write(self, steps: list[int], whole: torch.Tensor) -> None:
        with writing(self.path.parent, "the pairs' losses"):
            table = np.memmap(self.path, np.float32, "r+", shape=self.shape)
            for at, step in enumerate(steps):
                samples, losses = whole[:, at].transpose(0, 1).flatten(1).numpy()
                known = np.isfinite(losses)
                table[step // self.epoch_steps, samples[known].astype(np.int64)] = losses[known]
            table.flush()


def noted_epochs(inputs: RunInputs) -> int:
    """Of how many epochs a run notes its pairs' losses."""
    detect = inputs.run.spec.detect
    return detect.loss_epochs if detect is not None and inputs.run.stage != "clean" else 0


def pair_losses(features: Features, group: Group) -> torch.Tensor:
    """[B]: each own pair's 1/2 [log sum_j exp(s v . t_j) + log sum_j exp(s v_j . t)] - s v . t over the global batch."""
    with torch.no_grad():
        images, texts = (part[0].detach().float() for part in (features.images, features.texts))
        scale = features.scale.detach().float() if "scale" in features.learned else torch.tensor(100.0)
        everything = group.gather(images), group.gather(texts)
        parts = []
        for begin in range(0, len(images), ROWS):
            rows = slice(begin, begin + ROWS)
            forth = (scale * images[rows] @ everything[1].T).logsumexp(1)
            back = (scale * texts[rows] @ everything[0].T).logsumexp(1)
            parts.append((forth + back) / 2 - scale * (images[rows] * texts[rows]).sum(1))
        return torch.cat(parts)


def read_losses(folder: Path, index: Index, samples: np.ndarray) -> torch.Tensor:
    """float32 [E, n] of these samples (int64 [n]) of a finished run; UserError if it has none, or they were changed."""
    path = folder / FILE
    again = "give its spec a detect section with abl and pre-train anew: delete the run's folder first"
    if not path.is_file():
        raise UserError(f"{folder} has no {FILE}, the losses of pairs that abl counts, as nothing asked for them; {again}")
    collectives.on_rank_0(lambda: verify_files(folder, FILE))
    epochs, rest = divmod(path.stat().st_size, 4 * len(index))
    if rest or not epochs:
        raise UserError(
            f"{path} is not of the {len(index):,} pairs that the shards hold now; put the shards back, or {again}"
        )
    table = np.memmap(path, np.float32, "r", shape=(epochs, len(index)))
    return torch.from_numpy(np.stack([row[samples] for row in table]))
