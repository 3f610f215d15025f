"""The registry of transforms: one file and one line each.

Their sections stand in configs/start.py, not beside these functions as other parts' do: a stage's section is composed of
them, and configs imports nothing of engine. A test holds this list and configs' AnyTransform equal.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from configs.start import Anp, AnyTransform, FinePrune, Fresh, Line, Rounded, ShrinkPerturb
from engine.models.transforms.anp import anp
from engine.models.transforms.contract import Transform
from engine.models.transforms.fine_prune import fine_prune
from engine.models.transforms.fresh import fresh
from engine.models.transforms.line import line
from engine.models.transforms.rounded import rounded
from engine.models.transforms.shrink_perturb import shrink_perturb

# each function takes its own section first, which no type of dict can say
TRANSFORMS: dict[type, Callable[..., Any]] = {
    ShrinkPerturb: shrink_perturb,
    Fresh: fresh,
    FinePrune: fine_prune,
    Anp: anp,
    Line: line,
    Rounded: rounded,
}


def build(section: AnyTransform) -> Transform:
    """The transform that a section describes; picklable."""
    return partial(TRANSFORMS[type(section)], section)
