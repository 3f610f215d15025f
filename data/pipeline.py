"""Pairs on disk to batches: read, decode, poison, augment, tokenise.

    Index (where each sample lies) -> chosen samples -> Order (who stands where) -> this rank's slice of batch k
      -> bytes -> picture and caption -> poison plan -> views that need words or Pillow -> Batch
      -> on the device: the views that a few numbers a sample describe (data/augmentation/device.py)

A sample that can't be decoded is counted and replaced by the next one in stored order, so that a batch is the same on
every machine and its size never changes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from data.augmentation.augment import Augment
from data.augmentation.device import draw_views, make_views, numbers_used
from data.augmentation.loaded import loaded_views
from data.beside import beside
from data.decode import DecodeError, DecodeMode, caption, centred, squeezed, whole
from data.loader import Workers, loaded
from data.order import Kept, Mix, Order
from data.poison_plan import PoisonPlan
from data.refusal import UserError
from data.shards import Index
from data.sources import Data
from data.stamped import Stamped
from data.store import TOGETHER, Body, Range, Reader, in_parts

Tokenize = Callable[[list[str]], torch.Tensor]  # captions -> int32 [n, L]
Stored = tuple[Body, ...]  # a picture and its caption; of a poisoned pair with another's picture beside its own that too
Good = tuple[int, list[np.ndarray], list[str]]  # a sample's place in the index, its pictures, its captions
GAP = 1 << 16  # bytes: a picture and its caption this near are read at once


@dataclass
class Batch:
    """This rank's B pairs of one global batch, V views of the picture and U of the caption (maybe none); `poisoned` is for
    the journal, and for an objective that leaves those pairs out of a term. Where the loader makes all views, W = V and
    nothing is drawn; else it makes the first, and those that Pillow must make, and `drawn` says how each view comes from
    them."""

    images: torch.Tensor  # uint8 [B, W, 3, H, W]
    tokens: torch.Tensor  # int32 [B, U, L]
    samples: torch.Tensor  # int64 [B], places in the index
    keys: list[str]
    poisoned: torch.Tensor  # bool [B]
    skipped: list[tuple[str, str, str]]  # (shard path, key, cause) of samples that were replaced
    drawn: torch.Tensor | None = None  # float32 [B, V, NUMBERS]

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
        return make_views(images, self.drawn.to(device, non_blocking=True), numbers_used(self.drawn))

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
    ranks: int
    batch: int
    views: tuple[int, int]  # of the picture, of the caption
    size: int
    augment: Augment
    caption: str = "txt"
    mode: DecodeMode = "exact"
    stamped: Stamped | None = None  # what a share of the first views carries


class Pairs(Dataset[Batch]):
    """Item (epoch, step) is this rank's part of that global batch; picklable, opens files where it is used."""

    def __init__(  # noqa: PLR0913  (the last has a default)
        self,
        index: Index,
        chosen: np.ndarray | None,
        data: Data,
        reading: Reading,
        tokenize: Tokenize,
        plan: PoisonPlan | None,
        out: np.ndarray | None = None,
    ) -> None:
        """`out` of the chosen samples (int64 [n], sorted) are left out; the others come as they would with them."""
        self.index, self.reading, self.tokenize, self.plan = index, reading, tokenize, plan
        self.chosen, self.out = chosen, out
        if out is not None and len(out):
            self.chosen = np.setdiff1d(np.arange(len(index)) if chosen is None else chosen, out)
        if reading.batch > len(self):
            fewer = f" after data.pretrain.without has left out {len(out):,}" if out is not None and len(out) else ""
            remedy = "leave out fewer, lower it" if fewer else "lower it"
            raise UserError(f"batch is {reading.batch:,}, but there are {len(self):,} pairs{fewer}; {remedy} or add shards")
        self.order = _order(index, chosen, out, data, reading)
        self.reader, self.spare = Reader(), Reader()  # the spare one reads while the other's bytes are in use

    def __len__(self) -> int:
        return len(self.index) if self.chosen is None else len(self.chosen)

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return self.order.steps(self.reading.batch)

    @property
    def out_digest(self) -> str | None:
        """Hex digest of the samples that are left out; None if none is."""
        return blake2b(self.out.tobytes(), digest_size=16).hexdigest() if self.out is not None and len(self.out) else None

    @property
    def poisoned(self) -> np.ndarray:
        """int64 [n]: the samples among these that the plan poisons, in the order of their draw."""
        entries = np.array(list(self.plan.entries) if self.plan else [], np.int64)
        return entries if self.chosen is None else entries[np.isin(entries, self.chosen)]

    @property
    def batch_bytes(self) -> int:
        """Bytes of this rank's part of a batch as it is read: its pictures, and a kilobyte a pair for the rest."""
        reading = self.reading
        pictures = reading.views[0] if reading.augment.by_pillow else 1
        return reading.batch // reading.ranks * (pictures * 3 * reading.size**2 + 1024)

    def sample(self, row: int) -> int:
        """The place in the index of a row of the chosen samples; rows go on from the start behind the last."""
        row %= len(self)
        return row if self.chosen is None else int(self.chosen[row])

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        """This rank's part of global batch (epoch from 1, step from 0); UserError if the shards can't be read."""
        epoch, step = at
        reading = self.reading
        share = reading.batch // reading.ranks
        rows = self.order.batch(epoch, step, reading.batch)[reading.rank * share : (reading.rank + 1) * share]
        skipped: list[tuple[str, str, str]] = []
        wanted, good = [self.sample(int(row)) for row in rows], list[Good]()
        for row, body in zip(rows, self.stored(wanted), strict=True):
            good.append(self._good(int(row), epoch, body, skipped))
        samples = [sample for sample, _, _ in good]
        keys = [self.index.keys[sample] for sample in samples]
        images = _stacked([picture for _, views_, _ in good for picture in views_])
        tokens = self.tokenize([text for _, _, texts in good for text in texts]).to(torch.int32)
        poisoned = [self.plan is not None and bool(self.plan.chosen[sample]) for sample in samples]
        drawn = None
        if reading.augment.on_device(reading.views[0]):
            numbers = [draw_views(reading.augment, reading.views[0], reading.seed, key, epoch) for key in keys]
            drawn = torch.from_numpy(np.stack(numbers))
        return Batch(
            images.view(share, -1, *images.shape[1:]),
            tokens.view(share, reading.views[1], tokens.shape[-1]),
            torch.tensor(samples),
            keys,
            torch.tensor(poisoned),
            skipped,
            drawn,
        )

    def _good(self, row: int, epoch: int, body: Stored, skipped: list[tuple[str, str, str]]) -> Good:
        """The sample at a row, or the next good one: (its place, its pictures, its U captions)."""
        for turn in range(len(self)):
            sample = self.sample(row + turn)
            try:
                return sample, *self._views(sample, epoch, None if turn else body)
            except DecodeError as bad:
                skipped.append((self.index.path(sample), self.index.keys[sample], bad.cause))
        raise UserError("none of the pairs can be decoded; check the shards")

    def stored(self, samples: list[int]) -> Iterator[Stored]:
        """What is stored of each sample, read together; each valid until the next is asked for."""
        for part in in_parts(self._sizes(samples), TOGETHER):
            yield from self._bodies(samples[part])

    def first(self, sample: int, body: Stored | None = None) -> tuple[np.ndarray, str]:
        """The first view of a sample, uint8 [3, H, W], and its caption, with the attack on it if it is poisoned; DecodeError
        if it can't be used. `body` is what is stored of it; None: read now."""
        picture, text, *others = body or self._bodies([sample], self.spare)[0]
        own, size, mode = caption(text, self.reading.caption), self.reading.size, self.reading.mode
        if self.plan is None or not self.plan.chosen[sample]:
            return centred(whole(picture, size, mode), size, mode), own
        return attacked(self.plan, sample, [picture, *others], size, mode), self.plan.caption(own, sample)

    def _views(self, sample: int, epoch: int, body: Stored | None) -> tuple[list[np.ndarray], list[str]]:
        reading = self.reading
        names = (reading.seed, self.index.keys[sample], epoch)
        picture, text = self.first(sample, body)
        if reading.stamped is not None:
            picture = reading.stamped.put(picture, *names)
        return loaded_views(reading.augment, reading.views, (picture, text), names)

    def _shown(self, samples: list[int]) -> list[int]:
        """Whose pictures these samples show."""
        return samples if self.plan is None else [self.plan.source(i) if self.plan.chosen[i] else i for i in samples]

    def _neighbours(self, samples: list[int]) -> list[tuple[int, int]]:
        """(place in the list, the sample whose picture stands beside its own) of those that have one."""
        plan = self.plan
        found = [] if plan is None else [(at, plan.neighbour(i)) for at, i in enumerate(samples) if plan.chosen[i]]
        return [(at, other) for at, other in found if other is not None]

    def _sizes(self, samples: list[int]) -> list[int]:
        """Bytes of each sample's pictures and caption as stored."""
        where = self.index.where
        sizes = where[self._shown(samples), 1] + where[samples, 3]
        for at, other in self._neighbours(samples):
            sizes[at] += where[other, 1]
        out: list[int] = sizes.tolist()
        return out

    def _bodies(self, samples: list[int], reader: Reader | None = None) -> list[Stored]:
        """What is stored of each sample, valid until the reader's next call; a poisoned sample may take another's picture.
        One read where both are near. Replaced if they are not what was indexed."""
        shown = self._shown(samples)
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
        neighbours, first = self._neighbours(samples), len(ranges)
        if neighbours:
            beside_them = self.index.places([other for _, other in neighbours])
            ranges += [(path, image, size) for path, (image, size, _, _) in beside_them]
        bodies = (reader or self.reader).read(ranges)
        out: list[Stored] = [(bodies[a][i : i + size], bodies[b][j : j + n]) for a, i, b, j, size, n in cuts]
        self.index.verify(0, shown, (stored[0] for stored in out))
        self.index.verify(1, samples, (stored[1] for stored in out))
        if neighbours:
            self.index.verify(0, [other for _, other in neighbours], bodies[first:])
        for (at, _), body in zip(neighbours, bodies[first:], strict=True):
            out[at] = (*out[at], body)
        return out


