"""Pairs on disk to batches: read, decode, poison, augment, tokenise.

    Index (where each sample lies) -> chosen samples -> Order (who stands where) -> this rank's slice of batch k
      -> bytes -> picture and caption -> poison plan -> second view -> Batch

A sample that can't be decoded is counted and replaced by the next one in stored order, so that a batch is the same on
every machine and its size never changes.
"""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch.utils.data import DataLoader, Dataset

from data.augment import Augment, augmented_caption, augmented_picture
from data.chance import ranks
from data.decode import Bad, caption, picture, pixels
from data.order import Order
from data.poison import Plan
from data.refusal import Refusal
from data.section import Section
from data.shards import Index

Tokenize = Callable[[list[str]], torch.Tensor]  # captions -> int [n, L]


class Source(Section):
    """The pairs to pre-train on."""

    shards: str = Field(description="brace or glob pattern of local .tar files, in webdataset's layout")
    expect: int | None = Field(None, ge=1, description="pairs they should hold, for --dry-run where the shards are not")


class CleanSource(Section):
    """The pairs to clean on: never one that the attack poisoned."""

    shards: str | None = Field(None, description="default: the shards of data.pretrain")
    pairs: int | None = Field(None, ge=1, description="how many, drawn by hash(seed, key); default: all")


class Data(Section):
    """What is read, in which order, and how the second view is made."""

    pretrain: Source
    clean: CleanSource = CleanSource()
    test: dict[str, str] = Field(description="name: folder of each evaluation set, in CLIP_benchmark's layout")
    augment: Augment = Augment()
    lanes: int = Field(64, ge=1, description="pieces of an epoch that a batch takes turns over")
    window: int = Field(1024, ge=1, description="samples shuffled among each other within a lane")
    max_bad: float = Field(0.01, ge=0, le=1, description="share of unusable samples above which the run stops")
    made_by: str | None = Field(None, description="the command that makes the shards, shown when they are missing")


@dataclass
class Batch:
    """This rank's B pairs of one global batch, V views of the picture and U of the caption; `poisoned` is for the journal,
    never for the model."""

    images: torch.Tensor  # uint8 [B, V, 3, H, W]
    tokens: torch.Tensor  # int32 [B, U, L]
    samples: torch.Tensor  # int64 [B], places in the index
    keys: list[str]
    poisoned: torch.Tensor  # bool [B]
    skipped: list[tuple[str, str, str]]  # (shard path, key, cause) of samples that were replaced


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


