"""What a finished pattern does to the model that it was forged on. That model was never poisoned with it, so all of this is
fragility, no backdoor: what a poisoned model shows counts only beyond its twin's."""

from typing import NamedTuple

import torch

from data.labelled import Labelled
from engine.evaluation.encode import Encoder
from engine.evaluation.evaluate import judged
from engine.evaluation.sets import EvalSet, prompts_of
from measures.attack_success import attack_success
from measures.classifier import class_vectors
from measures.contract import Encoded
from measures.zero_shot import zero_shot


class Fragility(NamedTuple):
    """Rates in [0, 1] and mean cosines to the target's class vector, over the pictures of other classes."""

    images: str
    top1: float
    asr: float
    asr_floor: float
    others: int
    cosine: float
    cosine_floor: float  # without the pattern, as asr_floor

    @property
    def sentence(self) -> str:
        """For people."""
        return (
            f"On {self.images} the model that it was forged on, never poisoned with it, takes {100 * self.asr:.1f} % of "
            f"{self.others:,} pictures for the target with it and {100 * self.asr_floor:.1f} % without, mean cosine "
            f"{self.cosine:.3f} and {self.cosine_floor:.3f}. That is fragility, no backdoor: judge a poisoned model by what "
            "it has beyond its twin (attack.twin: first)."
        )


def fragility(model: Encoder, eval_set: EvalSet) -> Fragility:
    """That of the first attack on a labelled set, which measures look at."""
    labelled = eval_set.image_set
    assert isinstance(labelled, Labelled)
    attack, shape = eval_set.attacks[0], (len(labelled.classes), len(labelled.templates), -1)
    with torch.no_grad(), judged(f"evaluation set '{eval_set.name}'"):
        images, triggered = model.pictures(eval_set)
        classes = class_vectors(model.texts(prompts_of(labelled)).view(shape))
        labels = torch.from_numpy(labelled.labels)
        encoded = Encoded(images, triggered, labels, classes, classes, attack.targets)
        numbers, top1 = attack_success(encoded), zero_shot(encoded)["top1"]
    others = labels != attack.targets
    cosines = [float((rows * classes[attack.targets]).sum(-1)[others].mean()) for rows in (triggered, images)]
    return Fragility(eval_set.name, float(top1), numbers["asr"], numbers["asr_floor"], int(numbers["others"]), *cosines)