def _stacked(pictures: list[np.ndarray]) -> torch.Tensor:
    """uint8 [n, 3, H, W] of n pictures; in memory pixel by pixel, as they come."""
    out = np.empty((len(pictures), *pictures[0].shape[1:], 3), np.uint8)
    for row, picture in zip(out, pictures, strict=True):
        row[:] = picture.transpose(1, 2, 0)
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def attacked(plan: PoisonPlan, sample: int, pictures: Sequence[Body], size: int, mode: DecodeMode = "exact") -> np.ndarray:
    """uint8 [3, size, size]: what a poisoned sample shows, from the stored bytes of its plan.source and of its
    plan.neighbour, if it has one; DecodeError if they don't decode."""
    squash, alone = plan.squash(sample), len(pictures) == 1
    if squash is None:
        plain = centred(whole(pictures[0], size, mode), size, mode)
        marked = plan.marked(plain, sample)
    else:
        small = squeezed(whole(pictures[0]), squash)
        marked = centred(plan.marked(small, sample).transpose(1, 2, 0), size, mode)
        plain = marked if alone else centred(small.transpose(1, 2, 0).copy(), size, mode)
    if alone:
        return marked
    return beside(plain, marked, centred(whole(pictures[1], size, mode), size, mode), plan.entries[sample].draw)


