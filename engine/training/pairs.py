"""Which pairs the runs of a study work on, and which of them are poisoned."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel

from configs.plan import Run
from configs.spec import Spec
from data.annotations import keys_digest, read_keys, samples_of
from data.captions import read_templates, stored_captions
from data.poison_plan import PoisonPlan, make_plan
from data.progress import Progress
from data.refusal import UserError
from data.seeding import mixed, number_of, ranks, smallest_k
from data.shards import Index, read_index, same_pairs
from data.sources import CleanSource, Data, clean_rows, of_all_pairs
from data.store import InStore, NoShards, check_package, in_store
from data.without import Without, check_left, drawn
from engine.distributed import collectives
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World
from engine.models.clip import imagenet
from engine.models.tokenizer import Tokenizer
from measures.detectors.budget import Budget, flagged
from records.card import Card
from records.detection import FOLDER, scored_as, scores_in
from records.folder import finished
from records.scores import SCORES

T = TypeVar("T")
KEPT = 8  # poison plans, and clean sets, that are kept for the next runs: each holds a byte a pair or more


@dataclass(frozen=True)
class ChosenPairs:
    """Some pairs of an index."""

    index: Index
    chosen: np.ndarray | None  # int64, sorted; None: all
    plan: PoisonPlan | None  # of those that are poisoned; None: none is
    out: np.ndarray | None = None  # int64, sorted: those of them that are left out, in whose order the others come

    @property
    def poisoned_left(self) -> int:
        """How many poisoned pairs are not left out."""
        entries = np.array(list(self.plan.entries) if self.plan else [], np.int64)
        return len(entries) if self.out is None else len(np.setdiff1d(entries, self.out))


class StudyPairs:
    """The pairs of a study's runs. Indices, plans and clean sets are made once for runs that share them, since millions of
    keys take a while; indices are kept as long as this object, of the others the last KEPT. With `scratch`, a folder,
    nothing is written elsewhere, and no store is asked."""

    def __init__(self, study: Path, world: World, scratch: Path | None = None) -> None:
        self.study, self.world, self.scratch = study, world, scratch
        self._indices: dict[str, Index] = {}
        self._absent: dict[str, NoShards] = {}
        self._compared: set[tuple[int, str]] = set()
        self._plans: dict[str, PoisonPlan] = {}
        self._clean_rows: dict[str, np.ndarray] = {}

    def of(self, run: Run, planned: bool = False) -> ChosenPairs:
        """What a run is trained on; UserError if the spec asks for what the shards can't give. Where it is only `planned`
        and no scores say yet what is left out, any pairs are, as many as will be."""
        index, chosen = self.pretraining(run.spec)
        # the untouched twin's pre-training has no plan
        plan = None if run.stage == "twin" else self.plan(run.spec, index, chosen)
        if run.stage != "clean":
            return ChosenPairs(index, chosen, plan, self._left_out(run, index, (chosen, plan), planned))
        self._check_start(run, index)
        pairs = self._cleaning(run.spec, index, plan)
        # the twin's clean set is its poisoned model's, what is left over of the poison untouched
        return replace(pairs, plan=None) if run.of_twin else pairs

    def _left_out(
        self, run: Run, index: Index, of: tuple[np.ndarray | None, PoisonPlan | None], planned: bool
    ) -> np.ndarray | None:
        """int64, sorted: which of the chosen pairs, `of` which a plan poisons some, are left out; None if none."""
        (chosen, plan), without, seed = of, run.left_out, run.spec.seed
        pairs = len(index) if chosen is None else len(chosen)
        if without is None:
            return None
        if without.file is not None:
            out = samples_of(self._keys(without), index, f"data.pretrain.without: {without.file}")
            out = out if chosen is None else np.intersect1d(out, chosen)
        elif without.plan:
            out = np.sort(np.array(list(plan.entries) if plan else [], np.int64))
        else:
            number = without.number(pairs) or 0
            check_left(without, number, pairs)
            scored = run.scored
            if scored is None or planned and not self._is_scored(scored):
                out = drawn(index, seed, number, chosen)
            else:
                out = self._suspects(run, scored, index, number)
        check_left(without, len(out), pairs)
        return out

    def _is_scored(self, run: Run) -> bool:
        """Whether the pairs of a run are scored as its spec asks; the same on all ranks."""
        asked, home = run.detect, self.study / run.folder
        return asked is not None and collectives.on_rank_0(lambda: scored_as(home, asked.asked))

    def _suspects(self, run: Run, scored: Run, index: Index, number: int) -> np.ndarray:
        """int64, sorted: the so many pairs that a run's detector finds most suspicious, by the scores of another run;
        UserError if there are none, or they are not what was written."""
        section, home = run.spec.detector, self.study / scored.folder
        assert section is not None
        if not self._is_scored(scored):
            raise UserError(f"{home} has no scores by {section.title} yet; carry out the whole study, which makes them")
        scores = collectives.on_rank_0(lambda: scores_in(home, section.title))
        samples = samples_of(scores, index, f"{home / FOLDER / SCORES}")
        values = np.array([scores[index.keys[sample]] for sample in samples.tolist()])
        order = ranks(run.spec.seed, "detect", index.hashes[samples])
        out: np.ndarray = samples[:0]
        if number:
            out = np.sort(samples[flagged(values, order, Budget(count=number)).pairs])
        return out

    def _keys(self, without: Without) -> frozenset[str]:
        """The keys in a file; UserError if they are no longer those that the spec was read with."""
        assert without.file is not None
        keys = read_keys(without.file)
        if without.digest is not None and not keys_digest(keys).startswith(without.digest):
            raise UserError(f"data.pretrain.without: {without.file} was changed meanwhile; give the command again")
        return keys

    def pretraining(self, spec: Spec) -> tuple[Index, np.ndarray | None]:
        """(the index of the pre-training shards, which of its pairs are used; None: all)."""
        index = self.index(spec.data.pretrain.patterns, spec.data)
        self._compare(index, spec.data.pretrain.expect)
        if not spec.data.clean.held_out or spec.data.clean.shards is not None:
            return index, None
        return index, np.setdiff1d(np.arange(len(index)), held_out(index, spec.seed, spec.data.clean))

    def _compare(self, index: Index, expect: int | None) -> None:
        """Says once if the shards do not hold what data.pretrain.expect counts on where they are not at hand; counted are
        also the pairs that can't be used."""
        listed = len(index) + len(index.bad) + sum(pairs for _, pairs, _ in index.lost)
        if expect is None or len(index) <= expect <= listed or (expect, index.digest) in self._compared:
            return
        self._compared.add((expect, index.digest))
        if self.world.first:
            words = f"data.pretrain.expect is {expect:,}, but the shards hold {len(index):,} pairs"
            more = f" and {listed - len(index):,} that can't be used" if listed > len(index) else ""
            print(f"{words}{more}; what is there counts", file=sys.stderr, flush=True)

    def plan(self, spec: Spec, index: Index, chosen: np.ndarray | None) -> PoisonPlan | None:
        """The plan of a spec's attack on an index; None if it poisons nothing. Captions, if the attack asks what they say,
        are read by the first rank alone."""
        attack = spec.attack
        if not any(aim.poison.number(len(index) if chosen is None else len(chosen)) for aim in attack.aims):
            return None

        def make() -> PoisonPlan:
            lines = {aim.captions: templates(aim.captions) for aim in attack.aims}
            read_captions = partial(stored_captions, index, field=spec.data.pretrain.caption)
            return make_plan(index, attack, spec.seed, lines, read_captions, chosen, Tokenizer(spec.model.name).fits)

        return _once(
            self._plans,
            (of_all_pairs(spec.data), attack, spec.seed, spec.model.name),
            lambda: collectives.on_rank_0(make),
            KEPT,
        )

    def _check_start(self, run: Run, index: Index) -> None:
        """UserError if the start was trained on other pairs than the shards hold now: which were poisoned would be
        unknown."""
        if run.start is None:
            return
        folder = self.study / run.start.folder
        card = Card.read(folder) if finished(folder) else None
        if card is not None and not same_pairs(card.data_digest, index.digest):
            raise UserError(
                f"{folder} was trained on other pairs than {run.spec.data.pretrain.shards} holds now; put the shards back, "
                "give the spec another name, or delete that folder"
            )

    def _cleaning(self, spec: Spec, pretrained: Index, plan: PoisonPlan | None) -> ChosenPairs:
        """The clean set; its plan is of the poisoned pairs that are left in it on purpose."""
        clean = spec.data.clean
        if clean.shards is None and clean.held_out:
            return ChosenPairs(pretrained, np.sort(held_out(pretrained, spec.seed, clean)), None)
        index = pretrained if clean.shards is None else self.index(clean.shards, spec.data)
        poisoned = np.array(list(plan.entries) if plan else [], np.int64)
        sources = spec.data.pretrain.patterns
        places = _places(clean, [] if isinstance(sources, str) else list(sources), pretrained, index, poisoned)
        marked = np.array(list(places.values()), np.int64)  # in the order of their draw
        excluded = np.zeros(len(index), bool)
        excluded[marked] = True
        chosen = _once(
            self._clean_rows,
            (of_all_pairs(spec.data), spec.attack, spec.seed, spec.model.name),
            lambda: clean_rows(index, spec.seed, clean, excluded, marked),
            KEPT,
        )
        if plan is None or not clean.leftover:
            return ChosenPairs(index, chosen, None)
        stay = dict(list(places.items())[: clean.leftover])
        return ChosenPairs(index, chosen, plan.moved(stay, len(index), spec.attack))

    def digest(self, run: Run) -> str | None:
        """The digest of a run's pairs, as its card tells it; None where its shards have not been read yet, and of one that
        learns from labelled pictures."""
        data = run.spec.data
        cleans = run.stage == "clean"
        shards = data.clean.shards if cleans and data.clean.shards is not None else data.pretrain.patterns
        known = self._indices.get(_name((shards, data.pretrain.caption, data.made_by)))
        return None if known is None or cleans and data.clean.labelled is not None else known.digest

    def index(self, shards: str | dict[str, str], data: Data) -> Index:
        """The index of some shards; UserError if they are not there, with the command that makes them."""
        name = (shards, data.pretrain.caption, data.made_by)
        if repr(name) in self._absent:
            raise self._absent[repr(name)]
        try:
            return _once(self._indices, name, lambda: self._read_index(shards, data))
        except NoShards as error:
            self._absent[repr(name)] = error
            raise

    def _read_index(self, shards: str | dict[str, str], data: Data) -> Index:
        world, scratch = self.world, self.scratch
        named = [shards] if isinstance(shards, str) else list(shards.values())
        if scratch is not None and (far := next((one for one in named if in_store(one, data.schemes)), None)):
            _check_package(far)
            raise InStore(f"shards '{far}' are in a store, which is not asked")
        progress = Progress("indexing", "shards") if world.first else None

        def report(done: int, total: int) -> None:
            heartbeat()  # millions of pairs take longer than others wait
            if progress is not None:
                progress(done, total)

        try:
            return read_index(
                shards, scratch or self.study.parent / ".index", (0, 1) if scratch else (world.rank, world.size),
                collectives.first_refusal, data.schemes, data.pretrain.caption, report, beside=scratch is None,
            )  # fmt: skip
        except NoShards as error:
            if data.made_by is None:
                raise
            raise NoShards(f"{error}; make them with: {data.made_by}", alone=error.alone) from None
        finally:
            if progress is not None:
                progress.end()


