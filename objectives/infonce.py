"""InfoNCE (van den Oord et al. 2018, arXiv 1807.03748): the cross-entropy that all contrastive terms are made of.

    forth = mean_i [log sum_j exp(s l_i . r_j) - s l_i . r_i]        rows: each left row finds its right row
    back  = mean_j [log sum_i exp(s l_i . r_j) - s l_j . r_j]        columns: each right row finds its left row

over the N pairs of the global batch. The similarities are one tile a rank (objectives/tiles.py), never a matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from objectives.exchange import Exchange


def infonce(
    left: torch.Tensor,
    right: torch.Tensor,
    scale: torch.Tensor,
    exchange: Exchange,
    kept: torch.Tensor | None = None,
    want: Literal["both", "forth", "back"] = "both",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(forth, back), 0-d, each this rank's share; left and right [B, D], unit rows, row i of one belongs to row i of the
    other.

    `kept` (bool [B]) leaves pairs out, as if the batch held only the kept ones; 0 if it keeps none. What is not wanted is 0
    and not computed.
    """
    # their autograd functions load torch, which a spec that is only looked at does without
    from objectives.exchange import merged
    from objectives.tiles import Layout, Own, log_sum_exps

    ranks, both = exchange.ranks, want == "both"
    rows, columns = exchange.gathered(left, ranks.row), exchange.gathered(right, ranks.column)
    counts = (None, None) if kept is None else (ranks.row.gather(kept), ranks.column.gather(kept))
    place = exchange.own(len(left))
    if want == "back":
        layout = Layout(left_counts=counts[1], right_counts=counts[0], own=Own(place.right, place.left, place.rows))
        down, _, own = log_sum_exps(columns, rows, scale, exchange.core, layout, False)
        sums = {"back": (down, ranks.column)}
    else:
        layout = Layout(left_counts=counts[0], right_counts=counts[1], own=place)
        across, down, own = log_sum_exps(rows, columns, scale, exchange.core, layout, both)
        sums = {"forth": (across, ranks.row)} | ({"back": (down, ranks.column)} if both else {})
    out = {"forth": torch.zeros_like(scale), "back": torch.zeros_like(scale)}
    for name, (part, group) in sums.items():
        each = merged(part, group) - own
        # a sum over a batch that keeps none is empty, its logarithm infinite
        out[name] = exchange.mean(each if kept is None else torch.where(kept, each, 0), kept)
    return out["forth"], out["back"]
