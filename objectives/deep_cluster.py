"""Deep clustering as a cleaner (arXiv 2311.14948, after Caron et al. 2018, arXiv 1807.05520).

    L = a * MMCL + w * SSL + c * CE(linear head(I), label)

CE is the mean over the pairs that have a label. Labels are re-made before each epoch by spherical k-means of the pictures'
embeddings (engine/training/kmeans.py), with a fresh head; or given in a file, with one head for the whole run. The
published code takes the nearest centroid under the embedding of the moment instead of the epoch's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from objectives.contract import Features, Learned, Need, Objective, ObjectiveSection, Terms
from objectives.mmcl import mmcl
from objectives.self_supervised import Ssl

if TYPE_CHECKING:
    from objectives.exchange import Exchange


class DeepCluster(ObjectiveSection):
    """CleanCLIP's terms, and a classifier of pseudo-labels on the picture tower."""

    kind: Literal["deep_cluster"]
    weight: float = Field(1.0, ge=0, description="c; 5 in the published example")
    across: float = Field(1.0, ge=0, description="weight of the picture-caption term")
    within: float = Field(1.0, ge=0, description="weight of the self-supervised term; 0 needs no augmented views")
    classes: int = Field(1000, ge=2, description="centroids, or labels in the file")
    labels: str | None = Field(None, description="a file with one JSON object {key, label} a line; default: k-means")
    rounds: int = Field(20, ge=1, description="iterations of k-means")
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})

    @property
    def views(self) -> tuple[int, int]:
        """Two of both if the self-supervised term counts."""
        return (2, 2) if self.within else (1, 1)

    def learned(self, width: int, draw: torch.Generator) -> dict[str, Learned]:
        """The head: weights from N(0, 0.01^2), biases 0, no decay."""
        weight = torch.empty(self.classes, width).normal_(0, 0.01, generator=draw)
        return {"cluster.weight": Learned(weight), "cluster.bias": Learned(torch.zeros(self.classes))}

    def build(self) -> Objective:
        """The function (features, exchange) -> Terms."""
        own = Ssl(kind="ssl").build() if self.within else None
        return partial(deep_cluster, self.weight, self.across, self.within, own)


def deep_cluster(
    weight: float, across: float, within: float, ssl: Objective | None, features: Features, exchange: Exchange
) -> Terms:
    """Terms `loss`, `mmcl`, `ssl` if it counts, and `cluster`."""
    assert features.labels is not None
    terms = {"mmcl": mmcl(1.0, features, exchange)["mmcl"]}
    loss = across * terms["mmcl"]
    if ssl is not None:
        terms["ssl"] = ssl(features, exchange)["ssl"]
        loss = loss + within * terms["ssl"]
    logits = torch.nn.functional.linear(
        features.images[0], features.learned["cluster.weight"], features.learned["cluster.bias"]
    )
    each = torch.nn.functional.cross_entropy(logits, features.labels, ignore_index=-1, reduction="none")
    terms["cluster"] = exchange.mean(each, features.labels >= 0)
    return {"loss": loss + weight * terms["cluster"], **terms}
