"""Which samples the tar shards hold and where: one header walk a shard, kept beside it, never unpickled.

Reads the layout of webdataset and img2dataset: members of a sample share the name up to its first dot; the ending says
what they are.

    PATH.tar -> walk -> Table (data/table.py; kept as PATH.tar.index.npz, or in the cache where the folder is read-only)
    all tables -> Index: files in the cache that every process maps into its memory (data/joined.py), so that millions of
    pairs cost little to open and are held once a machine
"""

import json
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np

from data import joined
from data.archive import Keys
from data.patience import scheme
from data.refusal import UserError
from data.seeding import mixed, number_of
from data.store import Body, Range, Reader, expand, stamp
from data.table import Table, read_table

FORMAT = 7  # raised when joined files change
THREADS = 8  # shards walked at a time by one process: waiting for a disk is most of it
SAMPLE = 200  # pairs, others each time, that are compared with the index when it is opened
FAR = 8  # of them where each is a request or two
SHORT = 1 << 18  # bytes of these at most; longer ones are compared when they are used


class Replaced(UserError):
    """A member's bytes are not those that were indexed, though its shard's size and time are."""

    def __init__(self, member: str) -> None:
        super().__init__(
            f"{member} is not what was indexed: its shard is damaged, or was changed at the same size and time; put it "
            "back, or touch it, and it is indexed anew"
        )
        self.member = member


@dataclass(frozen=True)
class Index:
    """The samples of some shards in their stored order, N of them."""

    paths: tuple[str, ...]
    counts: np.ndarray  # int64 [S], samples of each shard
    keys: Keys
    hashes: np.ndarray  # uint64 [N], of the keys
    where: np.ndarray  # int64 [N, 4]: offset and size of the picture, offset and size of the caption
    bad: tuple[tuple[str, str, str], ...]  # (shard path, key, cause) of what can't be a sample
    lost: tuple[tuple[str, int, str], ...]  # (shard path, pairs that should be there and are not, why)
    digest: str  # hex; of the keys and sizes, then of the bytes, of the samples in their order
    sources: tuple[int, ...]  # [S], which of the patterns names each shard
    sums: np.ndarray | None = None  # uint32 [N, 2]: CRC-32 of picture and caption, where it is known

    def __len__(self) -> int:
        return len(self.hashes)

    @cached_property
    def ends(self) -> np.ndarray:
        """int64 [S]: where each shard's samples end."""
        return np.cumsum(self.counts)

    def shard(self, sample: int) -> int:
        """The shard of a sample, as its place in `paths`."""
        return int(np.searchsorted(self.ends, sample, side="right"))

    def path(self, sample: int) -> str:
        """The path of a sample's shard."""
        return self.paths[self.shard(sample)]

    def places(self, samples: list[int]) -> list[tuple[str, list[int]]]:
        """(the shard's path, the row of `where`) of each sample."""
        shards = np.searchsorted(self.ends, samples, side="right").tolist()
        rows: list[list[int]] = self.where[samples].tolist()
        return [(self.paths[shard], row) for shard, row in zip(shards, rows, strict=True)]

    def verify(self, member: int, samples: list[int], bodies: Iterable[Body]) -> None:
        """Replaced unless these are the bytes of the samples that were indexed: of their pictures (0) or captions (1)."""
        if self.sums is None:
            return
        for sample, body, right in zip(samples, bodies, self.sums[samples, member].tolist(), strict=True):
            if zlib.crc32(body) != right:
                raise Replaced(f"the {('picture', 'caption')[member]} of '{self.keys[sample]}' in {self.path(sample)}")


