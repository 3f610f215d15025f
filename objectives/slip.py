"""SLIP (Mu et al. 2021, arXiv 2112.12750): MMCL, and SimCLR on two further views of the picture.

    L = MMCL + c * 1/(2N) sum over the 2N projections of [log sum_{k != i} exp(p_i . p_k / t) - p_i . p_partner(i) / t]

p = unit rows of a head on the picture's embedding: D -> 4096 -> 4096 -> 256, batch normalisation (over all ranks and one
view) and ReLU between, t = 0.1. Both directions, self masked. The published head reads the tower's features before their
last projection; this one reads the unit embedding, which every architecture has.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from objectives.contract import Features, Learned, Objective, ObjectiveSection, Terms
from objectives.mmcl import mmcl

if TYPE_CHECKING:
    from objectives.exchange import Exchange


class Slip(ObjectiveSection):
    """Contrast pictures with captions, and two augmented views of each picture with each other."""

    kind: Literal["slip"]
    within: float = Field(1.0, ge=0, description="c, weight of the SimCLR term")
    temperature: float = Field(0.1, gt=0, description="t")
    hidden: int = Field(4096, ge=1, description="width of the head's two hidden layers")
    out: int = Field(256, ge=1, description="width of the projection")

    @property
    def views(self) -> tuple[int, int]:
        """The picture and two augmented ones."""
        return 3, 1

    def learned(self, width: int, draw: torch.Generator) -> dict[str, Learned]:
        """The head: three matrices (uniform in 1/sqrt of their inputs, as torch's Linear), gains and biases."""
        out = {}
        sizes = [width, self.hidden, self.hidden, self.out]
        for layer, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
            bound = inputs**-0.5
            weight = torch.empty(outputs, inputs).uniform_(-bound, bound, generator=draw)
            out[f"slip.{layer}.weight"] = Learned(weight, decays=True)
            if layer == 2:
                out["slip.2.bias"] = Learned(torch.empty(outputs).uniform_(-bound, bound, generator=draw))
            else:  # whose normalisation would cancel a bias
                out[f"slip.{layer}.norm.weight"] = Learned(torch.ones(outputs))
                out[f"slip.{layer}.norm.bias"] = Learned(torch.zeros(outputs))
        return out

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        return partial(slip, self.within, self.temperature)


def slip(within: float, temperature: float, features: Features, exchange: Exchange) -> Terms:
    """Terms `loss`, `mmcl` and `simclr`; features hold three views of the picture."""
    pair = mmcl(1.0, features, exchange)["mmcl"]
    first, second = (_project(view, features, exchange) for view in features.images[1:3])
    own = simclr(first, second, torch.as_tensor(1 / temperature, dtype=first.dtype, device=first.device), exchange)
    return {"loss": pair + within * own, "mmcl": pair, "simclr": own}


def _project(rows: torch.Tensor, features: Features, exchange: Exchange) -> torch.Tensor:
    learned = features.learned
    for layer in range(3):
        rows = torch.nn.functional.linear(rows, learned[f"slip.{layer}.weight"], learned.get(f"slip.{layer}.bias"))
        if layer < 2:
            count = len(rows) * exchange.ranks.everyone.size
            centred = rows - exchange.all_reduce_sum(rows.sum(0)) / count
            spread = (exchange.all_reduce_sum(centred.square().sum(0)) / count + 1e-5).rsqrt()
            rows = torch.nn.functional.relu(
                centred * spread * learned[f"slip.{layer}.norm.weight"] + learned[f"slip.{layer}.norm.bias"]
            )
    return torch.nn.functional.normalize(rows, dim=-1)


def simclr(first: torch.Tensor, second: torch.Tensor, scale: torch.Tensor, exchange: Exchange) -> torch.Tensor:
    """0-d: the NT-Xent loss (Chen et al. 2020, arXiv 2002.05709, eq. 1) of two views, [B, D] unit rows each."""
    from objectives.exchange import merged  # they load torch
    from objectives.tiles import Layout, log_sum_exps

    ranks = exchange.ranks
    without_self = exchange.places(len(first), first.device)
    left = [exchange.gathered(view, ranks.row) for view in (first, second)]
    right = [exchange.gathered(view, ranks.column) for view in (first, second)]
    pairs = Layout(own=exchange.own(len(first)))
    across, down, partner = log_sum_exps(left[0], right[1], scale, exchange.core, pairs)
    others = [log_sum_exps(left[k], right[k], scale, exchange.core, without_self, False)[0] for k in (0, 1)]
    of_first = torch.logaddexp(merged(across, ranks.row), merged(others[0], ranks.row))
    of_second = torch.logaddexp(merged(down, ranks.column), merged(others[1], ranks.row))
    return exchange.mean((of_first + of_second) / 2 - partner)
