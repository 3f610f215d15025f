"""A linear probe on the frozen picture tower, and how often the trigger turns it (Radford et al. 2021, section 3.2).

    probe_top1 = #{x : probe(x) = y(x)} / #{x}
    probe_asr  = #{x : y(x) != target, probe(trigger(x)) = target} / #{x : y(x) != target}

The probe is scikit-learn's logistic regression (L-BFGS, L2) on the unit rows of another set's clean pictures, in float64.
`strength` is its C and `iterations` its limit, from the example in CLIP's repository, which stops there whether or not it
has converged. The example takes embeddings before they are put on the unit sphere, on which the same C shrinks the weights
more; it asks for a sweep over C.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from measures.attack_success import success
from measures.contract import Encoded, FittedSection, Measure, parts

# scikit-learn's 1e-4 bounds the gradient of a mean, which is small from the start where there are many classes: of 1,000
# on unit rows it stopped after one iteration, and of 500 one prediction in a hundred was another (measured)
TOLERANCE = 1e-6


class LinearProbe(FittedSection):
    """Accuracy of a linear classifier fitted on labelled pictures, and the share of triggered ones that it takes for the
    target."""

    kind: Literal["linear_probe"]
    strength: float = Field(0.316, gt=0, description="C, the inverse of the L2 penalty")
    iterations: int = Field(1000, ge=1, description="of L-BFGS, at most")
    triggered: ClassVar[bool] = True

    def build(self) -> Measure:
        """The function Encoded -> {"probe_top1", "probe_asr"}."""
        return partial(linear_probe, self.strength, self.iterations)


def linear_probe(strength: float, iterations: int, encoded: Encoded) -> dict[str, float]:
    """`probe_top1`, a fraction of all M pictures, and `probe_asr`, a fraction of those of every class but the target;
    ValueError without a training set of two classes or more."""
    rows, labels, triggered = parts(encoded, "linear_probe")
    probe = fitted(rows, labels, strength, iterations)
    clean, marked = (torch.from_numpy(probe.predict(seen.double().numpy())) for seen in (encoded.images, triggered))
    right = (clean == encoded.labels).sum().item() / len(clean)
    return {"probe_top1": right, "probe_asr": success(marked, encoded)}


def fitted(rows: torch.Tensor, labels: torch.Tensor, strength: float, iterations: int) -> Any:
    """scikit-learn's classifier of rows [K, D] with labels int64 [K]."""
    from sklearn.exceptions import ConvergenceWarning  # imported when first needed: 1 s
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the limit is part of the recipe
        return LogisticRegression(C=strength, max_iter=iterations, tol=TOLERANCE).fit(rows.double().numpy(), labels.numpy())
