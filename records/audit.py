"""audit.json: what an audit of one model found, and how likely a clean model is to look like it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from records.folder import RecordFile
from records.rows import LARGEST, Amount, Count

FOLDER = "audit"  # in a run's folder: where its audit lies, unless another is named
CONSPICUOUS = 0.1  # share of a picture below which the paper of DECREE takes an encoder for backdoored
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
AuditName = Literal["decree", "targets", "texts"]


class Part(BaseModel):
    """The parent of what an audit consists of."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class StampFound(Part):
    """A stamp that an audit found. `size` is the sum of its mask over three channels, `share` that of 3 H W; of a search
    that did not succeed, both are those of a whole picture. The rest is measured on pictures that it was not searched on."""

    succeeded: bool
    size: Amount
    share: Share
    steps: Count
    file: str | None = None  # in the audit's folder, as the trigger `tensor` reads it
    target: str | None = None  # the class that stamped pictures of others are taken for
    asr: Share | None = None  # of the stamp towards it, by the measure attack_success
    asr_floor: Share | None = None  # the same without the stamp
    iou: Share | None = None  # with the planted patch, where the run knows it


class Decree(StampFound):
    """The smallest stamp that makes pictures alike; `cosine`: how alike those are that it was not searched on."""

    cosine: Number
    conspicuous: bool  # by the paper's rule: it succeeded, and its share is below CONSPICUOUS


class ClassFound(Part):
    """The smallest stamp of one class, and its anomaly index among all classes; None where there is none."""

    name: str
    size: Amount
    succeeded: bool
    index: Number | None


class Targets(Part):
    """The smallest stamp of each class; `index` is the largest one, `flagged` are the classes whose index is above 2."""

    classes: list[ClassFound]
    index: Number | None
    flagged: list[str]
    smallest: StampFound


class WordFound(Part):
    """A word of the vocabulary near the vector found, and how alike it makes prompts."""

    word: str
    assimilation: Number


class Texts(Part):
    """The vector that makes prompts alike: their mean cosine with it and without, the class they come near, near words."""

    assimilation: Number
    plain: Number
    target: str | None
    words: list[WordFound]
    compared: bool  # whether a clean text tower took part


class Null(Part):
    """A number of this model among those of clean models: p, and the smallest that so many can show."""

    value: Number
    clean: list[Number]
    p: Share
    smallest: Share


class AuditJson(RecordFile):
    """One model's audit. `settings` and `images` must be the same for two audits to be compared; the higher a number, the
    more conspicuous."""

    FILE: ClassVar[str] = "audit.json"
    REMEDY: ClassVar[str] = "delete it and audit the model again"

    weights: str  # what was given
    digest: str  # the SHA-256 of the file of weights
    model: str
    run: str | None = None  # the run's folder, if the weights are a run's
    targets_planted: list[str] | None = None  # what the run was poisoned towards, [] for a clean one; None: unknown
    images: str
    images_digest: str  # of the keys of the pictures and of the classes
    pictures: Count  # that were searched on
    held: Count  # that stamps were measured on
    settings: dict[str, Any]
    decree: Decree | None = None
    targets: Targets | None = None
    texts: Texts | None = None
    null: dict[AuditName, Null] = {}
    seconds: Amount

    def numbers(self) -> dict[AuditName, float]:
        """One number for each audit that gave one: minus DECREE's share, the largest anomaly index, what the vector adds to
        the prompts' mean cosine."""
        out: dict[AuditName, float] = {}
        if self.decree is not None:
            out["decree"] = -self.decree.share
        if self.targets is not None and self.targets.index is not None:
            out["targets"] = self.targets.index
        if self.texts is not None:
            out["texts"] = self.texts.assimilation - self.texts.plain
        return out

    def comparable(self, other: "AuditJson") -> bool:
        """Whether two audits asked the same of models of one architecture, on the same pictures."""
        mine, theirs = ((a.model, a.images_digest, a.pictures, a.held, a.settings) for a in (self, other))
        return mine == theirs