def _check_package(path: str) -> None:
    """NoShards, in the words of a run, if this machine lacks what opens a URL."""
    try:
        check_package(path)
    except UserError as error:
        raise NoShards(error) from None


def held_out(index: Index, seed: int, clean: CleanSource) -> np.ndarray:
    """int64: the pairs that are kept out of the pre-training for the cleaning."""
    assert clean.pairs is not None
    if clean.pairs >= len(index):
        raise UserError(f"data.clean.pairs is {clean.pairs:,}, held out of {len(index):,} pairs; none would be left")
    return smallest_k(ranks(seed, "held out", index.hashes), clean.pairs)


def templates(name: str) -> list[str]:
    """The templates of poisoned captions under a name."""
    return imagenet().templates if name == "imagenet" else read_templates(name)


def _places(clean: CleanSource, sources: list[str], pretrained: Index, index: Index, poisoned: np.ndarray) -> dict[int, int]:
    """For each poisoned sample (int64 [n]) of the pre-training that the clean set's index holds too, its sample there;
    `sources` are the names of those that the pre-training draws from, if they have names."""
    if clean.shards is None:
        return {sample: sample for sample in poisoned.tolist()}
    trained = _trained(index, pretrained, sources)
    both = int((trained >= 0).sum())
    if clean.held_out and both:
        raise UserError(
            f"data.clean.held_out is true, but {both:,} of the {len(index):,} pairs of {clean.shards} are in "
            "data.pretrain too; name other shards, or set it to false"
        )
    there = np.flatnonzero(np.isin(trained, poisoned))
    if len(there) and clean.leftover is None:
        raise UserError(
            f"{len(there):,} of the {len(index):,} pairs of data.clean.shards = {clean.shards} are poisoned in "
            "data.pretrain; set data.clean.leftover to how many of them may stay (0 leaves them all out), or take them "
            "out of those shards"
        )
    places = dict(zip(trained[there].tolist(), there.tolist(), strict=True))
    return {sample: places[sample] for sample in poisoned.tolist() if sample in places}


