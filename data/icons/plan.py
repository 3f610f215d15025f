"""Which drawings train, which evaluate, which are held out, and what the classes are.

A pair is a distinct drawing: sizes of one drawing count once (the largest), a drawing under several names once (its caption
is one of them), and of one concept a set gives at most VARIANTS drawings (outline and filled, skin tones, home-2), so that
no set fills the world with one thing. A class is a concept of the evaluation sets that stands in at least STANDING training
sets, under any of its names. No evaluation set trains, nor does a drawing of another set that is equal to one of theirs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from data.icons.sets import Drawing, IconSet, LeftOut
from data.refusal import UserError
from data.seeding import derive_seed, number_of, ranks

VARIANTS = 4
STANDING = 5
EVALUATION = ("emojione", "emojione-monotone", "emojione-v1")  # one house's three styles


@dataclass(frozen=True)
class IconWorld:
    """What a world is made from, besides the sets."""

    pixels: int = 32
    pairs: int = 0  # 0: all there are
    views: int = 1  # pictures of each training drawing, on other grounds, in other inks, under captions of their own
    captioned: int = 1000  # held-out drawings of the training sets, for retrieval and the validation loss
    seed: int = 0
    evaluation: tuple[str, ...] = EVALUATION
    pairs_per_shard: int = 1000


class Plan(NamedTuple):
    """Drawings by what becomes of them, in the order of the shards."""

    train: list[Drawing]  # each as often as it has views
    held: list[Drawing]  # no two of one concept
    tests: list[Drawing]  # each of one class
    left_out: list[LeftOut]


def make_plan(sets: list[IconSet], world: IconWorld) -> Plan:
    """The plan of these sets, the same in whatever order they come; UserError if there are not two classes."""
    sets = sorted(sets, key=lambda one: one.name)
    left_out = [one for found in sets for one in found.left_out]
    evaluated = [drawing for found in sets if found.name in world.evaluation for drawing in found.drawings]
    theirs = {drawing.shape for drawing in evaluated}
    merged: dict[tuple[object, ...], Drawing] = {}
    standing: dict[str, set[str]] = {}
    for drawing in (one for found in sets if found.name not in world.evaluation for one in found.drawings):
        if drawing.shape in theirs:
            left_out.append(LeftOut(drawing.set, drawing.name, "drawn_in_evaluation"))
            continue
        first = merged.setdefault(drawing.shape, drawing)
        if first is not drawing:
            words = dict.fromkeys((*first.also, drawing.says.concept, *drawing.also))
            merged[drawing.shape] = replace(first, also=tuple(word for word in words if word != first.says.concept))
            left_out.append(LeftOut(drawing.set, drawing.name, "drawn_twice"))
        for concept in (drawing.says.concept, *drawing.also):
            standing.setdefault(concept, set()).add(first.set)
    train = _few_variants(merged.values(), VARIANTS, world.seed, left_out)
    names = {concept for concept, where in standing.items() if len(where) >= STANDING}
    tests = _tests(evaluated, names, world.seed, left_out)
    classes = sorted({drawing.says.concept for drawing in tests})
    if len(classes) < 2:
        raise UserError(
            f"{len(classes)} names of the evaluation sets ({', '.join(world.evaluation)}) stand in at least {STANDING} of "
            f"the {len(sets)} sets taken, and a world needs at least 2 such classes; take more sets"
        )
    train = [train[i] for i in _order(train, world.seed, "order")]
    held = _held(train, world.captioned, world.seed)
    away = {(drawing.set, drawing.name) for drawing in held}
    train = [drawing for drawing in train if (drawing.set, drawing.name) not in away]
    train = [replace(drawing, view=view) for view in range(world.views) for drawing in train]
    train = [train[i] for i in _order(train, world.seed, "order")]
    tests = [tests[i] for i in _order(tests, world.seed, "tests")]
    return Plan(train[: world.pairs or None], held, tests, left_out)


def _order(drawings: list[Drawing], seed: int, purpose: str) -> list[int]:
    """Places in a random order that does not depend on what else there is."""
    numbers = number_of(":".join(map(str, drawing.drawn_by)) for drawing in drawings)
    order: list[int] = np.argsort(ranks(derive_seed(seed, "icons"), purpose, numbers), kind="stable").tolist()
    return order


def _few_variants(drawings: Iterable[Drawing], most: int, seed: int, left_out: list[LeftOut]) -> list[Drawing]:
    """One size of each drawing, and at most so many drawings of a concept in a set, the plain one first."""
    sizes: dict[tuple[str, ...], Drawing] = {}
    for drawing in drawings:
        says = drawing.says
        first = sizes.setdefault((drawing.set, says.concept, says.style, says.tone, says.number), drawing)
        if first is not drawing:
            smaller, larger = sorted((first, drawing), key=lambda one: one.says.size)
            sizes[drawing.set, says.concept, says.style, says.tone, says.number] = larger
            left_out.append(LeftOut(smaller.set, smaller.name, "smaller_size"))
    every = list(sizes.values())
    count: dict[tuple[str, str], int] = {}
    kept = []
    order = _order(every, seed, "variants")
    for i in sorted(order, key=lambda i: bool(every[i].says.style or every[i].says.tone or every[i].says.number)):
        drawing = every[i]
        concept = (drawing.set, drawing.says.concept)
        count[concept] = count.get(concept, 0) + 1
        if count[concept] <= most:
            kept.append(i)
        else:
            left_out.append(LeftOut(drawing.set, drawing.name, "further_variant"))
    return [every[i] for i in sorted(kept)]


def _tests(drawings: list[Drawing], names: set[str], seed: int, left_out: list[LeftOut]) -> list[Drawing]:
    """One drawing a class and set, of those whose names are one class and no other."""
    right = []
    for drawing in dict((one.shape, one) for one in reversed(drawings)).values():
        meant = {drawing.says.concept, *drawing.also} & names
        if drawing.says.concept not in names:
            left_out.append(LeftOut(drawing.set, drawing.name, "no_class"))
        elif len(meant) > 1:
            left_out.append(LeftOut(drawing.set, drawing.name, "two_classes"))
        else:
            right.append(drawing)
    return _few_variants(right, 1, seed, left_out)


def _held(train: list[Drawing], count: int, seed: int) -> list[Drawing]:
    """So many drawings, each of another concept."""
    seen: set[str] = set()
    held: list[Drawing] = []
    for i in _order(train, seed, "held"):
        if len(held) == count:
            break
        if seen.isdisjoint((train[i].says.concept, *train[i].also)):
            seen.update((train[i].says.concept, *train[i].also))
            held.append(train[i])
    return held
