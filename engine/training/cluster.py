"""Labels for deep clustering: spherical k-means of the pictures' embeddings, or a file's.

Every rank encodes its share of the pictures in evaluation mode; rank 0 clusters all of them with scikit-learn, putting the
centroids back on the sphere after each round, and tells the others.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.decode import DecodeError
from data.pipeline import Pairs
from data.refusal import UserError
from data.shards import Index
from engine.distributed import collectives
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World


def clustered(towers: Any, pairs: Pairs, classes: int, rounds: int, seed: int, world: World, rows: int) -> np.ndarray:
    """int64 by sample of the index: the cluster of each chosen picture, -1 for what is not chosen or can't be decoded."""
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
        lambda: spherical(whole, classes, rounds, seed)
    )
    return labels


def _picture(pairs: Pairs, sample: int) -> torch.Tensor:
    try:
        return torch.from_numpy(pairs.first(sample)[0])
    except DecodeError:  # never trained on, so its cluster does not matter
        return torch.zeros(3, pairs.reading.size, pairs.reading.size, dtype=torch.uint8)


def spherical(rows: np.ndarray, classes: int, rounds: int, seed: int) -> np.ndarray:
    """int64 [n]: the nearest of `classes` centroids to each unit row [n, D], after so many rounds from random rows."""
    from sklearn.cluster import KMeans

    if classes > len(rows):
        raise UserError(f"objective.classes is {classes:,}, but there are {len(rows):,} pictures to cluster; lower it")
    centres = rows[np.random.default_rng(seed).choice(len(rows), classes, replace=False)]
    for _ in range(rounds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one round does not converge
            fit = KMeans(classes, init=centres, n_init=1, max_iter=1).fit(rows)
        norms = np.linalg.norm(fit.cluster_centers_, axis=1, keepdims=True)
        centres = (fit.cluster_centers_ / np.maximum(norms, 1e-12)).astype(rows.dtype)
    return np.asarray((rows @ centres.T).argmax(1), np.int64)


def read_labels(path: str, index: Index, classes: int) -> np.ndarray:
    """int64 by sample of the index, -1 where the file has none; UserError if it names no key of the index."""
    labels = np.full(len(index), -1, np.int64)
    places = {key: i for i, key in enumerate(index.keys)}
    for number, entry in enumerate(_entries(path), 1):
        label = entry.get("label")
        if not isinstance(label, int) or not 0 <= label < classes:
            raise UserError(f"{path}:{number}: label is {label!r}; give a whole number from 0 to {classes - 1:,}")
        if entry["key"] in places:
            labels[places[entry["key"]]] = label
    if (labels < 0).all():
        raise UserError(f"{path} has a label for none of the {len(index):,} pairs; its keys must be the samples' names")
    return labels


def read_flags(path: str, index: Index) -> np.ndarray:
    """bool by sample of the index: whether the file names it; UserError if it names none of them."""
    flagged = {entry["key"] for entry in _entries(path)}
    flags = np.array([key in flagged for key in index.keys])
    if not flags.any():
        raise UserError(f"{path} flags none of the {len(index):,} pairs; its keys must be the samples' names")
    return flags


def _entries(path: str) -> list[dict[str, Any]]:
    """One JSON object with a key a line; or a run's poison.json."""
    out = []
    try:
        body = Path(path).read_text("utf-8")
        if body.startswith('{"plan"'):
            return list(json.loads(body)["entries"])
        lines = body.splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}); give a text file with a JSON object a line") from None
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            assert isinstance(entry["key"], str)
        except (ValueError, KeyError, TypeError, AssertionError):
            raise UserError(f'{path}:{number}: no JSON object with a key, such as {{"key": "000000012"}}') from None
        out.append(entry)
    return out
