"""What is not finite is never started from and never finished with."""

from collections.abc import Mapping

import torch

from data.refusal import UserError


def refuse_not_finite(
    tensors: Mapping[str, torch.Tensor], place: object, remedy: str, kind: type[UserError] = UserError
) -> None:
    """An error of that kind if a number in these tensors, which come from or go to that place, is NaN or infinite."""
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        more = f" and {len(bad) - 1:,} more tensors hold" if len(bad) > 1 else " holds"
        raise kind(f"{place}: {bad[0]}{more} numbers that are not finite; {remedy}")
