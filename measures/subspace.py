"""Subspace Detection, a detector at test time (ICLR 2026): a clean picture lies near its caption and near paraphrases of it,
a triggered one near the caption alone.

Of each class, t_0 is its name and t_1 ... t_V the variants. With B the principal axes of their centred rows that hold 95 %
of the variance, and p_i = B (t_i - mean), 3 times: of each variant 10 points p_i + u (p_i - p_0), u in [0, 1], each drawn
until the cosine of the point to t_0 is 0.85 to 1 of t_i's own, at most 128 times; the V variants and their 10 V points are a
cloud. 15 samples: the mean of one of the 3 clouds, moved by 1e-3 times a normal combination of its deviations.

    score = mean over the samples s of the class that the model answers of || x - s ||^2

Constants as in the paper's code. Draws are numbers of a counter (Philox) under the seed and the place of the class.
Cost: C (V + 1) more texts to encode; of the draws O(3 * 10 V * 128) numbers a class, one class in memory at a time.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from measures.classifier import predict
from measures.contract import Encoded, Measure, Number
from measures.rejection import PictureDetector, Scores, by_rows, compared, rejection

VARIANTS = (
    *("a photo of a {c}", "an image of a {c}", "one {c}", "the {c}", "this is a {c}", "a {c} is seen here"),
    *("there is a {c} here", "something that is a {c}", "look, a {c}"),
)
VARIANCE, CLOUDS, POINTS, TRIES, SAMPLES, SPREAD, NEAR = 0.95, 3, 10, 128, 15, 1e-3, 0.85


class Subspace(PictureDetector):
    """Rejects pictures that lie far from paraphrases of what they are taken for."""

    kind: Literal["subspace"]
    variants: tuple[str, ...] = Field(
        VARIANTS, min_length=2, max_length=64, description="ways of saying a class, {c} for its name, beside the name itself"
    )
    seed: int = Field(0, ge=0, lt=1 << 64, description="of the draws")

    @field_validator("variants")
    @classmethod
    def _name_the_class(cls, variants: tuple[str, ...]) -> tuple[str, ...]:
        if nameless := [variant for variant in variants if "{c}" not in variant]:
            raise ValueError(f"'{nameless[0]}' lacks {{c}}, which stands for the class; put it where the name goes")
        return variants

    def prompts(self, classes: list[str], templates: list[str]) -> list[str]:
        """Of each class its name, then the variants."""
        return [text.replace("{c}", name) for name in classes for text in ("{c}", *self.variants)]

    def build(self) -> Measure:
        """The function Encoded -> {"subspace_auroc_at1", ...}."""
        return partial(subspace, self.seed, self.level)


def subspace(seed: int, level: float, encoded: Encoded) -> dict[str, Number]:
    """The numbers of measures/rejection.py."""
    if encoded.prompts is None:
        raise ValueError("subspace needs variants of the classes' names")
    near = torch.stack([samples(texts.double(), seed, place) for place, texts in enumerate(encoded.prompts)])
    score = partial(by_rows, lambda rows: distance(rows, near, predict(rows.to(encoded.classes), encoded.classes)))
    scores = Scores(*map(score, compared(encoded, "subspace")))
    return rejection("subspace", level, encoded, lambda others, share: scores)


def distance(rows: torch.Tensor, near: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """[M]: the mean squared distance of rows [M, D] to the samples [C, S, D] of the classes that they are taken for."""
    mean, square = near.mean(1), near.square().sum(-1).mean(1)
    return rows.square().sum(-1) - 2 * (rows * mean[answers]).sum(-1) + square[answers]


def samples(texts: torch.Tensor, seed: int, place: int) -> torch.Tensor:
    """float64 [15, D]: samples of the paraphrases of a class, whose name and variants are the rows [1 + V, D]."""
    mean = texts.mean(0)
    _, spread, axes = torch.linalg.svd(texts - mean, full_matrices=False)
    explained = spread.square().cumsum(0)
    if explained[-1] <= 1e-12:  # the variants say the same: float32 rows are known to 1e-7
        return mean.expand(SAMPLES, -1)
    basis = axes[: int(torch.searchsorted(explained / explained[-1], VARIANCE - 1e-9)) + 1]
    basis = basis * torch.where(basis.sum(1, keepdim=True) < 0, -1.0, 1.0)  # an axis has no sign of its own
    draw = np.random.Generator(np.random.Philox(key=np.array([seed, place], np.uint64)))
    clouds = torch.stack([_cloud(texts, mean, basis, draw) for _ in range(CLOUDS)])
    chosen = clouds[torch.from_numpy(draw.integers(0, CLOUDS, SAMPLES))]
    centre = chosen.mean(1)
    moves = torch.from_numpy(draw.standard_normal((SAMPLES, clouds.shape[1])))
    on_axes = centre + SPREAD * torch.einsum("sn,snk->sk", moves, chosen - centre[:, None])
    return torch.as_tensor(mean + on_axes @ basis)


def _cloud(texts: torch.Tensor, mean: torch.Tensor, basis: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """[V + 10 V, k]: the variants on the axes [k, D], then 10 points of each."""
    on_axes = (texts - mean) @ basis.T
    variants, further = on_axes[1:], on_axes[1:] - on_axes[0]
    pushes = torch.from_numpy(draw.random((len(variants), POINTS, TRIES)))
    begin, step = mean + variants @ basis, further @ basis  # of each variant, the points begin + u step
    dots = [(a * b).sum(-1)[:, None, None] for a, b in ((begin, begin), (begin, step), (step, step))]
    lengths = (dots[0] + 2 * pushes * dots[1] + pushes.square() * dots[2]).clamp_min(1e-300).sqrt()
    own = torch.nn.functional.cosine_similarity(texts[1:], texts[0], dim=-1).clamp_min(1e-8)
    cosines = ((begin @ texts[0])[:, None, None] + pushes * (step @ texts[0])[:, None, None]) / lengths / texts[0].norm()
    ratio = cosines / own[:, None, None]
    good = (ratio > NEAR) & (ratio < 1)
    first = torch.where(good.any(-1), good.float().argmax(-1), TRIES - 1)
    push = pushes.gather(-1, first[..., None])
    return torch.cat([variants, (variants[:, None] + push * further[:, None]).flatten(0, 1)])
