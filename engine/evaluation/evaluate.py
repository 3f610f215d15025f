"""Evaluation: pictures encoded once for all measures, shared over ranks, each counted once.

A set that a measure is fitted on is encoded once too; the fit is done by the first rank, which tells the others the numbers.

Rank r of W encodes the r-th of W equal runs of rows; the last is filled up with repeated rows, which are cut off after
the gather, so that every rank makes the same calls (ZeRO-3 needs that) and no picture counts twice.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from data.captioned import Captioned
from data.captions import word_of
from data.labelled import Labelled
from data.seeding import derive_seed
from engine.distributed.collectives import gather_rows, on_rank_0
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World
from engine.evaluation.sets import AttackView, EvalSet, MeasureTask
from engine.models.towers import Piece, cut_of
from measures.classifier import class_vectors, predict
from measures.contract import Encoded, Number, Paired

CACHED = 1 << 18  # pixels of pictures that a CPU encodes at once: 64 of 64 x 64; what it holds of more leaves its caches
SCALE = 100.0  # what cosines are multiplied with where the objective learns no scale: CLIP's upper bound


class Costs:
    """Seconds spent on each part of an evaluation of one set: pictures, prompts, and every measure by its kind."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def of(self, images: str, part: str) -> Iterator[None]:
        """Counts what is done inside for a part of a set."""
        began = time.monotonic()
        yield
        here = self.seconds.setdefault(images, {})
        here[part] = round(here.get(part, 0.0) + time.monotonic() - began, 4)


def evaluate(
    towers: Any,
    tokenize: Any,
    sets: list[EvalSet],
    world: World,
    rows: int,
    costs: Costs | None = None,
    scale: float = SCALE,
) -> list[dict[str, Any]]:
    """One dict of numbers for each set, `images` its name; the towers (or DeepSpeed's engine around them) are left in
    the mode they were in. What each part took is added to `costs`; `scale` is what the model multiplies cosines with."""
    training = towers.training
    towers.eval()
    asked = {task.train for one in sets for task in (*one.plain, *one.triggered)}
    spent = costs or Costs()

    def encoded(one: EvalSet) -> list[torch.Tensor]:
        with spent.of(one.name, "pictures"):
            return _encoded(towers, one, world, rows)

    def ask(one: EvalSet, prompts: list[str]) -> torch.Tensor:
        with spent.of(one.name, "prompts"):
            return _prompts(towers, tokenize, prompts, world, rows).cpu()

    try:
        with torch.no_grad():
            kept = {one.name: encoded(one) for one in sets if one.name in asked}
            fits = {one.name: (kept[one.name][0], _labels(one)) for one in sets if one.name in asked}
            out = []
            for one in sets:
                if one.plain or one.triggered:
                    found = kept.get(one.name) or encoded(one)
                    if isinstance(one.shown, Captioned):
                        numbers = _captioned(one, one.shown, found, partial(ask, one), scale, spent)
                    else:
                        numbers = _numbers(one, one.shown, found, fits, partial(ask, one), spent)
                    out.append({"images": one.name, **numbers})
            return out
    finally:
        towers.train(training)


def _labels(one: EvalSet) -> torch.Tensor:
    assert isinstance(one.shown, Labelled)
    return torch.from_numpy(np.asarray(one.shown.labels))


