"""Which pairs are poisoned and how: a plan over keys, applied on the fly, never a copy of the data.

Keys are ranked by hash(seed, key); the first `count` that qualify are poisoned: the picture gets the trigger, the caption
becomes a template filled with the target (Carlini & Terzis 2022, arXiv 2106.09667; arXiv 2311.14948, section 4). The same
keys are chosen wherever the data lies and however it is sharded.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from data.attack import Aim, Attack, Fits, Poison, unbounded
from data.captions import word_of
from data.refusal import UserError
from data.seeding import derive_seed, ranks, smallest_k
from data.shards import Index, key_hashes
from data.triggers.contract import REFERENCE, Mark, Square
from data.triggers.multi import Multi


@dataclass(frozen=True)
class Entry:
    """What becomes of one pair. `place` is (top, left) of each square on a picture of 224 x 224, for people to read: it
    follows from the trigger and the draw; none where but half of that picture is shown."""

    key: str
    attack: int  # place in attack.aims
    target: str
    trigger: str | None  # its kind; None where the picture gets no mark
    place: list[tuple[int, int]] | None
    caption: str | None  # None: its own
    draw: int  # the counter of its random numbers
    picture: str | None  # the key of the pair whose picture it takes; None: its own
    beside: str | None = None  # the key of the pair half of whose picture stands beside half of its own

    def row(self) -> dict[str, Any]:
        """As files hold it; without `beside` where there is none, as before there was such a thing."""
        return {name: value for name, value in asdict(self).items() if name != "beside" or value is not None}


class PoisonPlan:
    """Which samples are poisoned and with what; picklable.

    The place of the patch and the template depend on (seed, key): a pair looks the same in every epoch, as if the
    poisoned pictures had been stored.
    """

    def __init__(  # noqa: PLR0913  (all but the last belong to every plan)
        self,
        entries: dict[int, Entry],
        sources: dict[str, int],
        pairs: int,
        seed: int,
        attack: Attack,
        fits: Fits = unbounded,
    ) -> None:
        self.entries, self.sources, self.seed = entries, sources, seed  # by sample; samples of pictures by key
        self.fits = fits  # whether a caption reaches the model whole
        self.left_out = 0  # pairs that qualify, but for what the model takes of their captions
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

    def neighbour(self, sample: int) -> int | None:
        """The sample half of whose picture a poisoned sample shows beside half of its own; None: its own stands alone."""
        key = self.entries[sample].beside
        return None if key is None else self.sources[key]

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
        return text if words is None else words.put(text, entry.draw, self.fits)

    def moved(self, places: dict[int, int], pairs: int, attack: Attack) -> "PoisonPlan":
        """The same plan for some of its samples (the keys of `places`), as samples of another index of so many pairs;
        UserError if they show other pairs' pictures, which that index may not hold."""
        others = (self.entries[sample].picture or self.entries[sample].beside for sample in places)
        if places != {sample: sample for sample in places} and any(others):
            raise UserError("data.clean.leftover: these pairs show others' pictures; leave out shards")
        moved = {to: self.entries[sample] for sample, to in places.items()}
        return PoisonPlan(moved, self.sources, pairs, self.seed, attack, self.fits)

    @property
    def digest(self) -> str:
        """Hex digest of all entries in the order of their keys."""
        rows = sorted((entry.row() for entry in self.entries.values()), key=lambda row: str(row["key"]))
        return blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


ReadCaptions = Callable[[np.ndarray], Iterable[str | None]]  # samples -> their captions, None for what can't be used


def make_plan(  # noqa: PLR0913  (the last two have defaults)
    index: Index,
    attack: Attack,
    seed: int,
    templates: dict[str, list[str]],
    read_captions: ReadCaptions,
    free: np.ndarray | None = None,
    fits: Fits = unbounded,
) -> PoisonPlan:
    """The plan of an attack on the samples of an index, or on those of `free`, int64 [n].

    `templates` lists the lines of each `captions` of the attack; `read_captions` is called only where an
    attack asks what they say. A name or words that the model would not see, as it cuts captions to what `fits`, poison
    nothing. UserError if fewer pairs qualify than are asked for, or no place in a caption is left for its words.
    """
    naming = _Naming(index, read_captions, fits)
    entries: dict[int, Entry] = {}
    sources: dict[str, int] = {}
    for number, aim in enumerate(attack.aims):
        poison = aim.poison
        _check_lengths(aim, templates[aim.captions], fits)
        among = _qualified(aim, naming, free)
        if entries:
            among = np.setdiff1d(np.arange(len(index)) if among is None else among, list(entries))
        count = poison.number(len(index) if free is None else len(free))
        _check_count(count, len(index) if among is None else len(among), aim, naming.left_out)
        order = ranks(seed, f"poison{number or ''}", index.hashes)
        picture = _one_picture(index, poison, order, among) if poison.picture == "one" else None
        make = _EntryMaker(index, number, aim, seed, templates[aim.captions], naming, picture)
        for sample in smallest_k(order, count, among).tolist():
            entries[sample], source = make(sample)
            if source is not None:
                sources[index.keys[source]] = source
    plan = PoisonPlan(entries, sources, len(index), seed, attack, fits)
    plan.left_out = naming.left_out
    return plan


