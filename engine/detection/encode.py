"""Every training pair encoded once, as the pre-training shows it first: poison applied, no augmentation, evaluation mode.

Ranks share the pairs in runs of whole blocks; a block is the same pairs whatever the number of ranks, so its embeddings are
too. The rows lie in one file an embedding, which all ranks map into memory: it may be larger than that.

    images.f32 texts.f32 raw_images.f32 raw_texts.f32        float32 [N, D], those that the detectors ask for
"""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, gcd, lcm
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from data.decode import DecodeError
from data.disk import writing
from data.loader import Workers, loaded
from data.pipeline import Pairs, Stored
from data.refusal import UserError
from engine.distributed import collectives
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World
from engine.evaluation.evaluate import judged
from engine.evaluation.feed import CPU_PIXELS
from engine.models.towers import Piece, cut_of
from measures.contract import check_rows

EMBEDDINGS = ("images", "texts", "raw_images", "raw_texts")
PAGE = 4096  # bytes: ranks write whole pages of a file, so that a file server mixes up none


@dataclass(frozen=True)
class Block:
    """Some consecutive pairs: pictures uint8 [n, 3, H, W], tokens int32 [n, L], which stand for an undecodable one."""

    images: torch.Tensor
    tokens: torch.Tensor
    replaced: list[bool]


class Blocks:
    """Item (begin, end) is these pairs, each that can't be decoded replaced by the next one that can."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __getitem__(self, at: tuple[int, int]) -> Block:
        rows = range(*at)
        stored = self.pairs.stored([self.pairs.sample(row) for row in rows])
        found = [self._good(row, body) for row, body in zip(rows, stored, strict=True)]
        pictures = torch.from_numpy(np.stack([picture for picture, _, _ in found]))
        tokens = self.pairs.tokenize([text for _, text, _ in found]).to(torch.int32)
        return Block(pictures, tokens, [turns > 0 for _, _, turns in found])

    def _good(self, row: int, body: Stored) -> tuple[np.ndarray, str, int]:
        """(picture, caption, how many pairs were passed over), of the pair at a row, of which `body` is stored."""
        for turn in range(len(self.pairs)):
            try:
                return *self.pairs.first(self.pairs.sample(row + turn), None if turn else body), turn
            except DecodeError:
                continue
        raise UserError("none of the pairs can be decoded; check the shards")


@dataclass(frozen=True)
class Encoded:
    """N pairs' embeddings by name, mapped from files, and which of them stand for an undecodable pair (bool [N])."""

    rows: dict[str, torch.Tensor]
    replaced: np.ndarray


@contextmanager
def encoded(
    towers: Any, pairs: Pairs, asks: Collection[str], folder: Path, how: tuple[World, Workers, int]
) -> Iterator[Encoded]:
    """The embeddings that are asked for, in a folder that is there as long as they are used; `how`: the processes, the
    loader's workers, and how many pairs go through the towers at once. UserError if an embedding can't be judged."""
    world, workers, batch = how
    names = [name for name in EMBEDDINGS if name in asks]
    if not names:
        yield Encoded({}, np.zeros(len(pairs), bool))
        return
    width = _width(towers, pairs, world.device)
    collectives.on_rank_0(lambda: _make(folder, names, len(pairs), width))
    fault: UserError | None = None
    replaced = torch.zeros(len(pairs), dtype=torch.int64)
    try:
        files = {name: np.memmap(folder / f"{name}.f32", np.float32, "r+", shape=(len(pairs), width)) for name in names}
        with judged("the training pairs"):
            _fill(towers, pairs, files, replaced, (world, workers, _at_once(pairs, batch, world.device)))
        for file in files.values():
            file.flush()
        del files
    except UserError as error:
        fault = error
    if (refusal := collectives.first_refusal(fault)) is not None:
        raise refusal
    collectives.all_reduce_sum_([replaced])
    try:
        mapped = {name: np.memmap(folder / f"{name}.f32", np.float32, "c", shape=(len(pairs), width)) for name in names}
        yield Encoded({name: torch.from_numpy(rows) for name, rows in mapped.items()}, replaced.numpy() > 0)
    finally:
        if world.first:
            shutil.rmtree(folder, ignore_errors=True)


def _at_once(pairs: Pairs, batch: int, device: torch.device) -> int:
    """How many pairs go through the towers at once: what a CPU holds of more leaves its caches."""
    most = CPU_PIXELS // pairs.reading.size**2 if device.type == "cpu" else batch
    return max(1, min(batch, most))


def _width(towers: Any, pairs: Pairs, device: torch.device) -> int:
    """D."""
    size = pairs.reading.size
    with torch.no_grad():
        return int(towers(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device), None)[0].shape[1])


def _make(folder: Path, names: list[str], pairs: int, width: int) -> None:
    """Files of their full length."""
    with writing(folder.parent, "the embeddings of the training pairs"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in names:
            with (folder / f"{name}.f32").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 4 * pairs * width)  # a full disk is told here, not by a signal


def own_blocks(world: World, pairs: int, width: int, block: int) -> range:
    """This rank's pairs: from the first on, whole blocks and whole pages of a file."""
    row = 4 * width
    unit = lcm(block, PAGE // gcd(PAGE, row))
    each = ceil(ceil(pairs / world.size) / unit) * unit
    return range(min(pairs, world.rank * each), min(pairs, (world.rank + 1) * each))


def _fill(
    towers: Any, pairs: Pairs, files: dict[str, np.memmap], replaced: torch.Tensor, how: tuple[World, Workers, int]
) -> None:
    """Encodes this rank's pairs into the files."""
    world, workers, block = how
    width = next(iter(files.values())).shape[1]
    own = own_blocks(world, len(pairs), width, block)
    places = [(begin, min(begin + block, own.stop)) for begin in range(own.start, own.stop, block)]
    if not places:
        return
    pixels = block * 3 * pairs.reading.size**2
    with torch.no_grad():
        for (begin, end), part in zip(places, loaded(Blocks(pairs), places, workers, pixels), strict=True):
            heartbeat()
            rows = _rows(towers, part, files.keys(), world.device)
            check_rows(torch.cat(list(rows.values())), "training pairs")
            replaced[begin:end] = torch.tensor(part.replaced)
            for name, file in files.items():
                file[begin:end] = rows[name].float().cpu().numpy()


def _rows(towers: Any, block: Block, names: Collection[str], device: torch.device) -> dict[str, torch.Tensor]:
    """The embeddings of a block by name."""
    reads_texts = any(name.endswith("texts") for name in names)
    tokens = block.tokens.to(device) if reads_texts else None
    piece = [Piece(len(block.images), len(block.tokens), cut_of(block.tokens))] if reads_texts else None
    raw = dict(zip(("raw_images", "raw_texts"), towers(block.images.to(device), tokens, piece), strict=True))
    return {
        name: raw[name] if name.startswith("raw_") else F.normalize(raw[f"raw_{name}"], dim=-1)
        for name in names
    }  # fmt: skip
