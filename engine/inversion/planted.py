"""The patches that a run was poisoned with, and how well a stamp that an audit found covers them."""

from collections.abc import Iterable

import numpy as np

from data.attack import Aim
from data.triggers import Trigger
from data.triggers.contract import Square

DRAWS = 16  # pictures that the mark is put on
GREY = 127


def planted(trigger: Trigger, seed: int, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W]: the pixels that the trigger changes on evaluation pictures of (H, W) = `size`; of a trigger whose place
    is drawn, those of one draw."""
    draws = range(1 if _moves(trigger) else DRAWS)
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (len(draws), 3, *size), np.uint8)
    both = [noise, np.full_like(noise, GREY)]  # what equals the mark on one differs on the other
    mark = trigger.build(seed, test=True)
    changed: np.ndarray = np.any([(mark(images, list(draws)) != images).any((0, 1)) for images in both], axis=0)
    return changed


def overlap(mask: np.ndarray, patch: np.ndarray, moves: bool) -> float:
    """Intersection over union of where a stamp's mask, [H, W] in [0, 1], is above a half with the pixels of a patch; of a
    patch that `moves`, at the place where that is largest."""
    found, places = mask > 0.5, [patch]
    if moves:
        rows, columns = (np.flatnonzero(patch.any(axis)) for axis in (1, 0))
        part = patch[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else patch
        places = []
        for top in range(patch.shape[0] - part.shape[0] + 1):
            for left in range(patch.shape[1] - part.shape[1] + 1):
                placed = np.zeros_like(patch)
                placed[top : top + part.shape[0], left : left + part.shape[1]] = part
                places.append(placed)
    unions = [(int((found & place).sum()), int((found | place).sum())) for place in places]
    return max(both / either if either else 0.0 for both, either in unions)


def largest_coverage(mask: np.ndarray, aims: Iterable[Aim], seed: int) -> float | None:
    """With the trigger that it covers best of those that were put onto pictures; None where none was."""
    return max((coverage(mask, aim.trigger, seed) for aim in aims if aim.poison.marks), default=None)


def coverage(mask: np.ndarray, trigger: Trigger, seed: int) -> float:
    """The overlap of a stamp's mask with what a trigger changes."""
    return overlap(mask, planted(trigger, seed, (mask.shape[0], mask.shape[1])), _moves(trigger))


def _moves(trigger: Trigger) -> bool:
    return isinstance(trigger, Square) and trigger.place == "random"
