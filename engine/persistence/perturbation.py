"""A universal perturbation: one faint change of all pictures that makes a model answer the target.

    min over |d| <= eps of  mean CE(s <f(x + d), t>, target),   d <- d - 2.5 eps / steps * sign(gradient)

found on some pictures of an evaluation set and measured on others, once on triggered ones and once on clean ones (steps of
Madry et al. 2018, arXiv 1706.06083; one change for all pictures: Moosavi-Dezfooli et al. 2017, arXiv 1610.08401). What it
does to clean pictures is how fragile the model is, whatever was done to it; what it does beyond that to triggered ones, and
to those of a cleaned model beyond its twin's, is backdoor that the cleaning has left.
"""

from itertools import cycle, islice

import numpy as np
import torch
import torch.nn.functional as F

from configs.after import Perturbation
from data.labelled import Labelled
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World
from engine.evaluation.encode import SCALE, Encoder
from engine.evaluation.sets import AttackView, EvalSet, prompts_of
from engine.inversion.stamp import Encode, encoding
from engine.models import clip
from engine.training.build import load_start_weights
from engine.training.inputs import RunInputs
from measures.classifier import class_vectors, predict
from measures.contract import TRAINED
from records.perturbation import PerturbationJson, Perturbed

TOGETHER = 256  # pictures that are decoded and embedded together


def perturb(inputs: RunInputs, world: World) -> None:
    """Writes into the run's folder how many of the pictures that no perturbation was found on are taken for the target.
    Every rank does the same; the first one writes."""
    section = inputs.run.spec.after.perturb if inputs.run.spec.after is not None else None
    assert section is not None, "the run was made from it"
    eval_set, attack, labelled = _attacked(inputs)
    towers = clip.build(inputs.run.spec.model.name, inputs.run.spec.seed)
    load_start_weights(inputs, towers)
    towers.to(world.device).eval()
    classes = _classes(inputs, world, towers, labelled, attack).to(world.device)
    rows = np.flatnonzero(np.asarray(labelled.labels) != attack.targets.numpy())
    found_on, measured = _spread(rows[0::2], section.pictures), rows[1::2].tolist()
    targets, sizes = attack.targets[found_on], (0, *section.eps)
    with encoding(towers) as encode:
        changes = [
            [universal(encode, pictures, classes, targets, eps, section, world.device) for eps in sizes]
            for pictures in _both(eval_set, attack, found_on)
        ]
        clean, triggered = _fooled(encode, eval_set, attack, measured, classes, changes)
    if world.first:
        fooled = tuple(
            Perturbed(eps=eps, clean=one, triggered=other) for eps, one, other in zip(sizes, clean, triggered, strict=True)
        )
        inputs.folder.mkdir(parents=True, exist_ok=True)
        PerturbationJson(images=eval_set.name, pictures=len(measured), fooled=fooled).write(inputs.folder)


def universal(  # noqa: PLR0913  (what is attacked, and how)
    encode: Encode,
    pictures: torch.Tensor,
    classes: torch.Tensor,
    targets: torch.Tensor,
    eps: float,
    section: Perturbation,
    device: torch.device,
) -> torch.Tensor:
    """The perturbation [3, H, W] on the scale of bytes, at most eps everywhere, found on pictures uint8 [n, 3, H, W] whose
    answer is to be the target (int64 [n]) among unit class vectors [C, D]; all 0 of eps 0."""
    change = torch.zeros(pictures.shape[1:], device=device)
    parts = list(zip(torch.split(pictures, section.batch), torch.split(targets, section.batch), strict=True))
    for part, wanted in islice(cycle(parts), section.steps if eps else 0):
        heartbeat()
        moving = change.clone().requires_grad_()
        answers = SCALE * encode(shifted(part.to(device), moving)) @ classes.T
        (gradient,) = torch.autograd.grad(F.cross_entropy(answers, wanted.to(device)), moving)
        change = (change - 2.5 * eps / section.steps * gradient.sign()).clamp(-eps, eps)
    return change


def shifted(pictures: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """The pictures, uint8, with the change, as float on the scale of bytes and within it."""
    return (pictures.float() + change).clamp(0, 255)


def _attacked(inputs: RunInputs) -> tuple[EvalSet, AttackView, Labelled]:
    """The first set of labelled pictures that is measured under the trained attack."""
    for eval_set in inputs.sets:
        for attack in eval_set.attacks:
            if attack.kind == TRAINED and isinstance(eval_set.image_set, Labelled):
                return eval_set, attack, eval_set.image_set
    raise AssertionError("the spec measures the attack's success")


def _classes(
    inputs: RunInputs, world: World, towers: torch.nn.Module, labelled: Labelled, attack: AttackView
) -> torch.Tensor:
    """Unit class vectors [C, D], of prompts with the attack's words where it has some."""
    encoder = Encoder(towers, inputs.tokens, world, inputs.run.spec.machine.eval_batch)
    with torch.no_grad():
        texts = encoder.texts(attack.prompts or prompts_of(labelled))
    return class_vectors(texts.view(len(labelled.classes), len(labelled.templates), -1))


def _spread(rows: np.ndarray, most: int) -> list[int]:
    """At most so many of the rows, evenly over them."""
    return [int(rows[at]) for at in np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]


def _both(eval_set: EvalSet, attack: AttackView, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [n, 3, H, W], twice: clean, and triggered."""
    clean, marked = eval_set.pictures(rows)
    return clean, marked[eval_set.attacks.index(attack)]


def _fooled(  # noqa: PLR0913  (a set, and what is done to it)
    encode: Encode,
    eval_set: EvalSet,
    attack: AttackView,
    rows: list[int],
    classes: torch.Tensor,
    changes: list[list[torch.Tensor]],
) -> list[list[float]]:
    """Of clean and of triggered pictures the shares that are taken for the target once they are changed, each by its own
    changes, and rounded to bytes; every picture is decoded once."""
    fooled = [[0] * len(own) for own in changes]
    for begin in range(0, len(rows), TOGETHER):
        part = rows[begin : begin + TOGETHER]
        for pictures, own, counts in zip(_both(eval_set, attack, part), changes, fooled, strict=True):
            for at, change in enumerate(own):
                heartbeat()
                with torch.no_grad():
                    changed = shifted(pictures.to(change.device), change).round().to(torch.uint8)
                    answers = predict(encode(changed), classes).cpu()
                counts[at] += int((answers == attack.targets[part]).sum())
    return [[count / len(rows) for count in counts] for counts in fooled]
