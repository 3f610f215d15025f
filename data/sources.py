"""What a spec says of the pairs that are read: to pre-train on, to clean on, in which order; and which a clean set has."""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from data.augmentation.augment import Augment
from data.decode import DecodeMode
from data.order import Last
from data.refusal import UserError
from data.section import Section
from data.seeding import ranks, smallest_k
from data.shards import Index
from data.without import Without


class Weighted(Section):
    """One of several sources."""

    shards: str = Field(description="brace or glob pattern of .tar files")
    weight: int = Field(1, ge=1, description="its share of every batch, in relation to the other sources")


class Source(Section):
    """The pairs to pre-train on."""

    shards: str | None = Field(
        None, description="brace or glob pattern of .tar files, local or URLs, in webdataset's layout"
    )
    sources: dict[str, Weighted] | None = Field(None, description="instead of shards: several, by name, with weights")
    caption: str = Field("txt", pattern=r"^(txt|json\..+)$", description="txt, or json.FIELD for a field of KEY.json")
    expect: int | None = Field(
        None,
        ge=1,
        description="pairs they should hold, for --dry-run where they are not at hand; else said if wrong",
    )
    without: str | Without | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="pairs that are left out: a file of their keys; or {detector: slof, share: 0.1}, {random: 0.1} or "
        "{plan: true}, beside which the study carries out the same pre-training with nothing left out",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "Source":
        if (self.shards is None) == (self.sources is None):
            raise ValueError("give either shards or sources")
        return self

    @property
    def left_out(self) -> Without | None:
        """What `without` says, a file's name as the section that it stands for."""
        return Without(file=self.without) if isinstance(self.without, str) else self.without

    @property
    def patterns(self) -> str | dict[str, str]:
        """The pattern, or the patterns by name."""
        if self.sources is not None:
            return {name: source.shards for name, source in self.sources.items()}
        assert self.shards is not None
        return self.shards

    @property
    def weights(self) -> tuple[int, ...] | None:
        """Of the sources; None if all pairs stand in one line."""
        if self.sources is None or len(self.sources) < 2:
            return None
        return tuple(source.weight for source in self.sources.values())

    def __str__(self) -> str:
        return str(self.shards or ", ".join(source.shards for source in (self.sources or {}).values()))


class CleanSource(Section):
    """The pairs to clean on: never one that the attack poisoned, but for `leftover`."""

    shards: str | None = Field(None, description="default: the shards of data.pretrain")
    pairs: int | None = Field(None, ge=1, description="how many, drawn by hash(seed, key); default: all")
    held_out: bool = Field(False, description="they are kept out of the pre-training; else they are part of it")
    leftover: int | None = Field(
        None,
        ge=0,
        description="so many of them are poisoned pairs, left in on purpose; where shards hold poisoned pairs this must be "
        "said, and 0 leaves them all out",
    )
    labelled: str | None = Field(
        None,
        description="instead of pairs: a folder of labelled pictures, laid out as data.test's, for objectives that learn "
        "from labels",
    )
    augment: Augment | None = Field(None, description="how views differ in the cleaning; default: as data.augment says")

    @model_validator(mode="after")
    def _fits(self) -> "CleanSource":
        if self.leftover and self.held_out:
            raise ValueError("leftover takes poisoned pairs of data.pretrain; it does not go with held_out")
        if self.labelled is not None and (self.shards is not None or self.held_out or self.leftover):
            raise ValueError("labelled pictures are a set of their own; they go with none of shards, held_out and leftover")
        if self.held_out and self.shards is None and self.pairs is None:
            raise ValueError("held_out without shards needs pairs: how many are kept out of the pre-training")
        if self.pairs is not None and self.leftover is not None and self.leftover > self.pairs:
            raise ValueError(f"leftover is {self.leftover:,}, more than the {self.pairs:,} pairs of the set")
        return self


class Data(Section):
    """What is read, in which order, and how the further views are made."""

    pretrain: Source
    clean: CleanSource = CleanSource()
    test: dict[str, str] = Field(
        description="name: folder of each evaluation set, in CLIP_benchmark's layout or with a folder of pictures a class"
    )
    labels: Literal["correct", "published"] = Field(
        "correct", description="of ImageNet: published has two class names twice and two classes under another's label"
    )
    augment: Augment = Augment()
    decode: DecodeMode = Field("exact", description="exact: as Pillow's bicubic; fast: scaled decoding, linear filter")
    lanes: int = Field(64, ge=1, description="pieces of an epoch that a batch takes turns over")
    window: int = Field(1024, ge=1, description="samples shuffled among each other within a lane")
    last: Last = Field("drop", description="an epoch's last, partial batch: dropped, or filled with its first samples")
    max_bad: float = Field(0.01, ge=0, le=1, description="share of unusable samples above which the run stops")
    schemes: tuple[str, ...] = Field(("s3", "gs", "https"), description="of URLs that may be opened")
    patience: float = Field(
        10.0, ge=0, description="minutes for which a disk or store that can't be reached is tried again, before the run ends"
    )
    made_by: str | None = Field(None, description="the command that makes the shards, shown when they are missing")


def of_all_pairs(data: Data) -> Data:
    """The same with nothing left out of the pre-training."""
    if data.pretrain.without is None:
        return data
    return data.model_copy(update={"pretrain": data.pretrain.model_copy(update={"without": None})})


def clean_rows(index: Index, seed: int, clean: CleanSource, excluded: np.ndarray, poisoned: np.ndarray) -> np.ndarray:
    """int64, sorted: the samples of a clean set, drawn by hash(seed, key), none of them excluded (bool [N]); `leftover` of
    them are the first of the poisoned samples (int64, by their draw)."""
    leftover = clean.leftover or 0
    if leftover > len(poisoned):
        raise UserError(f"data.clean.leftover is {leftover:,}, but {len(poisoned):,} pairs are poisoned; lower it")
    free = np.flatnonzero(~excluded)
    wanted = len(free) if clean.pairs is None else clean.pairs - leftover
    if wanted > len(free):
        raise UserError(f"data.clean.pairs is {clean.pairs:,}, but only {len(free):,} pairs are not poisoned; lower it")
    drawn = smallest_k(ranks(seed, "clean", index.hashes), wanted, free)
    return np.sort(np.concatenate([drawn, poisoned[:leftover]]))
