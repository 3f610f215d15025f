"""Pairs on disk to batches: read, decode, poison, augment, tokenise.

    Index (where each sample lies) -> chosen samples -> Order (who stands where) -> this rank's slice of batch k
      -> bytes -> picture and caption -> poison plan -> views that need words or Pillow -> Batch
      -> on the device: the views that a few numbers a sample describe (data/views.py)

A sample that can't be decoded is counted and replaced by the next one in stored order, so that a batch is the same on
every machine and its size never changes.
"""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch.utils.data import DataLoader, Dataset

from data import views
from data.augment import Augment, augmented_caption, autoaugmented, reopen
from data.decode import DecodeError, DecodeMode, caption, centred, squeezed, whole
from data.order import Last, Mix, Order
from data.poison import Plan
from data.refusal import UserError
from data.section import Section
from data.seeding import ranks, smallest_k
from data.shards import Index
from data.store import Body, Range, Reader

Tokenize = Callable[[list[str]], torch.Tensor]  # captions -> int32 [n, L]
GAP = 1 << 16  # bytes: a picture and its caption this near are read at once


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
    expect: int | None = Field(None, ge=1, description="pairs they should hold, for --dry-run where the shards are not")

    @model_validator(mode="after")
    def _one_of_two(self) -> "Source":
        if (self.shards is None) == (self.sources is None):
            raise ValueError("give either shards or sources")
        return self

    @property
    def patterns(self) -> str | dict[str, str]:
        """The pattern, or the patterns by name."""
        if self.sources is not None:
            return {name: one.shards for name, one in self.sources.items()}
        assert self.shards is not None
        return self.shards

    @property
    def weights(self) -> tuple[int, ...] | None:
        """Of the sources; None if all pairs stand in one line."""
        if self.sources is None or len(self.sources) < 2:
            return None
        return tuple(one.weight for one in self.sources.values())

    def __str__(self) -> str:
        return str(self.shards or ", ".join(one.shards for one in (self.sources or {}).values()))


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
    made_by: str | None = Field(None, description="the command that makes the shards, shown when they are missing")


@dataclass
class Batch:
    """This rank's B pairs of one global batch, V views of the picture and U of the caption (maybe none); `poisoned` is for
    the journal, never for the model. Where the loader makes all views, W = V and nothing is drawn; else it makes the first,
    and those that Pillow must make, and `drawn` says how each view comes from them."""

    images: torch.Tensor  # uint8 [B, W, 3, H, W]
    tokens: torch.Tensor  # int32 [B, U, L]
    samples: torch.Tensor  # int64 [B], places in the index
    keys: list[str]
    poisoned: torch.Tensor  # bool [B]
    skipped: list[tuple[str, str, str]]  # (shard path, key, cause) of samples that were replaced
    drawn: torch.Tensor | None = None  # float32 [B, V, views.NUMBERS]

    @property
    def views(self) -> int:
        """V."""
        return self.images.shape[1] if self.drawn is None else self.drawn.shape[1]

    def first(self) -> "Batch":
        """The same pairs, the first view alone."""
        drawn = None if self.drawn is None else self.drawn[:, :1]
        return Batch(self.images[:, :1], self.tokens[:, :1], self.samples, self.keys, self.poisoned, [], drawn)

    def pictures(self, device: torch.device) -> torch.Tensor:
        """uint8 [B, V, 3, H, W] on the device, the views made that are made there."""
        images = self.images.to(device, non_blocking=True)
        if self.drawn is None:
            return images
        return views.made(images, self.drawn.to(device, non_blocking=True), views.numbers_used(self.drawn))

    def pin_memory(self) -> "Batch":
        """Called by the loader."""
        drawn = None if self.drawn is None else self.drawn.pin_memory()
        parts = self.images.pin_memory(), self.tokens.pin_memory(), self.samples, self.keys, self.poisoned, self.skipped
        return Batch(*parts, drawn)


@dataclass(frozen=True)
class Reading:
    """How this rank reads: its place, the global batch, what the model and the objective need."""

    seed: int
    rank: int
    world: int
    batch: int
    views: tuple[int, int]  # of the picture, of the caption
    size: int
    augment: Augment
    caption: str = "txt"
    way: DecodeMode = "exact"


