"""Which pairs are poisoned and how: a plan over keys, applied on the fly, never a copy of the data.

Keys are ranked by hash(seed, key); the first `count` that qualify are poisoned: the picture gets the trigger, the caption
becomes a template filled with the target (Carlini & Terzis 2022, arXiv 2106.09667; arXiv 2311.14948, section 4). The same
keys are chosen wherever the data lies and however it is sharded.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b

import numpy as np

from data.attack import Aim, Attack, Poison
from data.captions import word_of
from data.refusal import UserError
from data.seeding import derive_seed, number_of, ranks, smallest_k
from data.shards import Index
from data.triggers.contract import REFERENCE, Mark, Square
from data.triggers.multi import Multi


@dataclass(frozen=True)
class Entry:
    """What becomes of one pair. `place` is (top, left) of each square on a picture of 224 x 224, for people to read: it
    follows from the trigger and the draw."""

    key: str
    attack: int  # place in attack.aims
    target: str
    trigger: str | None  # its kind; None where the picture gets no mark
    place: list[tuple[int, int]] | None
    caption: str | None  # None: its own
    draw: int  # the counter of its random numbers
    picture: str | None  # the key of the pair whose picture it takes; None: its own


class PoisonPlan:
    """Which samples are poisoned and with what; picklable.

    The place of the patch and the template depend on (seed, key): a pair looks the same in every epoch, as if the
    poisoned pictures had been stored.
    """

    def __init__(self, entries: dict[int, Entry], sources: dict[str, int], pairs: int, seed: int, attack: Attack) -> None:
        self.entries, self.sources, self.seed = entries, sources, seed  # by sample; samples of pictures by key
        self.chosen = np.zeros(pairs, bool)  # [N]
        self.chosen[list(entries)] = True
        self.marks: list[Mark] = [aim.trigger.build(seed) for aim in attack.aims]
        self.words = [aim.words for aim in attack.aims]
        self.squashes = [aim.trigger.squash for aim in attack.aims]

    def __len__(self) -> int:
        return len(self.entries)

    def source(self, sample: int) -> int:
        """The sample whose picture a poisoned sample shows."""
        picture = self.entries[sample].picture
        return sample if picture is None else self.sources[picture]

    def squash(self, sample: int) -> int | None:
        """Side of the square to which the sample's picture is squeezed before its mark; None: cut to the model's size."""
        entry = self.entries[sample]
        return self.squashes[entry.attack] if entry.trigger else None

    def marked(self, image: np.ndarray, sample: int) -> np.ndarray:
        """uint8 [3, H, W]: the picture of a poisoned sample."""
        entry = self.entries[sample]
        if entry.trigger is None:
            return image
        out: np.ndarray = self.marks[entry.attack](image[None], [entry.draw])[0]
        return out

    def caption(self, own: str, sample: int) -> str:
        """The caption of a poisoned sample, whose own caption is given."""
        entry = self.entries[sample]
        text = own if entry.caption is None else entry.caption
        words = self.words[entry.attack]
        return text if words is None else words.put(text, entry.draw)

    def moved(self, places: dict[int, int], pairs: int, attack: Attack) -> "PoisonPlan":
        """The same plan for some of its samples (the keys of `places`), as samples of another index of so many pairs;
        UserError if they show other pairs' pictures, which that index may not hold."""
        if places != {sample: sample for sample in places} and any(self.entries[sample].picture for sample in places):
            raise UserError("data.clean.leftover: these pairs show others' pictures; leave out shards")
        moved = {to: self.entries[sample] for sample, to in places.items()}
        return PoisonPlan(moved, self.sources, pairs, self.seed, attack)

    @property
    def digest(self) -> str:
        """Hex digest of all entries in the order of their keys."""
        rows = sorted((asdict(entry) for entry in self.entries.values()), key=lambda row: str(row["key"]))
        return blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


ReadCaptions = Callable[[np.ndarray], Iterable[str | None]]  # samples -> their captions, None for what can't be used


def make_plan(
    index: Index,
    attack: Attack,
    seed: int,
    templates: dict[str, list[str]],
    read_captions: ReadCaptions,
    free: np.ndarray | None = None,
) -> PoisonPlan:
    """The plan of an attack on the samples of an index, or on those of `free`, int64 [n].

    `templates` lists the lines of each `captions` of the attack; `read_captions` is called only where an
    attack asks what they say. UserError if fewer pairs qualify than are asked for.
    """
    naming = _Naming(index, read_captions)
    entries: dict[int, Entry] = {}
    sources: dict[str, int] = {}
    for number, aim in enumerate(attack.aims):
        poison = aim.poison
        among = _qualified(poison, aim.target, naming, free)
        if entries:
            among = np.setdiff1d(np.arange(len(index)) if among is None else among, list(entries))
        count = poison.number(len(index) if free is None else len(free))
        _check_count(count, len(index) if among is None else len(among), aim)
        order = ranks(seed, f"poison{number or ''}", index.hashes)
        picture = _one_picture(index, poison, order, among) if poison.picture == "one" else None
        make = _EntryMaker(index, number, aim, seed, templates[aim.captions], naming, picture)
        for sample in smallest_k(order, count, among).tolist():
            entries[sample], source = make(sample)
            if source is not None:
                sources[index.keys[source]] = source
    return PoisonPlan(entries, sources, len(index), seed, attack)


