"""What stands out of others: an anomaly index from the median, and a p-value against a sample that is known to be clean."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

NORMAL = 1.4826  # makes the median absolute deviation of normal values their standard deviation
FLAGGED = 2.0  # an index above it is taken for a backdoor (Wang et al. 2019)


def anomaly_index(values: Sequence[float]) -> list[float] | None:
    """(median - value) / (1.4826 MAD) of each value: how far it lies below the others. None where more than half of the
    values are equal, so that their deviation is 0, or there are fewer than three.

    B. Wang et al., "Neural Cleanse", IEEE S&P 2019, section IV.
    """
    if len(values) < 3:
        return None
    middle = median(values)
    deviation = NORMAL * median(abs(value - middle) for value in values)
    return [(middle - value) / deviation for value in values] if deviation else None


class PValue(NamedTuple):
    """p of a value against n values, and the smallest that n values can show."""

    p: float
    smallest: float


def p_value(value: float, null: Sequence[float]) -> PValue:
    """How often a clean model looks at least as conspicuous: (1 + #{null >= value}) / (n + 1), exact for any distribution
    if the model is as the clean ones are; ValueError without any.

    Phipson & Smyth, "Permutation p-values should never be zero", Stat. Appl. Genet. Mol. Biol. 9(1), 2010.
    """
    if not null:
        raise ValueError("a p-value needs one clean model at least")
    return PValue((1 + sum(other >= value for other in null)) / (len(null) + 1), 1 / (len(null) + 1))
