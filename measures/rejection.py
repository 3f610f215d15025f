"""What it gives to reject pictures at test time: the numbers of every detector of triggered pictures.

A detector scores pictures, higher being more suspicious, and fixes its threshold t on other pictures that are known to be
clean: the smallest score that at least the share `level` of them do not exceed. It sees no trigger. With p the share of
triggered pictures among those that come, C the clean pictures, and T the triggered ones whose class is not the target:

    auroc      = P(score of T > score of C) + P(equal) / 2
    tpr_fpr1   = #{T above u} / #{T}, u the smallest score that at most 1 % of C exceed; tpr_fpr5 at 5 %. No defender knows u
    tpr        = #{T above t} / #{T}: what the fixed threshold finds
    fpr        = #{C above t} / #{C}: and what it rejects wrongly
    precision  = p tpr / (p tpr + (1 - p) fpr); none where nothing is rejected
    asr        = #{T not above t that are taken for the target} / #{T}, ASR after rejecting
    top1       = #{C not above t, rightly answered} / #{C}, accuracy after rejecting: a rejected picture has no answer
    roc        = the TPR at each false positive rate of ROC

Each stands behind the detector's name and before `_at1` or `_at50`, for p = 1 % and 50 %: some detectors score a picture by
the others that come with it. `flagged` is fpr where no triggered picture comes at all.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator

from measures.classifier import predict
from measures.contract import Encoded, MeasureSection, Number, Unmeasurable, marked
from measures.detectors.ranking import numbers, ranked
from measures.rejection_rates import RATES, ROC, SHARES


class PictureDetector(MeasureSection):
    """The parent of sections whose measure scores pictures at test time beside clean ones of another set."""

    references: str = Field(description="name of the set in data.test whose clean pictures fix the threshold")
    level: float = Field(0.995, gt=0, le=1, description="share of the references that the threshold lets pass")
    triggered: ClassVar[bool] = True
    reads_heads: ClassVar[bool] = False  # whether it needs `heads`, so a vision transformer

    @model_validator(mode="after")
    def _is_judged_on_others(self) -> PictureDetector:
        if self.references == self.images:
            raise ValueError(
                f"images and references are both '{self.images}'; take references from another set than is judged"
            )
        return self

    @property
    def clean_set(self) -> str:
        """The set of the references."""
        return self.references

    def least(self, width: int) -> int:
        """The fewest references with which it says anything, embeddings being so wide."""
        return 2


class Scores(NamedTuple):
    """Scores of the references [R], of the clean pictures [M], and of the same under the trigger [M]."""

    references: torch.Tensor
    clean: torch.Tensor
    triggered: torch.Tensor


def rejection(
    kind: str, level: float, encoded: Encoded, score: Callable[[torch.Tensor, float], Scores], fixed: float | None = None
) -> dict[str, Number]:
    """The numbers that the module defines; `score` takes which of the triggered pictures may come (bool [M]) and which share
    of all that come they are; `fixed` is a threshold that no reference fixes. Unmeasurable if all scores are equal,
    ValueError if all pictures are of the target class."""
    triggered, others = marked(encoded, kind), encoded.labels != encoded.targets
    if not others.any():
        raise ValueError(f"{kind} needs pictures of another class than the target")
    right = predict(encoded.images, encoded.classes) == encoded.labels
    fooled = (predict(triggered, encoded.attacked_classes) == encoded.targets)[others]
    out: dict[str, Number] = {}
    for name, share in {"": 0.0, **SHARES}.items():
        references, clean, found = (scores.float() for scores in score(others, share))  # rounds what depends on the order
        least, most = torch.cat([references, clean, found]).aminmax()
        if least == most:
            raise Unmeasurable(f"{kind} gives every picture the same score, so it tells none from another")
        found, limit = found[others], threshold(references, level) if fixed is None else fixed
        if not share:
            out[f"{kind}_flagged"] = above(clean, limit)
            continue
        rates: dict[str, Number] = {"auroc": auroc(clean, found)}
        rates |= {f"tpr_{of}": above(found, exceeded(clean, rate)) for of, rate in RATES.items()}
        rates |= {"tpr": (tpr := above(found, limit)), "fpr": (fpr := above(clean, limit))}
        if tpr or fpr:
            rates["precision"] = share * tpr / (share * tpr + (1 - share) * fpr)
        rates["asr"] = (fooled & (found <= limit)).sum().item() / len(found)
        rates["top1"] = (right & (clean <= limit)).sum().item() / len(clean)
        rates["roc"] = [above(found, exceeded(clean, rate)) for rate in ROC]
        out |= {f"{kind}_{key}_{name}": value for key, value in rates.items()}
    return out


def threshold(references: torch.Tensor, level: float) -> float:
    """The smallest of the scores [R] that at least the share `level` of them do not exceed."""
    return references.sort().values[ceil(round(level * len(references), 6)) - 1].item()


def exceeded(clean: torch.Tensor, share: float) -> float:
    """The smallest of the scores [M] that at most this share of them exceed; minus infinity for all of them."""
    most = int(share * len(clean) + 1e-6)
    return clean.sort(descending=True).values[most].item() if most < len(clean) else -torch.inf


def above(scores: torch.Tensor, limit: float) -> float:
    """The share of the scores [N] that lie above a limit."""
    return (scores > limit).sum().item() / len(scores)


def auroc(clean: torch.Tensor, triggered: torch.Tensor) -> float:
    """The chance that one of the triggered scores [N] lies above one of the clean ones [M], equal ones counted half."""
    poisoned = torch.arange(len(clean) + len(triggered)) >= len(clean)
    return numbers(ranked(torch.cat([clean, triggered]).double().numpy(), poisoned.numpy()))["auroc"]


def compared(encoded: Encoded, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(references, clean pictures, triggered pictures); ValueError naming the kind of measure if one is missing."""
    if encoded.references is None:
        raise ValueError(f"{kind} needs references")
    return encoded.references, encoded.images, marked(encoded, kind)


def by_rows(score: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, at_once: int = 4096) -> torch.Tensor:
    """[n]: the scores of rows [n, D], given to `score` in float64, few at once."""
    return torch.cat([score(some.double()) for some in torch.split(rows, at_once)])
