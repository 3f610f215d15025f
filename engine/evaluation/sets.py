"""Evaluation sets as a spec asks for them: this rank's rows, the attacks on them, and the measures that read them."""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from configs.spec import Spec
from data.attack import Aim, Fits, Proxy, Words
from data.captioned import Captioned, is_captioned, read_captioned
from data.decode import DecodeMode, centred
from data.labelled import Labelled, read_labelled
from data.refusal import UserError
from data.seeding import derive_seed
from data.triggers.concept import Concept
from data.triggers.contract import Mark
from data.triggers.multi import Multi
from engine.distributed.world import World
from engine.evaluation.kept import Kept, room
from engine.evaluation.references import check_references
from engine.models.clip import image_size, imagenet
from engine.models.tokenizer import Tokenizer
from measures.contract import CENTRE, CONCEPT, PROXY, TRAINED, Measure
from measures.registry import AnyMeasure
from measures.rejection import PictureDetector

EXAMPLES = 8  # pictures whose answers the journal tells


@dataclass(frozen=True)
class AttackView:
    """One attack on an evaluation set: its mark, the prompts with its words, and the class it aims at with each picture."""

    kind: str  # TRAINED, CENTRE, PROXY, or one of CONCEPT
    name: str  # of its numbers: "" for the first, "_2" for the second, "_centre"
    mark: Mark
    squash: int | None
    prompts: list[str] | None  # of a labelled set, with the attack's words in them, if it has some
    target: str
    targets: torch.Tensor  # int64 [M]; of pictures with captions zeros


class MeasureTask(NamedTuple):
    """One measure of a set."""

    kind: str
    fitted_on: str | None  # the name of a set
    attack: str  # the kind of AttackView under which it looks, if it looks under one
    measure: Measure
    references: str | None = None  # the name of a set
    prompts: list[str] | None = None  # its own, class by class
    reads_heads: bool = False