class Pairs(Dataset[Batch]):
    """Item (epoch, step) is this rank's part of that global batch; picklable, opens files where it is used."""

    def __init__(
        self, index: Index, chosen: np.ndarray | None, data: Data, reading: Reading, tokenize: Tokenize, plan: Plan | None
    ) -> None:
        self.index, self.chosen, self.reading, self.tokenize, self.plan = index, chosen, reading, tokenize, plan
        if reading.batch > len(self):
            raise UserError(f"batch is {reading.batch:,}, but there are {len(self):,} pairs; lower it or add shards")
        self.order = _order(index, chosen, data, reading)
        self.reader, self.spare = Reader(), Reader()  # the spare one reads while the other's bytes are in use

    def __len__(self) -> int:
        return len(self.index) if self.chosen is None else len(self.chosen)

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return self.order.steps(self.reading.batch)

    def sample(self, row: int) -> int:
        """The place in the index of a row of the chosen samples; rows go on from the start behind the last."""
        row %= len(self)
        return row if self.chosen is None else int(self.chosen[row])

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        """This rank's part of global batch (epoch from 1, step from 0); UserError if the shards can't be read."""
        epoch, step = at
        here = self.reading
        share = here.batch // here.world
        rows = self.order.batch(epoch, step, here.batch)[here.rank * share : (here.rank + 1) * share]
        skipped: list[tuple[str, str, str]] = []
        bodies = self._bodies([self.sample(int(row)) for row in rows])
        found = [self._good(int(row), epoch, body, skipped) for row, body in zip(rows, bodies, strict=True)]
        samples = [sample for sample, _, _ in found]
        keys = [self.index.keys[sample] for sample in samples]
        images = _stacked([picture for _, views_, _ in found for picture in views_])
        tokens = self.tokenize([text for _, _, texts in found for text in texts]).to(torch.int32)
        poisoned = [self.plan is not None and bool(self.plan.chosen[sample]) for sample in samples]
        drawn = None
        if here.augment.on_device(here.views[0]):
            numbers = [views.draws(here.augment, here.views[0], here.seed, key, epoch) for key in keys]
            drawn = torch.from_numpy(np.stack(numbers))
        return Batch(
            images.view(share, -1, *images.shape[1:]),
            tokens.view(share, here.views[1], tokens.shape[-1]),
            torch.tensor(samples),
            keys,
            torch.tensor(poisoned),
            skipped,
            drawn,
        )

    def _good(
        self, row: int, epoch: int, body: tuple[Body, Body], skipped: list[tuple[str, str, str]]
    ) -> tuple[int, list[np.ndarray], list[str]]:
        """The sample at a row, or the next good one: (its place, its pictures, its U captions)."""
        for turn in range(len(self)):
            sample = self.sample(row + turn)
            try:
                return sample, *self._views(sample, epoch, body if not turn else self._bodies([sample], self.spare)[0])
            except DecodeError as bad:
                skipped.append((self.index.path(sample), self.index.keys[sample], str(bad)))
        raise UserError("none of the pairs can be decoded; check the shards")

    def first(self, sample: int, body: tuple[Body, Body] | None = None) -> tuple[np.ndarray, str]:
        """The first view of a sample, uint8 [3, H, W], and its caption, with the attack on it if it is poisoned; Bad if it
        can't be used."""
        picture, text = body or self._bodies([sample])[0]
        own, size, way = caption(text, self.reading.caption), self.reading.size, self.reading.way
        if self.plan is None or not self.plan.chosen[sample]:
            return centred(whole(picture, size, way), size, way), own
        return attacked(self.plan, sample, picture, size, way), self.plan.caption(own, sample)

    def _views(self, sample: int, epoch: int, body: tuple[Body, Body]) -> tuple[list[np.ndarray], list[str]]:
        here = self.reading
        picture, text = self.first(sample, body)
        names = (here.seed, self.index.keys[sample], epoch)
        pictures, captions = [picture], [text][: here.views[1]]
        if here.views[0] > 1 and here.augment.by_pillow:
            image = Image.fromarray(picture.transpose(1, 2, 0))
            for view in range(1, here.views[0]):
                pictures.append(autoaugmented(image, *names, *(view,) * (view > 1)))
        for view in range(1, here.views[1]):
            captions.append(augmented_caption(here.augment, text, *names, *(view,) * (view > 1)))
        return pictures, captions

    def captions(self, samples: np.ndarray) -> Iterator[str | None]:
        """The stored captions, in order; None for what can't be used."""
        for begin in range(0, len(samples), 4096):
            part = [int(i) for i in samples[begin : begin + 4096]]
            ranges: list[Range] = [(path, where[2], where[3]) for path, where in self.index.places(part)]
            for body in self.reader.read(ranges):
                try:
                    yield caption(body, self.reading.caption)
                except DecodeError:
                    yield None

    def _bodies(self, samples: list[int], reader: Reader | None = None) -> list[tuple[Body, Body]]:
        """(picture, caption) as stored, valid until the reader's next call; a poisoned sample may take another's picture.
        One read where both are near."""
        shown = samples if self.plan is None else [self.plan.source(i) if self.plan.chosen[i] else i for i in samples]
        own = self.index.places(samples)
        other = own if shown == samples else self.index.places(shown)
        ranges: list[Range] = []
        cuts: list[tuple[int, int, int, int, int, int]] = []  # range of the picture, its place there; of the caption; sizes
        for (near, (_, _, text, length)), (far, (image, size, _, _)) in zip(own, other, strict=True):
            low = min(image, text)
            span = max(image + size, text + length) - low
            if near == far and span <= size + length + GAP:
                cuts.append((len(ranges), image - low, len(ranges), text - low, size, length))
                ranges.append((near, low, span))
            else:
                cuts.append((len(ranges), 0, len(ranges) + 1, 0, size, length))
                ranges += [(far, image, size), (near, text, length)]
        bodies = (reader or self.reader).read(ranges)
        return [(bodies[a][i : i + size], bodies[b][j : j + length]) for a, i, b, j, size, length in cuts]