class Pairs(Dataset[Batch]):
    """Item (epoch, step) is this rank's part of that global batch; picklable, opens files where it is used."""

    def __init__(
        self, index: Index, chosen: np.ndarray, data: Data, reading: Reading, tokenize: Tokenize, plan: Plan | None
    ) -> None:
        if reading.batch > len(chosen):
            raise Refusal(f"batch is {reading.batch:,}, but there are {len(chosen):,} pairs; lower it or add shards")
        self.index, self.chosen, self.reading, self.tokenize, self.plan = index, chosen, reading, tokenize, plan
        counts = np.bincount(index.shard[chosen], minlength=len(index.paths))
        self.order = Order(tuple(int(n) for n in counts), reading.seed, data.lanes, data.window)
        self.files: dict[str, int] = {}

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return self.order.steps(self.reading.batch)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "files": {}}

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        """This rank's part of global batch (epoch from 1, step from 0); Refusal if the shards can't be read."""
        epoch, step = at
        here = self.reading
        rows = self.order.batch(epoch, step, here.batch)
        share = here.batch // here.world
        pictures: list[np.ndarray] = []
        captions: list[str] = []
        keys: list[str] = []
        poisoned: list[bool] = []
        samples: list[int] = []
        skipped: list[tuple[str, str, str]] = []
        for row in rows[here.rank * share : (here.rank + 1) * share]:
            sample, views, texts = self._good(int(row), epoch, skipped)
            pictures.extend(views)
            captions.extend(texts)
            keys.append(self.index.keys[sample])
            samples.append(sample)
            poisoned.append(bool(self.plan is not None and self.plan.chosen[sample]))
        images = torch.from_numpy(np.stack(pictures)).view(share, here.views[0], 3, here.size, here.size)
        tokens = self.tokenize(captions).to(torch.int32).view(share, here.views[1], -1)
        return Batch(images, tokens, torch.tensor(samples), keys, torch.tensor(poisoned), skipped)

    def _good(self, row: int, epoch: int, skipped: list[tuple[str, str, str]]) -> tuple[int, list[np.ndarray], list[str]]:
        """The sample at a row of `chosen`, or the next good one: (its number, V pictures, U captions)."""
        for turn in range(len(self.chosen)):
            sample = int(self.chosen[(row + turn) % len(self.chosen)])
            try:
                return sample, *self._views(sample, epoch)
            except Bad as bad:
                skipped.append((self.index.paths[self.index.shard[sample]], self.index.keys[sample], str(bad)))
        raise Refusal("none of the pairs can be decoded; check the shards")

    def first(self, sample: int) -> tuple[np.ndarray, str]:
        """The first view of a sample, uint8 [3, H, W], and its caption, with the attack on it if it is poisoned; Bad if it
        can't be used."""
        key = self.index.keys[sample]
        image, text = self.raw(sample)
        if self.plan is not None and self.plan.chosen[sample]:
            return self.plan.marked(pixels(image), key), self.plan.caption(key)
        return pixels(image), text

    def _views(self, sample: int, epoch: int) -> tuple[list[np.ndarray], list[str]]:
        here, key = self.reading, self.index.keys[sample]
        first, text = self.first(sample)
        names = (here.seed, key, epoch)
        pictures, captions = [first], [text]
        whole = Image.fromarray(first.transpose(1, 2, 0)) if here.views[0] > 1 else None
        for view in range(1, here.views[0]):
            assert whole is not None
            further = (view,) * (view > 1)
            pictures.append(pixels(augmented_picture(here.augment.image, whole, *names, *further)))
        for view in range(1, here.views[1]):
            captions.append(augmented_caption(here.augment, text, *names, *(view,) * (view > 1)))
        return pictures, captions

    def raw(self, sample: int) -> tuple[Image.Image, str]:
        """The stored picture, cut to the model's size, and the stored caption; Bad if one can't be used."""
        offset, size, text_offset, text_size = (int(n) for n in self.index.where[sample])
        path = self.index.paths[self.index.shard[sample]]
        text = caption(self._read(path, text_offset, text_size))
        return picture(self._read(path, offset, size), self.reading.size), text

    def _read(self, path: str, offset: int, size: int) -> bytes:
        if path not in self.files:
            if len(self.files) >= 128:
                os.close(self.files.pop(next(iter(self.files))))
            self.files[path] = os.open(path, os.O_RDONLY)
        body = os.pread(self.files[path], size, offset)
        if len(body) != size:
            raise Refusal(f"shard {path} became shorter while it was read; write it again and start anew")
        return body


def clean_rows(index: Index, seed: int, pairs: int | None, excluded: set[str]) -> np.ndarray:
    """int64, sorted: the samples of a clean set, `pairs` of them by hash(seed, key), none of them excluded."""
    free = np.array([i for i, key in enumerate(index.keys) if key not in excluded], np.int64)
    if pairs is not None and pairs > len(free):
        raise Refusal(f"data.clean.pairs is {pairs:,}, but only {len(free):,} pairs are not poisoned; lower it")
    by_hash = np.argsort(ranks(seed, "clean", [index.keys[i] for i in free]), kind="stable")
    return np.sort(free[by_hash[:pairs]])


class Told(Dataset[Batch | Refusal]):
    """Pairs, with a Refusal handed over as an item: a loader's worker would wrap what it raises in a traceback."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __getitem__(self, at: tuple[int, int]) -> Batch | Refusal:
        try:
            return self.pairs[at]
        except Refusal as refusal:
            refusal.alone = True
            return refusal


def batches(pairs: Pairs, epochs: int, start: int, workers: int) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from step `start` (from 0) to the end of the last epoch; workers shut out the signals that stop a
    run, so that the run itself can save before it ends."""
    steps = pairs.steps
    places = [(step // steps + 1, step % steps) for step in range(start, epochs * steps)]
    loader = DataLoader(
        Told(pairs),
        batch_size=None,
        sampler=places,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_shield,
        multiprocessing_context="fork" if workers else None,
    )
    for step, batch in enumerate(loader, start):
        if isinstance(batch, Refusal):
            raise batch
        yield step, batch


def _shield(worker: int) -> None:
    torch.set_num_threads(1)
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(sign, signal.SIG_IGN)