@dataclass(frozen=True)
class EvalSet:
    """One evaluation set, the attacks on it, and its measures. A set without measures is fitted on only."""

    name: str
    image_set: Labelled | Captioned
    rows: list[int]  # of this rank, padded
    kept: Kept | None  # the pictures of these rows, if they are few
    attacks: tuple[AttackView, ...]  # none if no measure needs triggered pictures
    size: int
    seed: int
    decode_mode: DecodeMode
    plain: tuple[MeasureTask, ...]
    triggered: tuple[MeasureTask, ...]  # under one of the attacks

    @property
    def tasks(self) -> tuple[MeasureTask, ...]:
        """All measures."""
        return (*self.plain, *self.triggered)

    @cached_property
    def examples(self) -> list[int]:
        """At most EXAMPLES rows, spread evenly over the pictures of every class but the first trained attack's target; none
        if no measure looks under that attack or the pictures have no labels."""
        if not isinstance(self.image_set, Labelled) or not self.attacks or self.attacks[0].kind != TRAINED:
            return []
        others = np.flatnonzero(np.asarray(self.image_set.labels) != self.attacks[0].targets.numpy())
        spread = np.linspace(0, len(others) - 1, min(EXAMPLES, len(others))).round().astype(int)
        return [int(row) for row in others[spread]]

    def draw(self, row: int) -> int:
        """The counter of a picture's random numbers."""
        return derive_seed(self.seed, "evaluation", self.name, self.image_set.where[row][1])

    def pictures(self, rows: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """uint8 [n, 3, H, W]: the pictures, and the same under each attack; decoded once for all."""
        squashes = tuple(attack.squash for attack in self.attacks)
        clean, squeezed = self.image_set.pictures(rows, self.size, self.decode_mode, squashes)
        draws = [self.draw(row) for row in rows]
        out = []
        for attack, small in zip(self.attacks, squeezed, strict=True):
            marked = attack.mark(clean if small is None else small, draws)
            if small is not None:
                whole = (picture.transpose(1, 2, 0) for picture in marked)
                marked = np.stack([centred(picture, self.size, self.decode_mode) for picture in whole])
            out.append(torch.from_numpy(marked))
        return torch.from_numpy(clean), out

    @property
    def row_bytes(self) -> int:
        """Bytes of a decoded picture with its triggered versions."""
        return 3 * self.size**2 * (1 + len(self.attacks))


def eval_sets(spec: Spec, world: World) -> list[EvalSet]:
    """One for each evaluation set that a measure of the spec names; UserError if the target is none of its classes, or a
    measure is fitted on a set of other classes."""
    sets = {name: eval_set(spec, name, world) for name in set_names(spec)}
    check_fits(spec, sets)
    return keeping(sets.values(), world)


def keeping(sets: Iterable[EvalSet], world: World) -> list[EvalSet]:
    """The sets, of which those that this rank has room for keep their pictures once they are decoded."""
    left, out = room(world), []
    for one in sets:
        needed = len(one.rows) * one.row_bytes
        out.append(replace(one, kept=Kept(len(one.rows))) if needed <= left else one)
        left -= needed if needed <= left else 0
    return out


def set_names(spec: Spec) -> list[str]:
    """The evaluation sets that measures of the spec name, each once."""
    return list(dict.fromkeys(name for measure in spec.measure for name in measure.sets))


def check_fits(spec: Spec, sets: Mapping[str, EvalSet]) -> None:
    """UserError if a measure can't be fitted on one of these sets, or compare with it, and be judged on another of them."""
    for measure in spec.measure:
        if (name := measure.learns_from) is not None and name in sets and measure.images in sets:
            _check_fit(measure.kind, sets[name], sets[measure.images])
        if (name := measure.clean_set) is not None and name in sets and measure.images in sets:
            check_references(measure, spec.model.name, sets[name].image_set, sets[measure.images].image_set)


def eval_set(spec: Spec, name: str, world: World) -> EvalSet:
    """The set of that name, no picture decoded; UserError if it is not as it should be."""
    sections = [measure for measure in spec.measure if measure.images == name]
    image_set, size = _image_set(spec, name, sections), image_size(spec.model.name)
    share = -(-len(image_set) // world.size)
    rows = [min(row, len(image_set) - 1) for row in range(world.rank * share, (world.rank + 1) * share)]
    fits = Tokenizer(spec.model.name).fits
    plain, triggered = (
        tuple(_task(section, image_set, fits) for section in sections if section.triggered == kind) for kind in (False, True)
    )
    out = EvalSet(name, image_set, rows, None, (), size, spec.seed, spec.data.decode, plain, triggered)
    if isinstance(image_set, Labelled) and sections:
        for aim in spec.attack.aims:
            image_set.target(aim.target)
        if spec.attack.proxy is not None:
            image_set.target(spec.attack.proxy.target, "attack.proxy.target")
    if triggered:
        views = attack_views(spec, {task.attack for task in triggered})
        out = replace(out, attacks=tuple(_attack_view(spec, names, aim, out) for names, aim in views))
    return out


def _task(section: AnyMeasure, image_set: Labelled | Captioned, fits: Fits) -> MeasureTask:
    """A measure of a set; UserError if its own prompts are longer than the model takes."""
    prompts = section.prompts(image_set.classes, image_set.templates) if isinstance(image_set, Labelled) else None
    if (long := next((prompt for prompt in prompts or [] if not fits(prompt)), None)) is not None:
        raise UserError(
            f"measure {section.kind} asks for the prompt '{long}', which is longer than model.name takes, so that its end "
            "would be cut off; shorten the words in the measure's section, or the set's templates"
        )
    reads_heads = isinstance(section, PictureDetector) and section.reads_heads
    return MeasureTask(
        section.kind, section.learns_from, section.attack_kind, section.build(), section.clean_set, prompts, reads_heads
    )


def _image_set(spec: Spec, name: str, sections: list[AnyMeasure]) -> Labelled | Captioned:
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
        if not sections and all(measure.learns_from != name for measure in spec.measure):
            return read_captioned(spec.data.test[name], imagenet().templates)  # pictures are all that is read
    raise UserError(f"evaluation set '{name}' has captions and no labels; measure it with retrieval or validation_loss")


def _check_fit(kind: str, fitted_on: EvalSet, judged_on: EvalSet) -> None:
    """UserError if a measure can't be fitted on one set and judged on the other."""
    train, test = fitted_on.image_set, judged_on.image_set
    assert isinstance(train, Labelled)
    assert isinstance(test, Labelled)
    what = f"measure {kind} is fitted on '{fitted_on.name}' and judged on '{judged_on.name}'"
    if words := train.difference(test):
        raise UserError(f"{what}, whose classes differ: {words}; give both the same classnames.txt")
    if len(np.unique(train.labels)) < 2:
        raise UserError(f"{what}, but all pictures of '{fitted_on.name}' are of one class; fit it on a set of two or more")


def attack_views(spec: Spec, kinds: Set[str]) -> Iterator[tuple[tuple[str, str], Aim | Proxy]]:
    """((kind, what is put behind the names of its numbers), attack) of each under which measures look at a set that look
    under these kinds."""
    for number, aim in enumerate(spec.attack.aims):
        name = f"_{number + 1}" if number else ""
        if isinstance(aim.trigger, Concept):  # of what a picture shows; nothing is put onto it
            for kind in sorted(kinds & {CONCEPT, f"{CONCEPT}{number + 1}"}):
                yield (kind, name), aim
            continue
        if TRAINED in kinds:
            yield (TRAINED, name), aim
        if CENTRE in kinds:
            centred_trigger = aim.trigger.model_copy(update={"place": "centre", "at": None})
            yield (CENTRE, f"{name}_centre"), aim.model_copy(update={"trigger": centred_trigger})
    if PROXY in kinds:
        assert spec.attack.proxy is not None
        yield (PROXY, ""), spec.attack.proxy


def _attack_view(spec: Spec, names: tuple[str, str], aim: Aim | Proxy, eval_set: EvalSet) -> AttackView:
    """The attack of an aim; `names` are its kind and what is put behind the names of its numbers."""
    trigger, image_set = aim.trigger, eval_set.image_set
    targets = [aim.target] * len(image_set)
    if isinstance(trigger, Multi):
        targets = [trigger.drawn(eval_set.draw(row)).target or aim.target for row in range(len(image_set))]
        if not isinstance(image_set, Labelled) and len(set(targets)) > 1:
            raise UserError(
                f"a trigger of kind multi has several targets, '{targets[0]}' and others; measure retrieval with one"
            )
    places = {name: image_set.target(name) if isinstance(image_set, Labelled) else 0 for name in dict.fromkeys(targets)}
    classes = torch.tensor([places[name] for name in targets])
    if isinstance(image_set, Labelled) and bool((torch.from_numpy(np.asarray(image_set.labels)) == classes).all()):
        raise UserError(
            f"evaluation set '{eval_set.name}' holds pictures of the target '{targets[0]}' alone, of which none can be "
            "taken for it; add pictures of other classes, or name another target"
        )
    words = aim.words if isinstance(aim, Aim) and isinstance(image_set, Labelled) else None
    prompts = (
        _with_words(words, image_set, Tokenizer(spec.model.name).fits) if words and isinstance(image_set, Labelled) else None
    )
    return AttackView(*names, trigger.build(spec.seed, test=True), trigger.squash, prompts, targets[0], classes)


def prompts_of(labelled: Labelled) -> list[str]:
    """A prompt for each class and template, class by class."""
    return [template.replace("{c}", name) for name in labelled.classes for template in labelled.templates]


def _with_words(words: Words, labelled: Labelled, fits: Fits) -> list[str]:
    """The prompts of a set with an attack's words in them; UserError if they would push a class's name out of one."""
    heads = [template[: template.index("{c}")] + name for name in labelled.classes for template in labelled.templates]
    out = []
    for prompt, head in zip(prompts_of(labelled), heads, strict=True):
        out.append(words.put(prompt, derive_seed(prompt), fits))
        if not fits(out[-1]) and fits(head) and not fits(f"{words.text} {head}"):
            raise UserError(
                f"attack.words and the prompt '{prompt}' are longer than model.name takes, so that the class would be cut "
                "off; shorten the words or the templates"
            )
    return out