def _stacked(pictures: list[np.ndarray]) -> torch.Tensor:
    """uint8 [n, 3, H, W] of n pictures; in memory pixel by pixel, as they come."""
    out = np.empty((len(pictures), *pictures[0].shape[1:], 3), np.uint8)
    for row, picture in zip(out, pictures, strict=True):
        row[:] = picture.transpose(1, 2, 0)
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def attacked(plan: Plan, sample: int, picture: Body, size: int, way: DecodeMode = "exact") -> np.ndarray:
    """uint8 [3, size, size]: what a poisoned sample shows, from the stored bytes of its plan.source; Bad if they don't
    decode."""
    squash = plan.squash(sample)
    if squash is None:
        return plan.marked(centred(whole(picture, size, way), size, way), sample)
    marked = plan.marked(squeezed(whole(picture), squash), sample)
    return centred(marked.transpose(1, 2, 0), size, way)


def _order(index: Index, chosen: np.ndarray | None, data: Data, reading: Reading) -> Order | Mix:
    """The order over the chosen samples, by weight if there are several sources with weights."""
    counts = index.counts
    if chosen is not None:
        counts = np.bincount(np.searchsorted(index.ends, chosen, side="right"), minlength=len(index.paths))
    given = tuple(int(n) for n in counts)
    weights = data.pretrain.weights
    if weights is None or max(index.sources) + 1 != len(weights):
        return Order(given, reading.seed, data.lanes, data.window, data.last)
    parts = [tuple(n for n, s in zip(given, index.sources, strict=True) if s == at) for at in range(len(weights))]
    least = min(reading.batch * weight // sum(weights) for weight in weights)
    if least < 1 or not all(map(sum, parts)):
        raise UserError(
            f"a source of data.pretrain gives no pair to a batch of {reading.batch:,}; raise its weight or its pairs"
        )
    return Mix(tuple(Order(part, reading.seed, data.lanes, data.window) for part in parts), weights)


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


class ErrorAsItem(Dataset[Batch | UserError]):
    """Pairs, with a UserError handed over as an item: a loader's worker would wrap what it raises in a traceback."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __getitem__(self, at: tuple[int, int]) -> Batch | UserError:
        try:
            return self.pairs[at]
        except UserError as refusal:
            refusal.alone = True
            return refusal


def batches(pairs: Pairs, epochs: int, start: int, workers: int) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from step `start` (from 0) to the end of the last epoch; workers shut out the signals that stop a
    run, so that the run itself can save before it ends."""
    steps = pairs.steps
    places = [(step // steps + 1, step % steps) for step in range(start, epochs * steps)]
    loader = DataLoader(
        ErrorAsItem(pairs),
        batch_size=None,
        sampler=places,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_shield,
        multiprocessing_context="fork" if workers else None,
    )
    for step, batch in enumerate(loader, start):
        if isinstance(batch, UserError):
            raise batch
        yield step, batch


def _shield(worker: int) -> None:
    torch.set_num_threads(1)
    reopen()
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(sign, signal.SIG_IGN)