def read_index(  # noqa: PLR0913  (all but two have defaults and are given by name)
    patterns: str | dict[str, str],
    cache: Path,
    share: tuple[int, int] = (0, 1),
    meet: Callable[[UserError | None], UserError | None] = lambda refusal: refusal,
    schemes: Sequence[str] = (),
    caption: str = "txt",
    progress: Callable[[int, int], None] = lambda done, total: None,
    beside: bool = True,
) -> Index:
    """The index of all shards that the patterns name; several of them, by name, put that name before their keys.

    `share` = (rank, ranks): each rank walks its part of the shards that have no table yet, then the first joins all
    tables into files of the cache, which the others map. Before and after they `meet`: each gives what it refuses, or None,
    and all get the first refusal, so that all refuse with the same words. `caption` is "txt", or
    "json.FIELD" for a field of the .json member; `beside` whether tables may be kept beside the shards.
    """
    named = {"": patterns} if isinstance(patterns, str) else patterns
    shards = [(name, path) for name, pattern in named.items() for path in expand(pattern, schemes)]
    stamps = [(name, path, *stamp(path)) for name, path in shards]
    identity = json.dumps([FORMAT, caption, stamps])
    home = cache / f"joined-{blake2b(identity.encode(), digest_size=12).hexdigest()}"
    refusal: UserError | None = None
    try:
        if share[0] == 0 and home.exists() and (fault := joined.fault(home)):
            print(f"index {home}: {fault}; made anew", file=sys.stderr, flush=True)
            joined.set_aside(home)
        if not home.exists():
            _tables([path for _, path in shards[share[0] :: share[1]]], cache, progress, beside)
    except UserError as error:
        refusal = error
    refusal = meet(refusal)
    if refusal is None and not share[0]:
        try:
            _made(home, stamps, caption, lambda anew: _tables([path for _, path in shards], cache, progress, beside, anew))
        except UserError as error:
            refusal = error
    refusal = meet(refusal)
    if refusal is not None:
        raise refusal
    if not home.exists():  # a folder that not all ranks share
        raise UserError(f"the index {home} is missing; start again", alone=True)
    return _mapped(home)


def _made(home: Path, stamps: list[tuple[str, str, int, str]], caption: str, tables: Callable[[bool], list[Table]]) -> None:
    """Makes the joined index if there is none, and anew if the shards (name, path, size, mark) hold other bytes than it
    says; `tables` of all shards, walked again if it is given true."""
    shards = [(name, path) for name, path, _, _ in stamps]

    def write(anew: bool) -> None:
        known = tables(anew)
        if anew:
            joined.set_aside(home)
        joined.write(home, lambda fresh: joined.join(shards, known, caption, fresh))

    if not home.exists():
        write(anew=False)
    try:
        _compare(_mapped(home), [not scheme(path) or not mark for _, path, _, mark in stamps])
    except Replaced as fault:
        print(f"{fault.member} is not what was indexed; all shards are indexed anew", file=sys.stderr, flush=True)
        write(anew=True)


def _compare(index: Index, untold: list[bool]) -> None:
    """Replaced if a pair of a sample, others at each call, is not as it was indexed: in the shards (bool [S]) whose size and
    mark need not tell. On a disk a time can be set; a store's own mark is another for other bytes."""
    draw = np.random.default_rng()  # no result depends on it
    samples = draw.choice(len(index), min(SAMPLE, len(index)), replace=False)
    where, shards = index.where[samples], np.searchsorted(index.ends, samples, side="right")
    short = where[:, 1] + where[:, 3] <= SHORT
    chosen = short & np.array(untold)[shards]
    far = chosen & np.array([bool(scheme(path)) for path in index.paths])[shards]
    chosen &= ~far | (far.cumsum() <= FAR)
    few: list[int] = np.sort(samples[chosen]).tolist()
    ranges: list[Range] = []
    for path, (image, size, text, length) in index.places(few):
        ranges += [(path, image, size), (path, text, length)]
    reader = Reader()
    try:
        bodies = reader.read(ranges)
        for member in (0, 1):
            index.verify(member, few, bodies[member::2])
    finally:
        reader.close()


def _tables(
    paths: list[str],
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    beside: bool = True,
    anew: bool = False,
) -> list[Table]:
    with ThreadPoolExecutor(THREADS) as pool:
        out = []
        for table in pool.map(lambda path: read_table(path, cache, beside, anew), paths):
            out.append(table)
            progress(len(out), len(paths))
        return out


def key_hashes(keys: Sequence[str]) -> np.ndarray:
    """uint64 [n, 2]: what Index.hashes may say of each of these keys: of one as it stands, and of one with the name of its
    source before it."""
    heads, tails = zip(*(key.partition(":")[::2] for key in keys), strict=True)
    return np.stack([number_of(keys), mixed(number_of(tails), number_of(heads))], axis=1)


def same_pairs(one: str, other: str) -> bool:
    """Whether two indices of these digests hold the same pairs; a digest of before November 2026 tells their names and
    sizes alone."""
    layouts, contents = zip(*(digest.partition("-")[::2] for digest in (one, other)), strict=True)
    return len(set(layouts)) == 1 and len(set(filter(None, contents))) < 2


def _mapped(home: Path) -> Index:
    arrays, meta = joined.mapped(home)
    return Index(
        tuple(meta["paths"]), np.array(arrays["counts"]), Keys(arrays["keys"], arrays["ends"]), arrays["hashes"],
        arrays["where"], tuple(tuple(entry) for entry in meta["bad"]), tuple(tuple(entry) for entry in meta["lost"]),
        meta["digest"], tuple(meta["sources"]), arrays["sums"],
    )  # fmt: skip
