"""Classification from embeddings (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

import torch

DEPTHS = (1, 5, 10)  # the k of top-k that are reported, where there are more than k to choose from
ROWS = 4096  # pictures compared with all classes at a time


def depths(count: int) -> list[int]:
    """The k of top-k that say something of `count` classes or captions: those below it, and 1."""
    return [k for k in DEPTHS if k < count or k == 1]


def class_vectors(prompts: torch.Tensor) -> torch.Tensor:
    """Unit [C, D]: the normalised mean over the K templates of unit prompt embeddings [C, K, D]."""
    return torch.nn.functional.normalize(prompts.mean(1), dim=-1)


def predict(images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """int64 [M]: the class with the largest cosine to each picture; the first of equal ones."""
    return torch.cat([(part @ classes.T).argmax(1) for part in torch.split(images, ROWS)])


def ranks(images: torch.Tensor, classes: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """int64 [M]: how many of the C classes are nearer to each picture than the class that is `wanted` (int64 [M]); among
    equally near ones the first is nearest. It is in the top k exactly if this is below k."""
    out = []
    order = torch.arange(len(classes))
    for part, ask in zip(torch.split(images, ROWS), torch.split(wanted, ROWS), strict=True):
        near = part @ classes.T
        own = near.gather(1, ask[:, None])
        out.append(((near > own) | ((near == own) & (order < ask[:, None]))).sum(1))
    return torch.cat(out)
