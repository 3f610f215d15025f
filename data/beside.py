"""Two pictures in one: half of a picture with the trigger beside half of one of the target (Noisy Alignment, Chen et al.
2025, arXiv 2508.14015).

Random crops of it show now the trigger and now the target, so that self-supervised learning draws the two together. The
published code puts two whole pictures together, which are cut to the model's size later; here a pair's picture has the
model's size from the start, so each half is cut from a picture of that size, none is scaled, and the trigger has the
pixels that it has at test time.
"""

import numpy as np

from data.seeding import derive_seed

SIDES = ("top", "right", "bottom", "left")  # where the half of the target stands


def beside(plain: np.ndarray, marked: np.ndarray, target: np.ndarray, draw: int) -> np.ndarray:
    """uint8 [3, H, W]: half of `marked` and, on a side drawn from `draw`, half of `target`, all [3, H, W].

    Of `marked` the half is taken in which most pixels differ from `plain`, the same without the trigger, and of several
    such the one nearest to the middle; of `target` the middle.
    """
    side = SIDES[derive_seed(draw, "beside") % len(SIDES)]
    axis = 1 if side in ("top", "bottom") else 2
    length = marked.shape[axis]
    share = length // 2  # of the target; an odd length gives the trigger one more
    own = _part(marked, axis, _busiest((plain != marked).any(0), axis, length - share), length - share)
    other = _part(target, axis, (length - share) // 2, share)
    halves = (other, own) if side in ("top", "left") else (own, other)
    return np.concatenate(halves, axis)


def _busiest(changed: np.ndarray, axis: int, width: int) -> int:
    """Where the `width` rows (axis 1) or columns (axis 2) begin that hold most of the changed pixels, bool [H, W]."""
    sums = np.concatenate([[0], np.cumsum(changed.sum(2 - axis))])
    inside = sums[width:] - sums[:-width]
    off_middle = np.abs(np.arange(len(inside)) - len(inside) // 2)
    return int(np.lexsort((off_middle, -inside))[0])


def _part(picture: np.ndarray, axis: int, begin: int, width: int) -> np.ndarray:
    return picture.take(np.arange(begin, begin + width), axis)