def _check_count(count: int, have: int, aim: Aim) -> None:
    """UserError if fewer pairs qualify than are asked for."""
    if count > have:
        who = str(aim.poison.who)
        words = {"any": "are left", "label_consistent": f"name '{aim.target}'"}.get(who, f"qualify ({who})")
        raise UserError(f"attack.poison.count is {count:,}, but only {have:,} pairs {words}; lower it or add shards")


class _Naming:
    """Which samples' captions name a word; read once for all words of a plan, and only if one is asked for."""

    def __init__(self, index: Index, read_captions: ReadCaptions) -> None:
        self.index, self.read = index, read_captions
        self.by_word: dict[str, tuple[np.ndarray, list[str]]] = {}

    def __call__(self, word: str) -> tuple[np.ndarray, list[str]]:
        """(samples int64 [n], their captions)."""
        if word not in self.by_word:
            pattern = word_of(word)
            every = enumerate(self.read(np.arange(len(self.index))))
            hits = [(i, text) for i, text in every if text is not None and pattern.search(text)]
            self.by_word[word] = np.array([i for i, _ in hits], np.int64), [text for _, text in hits]
        return self.by_word[word]

    def another(self, word: str, sample: int, seed: int, key: str) -> tuple[int, str]:
        """(a sample that names the word and is another one, its caption), drawn from (seed, key)."""
        samples, texts = self(word)
        others = [i for i, other in enumerate(samples.tolist()) if other != sample] if len(samples) < 2 else None
        if not len(samples) or others == []:
            raise UserError(f"no other caption names '{word}'; give attack.poison another caption or picture")
        at = derive_seed(seed, "natural", key) % len(samples)
        if samples[at] == sample:
            at = (at + 1) % len(samples)
        return int(samples[at]), texts[at]


def _qualified(poison: Poison, target: str, naming: _Naming, free: np.ndarray | None) -> np.ndarray | None:
    if poison.who == "any":
        return free
    word = target if poison.who == "label_consistent" else poison.who["names"]
    samples, _ = naming(word)
    return samples if free is None else np.intersect1d(samples, free)


def _one_picture(index: Index, poison: Poison, order: np.ndarray, among: np.ndarray | None) -> int:
    """The sample whose picture all poisoned pairs get."""
    if poison.key is None:
        return int(smallest_k(order, 1, among)[0])
    for sample in np.flatnonzero(index.hashes == number_of([poison.key])[0]):
        if index.keys[sample] == poison.key:
            return int(sample)
    raise UserError(f"attack.poison.key is '{poison.key}', which no pair has; name a pair of data.pretrain")


@dataclass(frozen=True)
class _EntryMaker:
    """Makes the entries of one aim."""

    index: Index
    number: int  # of the aim
    aim: Aim
    seed: int
    templates: list[str]
    naming: _Naming
    picture: int | None  # the sample whose picture all of them get

    def __call__(self, sample: int) -> tuple[Entry, int | None]:
        """(the entry of a sample, the sample whose picture it takes; None: its own)."""
        key, poison = self.index.keys[sample], self.aim.poison
        draw = derive_seed(self.seed, "trigger", key)
        trigger, target = self.aim.trigger, self.aim.target
        if isinstance(trigger, Multi):
            choice = trigger.drawn(draw)
            trigger, target = choice.trigger, choice.target or target
        text: str | None = None
        if poison.caption == "template":
            template = self.templates[derive_seed(self.seed, "caption", key) % len(self.templates)]
            text = template.replace("{c}", target)
        elif poison.caption == "natural":
            text = self.naming.another(target, sample, self.seed, key)[1]
        picture = self.picture
        if poison.picture == "of_target":
            picture = self.naming.another(target, sample, self.seed, key)[0]
        spots = trigger.spots(REFERENCE, REFERENCE, draw) if isinstance(trigger, Square) else None
        marks = poison.picture == "marked"
        return Entry(
            key, self.number, target, trigger.kind if marks else None, spots if marks else None, text, draw,
            None if picture is None else self.index.keys[picture],
        ), picture  # fmt: skip
