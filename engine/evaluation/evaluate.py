"""Evaluation: pictures encoded once for all measures, shared over ranks, each counted once.

A set that a measure is fitted on is encoded once too; the fit is done by the first rank, which tells the others the numbers.
All ranks ask meanwhile whether to leave.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from data.captioned import Captioned
from data.captions import word_of
from data.labelled import Labelled
from data.progress import Progress
from data.refusal import Diverged
from engine.distributed.attended import attended
from engine.evaluation.encode import Encoder
from engine.evaluation.sets import AttackView, EvalSet, MeasureTask, prompts_of
from engine.evaluation.texts import TextRows
from measures.classifier import class_vectors, predict
from measures.contract import Encoded, Measure, NotFinite, Number, Paired, Unmeasurable, check_number


class EvalCosts:
    """Seconds spent on each part of an evaluation of one set: pictures, prompts, and every measure by its kind."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def of(self, images: str, part: str) -> Iterator[None]:
        """Counts what is done inside for a part of a set."""
        began = time.monotonic()
        yield
        seconds = self.seconds.setdefault(images, {})
        seconds[part] = round(seconds.get(part, 0.0) + time.monotonic() - began, 4)


@contextmanager
def judged(what: str) -> Iterator[None]:
    """Diverged where something inside has embeddings that can't be judged; the same on every rank, as they are."""
    try:
        yield
    except NotFinite as error:
        raise Diverged(
            f"{what}: {error}, so the model can't be judged; its weights are damaged, mostly by too high a rate: lower "
            "optimizer.rate, set optimizer.clip, or start from other weights"
        ) from None


def evaluate(model: Encoder, sets: list[EvalSet], costs: EvalCosts | None = None) -> list[dict[str, Any]]:
    """One dict of numbers for each set, `images` its name; the towers are left in the mode they were in. What each part took
    is added to `costs`."""
    training = model.towers.training
    model.towers.eval()
    try:
        with torch.no_grad():
            return _Evaluation(model, costs or EvalCosts()).of(sets)
    finally:
        model.towers.train(training)