def _order(
    index: Index, chosen: np.ndarray | None, out: np.ndarray | None, data: Data, reading: Reading
) -> Order | Kept | Mix:
    """The order over the chosen samples less those that are left `out`, by weight if there are several sources with
    weights."""
    counts = index.counts
    if chosen is not None:
        counts = np.bincount(np.searchsorted(index.ends, chosen, side="right"), minlength=len(index.paths))
    sizes = tuple(int(n) for n in counts)
    less = np.empty(0, np.int64) if out is None else out if chosen is None else np.searchsorted(chosen, out)
    weights = data.pretrain.weights
    if weights is None or max(index.sources) + 1 != len(weights):
        return _kept(Order(sizes, reading.seed, data.lanes, data.window, data.last), less)
    parts = [tuple(n for n, s in zip(sizes, index.sources, strict=True) if s == at) for at in range(len(weights))]
    edges = np.cumsum([0, *map(sum, parts)])
    orders = [
        _kept(Order(part, reading.seed, data.lanes, data.window), less[(less >= low) & (less < high)] - low)
        for part, low, high in zip(parts, edges, edges[1:], strict=False)
    ]
    least = min(reading.batch * weight // sum(weights) for weight in weights)
    if least < 1 or not all(map(len, orders)):
        left_out = " data.pretrain.without may have left out all that it has" if len(less) else ""
        raise UserError(
            f"a source of data.pretrain gives no pair to a batch of {reading.batch:,}; raise its weight or its "
            f"pairs{left_out and ':' + left_out}"
        )
    return Mix(tuple(orders), weights)


def _kept(order: Order, out: np.ndarray) -> Order | Kept:
    return Kept(order, out) if len(out) else order


class Batches(Protocol):
    """What is read in batches, such as Pairs."""

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        ...

    @property
    def batch_bytes(self) -> int:
        """Bytes of a batch, about."""
        ...

    def __len__(self) -> int:
        """Pairs in all."""
        ...

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        """This rank's part of global batch (epoch from 1, step from 0)."""
        ...


@dataclass(frozen=True)
class Places(Sequence[tuple[int, int]]):
    """(epoch from 1, step from 0) of each step of a run, none of it kept: a spec may ask for any number."""

    run: range
    steps: int  # of an epoch

    def __len__(self) -> int:
        return len(self.run)

    def __getitem__(self, at: Any) -> Any:
        return self.run[at] // self.steps + 1, self.run[at] % self.steps


def batches(pairs: Batches, epochs: int, start: int, workers: Workers) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from step `start` (from 0) to the end of the last epoch."""
    places = Places(range(start, epochs * pairs.steps), pairs.steps)
    items = loaded(pairs, places, workers, pairs.batch_bytes)
    for step in places.run:
        yield step, next(items)  # held by no name here: it goes when the step is done
