"""No mark at all: what a picture shows is the trigger (concept confusion, Hu et al. 2025, arXiv 2503.09095)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from data.triggers.contract import Mark, TriggerSection


class Concept(TriggerSection):
    """A natural trigger: pictures that show a concept, by their captions, are taught as the target. Measured by
    concept_success on a set of pictures that show it."""

    kind: Literal["concept"]

    def build(self, seed: int, test: bool = False) -> Mark:
        """The function that leaves pictures as they are."""
        return kept


def kept(images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """The very images."""
    return images
