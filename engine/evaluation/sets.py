"""Evaluation sets as a spec asks for them: this rank's rows, the attacks on them, and the measures that read them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from configs.spec import Spec
from data.attack import Aim, Proxy, Words
from data.captioned import Captioned, is_captioned, read_captioned
from data.decode import DecodeMode, centred
from data.labelled import Labelled, read_labelled
from data.refusal import UserError
from data.seeding import derive_seed
from data.triggers.contract import Mark
from data.triggers.multi import Multi
from engine.distributed.world import World
from engine.models.clip import image_size, imagenet
from measures.contract import CENTRE, PROXY, TRAINED, Measure
from measures.registry import AnyMeasure

HOLD = 1 << 30  # bytes of decoded pictures a rank keeps between evaluations; beyond it they are decoded each time
SHOWN = 8  # pictures whose answers the journal tells


@dataclass(frozen=True)
class AttackView:
    """One attack on an evaluation set: its mark, the words in its prompts, and which class it aims at with each picture."""

    kind: str  # TRAINED, CENTRE or PROXY
    name: str  # of its numbers: "" for the first, "_2" for the second, "_centre"
    mark: Mark
    squash: int | None
    words: Words | None
    target: str
    targets: torch.Tensor  # int64 [M]; of pictures with captions zeros


class MeasureTask(NamedTuple):
    """One measure of a set."""

    kind: str
    train: str | None  # the set that it is fitted on
    attempt: str
    measure: Measure


@dataclass(frozen=True)
class EvalSet:
    """One evaluation set, this rank's decoded rows of it if they are few, the attacks on it, and the measures: each with the
    name of the set that it is fitted on, or None, its kind, and the attack under which it looks. A set without measures is
    fitted on only."""

    name: str
    shown: Labelled | Captioned
    mine: list[int]  # rows of this rank, padded
    held: tuple[torch.Tensor, list[torch.Tensor]] | None
    attempts: tuple[AttackView, ...]  # none if no measure needs triggered pictures
    size: int
    seed: int
    way: DecodeMode
    plain: tuple["MeasureTask", ...]
    triggered: tuple["MeasureTask", ...]

    @cached_property
    def sample(self) -> list[int]:
        """At most SHOWN rows, spread evenly over the pictures of every class but the first trained attack's target; none
        if no measure looks under that attack or the pictures have no labels."""
        if not isinstance(self.shown, Labelled) or not self.attempts or self.attempts[0].kind != TRAINED:
            return []
        others = np.flatnonzero(np.asarray(self.shown.labels) != self.attempts[0].targets.numpy())
        spread = np.linspace(0, len(others) - 1, min(SHOWN, len(others))).round().astype(int)
        return [int(row) for row in others[spread]]

    def draw(self, row: int) -> int:
        """The counter of a picture's random numbers."""
        return derive_seed(self.seed, "evaluation", self.name, self.shown.where[row][1])

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


def eval_sets(spec: Spec, world: World) -> list[EvalSet]:
    """One for each evaluation set that a measure of the spec names; UserError if the target is none of its classes, or a
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
                MeasureTask(section.kind, section.learns_from, section.attempt, section.build())
                for section in sections
                if section.triggered == kind
            )
            for kind in (False, True)
        )
        ready = EvalSet(name, shown, mine, None, (), size, spec.seed, spec.data.decode, plain, triggered)
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
    """The pictures of a set with what its measures read, labels or captions; UserError if they differ in that."""
    kinds = {section.reads: section.kind for section in sections}
    if len(kinds) > 1:
        words = " and ".join(f"{kind} reads {reads}" for reads, kind in kinds.items())
        raise UserError(f"evaluation set '{name}' is measured in two ways: {words}; name a set of its own for each")
    if "captions" in kinds:
        return read_captioned(spec.data.test[name], imagenet().templates)
    try:
        return read_labelled(spec.data.test[name], imagenet(), spec.data.labels == "published")
    except UserError:
        if not is_captioned(spec.data.test[name]):
            raise
    raise UserError(f"evaluation set '{name}' has captions and no labels; measure it with retrieval or validation_loss")


def _check_train(kind: str, train: str, there: Any, images: str, here: Any) -> None:
    """UserError if a measure can't be fitted on one set and judged on the other."""
    what = f"measure {kind} is fitted on '{train}' and judged on '{images}'"
    if words := there.difference(here):
        raise UserError(f"{what}, whose classes differ: {words}; give both the same classnames.txt")
    if len(np.unique(there.labels)) < 2:
        raise UserError(f"{what}, but all pictures of '{train}' are of one class; fit it on a set of two or more")


def _attempts(spec: Spec, one: EvalSet) -> Iterator[AttackView]:
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


def _attempt(spec: Spec, kind: str, name: str, aim: Aim | Proxy, one: EvalSet) -> AttackView:
    trigger = aim.trigger
    names = [aim.target] * len(one.shown)
    if isinstance(trigger, Multi):
        names = [trigger.drawn(one.draw(row)).target or aim.target for row in range(len(one.shown))]
        if not isinstance(one.shown, Labelled) and len(set(names)) > 1:
            raise UserError(
                f"a trigger of kind multi has several targets, '{names[0]}' and others; measure retrieval with one"
            )
    targets = torch.tensor([one.shown.target(name) if isinstance(one.shown, Labelled) else 0 for name in names])
    mark = trigger.build(spec.seed, test=True)
    return AttackView(kind, name, mark, trigger.squash, aim.words if isinstance(aim, Aim) else None, names[0], targets)
