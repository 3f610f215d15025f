"""What studies would cost in GPU-hours, from two published measurements; --dry-run on a folder of specs prints it.

The published pre-trainings of RN50 on 6 million pairs for 64 epochs (arXiv 2311.14948; vsahil/attack-cleanclip) took 24-28 h
with MMCL and 36-40 h with MMCL+SSL on 8 A100-40GB: 513 and 351 pairs a second and GPU. MMCL encodes one view of picture and
caption, MMCL+SSL two, so that both together give the two unknowns of

    seconds a pair = host + F / speed      F: FLOP of the towers' forward pass over the pair's views, captions of full length

F1 = 17.77 GFLOP of one view and F2 = 2 F1: F1 / speed = 1/351 - 1/513 = 0.90 ms, so speed = 19.8 TFLOP/s of forward passes,
each with its backward pass, and host = 1/513 - 0.90 ms = 1.05 ms for all that no model changes, such as reading. A forward
pass alone takes a third. With V views of the picture and U of the caption, i and t the FLOP of one:

    training    = pairs * epochs * (host + (V i + U t) / speed)
    evaluation  = (1 + M) * sum over sets [pictures * (host + n i / 3 speed) + prompts * t / 3 speed]

M is how often the run is measured after its start, n how often a set's pictures are encoded: as they are, under each
attack that a measure of that very set looks at, and again for `heads`. Sets that are only fitted on or compared with need
no prompts. k-means and SafeCLIP add a forward pass over the pairs an epoch. Not counted: what is done to a start's
weights before the first step, a frozen start's forward passes, micro-batches, idle GPUs. An estimate of what the
published code would take.
"""

from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.plan import Run
from configs.spec import Spec
from data.attack import Aim
from engine.evaluation.sets import attack_views
from engine.models import clip
from engine.training.inputs import sorter
from measures.rejection import PictureDetector
from objectives.sum import objectives_of

GPU = "A100-40GB"
MEASURED = {1: 513.0, 2: 351.0}  # pairs a second and GPU of RN50 by views of picture and caption
REFERENCE = "RN50-quickgelu"


class Flop(NamedTuple):
    """Of a forward pass over one picture and one caption."""

    picture: float
    caption: float


class EvalSetSize(NamedTuple):
    """Of an evaluation set."""

    pictures: int
    texts: int  # prompts of all classes and templates, or captions


SETS = {  # by the name that a spec gives them; sets of other names cost nothing here, and a note says so
    "imagenet": EvalSetSize(50_000, 80_000),
    "caltech101": EvalSetSize(6_085, 102 * 34),
    "cifar100": EvalSetSize(10_000, 100 * 18),
    "coco": EvalSetSize(5_000, 25_010),
}


@dataclass(frozen=True)
class Cost:
    """Of some runs; None for what can't be known without the data, and for every sum with it."""

    pretrainings: int = 0
    cleanings: int = 0
    steps: int | None = 0
    pairs: int | None = 0  # seen, over all epochs
    hours: float | None = 0.0  # of one GPU

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.pretrainings + other.pretrainings,
            self.cleanings + other.cleanings,
            None if self.steps is None or other.steps is None else self.steps + other.steps,
            None if self.pairs is None or other.pairs is None else self.pairs + other.pairs,
            None if self.hours is None or other.hours is None else self.hours + other.hours,
        )

    def price(self, dollars: float) -> float | None:
        """At so many dollars a GPU-hour."""
        return None if self.hours is None else self.hours * dollars


def unknown(run: Run) -> Cost:
    """Of a run whose pairs are not known."""
    cleans = run.stage == "clean"
    return Cost(int(not cleans), int(cleans), None, None, None)


def number(value: float | None) -> str:
    """A count, hours or dollars; '?' for what is not known, and never 0 for what is not 0."""
    if value is None:
        return "?"
    if isinstance(value, int) or value >= 10:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.05 or not value else f"{value:.1g}"


