"""BDetCLIP without a language model, a detector at test time (ICML 2025): a clean picture likes the prompts of classes less
once an unrelated sentence follows them, a triggered one does not care.

    score = - sum over classes c of x . (b_c - m_c)

b_c is the class vector, m_c the same of the set's templates with the sentence behind them. The paper has a language model
write of each class (b_c), and a sentence for each. Cost: C K more prompts to encode, then O(M D).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field

from measures.classifier import class_vectors
from measures.contract import Encoded, Measure, Number
from measures.rejection import PictureDetector, Scores, by_rows, compared, rejection


class Bdet(PictureDetector):
    """Rejects pictures that care little whether an unrelated sentence follows the prompts of classes."""

    kind: Literal["bdet"]
    unrelated: str = Field(
        "the train leaves at noon", min_length=1, description="sentence of no class, put behind every prompt"
    )

    def prompts(self, classes: list[str], templates: list[str]) -> list[str]:
        """Every prompt of the set with the sentence behind it."""
        filled = (template.replace("{c}", name) for name in classes for template in templates)
        return [f"{prompt.replace('.', ',')} {self.unrelated}" for prompt in filled]

    def build(self) -> Measure:
        """The function Encoded -> {"bdet_auroc_at1", ...}."""
        return partial(bdet, self.level)


def bdet(level: float, encoded: Encoded) -> dict[str, Number]:
    """The numbers of measures/rejection.py."""
    if encoded.prompts is None:
        raise ValueError("bdet needs prompts with an unrelated sentence")
    unrelated = class_vectors(encoded.prompts)
    score = partial(by_rows, lambda rows: -omega(rows, encoded.classes, unrelated))
    scores = Scores(*map(score, compared(encoded, "bdet")))
    return rejection("bdet", level, encoded, lambda others, share: scores)


def omega(rows: torch.Tensor, classes: torch.Tensor, unrelated: torch.Tensor) -> torch.Tensor:
    """[M]: how much more rows [M, D] like the class vectors [C, D] than those with the sentence, over all classes."""
    return rows @ (classes.to(rows) - unrelated.to(rows)).sum(0)