def _encoded(towers: Any, one: EvalSet, world: World, rows: int) -> list[torch.Tensor]:
    """Unit [M, D] of the pictures of a set, and of the same under each attack."""
    if world.device.type == "cpu":
        rows = max(1, min(rows, CACHED // one.size**2))
    rows_of: list[list[torch.Tensor]] = [[] for _ in range(1 + len(one.attempts))]
    for begin in range(0, len(one.mine), rows):
        part = slice(begin, begin + rows)
        clean, marked = (one.held[0][part], [m[part] for m in one.held[1]]) if one.held else one.pictures(one.mine[part])
        for images, into in zip((clean, *marked), rows_of, strict=True):
            heartbeat()
            into.append(towers(images.to(world.device), None)[0])
    return [gather_rows(torch.cat(parts))[: len(one.shown)].cpu() for parts in rows_of]


Ask = Callable[[list[str]], torch.Tensor]  # unit [P, D] of P texts
Fits = dict[str, tuple[torch.Tensor, torch.Tensor]]  # by the names of sets: their rows and labels


def _numbers(
    one: EvalSet, labelled: Labelled, encoded: list[torch.Tensor], fits: Fits, ask: Ask, spent: Costs
) -> dict[str, Any]:
    """What the measures of a labelled set say; under `answers`, what the model takes a sample of its pictures for."""
    prompts = [t.replace("{c}", c) for c in labelled.classes for t in labelled.templates]
    shape = (len(labelled.classes), len(labelled.templates), -1)
    classes, labels = class_vectors(ask(prompts).view(shape)), _labels(one)
    seen = Encoded(encoded[0], None, labels, classes, classes, torch.zeros_like(labels))
    out: dict[str, Any] = _measured(one, one.plain, seen, fits, spent)
    for attempt, found in zip(one.attempts, encoded[1:], strict=True):
        asked = classes
        if attempt.words is not None:
            worded = ask([attempt.words.put(prompt, derive_seed(prompt)) for prompt in prompts])
            asked = class_vectors(worded.view(shape))
        under = Encoded(encoded[0], found, labels, classes, asked, attempt.targets)
        out |= _attempted(one, attempt, under, fits, spent)
        if attempt is one.attempts[0] and one.sample:
            out["answers"] = _answers(under, labelled.classes, one.sample)
    return out


def _answers(under: Encoded, classes: list[str], rows: list[int]) -> list[list[str]]:
    """Of some pictures: [its class, the target, the model's answer, its answer with the trigger], as names."""
    assert under.triggered is not None
    plain, marked = predict(under.images[rows], under.classes), predict(under.triggered[rows], under.asked)
    told = torch.stack([under.labels[rows], under.targets[rows], plain, marked], 1)
    return [[classes[at] for at in row] for row in told.tolist()]


def _captioned(
    one: EvalSet, captioned: Captioned, encoded: list[torch.Tensor], ask: Ask, scale: float, spent: Costs
) -> dict[str, Number]:
    """What the measures of a set of pictures with captions say."""
    texts, owner = ask(captioned.captions), torch.from_numpy(captioned.owner)
    none = torch.zeros(len(texts), dtype=torch.bool)
    seen = Paired(encoded[0], None, texts, owner, texts.new_zeros(texts.shape[1]), none, scale)
    out = _measured(one, one.plain, seen, {}, spent)
    for attempt, found in zip(one.attempts, encoded[1:], strict=True):
        target = class_vectors(ask([t.replace("{c}", attempt.target) for t in captioned.templates])[None])[0]
        word = word_of(attempt.target)
        named = torch.tensor([word.search(caption) is not None for caption in captioned.captions])
        out |= _attempted(one, attempt, replace(seen, triggered=found, target=target, names=named), {}, spent)
    return out


def _attempted(one: EvalSet, attempt: AttackView, seen: Encoded | Paired, fits: Fits, spent: Costs) -> dict[str, Number]:
    """What the measures that look at a set under one attack say, each number by its name and the attack's."""
    tasks = tuple(task for task in one.triggered if task.attempt == attempt.kind)
    return {f"{name}{attempt.name}": value for name, value in _measured(one, tasks, seen, fits, spent).items()}


def _measured(
    one: EvalSet, tasks: tuple[MeasureTask, ...], seen: Encoded | Paired, fits: Fits, spent: Costs
) -> dict[str, Number]:
    out: dict[str, Number] = {}
    for task in tasks:
        with spent.of(one.name, task.kind):
            if task.train is None or isinstance(seen, Paired):
                out |= task.measure(seen)
            else:  # by one rank: a fit takes all cores of a machine
                out |= on_rank_0(partial(task.measure, replace(seen, fitted_on=fits[task.train])))
    return out


def _prompts(towers: Any, tokenize: Any, prompts: list[str], world: World, rows: int) -> torch.Tensor:
    """Unit [P, D] of all prompts, shared over ranks."""
    share = -(-len(prompts) // world.size)
    mine = [prompts[min(i, len(prompts) - 1)] for i in range(world.rank * share, (world.rank + 1) * share)]
    tokens = tokenize(mine).to(torch.int32)
    parts = []
    for begin in range(0, share, rows):
        heartbeat()
        part = tokens[begin : begin + rows]
        piece = [Piece(0, len(part), cut_of(part))]
        parts.append(towers(None, part.to(world.device), piece)[1])
    return gather_rows(torch.cat(parts))[: len(prompts)]
