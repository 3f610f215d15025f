"""Evaluation: pictures encoded once for all measures, shared over ranks, each counted once.

Rank r of W encodes the r-th of W equal runs of rows; the last is filled up with repeated rows, which are cut off after
the gather, so that every rank makes the same calls (ZeRO-3 needs that) and no picture counts twice.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from configs.spec import Spec
from data.chance import derive
from data.labelled import Labelled, read_labelled
from data.triggers.contract import Mark
from engine.model import image_size
from engine.towers import Piece, cut_of
from engine.world import World, beat, gather_rows
from measures.classifier import class_vectors
from measures.contract import Encoded, Measure

HOLD = 1 << 30  # bytes of decoded pictures a rank keeps between evaluations; beyond it they are decoded each time


@dataclass(frozen=True)
class Examination:
    """One evaluation set, this rank's decoded rows of it if they are few, and the measures that use it."""

    name: str
    labelled: Labelled
    target: int
    mine: list[int]  # rows of this rank, padded
    held: tuple[torch.Tensor, torch.Tensor | None] | None
    mark: Mark | None  # None if no measure needs triggered pictures
    size: int
    seed: int
    measures: tuple[Measure, ...]

    def pictures(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """uint8 [n, 3, H, W]: the pictures, and the same with the trigger; decoded once for both."""
        clean = self.labelled.pictures(rows, self.size)
        marked = None
        if self.mark is not None:
            draws = [derive(self.seed, "evaluation", self.name, self.labelled.where[row][1]) for row in rows]
            marked = torch.from_numpy(self.mark(clean, draws))
        return torch.from_numpy(clean), marked


def examinations(spec: Spec, world: World) -> list[Examination]:
    """One for each evaluation set that a measure of the spec names; Refusal if the target is none of its classes."""
    out = []
    for name in dict.fromkeys(measure.images for measure in spec.measure):
        labelled = read_labelled(spec.data.test[name])
        sections = [measure for measure in spec.measure if measure.images == name]
        share = -(-len(labelled) // world.size)
        mine = [min(row, len(labelled) - 1) for row in range(world.rank * share, (world.rank + 1) * share)]
        size = image_size(spec.model.name)
        mark = spec.attack.trigger.build(spec.seed) if any(section.triggered for section in sections) else None
        ready = Examination(
            name, labelled, labelled.target(spec.attack.target), mine, None, mark, size, spec.seed,
            tuple(section.build() for section in sections),
        )  # fmt: skip
        if share * 3 * size * size * 2 <= HOLD:
            ready = Examination(**{**ready.__dict__, "held": ready.pictures(mine)})
        out.append(ready)
    return out


def evaluate(towers: Any, tokenize: Any, sets: list[Examination], world: World, rows: int) -> list[dict[str, Any]]:
    """One dict of numbers for each set, `images` its name; the towers (or DeepSpeed's engine around them) are left in
    the mode they were in."""
    training = towers.training
    towers.eval()
    try:
        with torch.no_grad():
            out = []
            for one in sets:
                encoded = _encode(towers, tokenize, one, world, rows)
                numbers = {name: value for measure in one.measures for name, value in measure(encoded).items()}
                out.append({"images": one.name, **numbers})
            return out
    finally:
        towers.train(training)


def _encode(towers: Any, tokenize: Any, one: Examination, world: World, rows: int) -> Encoded:
    prompts = [t.replace("{c}", c) for c in one.labelled.classes for t in one.labelled.templates]
    texts = _prompts(towers, tokenize, prompts, world, rows).view(len(one.labelled.classes), len(one.labelled.templates), -1)
    clean: list[torch.Tensor] = []
    marked: list[torch.Tensor] = []
    for begin in range(0, len(one.mine), rows):
        first, second = (
            tuple(None if part is None else part[begin : begin + rows] for part in one.held)
            if one.held
            else one.pictures(one.mine[begin : begin + rows])
        )
        beat()
        clean.append(towers(first.to(world.device), None)[0])  # type: ignore[union-attr]
        if second is not None:
            marked.append(towers(second.to(world.device), None)[0])
    count = len(one.labelled)
    return Encoded(
        gather_rows(torch.cat(clean))[:count].cpu(),
        gather_rows(torch.cat(marked))[:count].cpu() if marked else None,
        torch.from_numpy(np.asarray(one.labelled.labels)),
        class_vectors(texts).cpu(),
        one.target,
    )


def _prompts(towers: Any, tokenize: Any, prompts: list[str], world: World, rows: int) -> torch.Tensor:
    """Unit [P, D] of all prompts, shared over ranks."""
    share = -(-len(prompts) // world.size)
    mine = [prompts[min(i, len(prompts) - 1)] for i in range(world.rank * share, (world.rank + 1) * share)]
    tokens = tokenize(mine).to(torch.int32)
    parts = []
    for begin in range(0, share, rows):
        beat()
        part = tokens[begin : begin + rows]
        piece = [Piece(0, len(part), cut_of(part))]
        parts.append(towers(None, part.to(world.device), piece)[1])
    return gather_rows(torch.cat(parts))[: len(prompts)]
