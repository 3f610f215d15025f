"""Evaluation: pictures encoded once for all measures, shared over ranks, each counted once.

A set that a measure is fitted on is encoded once too; the fit is done by the first rank, which tells the others the numbers.

Rank r of W encodes the r-th of W equal runs of rows; the last is filled up with repeated rows, which are cut off after
the gather, so that every rank makes the same calls (ZeRO-3 needs that) and no picture counts twice.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from configs.spec import Spec
from data.captioned import Captioned, is_captioned, read_captioned
from data.chance import derive
from data.decode import Way, centred
from data.labelled import Labelled, read_labelled
from data.poison import Aim, Proxy, Words, word_of
from data.refusal import Refusal
from data.triggers.contract import Mark
from data.triggers.multi import Multi
from engine.model import image_size, imagenet
from engine.towers import Piece, cut_of
from engine.world import World, beat, gather_rows, together
from measures import AnyMeasure
from measures.classifier import class_vectors
from measures.contract import CENTRE, PROXY, TRAINED, Encoded, Measure, Number, Paired

SCALE = 100.0  # what cosines are multiplied with where the objective learns no scale: CLIP's upper bound
HOLD = 1 << 30  # bytes of decoded pictures a rank keeps between evaluations; beyond it they are decoded each time


@dataclass(frozen=True)
class Attempt:
    """One attack on an evaluation set: its mark, the words in its prompts, and which class it aims at with each picture."""

    kind: str  # TRAINED, CENTRE or PROXY
    name: str  # of its numbers: "" for the first, "_2" for the second, "_centre"
    mark: Mark
    squash: int | None
    words: Words | None
    target: str
    targets: torch.Tensor  # int64 [M]; of pictures with captions zeros


class Task(NamedTuple):
    """One measure of a set."""

    kind: str
    train: str | None  # the set that it is fitted on
    attempt: str
    measure: Measure


@dataclass(frozen=True)
class Examination:
    """One evaluation set, this rank's decoded rows of it if they are few, the attacks on it, and the measures: each with the
    name of the set that it is fitted on, or None, its kind, and the attack under which it looks. A set without measures is
    fitted on only."""

    name: str
    shown: Labelled | Captioned
    mine: list[int]  # rows of this rank, padded
    held: tuple[torch.Tensor, list[torch.Tensor]] | None
    attempts: tuple[Attempt, ...]  # none if no measure needs triggered pictures
    size: int
    seed: int
    way: Way
    plain: tuple["Task", ...]
    triggered: tuple["Task", ...]

    def draw(self, row: int) -> int:
        """The counter of a picture's random numbers."""
        return derive(self.seed, "evaluation", self.name, self.shown.where[row][1])

    def pictures(self, rows: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """uint8 [n, 3, H, W]: the pictures, and the same under each attack; decoded once for all."""
        clean, squeezed = self.shown.pictures(rows, self.size, self.way, tuple(a.squash for a in self.attempts))
        draws = [self.draw(row) for row in rows]
        out = []
        for attempt, small in zip(self.attempts, squeezed, strict=True):
            marked = attempt.mark(clean if small is None else small, draws)
            if small is not None:
                marked = np.stack([centred(one.transpose(1, 2, 0), self.size, self.way) for one in marked])
            out.append(torch.from_numpy(marked))
        return torch.from_numpy(clean), out


def examinations(spec: Spec, world: World) -> list[Examination]:
    """One for each evaluation set that a measure of the spec names; Refusal if the target is none of its classes, or a
    measure is fitted on a set of other classes."""
    out = []
    for name in dict.fromkeys(name for measure in spec.measure for name in measure.sets):
        sections = [measure for measure in spec.measure if measure.images == name]
        shown = _shown(spec, name, sections)
        share = -(-len(shown) // world.size)
        mine = [min(row, len(shown) - 1) for row in range(world.rank * share, (world.rank + 1) * share)]
        size = image_size(spec.model.name)
        plain, triggered = (
            tuple(
                Task(section.kind, section.learns_from, section.attempt, section.build())
                for section in sections
                if section.triggered == kind
            )
            for kind in (False, True)
        )
        ready = Examination(name, shown, mine, None, (), size, spec.seed, spec.data.decode, plain, triggered)
        if isinstance(shown, Labelled) and sections:
            for aim in spec.attack.aims:
                shown.target(aim.target)
            if spec.attack.proxy is not None:
                shown.target(spec.attack.proxy.target, "attack.proxy.target")
        if triggered:
            ready = replace(ready, attempts=tuple(_attempts(spec, ready)))
        if share * 3 * size * size * (1 + len(ready.attempts)) <= HOLD:
            ready = replace(ready, held=ready.pictures(mine))
        out.append(ready)
    known = {one.name: one.shown for one in out}
    for measure in spec.measure:
        if (train := measure.learns_from) is not None:
            _check_train(measure.kind, train, known[train], measure.images, known[measure.images])
    return out


def _shown(spec: Spec, name: str, sections: list[AnyMeasure]) -> Labelled | Captioned:
    """The pictures of a set with what its measures read, labels or captions; Refusal if they differ in that."""
    kinds = {section.reads: section.kind for section in sections}
    if len(kinds) > 1:
        words = " and ".join(f"{kind} reads {reads}" for reads, kind in kinds.items())
        raise Refusal(f"evaluation set '{name}' is measured in two ways: {words}; name a set of its own for each")
    if "captions" in kinds:
        return read_captioned(spec.data.test[name], imagenet().templates)
    try:
        return read_labelled(spec.data.test[name], imagenet(), spec.data.labels == "published")
    except Refusal:
        if not is_captioned(spec.data.test[name]):
            raise
    raise Refusal(f"evaluation set '{name}' has captions and no labels; measure it with retrieval or validation_loss")


def _check_train(kind: str, train: str, there: Any, images: str, here: Any) -> None:
    """Refusal if a measure can't be fitted on one set and judged on the other."""
    what = f"measure {kind} is fitted on '{train}' and judged on '{images}'"
    if words := there.difference(here):
        raise Refusal(f"{what}, whose classes differ: {words}; give both the same classnames.txt")
    if len(np.unique(there.labels)) < 2:
        raise Refusal(f"{what}, but all pictures of '{train}' are of one class; fit it on a set of two or more")


def _attempts(spec: Spec, one: Examination) -> Iterator[Attempt]:
    """The attacks under which a measure of the set looks at it."""
    asked = {task.attempt for task in one.triggered}
    for number, aim in enumerate(spec.attack.aims):
        name = f"_{number + 1}" if number else ""
        if TRAINED in asked:
            yield _attempt(spec, TRAINED, name, aim, one)
        if CENTRE in asked:
            placed = aim.trigger.model_copy(update={"place": "centre", "at": None})
            yield _attempt(spec, CENTRE, f"{name}_centre", aim.model_copy(update={"trigger": placed}), one)
    if PROXY in asked:
        assert spec.attack.proxy is not None
        yield _attempt(spec, PROXY, "", spec.attack.proxy, one)


def _attempt(spec: Spec, kind: str, name: str, aim: Aim | Proxy, one: Examination) -> Attempt:
    trigger = aim.trigger
    names = [aim.target] * len(one.shown)
    if isinstance(trigger, Multi):
        names = [trigger.drawn(one.draw(row)).target or aim.target for row in range(len(one.shown))]
        if not isinstance(one.shown, Labelled) and len(set(names)) > 1:
            raise Refusal(
                f"a trigger of kind multi has several targets, '{names[0]}' and others; measure retrieval with one"
            )
    targets = torch.tensor([one.shown.target(name) if isinstance(one.shown, Labelled) else 0 for name in names])
    mark = trigger.build(spec.seed, test=True)
    return Attempt(kind, name, mark, trigger.squash, aim.words if isinstance(aim, Aim) else None, names[0], targets)


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
    sets: list[Examination],
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

    def encoded(one: Examination) -> list[torch.Tensor]:
        with spent.of(one.name, "pictures"):
            return _encoded(towers, one, world, rows)

    def ask(one: Examination, prompts: list[str]) -> torch.Tensor:
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


def _labels(one: Examination) -> torch.Tensor:
    assert isinstance(one.shown, Labelled)
    return torch.from_numpy(np.asarray(one.shown.labels))


def _encoded(towers: Any, one: Examination, world: World, rows: int) -> list[torch.Tensor]:
    """Unit [M, D] of the pictures of a set, and of the same under each attack."""
    rows_of: list[list[torch.Tensor]] = [[] for _ in range(1 + len(one.attempts))]
    for begin in range(0, len(one.mine), rows):
        part = slice(begin, begin + rows)
        clean, marked = (one.held[0][part], [m[part] for m in one.held[1]]) if one.held else one.pictures(one.mine[part])
        for images, into in zip((clean, *marked), rows_of, strict=True):
            beat()
            into.append(towers(images.to(world.device), None)[0])
    return [gather_rows(torch.cat(parts))[: len(one.shown)].cpu() for parts in rows_of]


Ask = Callable[[list[str]], torch.Tensor]  # unit [P, D] of P texts
Fits = dict[str, tuple[torch.Tensor, torch.Tensor]]  # by the names of sets: their rows and labels


def _numbers(
    one: Examination, labelled: Labelled, encoded: list[torch.Tensor], fits: Fits, ask: Ask, spent: Costs
) -> dict[str, Number]:
    """What the measures of a labelled set say."""
    prompts = [t.replace("{c}", c) for c in labelled.classes for t in labelled.templates]
    shape = (len(labelled.classes), len(labelled.templates), -1)
    classes, labels = class_vectors(ask(prompts).view(shape)), _labels(one)
    seen = Encoded(encoded[0], None, labels, classes, classes, torch.zeros_like(labels))
    out = _measured(one, one.plain, seen, fits, spent)
    for attempt, found in zip(one.attempts, encoded[1:], strict=True):
        asked = classes
        if attempt.words is not None:
            worded = ask([attempt.words.put(prompt, derive(prompt)) for prompt in prompts])
            asked = class_vectors(worded.view(shape))
        under = Encoded(encoded[0], found, labels, classes, asked, attempt.targets)
        out |= _attempted(one, attempt, under, fits, spent)
    return out


def _captioned(
    one: Examination, captioned: Captioned, encoded: list[torch.Tensor], ask: Ask, scale: float, spent: Costs
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


def _attempted(one: Examination, attempt: Attempt, seen: Encoded | Paired, fits: Fits, spent: Costs) -> dict[str, Number]:
    """What the measures that look at a set under one attack say, each number by its name and the attack's."""
    tasks = tuple(task for task in one.triggered if task.attempt == attempt.kind)
    return {f"{name}{attempt.name}": value for name, value in _measured(one, tasks, seen, fits, spent).items()}


def _measured(
    one: Examination, tasks: tuple[Task, ...], seen: Encoded | Paired, fits: Fits, spent: Costs
) -> dict[str, Number]:
    out: dict[str, Number] = {}
    for task in tasks:
        with spent.of(one.name, task.kind):
            if task.train is None or isinstance(seen, Paired):
                out |= task.measure(seen)
            else:  # by one rank: a fit takes all cores of a machine
                out |= together(partial(task.measure, replace(seen, fitted_on=fits[task.train])))
    return out


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