def _trained(index: Index, pretrained: Index, sources: list[str]) -> np.ndarray:
    """int64 [n]: for each sample of an index the same pair's sample in the pre-training's, -1 where there is none. The same
    pair has the same key; beside sources of these names, before whose keys their names stand, it has the same picture and
    caption too, as two sources may number their pairs alike."""
    order = np.argsort(pretrained.hashes, kind="stable")
    hashes, out = pretrained.hashes[order], np.full(len(index), -1, np.int64)
    for name in (None, *sources):
        own = index.hashes if name is None else mixed(index.hashes, int(number_of([name])[0]))
        at = order[np.minimum(np.searchsorted(hashes, own), len(hashes) - 1)]
        same = pretrained.hashes[at] == own
        if name is not None and index.sums is not None and pretrained.sums is not None:
            same &= (index.sums == pretrained.sums[at]).all(1)
        out[same & (out < 0)] = at[same & (out < 0)]
    return out


def _name(key: object) -> str:
    parts = key if isinstance(key, tuple) else (key,)
    return repr([part.model_dump_json() if isinstance(part, BaseModel) else part for part in parts])  # repr of these is slow


def _once(made: dict[str, T], key: object, make: Callable[[], T], most: int | None = None) -> T:
    """What `make` gave for this key at first; of the keys asked for last at `most` so many are kept, or all."""
    name = _name(key)
    made[name] = made.pop(name) if name in made else make()
    while most is not None and len(made) > most:
        del made[next(iter(made))]
    return made[name]