@cache
def flop(name: str) -> Flop:
    """Counted on the meta device: multiplications and additions of convolutions and matrix products."""
    towers, side = clip.on_meta(name), clip.image_size(name)
    length = clip.model_config(name)["text_cfg"].get("context_length", 77)
    pictures = torch.empty(2, 3, side, side, dtype=torch.uint8, device="meta")
    captions = torch.empty(2, length, dtype=torch.int32, device="meta")
    counts = []
    for inputs in ((pictures, None), (None, captions)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            towers(*inputs)
        counts.append(counter.get_total_flops() / 2)
    return Flop(*counts)


@cache
def speed() -> tuple[float, float]:
    """(seconds of a pair that no model changes, FLOP a second of forward passes that each have a backward pass)."""
    single, double = (1 / MEASURED[views] for views in (1, 2))
    return 2 * single - double, sum(flop(REFERENCE)) / (double - single)


def training_seconds(run: Run, pairs: int) -> float:
    """Of one GPU, for `pairs` pairs seen by the run's stage."""
    stage, forward = run.settings, flop(run.spec.model.name)
    host, rate = speed()
    pictures, captions = stage.objective.views
    work = pictures * forward.picture + captions * forward.caption
    seconds = host + work / rate / (3 if stage.norms == "estimated" else 1)
    if sorter(run) is not None:
        seconds += host + (forward.picture + forward.caption) / rate / 3
    if any("labels" in part.needs and getattr(part, "labels", "") is None for part in objectives_of(stage.objective)):
        seconds += host + forward.picture / rate / 3
    return pairs * seconds


def evaluation_seconds(run: Run, steps: int, notes: set[str]) -> float:
    """Of one GPU, for every time that the run is measured."""
    stage, forward = run.settings, flop(run.spec.model.name)
    host, rate = speed()
    each = 0.0
    for name in dict.fromkeys(name for measure in run.spec.measure for name in measure.sets):
        if name not in SETS:
            notes.add(f"evaluation on '{name}' is not counted: its size is known to none of {', '.join(SETS)}")
            continue
        times, size = encoded_times(run.spec, name), SETS[name]
        each += size.pictures * (host + times.pictures * forward.picture / rate / 3)
        each += size.texts * times.texts * forward.caption / rate / 3
    return (1 + measured_later(steps, stage.epochs, stage.measure_steps)) * each


def measured_later(steps: int, epochs: int, every: int | None) -> int:
    """How often a run is measured after its start: at the end of each epoch and after each `every` steps, once where both
    fall together."""
    if not every or not steps:
        return epochs
    together = epochs // (every // gcd(every, steps // epochs))
    return epochs + steps // every - together


class Times(NamedTuple):
    """How often all pictures of an evaluation set, and so many texts as it has, are encoded when it is measured once."""

    pictures: int
    texts: int


def encoded_times(spec: Spec, name: str) -> Times:
    """Of the set of that name: what engine/evaluation/evaluate.py encodes of it."""
    sections = [measure for measure in spec.measure if measure.images == name]
    views = list(attack_views(spec, {measure.attack_kind for measure in sections if measure.triggered}))
    detectors = [one for one in spec.measure if isinstance(one, PictureDetector) and one.reads_heads]
    versions = 1 + len(views)
    heads = versions * len({one.references for one in detectors if one.images == name})
    heads += (1 + versions) * any(one.references == name for one in detectors)
    labelled = any(measure.reads == "labels" for measure in sections)
    words = {str(aim.words) for _, aim in views if labelled and isinstance(aim, Aim) and aim.words is not None}
    own = {str(prompts) for measure in sections if (prompts := measure.prompts(["a"], ["{c}"]))}
    return Times(versions + heads, bool(sections) + len(words) + len(own))


def cost(run: Run, pairs: int, notes: set[str]) -> Cost:
    """Of a run that draws from `pairs` pairs."""
    stage = run.settings
    steps = pairs // stage.batch * stage.epochs
    pairs_seen = steps * stage.batch
    hours = (training_seconds(run, pairs_seen) + evaluation_seconds(run, steps, notes)) / 3600
    cleans = run.stage == "clean"
    return Cost(int(not cleans), int(cleans), steps, pairs_seen, hours)


def cost_notes(dollars: float | None) -> list[str]:
    """What to know about GPU-hours, and the price."""
    origin = (
        f"GPU-hours are an estimate for {GPU}, from the published times of RN50 (engine/estimate/cost.py); others differ"
    )
    price = (
        f"dollars at {dollars:g} a GPU-hour" if dollars is not None else "--dollars RATE, of one GPU-hour, adds the price"
    )
    return [origin, price]
