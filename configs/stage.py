"""The two stages, pre-training and cleaning: where they start, what they optimize, and how."""

from typing import Literal

from pydantic import Field, model_validator

from configs.start import AnyTransform, Start
from data.section import Section
from objectives import AnyObjective


class TowardStart(Section):
    """Path-aware minimisation (Min et al. 2024, arXiv 2410.09838): each step's gradient is taken at weights moved towards
    the start's, so that what is learned holds along the way back to them.

    w <- AdamW(w, gradient at w + rho (start - w) / ||start - w||), over the towers' trained weights; at w = start not moved.
    """

    rho: float = Field(0.5, ge=0, description="how far the weights are moved, in the norm of all of them together")


class Optimizer(Section):
    """AdamW (Loshchilov & Hutter 2019) with linear warm-up and cosine decay to zero."""

    rate: float = Field(ge=0, description="learning rate at the end of warm-up")
    warmup: int = Field(0, ge=0, description="steps")
    decay: float = Field(0.1, ge=0, description="weight decay; never on gains, biases, position embeddings, scale")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient of the towers")

    spikes: Literal["none", "zclip"] = Field(
        "none", description="zclip: clip a gradient whose norm stands out from those before (arXiv 2504.02507)"
    )
    decay_rule: Literal["matrices", "published"] = Field(
        "matrices", description="published: all but names with bn, ln or bias, as the code of arXiv 2311.14948 has it"
    )
    offset: Literal["none", "published"] = Field(
        "none", description="published: the schedule starts one epoch late, as in the code of arXiv 2311.14948"
    )
    state: Literal["fresh", "inherited", "published"] = Field(
        "fresh",
        description="AdamW's moments before the first step. fresh: zero; inherited: those that the start's training ended "
        "with; published: those, and the start's weight decay instead of `decay`, as the code of arXiv 2311.14948 does",
    )
    path: TowardStart | None = Field(
        None,
        exclude_if=lambda path: path is None,
        description="the gradient is taken at weights moved towards the start's (arXiv 2410.09838); not with machine.zero 3",
    )

    @model_validator(mode="after")
    def _betas_below_one(self) -> "Optimizer":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("both betas must lie in [0, 1)")
        return self

    @model_validator(mode="after")
    def _one_way_to_clip(self) -> "Optimizer":
        if self.clip is not None and self.spikes != "none":
            raise ValueError("clip and spikes both limit the gradient's norm; give one of them")
        return self


class Stage(Section):
    """One pass of training: an objective, how long, with how many pairs contrasted together."""

    objective: AnyObjective
    epochs: int = Field(ge=0)
    batch: int = Field(ge=2, le=1 << 20, description="pairs contrasted together, over all ranks")
    optimizer: Optimizer
    gather: Literal["exact", "published"] = Field(
        "exact",
        description="published: the towers' gradient divided by the number of processes, as where gathered rows carry none; "
        "the one setting by which the machine changes a result",
    )
    start: Start | None = Field(
        None, description="the weights it starts from; default: fresh ones in pretrain, the result of pretrain in clean"
    )
    transform: AnyTransform | None = Field(None, description="what is done to the start's weights before the first step")
    norms: Literal["trained", "frozen", "estimated"] = Field(
        "trained",
        description="BatchNorm. trained: statistics of each group, running ones move; frozen: the start's running "
        "statistics, which stay; estimated: they alone move, no weight does",
    )
    measure_steps: int | None = Field(
        None, ge=1, description="measure every so many steps as well as after every epoch; changes no step"
    )

    @model_validator(mode="after")
    def _lasts_long_enough(self) -> "Stage":
        least = self.objective.least_epochs
        if 0 < self.epochs < least:
            raise ValueError(
                f"epochs is {self.epochs}, but objective {self.objective.kind} would only warm up; give at least {least}, "
                "or warm up shorter"
            )
        return self

    @model_validator(mode="after")
    def _has_what_it_inherits(self) -> "Stage":
        if self.start is not None and self.start.pretrained and self.optimizer.state != "fresh":
            raise ValueError(
                f"optimizer.state is {self.optimizer.state}, but weights by open_clip's name come without AdamW's moments; "
                "use fresh, or start from a file that holds them"
            )
        if self.transform is not None and self.transform.removes_neurons and self.optimizer.state != "fresh":
            raise ValueError(
                f"optimizer.state is {self.optimizer.state}, but moments from before would move the neurons that transform "
                f"{self.transform.kind} removes; use fresh"
            )
        if self.transform is not None and self.transform.removes_neurons and self.optimizer.path is not None:
            raise ValueError(
                "optimizer.path is given, but gradients on the way to the start would bring back the neurons that "
                f"transform {self.transform.kind} removes; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _takes_nothing_that_is_forgotten(self) -> "Stage":
        if self.transform is not None and self.transform.forgets:
            kept = (
                ("optimizer.state", self.optimizer.state, "fresh"),
                ("optimizer.path", self.optimizer.path and "given", None),
                ("norms", self.norms, "trained"),
            )
            for field, value, only in kept:
                if value != only:
                    raise ValueError(
                        f"{field} is {value}, but transform {self.transform.kind} leaves nothing of the start; "
                        + (f"use {only}" if only else "leave it out")
                    )
        return self