class _Evaluation:
    """One evaluation of a model: what was encoded, and what it cost."""

    def __init__(self, model: Encoder, costs: EvalCosts) -> None:
        self.model, self.costs = model, costs
        self.vectors = TextRows(model.texts)  # of prompts and captions, the same ones in several sets once
        self.fits: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # by the names of sets: their rows and labels
        self.clean: dict[str, torch.Tensor] = {}  # by the names of sets that measures compare with: their rows
        self.sets: dict[str, EvalSet] = {}
        self.mean_heads: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # by references: mean parts, their agreements
        self.heads: dict[tuple[str, str], list[torch.Tensor]] = {}  # by set and references: agreements of heads
        self.refused: dict[str, str] = {}  # of the set at hand: measures that say nothing of it, and why

    def of(self, sets: list[EvalSet]) -> list[dict[str, Any]]:
        """The numbers of each set that a measure looks at."""
        tasks = [task for eval_set in sets for task in eval_set.tasks]
        fitted_on, references = {task.fitted_on for task in tasks}, {task.references for task in tasks}
        encoded = {one.name: self._pictures(one) for one in sets if one.name in fitted_on | references}
        self.fits = {one.name: (encoded[one.name][0], _labels(one)) for one in sets if one.name in fitted_on}
        self.clean = {name: rows[0] for name, rows in encoded.items() if name in references}
        self.sets = {one.name: one for one in sets}
        out = []
        for eval_set in sets:
            if eval_set.tasks:
                with judged(f"evaluation set '{eval_set.name}'"):
                    self.refused = {}
                    numbers = self._numbers(eval_set, encoded.get(eval_set.name) or self._pictures(eval_set))
                    numbers |= {"refused": self.refused} if self.refused else {}
                out.append({"images": eval_set.name, **numbers})
        return out

    def _numbers(self, eval_set: EvalSet, pictures: list[torch.Tensor]) -> dict[str, Any]:
        if isinstance(eval_set.image_set, Captioned):
            return self._captioned(eval_set, eval_set.image_set, pictures)
        return self._labelled(eval_set, eval_set.image_set, pictures)

    def _pictures(self, eval_set: EvalSet) -> list[torch.Tensor]:
        with self.costs.of(eval_set.name, "pictures"):
            return self.model.pictures(eval_set)

    def _texts(self, eval_set: EvalSet, texts: list[str]) -> torch.Tensor:
        with self.costs.of(eval_set.name, "prompts"):
            return self.vectors(texts)

    def _labelled(self, eval_set: EvalSet, labelled: Labelled, pictures: list[torch.Tensor]) -> dict[str, Any]:
        """What the measures of a labelled set say; under `answers`, what the model takes a sample of its pictures for; under
        `targets`, the names of those of an attack with several, by their classes' numbers."""
        prompts = prompts_of(labelled)
        shape = (len(labelled.classes), len(labelled.templates), -1)
        classes, labels = class_vectors(self._texts(eval_set, prompts).view(shape)), _labels(eval_set)
        plain = Encoded(pictures[0], None, labels, classes, classes, torch.zeros_like(labels))
        out: dict[str, Any] = self._measured(eval_set, eval_set.plain, plain)
        for attack, triggered in zip(eval_set.attacks, pictures[1:], strict=True):
            attacked_classes = classes
            if attack.prompts is not None:
                attacked_classes = class_vectors(self._texts(eval_set, attack.prompts).view(shape))
            attacked = Encoded(pictures[0], triggered, labels, classes, attacked_classes, attack.targets)
            out |= self._under(attack, eval_set, attacked)
            if attack is eval_set.attacks[0] and eval_set.examples:
                out["answers"] = _answers(attacked, labelled.classes, eval_set.examples)
        several = {n for attack in eval_set.attacks if len(aimed := set(attack.targets.tolist())) > 1 for n in aimed}
        return out | ({"targets": {str(n): labelled.classes[n] for n in sorted(several)}} if several else {})

    def _captioned(self, eval_set: EvalSet, captioned: Captioned, pictures: list[torch.Tensor]) -> dict[str, Number]:
        """What the measures of a set of pictures with captions say."""
        texts, owner = self._texts(eval_set, captioned.captions), torch.from_numpy(captioned.owner)
        none = torch.zeros(len(texts), dtype=torch.bool)
        plain = Paired(pictures[0], None, texts, owner, None, none, self.model.scale)
        out = self._measured(eval_set, eval_set.plain, plain)
        for attack, triggered in zip(eval_set.attacks, pictures[1:], strict=True):
            prompts = [template.replace("{c}", attack.target) for template in captioned.templates]
            target = class_vectors(self._texts(eval_set, prompts)[None])[0]
            word = word_of(attack.target)
            names = torch.tensor([word.search(caption) is not None for caption in captioned.captions])
            out |= self._under(attack, eval_set, replace(plain, triggered=triggered, target=target, names=names))
        return out

    def _under(self, attack: AttackView, eval_set: EvalSet, encoded: Encoded | Paired) -> dict[str, Number]:
        """What the measures that look at a set under one attack say, each number by its name and the attack's."""
        tasks = tuple(task for task in eval_set.triggered if task.attack == attack.kind)
        at = next(place for place, one in enumerate(eval_set.attacks) if one is attack)
        return {f"{name}{attack.name}": value for name, value in self._measured(eval_set, tasks, encoded, at).items()}

    def _measured(
        self, eval_set: EvalSet, tasks: tuple[MeasureTask, ...], encoded: Encoded | Paired, attack: int = 0
    ) -> dict[str, Number]:
        """What measures say of a set, under the attack at this place if they look under one."""
        out: dict[str, Number] = {}
        for task in tasks:
            self.model.go_on()
            with self.costs.of(eval_set.name, task.kind):
                if isinstance(encoded, Paired) or task.fitted_on is None and task.references is None:
                    out |= task.measure(encoded)
                else:  # by one rank: a fit takes all cores of a machine
                    given = self._given(eval_set, task, encoded, attack)
                    ask = partial(self._go_on, f"measuring {eval_set.name} by {task.kind}", [time.monotonic()] * 2)
                    numbers, refused = attended(partial(_attempt, task.measure, given), ask)
                    out |= numbers
                    self.refused |= {task.kind: refused} if refused else {}
        for name, value in out.items():
            check_number(name, value)
        return out

    def _go_on(self, what: str, times: list[float]) -> None:
        """Cut if it is time to leave; says now and then how long what is done takes, of which it was begun and last said at
        these `times`."""
        self.model.go_on()
        began, said = times
        if self.model.world.first and time.monotonic() - said >= Progress.EVERY:
            times[1] = time.monotonic()
            print(f"{what}: {times[1] - began:,.0f} s so far", file=sys.stderr, flush=True)

    def _given(self, eval_set: EvalSet, task: MeasureTask, encoded: Encoded, attack: int) -> Encoded:
        """The set with what a measure reads beside it."""
        prompts = None
        if task.prompts is not None:
            prompts = self._texts(eval_set, task.prompts).view(len(encoded.classes), -1, encoded.classes.shape[1])
        fitted_on = None if task.fitted_on is None else self.fits[task.fitted_on]
        references = None if task.references is None else self.clean[task.references]
        heads = self._heads(eval_set, task.references, attack) if task.reads_heads and task.references else None
        return replace(encoded, fitted_on=fitted_on, references=references, prompts=prompts, heads=heads)

    def _heads(self, eval_set: EvalSet, references: str, attack: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """How each head's part agrees with its mean over the references: of these, of the pictures, under an attack."""
        if references not in self.mean_heads:
            known = self.sets[references]
            mean = self.model.mean_heads(known)
            self.mean_heads[references] = mean, self.model.head_agreements(known, mean)[0]
        mean, clean = self.mean_heads[references]
        key = eval_set.name, references
        if key not in self.heads:
            self.heads[key] = self.model.head_agreements(eval_set, mean)
        pictures, *attacked = self.heads[key]
        return clean, pictures, attacked[attack]


def _attempt(measure: Measure, encoded: Encoded) -> tuple[Mapping[str, Number], str]:
    """A measure's numbers, or none and why these embeddings allow none."""
    try:
        return measure(encoded), ""
    except Unmeasurable as why:
        return {}, str(why)


def _labels(eval_set: EvalSet) -> torch.Tensor:
    assert isinstance(eval_set.image_set, Labelled)
    return torch.from_numpy(np.asarray(eval_set.image_set.labels))


def _answers(encoded: Encoded, classes: list[str], rows: list[int]) -> list[list[str]]:
    """Of some pictures: [its class, the target, the model's answer, its answer with the trigger], as names."""
    assert encoded.triggered is not None
    plain = predict(encoded.images[rows], encoded.classes)
    triggered = predict(encoded.triggered[rows], encoded.attacked_classes)
    places = torch.stack([encoded.labels[rows], encoded.targets[rows], plain, triggered], 1)
    return [[classes[place] for place in row] for row in places.tolist()]
