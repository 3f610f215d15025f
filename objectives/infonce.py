"""InfoNCE (van den Oord et al. 2018, arXiv 1807.03748): the cross-entropy that all contrastive terms are made of."""

import torch
import torch.nn.functional as F


def infonce(queries: torch.Tensor, keys: torch.Tensor, scale: torch.Tensor, first: int) -> torch.Tensor:
    """Mean over rows i of -log softmax_j(s q_i . k_j) at j = first + i; queries [B, D], keys [N, D], unit rows.

    Row i's own key is keys[first + i], so `first` is B * rank for gathered keys.
    """
    own = torch.arange(first, first + len(queries), device=queries.device)
    return F.cross_entropy(scale * queries @ keys.T, own)
