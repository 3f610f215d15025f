"""Labels for deep clustering: spherical k-means of the pictures' embeddings.

Every rank encodes its share of the pictures in evaluation mode; rank 0 clusters all of them with scikit-learn, putting the
centroids back on the sphere after each round, and tells the others.
"""

import warnings
from typing import Any

import numpy as np
import torch

from data.decode import DecodeError
from data.pipeline import Pairs
from data.refusal import UserError
from engine.distributed import collectives
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World
from engine.evaluation.evaluate import judged
from measures.contract import check_rows
from objectives.deep_cluster import DeepCluster


def clustered(towers: Any, pairs: Pairs, section: DeepCluster, seed: int, world: World, rows: int) -> np.ndarray:
    """int64 by sample of the index: the cluster of each chosen picture, -1 for what is not chosen or can't be decoded;
    `rows` pictures go through the towers at once."""
    share = -(-len(pairs) // world.size)
    mine = [pairs.sample(min(i, len(pairs) - 1)) for i in range(world.rank * share, (world.rank + 1) * share)]
    training = towers.training
    towers.eval()
    parts = []
    with torch.no_grad():
        for begin in range(0, share, rows):
            heartbeat()
            images = torch.stack([_picture(pairs, sample) for sample in mine[begin : begin + rows]])
            parts.append(towers(images.to(world.device), None)[0])
    towers.train(training)
    whole = collectives.gather_rows(torch.cat(parts))[: len(pairs)].cpu().numpy()
    labels = np.full(len(pairs.index), -1, np.int64)
    labels[slice(None) if pairs.chosen is None else pairs.chosen] = collectives.on_rank_0(
        lambda: spherical(whole, section.classes, section.rounds, seed)
    )
    return labels


def too_many_clusters(classes: int, pictures: int) -> UserError:
    """The error where pictures are fewer than their clusters."""
    return UserError(f"objective.classes is {classes:,}, but there are {pictures:,} pictures to cluster; lower it")


def _picture(pairs: Pairs, sample: int) -> torch.Tensor:
    try:
        return torch.from_numpy(pairs.first(sample)[0])
    except DecodeError:  # never trained on, so its cluster does not matter
        return torch.zeros(3, pairs.reading.size, pairs.reading.size, dtype=torch.uint8)


def spherical(rows: np.ndarray, classes: int, rounds: int, seed: int) -> np.ndarray:
    """int64 [n]: the nearest of `classes` centroids to each unit row [n, D], after so many rounds from random rows;
    UserError where a row is not finite."""
    from sklearn.cluster import KMeans

    if classes > len(rows):
        raise too_many_clusters(classes, len(rows))
    with judged("deep clustering"):
        check_rows(torch.from_numpy(rows), "pictures")
    centres = rows[np.random.default_rng(seed).choice(len(rows), classes, replace=False)]
    for _ in range(rounds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one round does not converge
            fit = KMeans(classes, init=centres, n_init=1, max_iter=1).fit(rows)
        norms = np.linalg.norm(fit.cluster_centers_, axis=1, keepdims=True)
        centres = (fit.cluster_centers_ / np.maximum(norms, 1e-12)).astype(rows.dtype)
    return np.asarray((rows @ centres.T).argmax(1), np.int64)