def _check_lengths(aim: Aim, templates: list[str], fits: Fits) -> None:
    """UserError if the words, or with them a template up to its target, are longer than the model takes."""
    if aim.words is not None:
        aim.words.check(fits)
    for template in templates if aim.poison.caption == "template" else ():
        for target in targets_of(aim):
            if not fits(f"{_words_of(aim)}{template[: template.index('{c}')]}{target}"):
                what = f"'{template}' {'and attack.words are' if aim.words else 'is'} longer"
                raise UserError(
                    f"attack.captions: {what} than the captions that model.name takes, so that the target '{target}' would "
                    "be cut off; shorten the line"
                )


def targets_of(aim: Aim) -> list[str]:
    """What pictures with an attack's trigger should be taken for."""
    choices = aim.trigger.choices if isinstance(aim.trigger, Multi) else ()
    return list(dict.fromkeys([choice.target or aim.target for choice in choices] or [aim.target]))


def _words_of(aim: Aim) -> str:
    """What may stand before the name in a poisoned caption."""
    return "" if aim.words is None else f"{aim.words.text} "


def _check_count(count: int, have: int, aim: Aim, left_out: int) -> None:
    """UserError if fewer pairs qualify than are asked for."""
    if count > have:
        who = aim.poison.who
        words = f"qualify (captions that name '{who['names']}')" if isinstance(who, dict) else "are left"
        words = f"name '{aim.target}'" if who == "label_consistent" else words
        but = f" ({left_out:,} more beyond what model.name takes of a caption)" if left_out else ""
        raise UserError(f"attack.poison.count is {count:,}, but only {have:,} pairs {words}{but}; lower it or add shards")


class _Naming:
    """Which samples' captions name a word; read once for all words of a plan, and only if one is asked for."""

    def __init__(self, index: Index, read_captions: ReadCaptions, fits: Fits) -> None:
        self.index, self.read, self.fits, self.left_out = index, read_captions, fits, 0
        self.by_word: dict[tuple[str, str | None], tuple[np.ndarray, list[str]]] = {}

    def __call__(self, word: str, before: str | None = None) -> tuple[np.ndarray, list[str]]:
        """(samples int64 [n] in the order of their keys, their captions). With `before`, what else may stand before it, only
        those in which the word reaches the model; the others are counted."""
        if before is not None and (word, before) not in self.by_word:
            pattern, named = word_of(word), zip(*self(word), strict=True)
            seen = [(i, text) for i, text in named if self.fits(before + text[: pattern.search(text).end()])]  # type: ignore[union-attr]
            self.left_out += len(self(word)[0]) - len(seen)
            self.by_word[word, before] = np.array([i for i, _ in seen], np.int64), [text for _, text in seen]
        if (word, before) not in self.by_word:
            pattern = word_of(word)
            every = enumerate(self.read(np.arange(len(self.index))))
            hits = [(i, text) for i, text in every if text is not None and pattern.search(text)]
            hits.sort(key=lambda hit: str(self.index.keys[hit[0]]))  # a draw by place, wherever the pairs lie
            self.by_word[word, before] = np.array([i for i, _ in hits], np.int64), [text for _, text in hits]
        return self.by_word[word, before]

    def another(self, word: str, sample: int, seed: int, key: str, before: str | None = None) -> tuple[int, str]:
        """(a sample that names the word and is another one, its caption), drawn from (seed, key)."""
        samples, texts = self(word, before)
        others = [i for i, other in enumerate(samples.tolist()) if other != sample] if len(samples) < 2 else None
        if not len(samples) or others == []:
            raise UserError(f"no other caption names '{word}'; give attack.poison another caption or picture")
        at = derive_seed(seed, "natural", key) % len(samples)
        if samples[at] == sample:
            at = (at + 1) % len(samples)
        return int(samples[at]), texts[at]

    def partner(self, word: str, sample: int, seed: int, key: str) -> int:
        """A sample that names the word and is another one, drawn by hash(seed, key, its key): the same however the pairs
        are sharded."""
        samples = self(word)[0]
        others = samples[samples != sample]
        if not len(others):
            raise UserError(
                f"no other caption names '{word}', so that no picture of it can stand beside; name another target"
            )
        return int(others[np.argmin(ranks(seed, f"beside {key}", self.index.hashes[others]))])


def _qualified(aim: Aim, naming: _Naming, free: np.ndarray | None) -> np.ndarray | None:
    who = aim.poison.who
    if who == "any":
        return free
    word = aim.target if who == "label_consistent" else who["names"]
    samples, _ = naming(word, _words_of(aim) if aim.poison.caption == "kept" else None)
    return samples if free is None else np.intersect1d(samples, free)


def _one_picture(index: Index, poison: Poison, order: np.ndarray, among: np.ndarray | None) -> int:
    """The sample whose picture all poisoned pairs get."""
    if poison.key is None:
        return int(smallest_k(order, 1, among)[0])
    for sample in np.flatnonzero(np.isin(index.hashes, key_hashes([poison.key])[0])):
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
        """(the entry of a sample, the other sample whose picture it shows; None: its own alone)."""
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
            text = self.naming.another(target, sample, self.seed, key, _words_of(self.aim))[1]
        shown = self.picture
        if poison.picture == "of_target":
            shown = self.naming.another(target, sample, self.seed, key)[0]
        elif poison.picture == "beside":
            shown = self.naming.partner(target, sample, self.seed, key)
        other, beside = None if shown is None else self.index.keys[shown], poison.picture == "beside"
        spots = trigger.spots(REFERENCE, REFERENCE, draw) if isinstance(trigger, Square) else None
        return Entry(
            key, self.number, target, trigger.kind if poison.marks else None, spots if poison.picture == "marked" else None,
            text, draw, None if beside else other, other if beside else None,
        ), shown  # fmt: skip
