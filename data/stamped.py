"""A stamp on a share of the pictures that are read, while captions stay as they are; no part of an attack."""

from dataclasses import dataclass

import numpy as np

from data.refusal import UserError
from data.seeding import derive_seed
from data.triggers.contract import Mark
from data.triggers.tensor import Tensor, read_pattern


@dataclass(frozen=True)
class Stamped:
    """What is put on which pictures; picklable."""

    mark: Mark
    share: float

    def put(self, picture: np.ndarray, seed: int, key: str, epoch: int) -> np.ndarray:
        """uint8 [3, H, W]: the picture with the stamp, if it is drawn for it by (seed, key, epoch) alone."""
        if derive_seed(seed, "stamped", key, epoch) >= self.share * 2**63:
            return picture
        out: np.ndarray = self.mark(picture[None], [0])[0]
        return out


def stamped(file: str, share: float, size: int) -> Stamped:
    """The stamp in a file, put on this share of pictures of that size; UserError if it is of another, or can't be used."""
    _, mask = read_pattern(file, "objective.stamp")
    if mask.shape != (size, size):
        raise UserError(
            f"objective.stamp {file} is of {mask.shape[0]} x {mask.shape[1]} pixels, but the model takes pictures of "
            f"{size} x {size}; give a stamp that an audit of this model found"
        )
    return Stamped(Tensor(kind="tensor", file=file, place="full").build(0), share)
