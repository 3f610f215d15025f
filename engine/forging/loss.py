"""What an optimised trigger is optimised for (BadCLIP: Liang et al. 2024, arXiv 2311.12075, section 4.2).

    L = MMCL(a, t) + w mean max(0, |a - p| - |a - n| + m)

a: unit embeddings of pictures with the trigger, t: of captions that name the target, p: of the target's pictures, n: of the
same pictures as a, without the trigger. The published numbers are w = 500 and m = 1, its triplet loss torch's.
"""

from math import log

import torch

from objectives.contract import Features, Terms
from objectives.exchange import SINGLE_RANK, Exchange
from objectives.mmcl import mmcl


def alignment(stamped: torch.Tensor, captions: torch.Tensor, scale: float) -> torch.Tensor:
    """0-d: MMCL of unit rows [B, D], stamped pictures and captions of the target; `scale` is what cosines are multiplied
    with."""
    learned = {"scale": torch.full((1,), log(scale), dtype=stamped.dtype, device=stamped.device)}
    return mmcl(1.0, Features((stamped,), (captions,), learned), Exchange(SINGLE_RANK))["loss"]


def triplet(stamped: torch.Tensor, near: torch.Tensor, plain: torch.Tensor, margin: float) -> torch.Tensor:
    """0-d: how far stamped pictures are from the target's (`near`) rather than from themselves (`plain`); rows [B, D]. Where
    two rows are equal their distance has the gradient 0."""
    to_target, to_self = ((stamped - other).norm(dim=-1) for other in (near, plain))
    out: torch.Tensor = (to_target - to_self + margin).clamp(min=0).mean()
    return out


def terms(
    rows: tuple[torch.Tensor, torch.Tensor], scale: float, drawn: tuple[torch.Tensor, torch.Tensor] | None,
    margin: float = 1.0, weight: float = 500.0,
) -> Terms:  # fmt: skip
    """`loss`, `mmcl` and, with `drawn` (target's pictures, the same pictures unstamped), `triplet`; `rows` are (stamped
    pictures, captions)."""
    out = {"mmcl": alignment(*rows, scale)}
    out["loss"] = out["mmcl"]
    if drawn is not None:
        out["triplet"] = triplet(rows[0], *drawn, margin)
        out["loss"] = out["mmcl"] + weight * out["triplet"]
    return out
