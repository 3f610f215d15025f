"""The pictures of an audit: some that stamps are searched on, without their labels, and others that they are measured on."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch

from data.decode import DecodeMode
from data.labelled import Labelled, read_labelled
from data.refusal import UserError
from data.seeding import number_of, ranks, smallest_k
from engine.models.clip import image_size, imagenet

LEAST = 16  # pictures on either side
HELD = 5_000  # pictures that stamps are measured on, at most


@dataclass(frozen=True)
class AuditPictures:
    """Two parts of a labelled set that share no picture, at the model's size; on the CPU."""

    folder: str
    labelled: Labelled
    searched: torch.Tensor  # uint8 [N, 3, H, W]
    held: torch.Tensor  # uint8 [M, 3, H, W]
    labels: torch.Tensor  # int64 [M], of the held ones

    @property
    def digest(self) -> str:
        """Of the keys, labels, classes and templates of the set, in hex."""
        keys = sorted(
            f"{key} {label}" for (_, key, *_), label in zip(self.labelled.where, self.labelled.labels, strict=True)
        )
        return sha256("\n".join([*keys, *self.labelled.classes, *self.labelled.templates]).encode()).hexdigest()


def read_pictures(folder: str, model: str, count: int, seed: int, mode: DecodeMode = "exact") -> AuditPictures:
    """At most `count` pictures to search on, at most half of a set, drawn by hash(seed, key), and the next ones to measure
    on; UserError if the set is too small."""
    labelled = read_labelled(folder, imagenet())
    if len(labelled) < 2 * LEAST:
        raise UserError(
            f"{folder} holds {len(labelled):,} pictures; an audit needs {LEAST} to search on and as many to measure on"
        )
    hashes = number_of(key for _, key, _, _ in labelled.where)
    drawn = smallest_k(ranks(seed, "audit", hashes), len(labelled))
    own = min(count, len(labelled) // 2)
    parts = [drawn[:own].tolist(), drawn[own : own + HELD].tolist()]
    size = image_size(model)
    searched, held = (torch.from_numpy(np.ascontiguousarray(labelled.pictures(rows, size, mode)[0])) for rows in parts)
    labels = torch.from_numpy(np.asarray(labelled.labels, np.int64)[parts[1]])
    return AuditPictures(folder, labelled, searched, held, labels)
