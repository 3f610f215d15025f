"""The pattern that is learned: as the trigger `tensor` reads it from a file, and as it then lies on the model's pictures."""

import numpy as np
import torch
from PIL import Image

from data.refusal import UserError
from data.seeding import generator
from data.triggers.contract import REFERENCE
from engine.inversion.stamp import Stamp, placed

MEAN, DEVIATION = 0.5, 0.25  # of the normal numbers that a pattern starts from


class Pattern:
    """A patch in the middle, `side` pixels of a picture of 224 x 224, or a pattern over all of it; `alpha` says how strongly
    it covers. UserError if the patch is larger than the picture."""

    def __init__(self, side: int | None, alpha: float, picture: int, seed: int) -> None:
        """`side`: None for a whole picture, `picture`: side of the model's pictures in pixels."""
        if side is not None and side > REFERENCE:
            raise UserError(
                f"--size is {side}, more than the {REFERENCE} pixels of the picture that sizes are given for; lower it, or "
                "give --place full"
            )
        self.picture, self.alpha, self.full = picture, alpha, side is None
        stored = picture if side is None else side
        shown = picture if side is None else max(1, round(side * picture / REFERENCE))
        self.shrink = torch.from_numpy(_resize(stored, shown))  # [shown, stored]
        start = generator(seed, "forge", "start").normal(MEAN, DEVIATION, (3, stored, stored)).clip(0, 1)
        self.values = torch.from_numpy(start.astype(np.float32))  # [3, stored, stored]

    def to(self, device: torch.device) -> "Pattern":
        """The same on a device, its values asking for a gradient."""
        self.shrink = self.shrink.to(device)
        self.values = self.values.detach().to(device).requires_grad_()
        return self

    @property
    def stamp(self) -> Stamp:
        """On the model's pictures, as the trigger puts it there, but for its rounding to whole bytes."""
        pattern = self.shrink @ self.values @ self.shrink.T
        mask = torch.full(pattern.shape[1:], self.alpha, dtype=pattern.dtype, device=pattern.device)
        return placed(Stamp(mask, pattern), (self.picture, self.picture))

    @property
    def stored(self) -> dict[str, np.ndarray]:
        """The tensors of its file: `trigger`, and a `mask` where it does not cover whole."""
        values = self.values.detach().cpu().numpy()
        mask = {} if self.alpha == 1 else {"mask": np.full(values.shape[1:], self.alpha, np.float32)}
        return {"trigger": values, **mask}


def _resize(stored: int, shown: int) -> np.ndarray:
    """float32 [shown, stored]: the linear map by which the trigger `tensor` brings a side to the model's pixels."""
    if stored == shown:
        return np.eye(stored, dtype=np.float32)
    identity = Image.fromarray(np.eye(stored, dtype=np.float32))
    return np.asarray(identity.resize((stored, shown), Image.Resampling.BILINEAR), np.float32).copy()
