"""Where a stage starts: weights on disk or by open_clip's name, and what is done to them before the first step."""

import os
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from data.refusal import UserError
from data.section import Section
from records.digests import file_digest
from records.ending import verify_files

WEIGHTS = ("weights.safetensors", "open_clip_model.safetensors")  # of a run, of a folder of open_clip's


class Start(Section):
    """Weights to start from: a file or folder of ours, of open_clip's or of the paper's code; or a name that open_clip
    knows."""

    path: str | None = Field(
        None,
        description="a run's folder, an open_clip folder, a .safetensors file, or a .pt file of open_clip's or of the code "
        "of arXiv 2311.14948",
    )
    pretrained: str | None = Field(None, min_length=1, description="a tag of open_clip's for model.name, such as openai")
    digest: str | None = Field(
        None,
        description="the weights' SHA-256, at least 12 hex digits; default: the file's, so that it may move",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "Start":
        if (self.path is None) == (self.pretrained is None):
            raise ValueError("give either path or pretrained")
        return self


class TransformSection(Section):
    """What is done to the start's weights before the first step; the functions are in engine/models/transforms/."""

    removes_neurons: ClassVar[bool] = False  # of the picture tower, which must be of a kind whose neurons are known
    forgets: ClassVar[bool] = False  # nothing of the start's weights is left


class ShrinkPerturb(TransformSection):
    """theta <- shrink * theta + perturb * theta_fresh (Ash & Adams 2020, arXiv 1910.08475; arXiv 2311.14948).

    theta_fresh is a freshly initialised network, the same on every process; all parameters and the scale, not
    BatchNorm's running statistics.
    """

    kind: Literal["shrink_perturb"]
    shrink: float = Field(0.95, ge=0, le=1)
    perturb: float = Field(1e-4, ge=0)


class Fresh(TransformSection):
    """Freshly initialised weights instead of the start's, the same on every process; running statistics, scale and bias too.

    The control of a study of cleaners: what training on the clean data alone gives. One that does no better has thrown the
    model away.
    """

    forgets: ClassVar[bool] = True
    kind: Literal["fresh"]


class FinePrune(TransformSection):
    """Fine-pruning (Liu et al. 2018, arXiv 1805.12185): the neurons of the picture tower that clean pictures excite least
    are removed; the stage's training is the fine-tuning.

    Neurons: inner channels of the last stage's blocks in a ResNet, hidden units of the last block's MLP in a ViT.
    """

    removes_neurons: ClassVar[bool] = True
    kind: Literal["fine_prune"]
    share: float = Field(0.2, ge=0, lt=1, description="of the neurons that are removed")
    pairs: int = Field(1000, ge=1, description="clean pictures that activations are averaged over")


class Anp(TransformSection):
    """Adversarial neuron pruning (Wu & Wang 2021, arXiv 2110.14430): masks on the picture tower's neurons are learned under
    the worst perturbation of their weights; neurons whose mask ends below the threshold are removed.

    min over m in [0, 1] of  alpha L(m w, b) + (1 - alpha) max over |d|, |x| <= budget of L((m + d) w, (1 + x) b),
    L: MMCL on clean pairs.
    """

    removes_neurons: ClassVar[bool] = True
    kind: Literal["anp"]
    threshold: float = Field(0.2, ge=0, le=1, description="neurons whose mask is below it are removed")
    budget: float = Field(0.4, ge=0, description="largest relative change of a neuron's weights and bias")
    alpha: float = Field(0.2, ge=0, le=1, description="weight of the loss without perturbation")
    rate: float = Field(0.2, gt=0, description="of the masks' descent, with momentum 0.9")
    steps: int = Field(2000, ge=0)


class Line(TransformSection):
    """The point on the straight line from the start's weights to others: (1 - share) w + share w'.

    Of all weights, BatchNorm's running statistics, the scale and the bias; at 0 and at 1 one of the two models, to the bit.
    """

    kind: Literal["line"]
    to: Start = Field(description="a run's folder, or a .safetensors file, of the same model")
    share: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _lies_in_a_file(self) -> "Line":
        if self.to.path is None:
            raise ValueError("to names weights by open_clip's tag; give a path")
        return self


class Rounded(TransformSection):
    """Weights as another format holds them, used as float32.

    bf16: each to the nearest; int8: each row w of a matrix or filter to the nearest multiples of max |w| / 127, others stay.
    """

    kind: Literal["rounded"]
    format: Literal["int8", "bf16"]


AnyTransform = Annotated[ShrinkPerturb | Fresh | FinePrune | Anp | Line | Rounded, Field(discriminator="kind")]


def weights_of(start: Start) -> Path | None:
    """The file that holds the weights of a path, or None if there is none."""
    assert start.path is not None
    path = Path(start.path)
    candidates = [path / name for name in WEIGHTS] if os.path.isdir(path) else [path]
    return next((file for file in candidates if os.path.isfile(file)), None)


def identified(start: Start, where: str) -> Start:
    """The start with its weights' whole SHA-256, if they are there; UserError if the spec promises another, or the finished
    run that wrote them."""
    path = weights_of(start)
    if path is None:
        return start
    try:
        verify_files(path.parent, path.name)
        digest = file_digest(path)
    except OSError as error:
        raise UserError(f"{where}.path: {path}: {error.strerror}; expected a file that can be read") from None
    if start.digest is not None and not (len(start.digest) >= 12 and digest.startswith(start.digest)):
        raise UserError(f"{where}.digest is {start.digest}, but {path} has {digest[:16]}...; name the right file")
    return start.model_copy(update={"digest": digest})
