"""What a run works on: its pairs, its evaluation sets, its labels, all checked before anything is trained."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from configs.plan import Run
from configs.spec import Spec
from data.annotations import read_flags, read_labels
from data.augmentation.eda import check_synonyms
from data.captions import read_templates, stored_captions
from data.pipeline import Pairs, Reading
from data.poison_plan import PoisonPlan, make_plan
from data.progress import Progress
from data.refusal import UserError
from data.seeding import ranks, smallest_k
from data.shards import Index, read_index
from data.sources import CleanSource, Data, clean_rows
from engine.distributed import collectives
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World
from engine.evaluation.sets import EvalSet, eval_sets
from engine.models import clip
from engine.models.neurons import neurons_of
from engine.models.tokenizer import Tokenizer
from engine.models.transforms.contract import CleanPairs, TransformInputs
from engine.training.init_weights import path_of
from engine.training.labelled_inputs import check_labels, labelled_pairs
from objectives.deep_cluster import DeepCluster
from objectives.learned import initial
from objectives.sum import objectives_of
from objectives.unlearn import Unlearn
from records.card import Card
from records.folder import finished


@dataclass
class RunInputs:
    """A run with its data, its evaluation sets and its folder: all that a user's mistake can touch, checked."""

    run: Run
    folder: Path
    pairs: Pairs
    sets: list[EvalSet]
    tokenize: Tokenizer
    labels: np.ndarray | None = None  # int64 by sample, -1 for none, where an objective does not make its own
    flags: np.ndarray | None = None  # bool by sample

    def transform_inputs(self, world: World) -> TransformInputs:
        """What a transform of the start's weights may look at."""
        spec, stage = self.run.spec, self.run.settings
        machine = spec.machine
        pairs = CleanPairs(
            self.pairs, stage.batch, self.workers(world), machine.eval_batch, machine.micro_batch or stage.batch
        )
        return TransformInputs(spec.model.name, spec.seed, initial(stage.objective, 1, 0), pairs, world)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.pairs.steps * self.run.settings.epochs

    def workers(self, world: World) -> int:
        """Loader processes of each rank."""
        asked = self.run.spec.machine.workers
        if asked != "auto":
            return int(asked)
        return 0 if world.device.type == "cpu" else min(8, max(1, (os.cpu_count() or 1) // world.local_size - 1))


def prepare_inputs(run: Run, study: Path, world: World) -> RunInputs:
    """The job of a run; UserError for whatever is wrong with its data, its model or its batch."""
    spec, stage = run.spec, run.settings
    check_labels(run)
    if stage.batch % world.size:
        low = stage.batch // world.size * world.size
        near = " and ".join(f"{n:,}" for n in (low, low + world.size) if n)
        field = "clean.batch" if run.stage == "clean" else "pretrain.batch"
        raise UserError(
            f"{field} is {stage.batch:,}, which does not divide over {world.size} processes; nearest that do: {near}"
        )
    tokenize = Tokenizer(spec.model.name)
    _divides(run, world)
    if stage.transform is not None and stage.transform.removes_neurons:
        neurons_of(clip.on_meta(spec.model.name), spec.model.name)
    source, clean = spec.data.pretrain, spec.data.clean
    augment = clean.augment if run.stage == "clean" and clean.augment is not None else spec.data.augment
    if stage.objective.views[1] > 1:
        check_synonyms(augment)
    size = clip.image_size(spec.model.name)
    reading = Reading(
        spec.seed, world.rank, world.size, stage.batch, stage.objective.views, size, augment, source.caption,
        spec.data.decode,
    )  # fmt: skip
    if run.settings.start is not None:
        path_of(run.settings.start, spec.model.name)
    if run.stage == "clean" and clean.labelled is not None:
        shown = labelled_pairs(run, clean.labelled, reading, tokenize)
        return RunInputs(run, study / run.folder, shown, _sets(run, world), tokenize, shown.labels)
    index, chosen, plan = _pretraining(run, study, world)
    if run.stage == "clean":
        _same_start(run, study, index)
        index, chosen, plan = _cleaning(run, study, world, index, plan)
    pairs = Pairs(index, chosen, spec.data, reading, tokenize, plan)
    labels = flags = None
    if (section := clusterer(run)) is not None and section.labels is not None:
        labels = read_labels(section.labels, index, section.classes)
    if (forgets := forgetter(run)) is not None:
        flags = read_flags(forgets.flags, index)
    return RunInputs(run, study / run.folder, pairs, _sets(run, world), tokenize, labels, flags)


def _divides(run: Run, world: World) -> None:
    """UserError if a process's pairs, or a micro-batch, are no whole number of BatchNorm's groups."""
    if not clip.has_norms(run.spec.model.name):
        return
    batch, micro = run.settings.batch, run.spec.machine.micro_batch
    group = min(run.spec.model.norm_group, batch)
    field = "clean.batch" if run.stage == "clean" else "pretrain.batch"
    rows = batch // world.size
    if rows % group:
        step = group * world.size
        near = " and ".join(f"{n:,}" for n in (batch // step * step, batch // step * step + step) if n)
        parts = [n for n in range(1, rows + 1) if rows % n == 0 and n <= group][-2:]
        fits = max(n for n in range(1, world.size + 1) if batch % (n * group) == 0 or n == 1)
        alone = "--stage clean" if run.stage == "clean" else "--stage pretrain"
        raise UserError(
            f"model.norm_group is {run.spec.model.norm_group:,}, but with {field} {batch:,} each of {world.size} processes "
            f"holds {rows:,} pairs, which is no multiple of {group:,}; nearest {field} that is: {near}; or nearest "
            f"model.norm_group: {' and '.join(f'{n:,}' for n in parts)}; or run this stage on {fits} process"
            f"{'es' * (fits > 1)} ({alone})"
        )
    if micro is not None and micro < rows and micro % group:
        near = " and ".join(f"{n:,}" for n in (micro // group * group, micro // group * group + group) if n)
        raise UserError(
            f"machine.micro_batch is {micro:,}, which is no multiple of BatchNorm's groups of {group:,} pairs "
            f"(model.norm_group); nearest that are: {near}"
        )


def _same_start(run: Run, study: Path, index: Index) -> None:
    """UserError if the start was trained on other pairs than the shards hold now: which were poisoned would be unknown."""
    if run.start is None:
        return
    folder = study / run.start.folder
    card = Card.read(folder) if finished(folder) else None
    if card is not None and card.data_digest != index.digest:
        raise UserError(
            f"{folder} was trained on other pairs than {run.spec.data.pretrain.shards} holds now; put the shards back, "
            "give the spec another name, or delete that folder"
        )


def _pretraining(run: Run, study: Path, world: World) -> tuple[Index, np.ndarray | None, PoisonPlan | None]:
    """(the pre-training pairs, which of them are used (None: all), the plan of which are poisoned); no plan for the
    untouched twin."""
    index, chosen = pretraining_pairs(run.spec, study, world)
    if run.stage == "twin":
        return index, chosen, None
    return index, chosen, plan_of(run.spec, index, chosen, study, world)


def pretraining_pairs(spec: Spec, study: Path, world: World) -> tuple[Index, np.ndarray | None]:
    """(the index of the pre-training shards, which of its pairs are used; None: all)."""
    index = _index(spec.data.pretrain.patterns, study, world, spec.data)
    if not spec.data.clean.held_out or spec.data.clean.shards is not None:
        return index, None
    return index, np.setdiff1d(np.arange(len(index)), held_out(index, spec.seed, spec.data.clean))


def held_out(index: Index, seed: int, clean: CleanSource) -> np.ndarray:
    """int64: the pairs that are kept out of the pre-training for the cleaning."""
    assert clean.pairs is not None
    if clean.pairs >= len(index):
        raise UserError(f"data.clean.pairs is {clean.pairs:,}, held out of {len(index):,} pairs; none would be left")
    return smallest_k(ranks(seed, "held out", index.hashes), clean.pairs)


def plan_of(spec: Spec, index: Index, chosen: np.ndarray | None, study: Path, world: World) -> PoisonPlan | None:
    """The plan of a spec's attack on an index; None if it poisons nothing. Captions, if the attack asks what they say, are
    read by the first rank alone."""
    attack = spec.attack
    if not any(aim.poison.number(len(index) if chosen is None else len(chosen)) for aim in attack.aims):
        return None

    def make() -> PoisonPlan:
        lines = {aim.captions: templates(aim.captions) for aim in attack.aims}
        read_captions = partial(stored_captions, index, field=spec.data.pretrain.caption)
        return make_plan(index, attack, spec.seed, lines, read_captions, chosen)

    plan: PoisonPlan = cached(("plan", spec.data, attack, spec.seed, study), lambda: collectives.on_rank_0(make))
    return plan


def templates(name: str) -> list[str]:
    """The templates of poisoned captions under a name."""
    return clip.imagenet().templates if name == "imagenet" else read_templates(name)


def _cleaning(
    run: Run, study: Path, world: World, pretrained: Index, plan: PoisonPlan | None
) -> tuple[Index, np.ndarray, PoisonPlan | None]:
    """(the pairs that the clean set is part of, which of them, the plan of the poisoned ones left in it)."""
    spec = run.spec
    clean, poisoned = spec.data.clean, np.array(list(plan.entries) if plan else [], np.int64)
    if clean.shards is not None:
        index = _index(clean.shards, study, world, spec.data)
        both = np.isin(index.hashes, pretrained.hashes)
        if clean.held_out and both.any():
            raise UserError(
                f"data.clean.held_out is true, but {int(both.sum()):,} of the {len(index):,} pairs of {clean.shards} are in "
                "data.pretrain too; name other shards, or set it to false"
            )
        there = np.flatnonzero(np.isin(index.hashes, pretrained.hashes[poisoned]))
        if len(there) and clean.leftover is None:
            raise UserError(
                f"{len(there):,} of the {len(index):,} pairs of data.clean.shards = {clean.shards} are poisoned in "
                "data.pretrain; set data.clean.leftover to how many of them may stay (0 leaves them all out), or take them "
                "out of those shards"
            )
        by_hash = dict(zip(index.hashes[there].tolist(), there.tolist(), strict=True))
        hashes = zip(poisoned.tolist(), pretrained.hashes[poisoned].tolist(), strict=True)
        places = {sample: by_hash[number] for sample, number in hashes if number in by_hash}
    elif clean.held_out:
        return pretrained, np.sort(held_out(pretrained, spec.seed, clean)), None
    else:
        index, places = pretrained, {sample: sample for sample in poisoned.tolist()}
    marked = np.array(list(places.values()), np.int64)  # in the order of their draw
    excluded = np.zeros(len(index), bool)
    excluded[marked] = True
    named = ("clean", spec.data, spec.attack, spec.seed, study)
    chosen = cached(named, lambda: clean_rows(index, spec.seed, clean, excluded, marked))
    if plan is None or not clean.leftover:
        return index, chosen, None
    stay = dict(list(places.items())[: clean.leftover])
    return index, chosen, plan.moved(stay, len(index), spec.attack)


_made: dict[str, Any] = {}
_examinations: dict[str, list[EvalSet]] = {}


def cached(named: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What `make` gives, made once a process: the runs of a study share their data, and millions of keys take a while."""
    if repr(named) not in _made:
        _made[repr(named)] = make()
    return _made[repr(named)]


def _index(shards: str | dict[str, str], study: Path, world: World, data: Data) -> Index:
    """The index of some shards."""

    def read() -> Index:
        progress = Progress("indexing", "shards") if world.first else None
        try:
            return read_index(
                shards, study.parent / ".index", (world.rank, world.size), collectives.barrier, data.schemes,
                data.pretrain.caption, progress or (lambda done, total: heartbeat()),
            )  # fmt: skip
        except UserError as refusal:
            hint = f"; make them with: {data.made_by}" if data.made_by and "match no" in str(refusal) else ""
            raise UserError(f"{refusal}{hint}", alone=refusal.alone) from None
        finally:
            if progress is not None:
                progress.end()

    index: Index = cached(("index", shards, data.pretrain.caption, study), read)
    return index


def _sets(run: Run, world: World) -> list[EvalSet]:
    """The evaluation sets, decoded once for all runs that measure the same."""
    spec = run.spec
    parts = [spec.data.test, spec.data.labels, spec.data.decode, spec.measure, spec.attack, spec.seed, spec.model.name]
    if repr(parts) not in _examinations:
        _examinations.clear()
        _examinations[repr(parts)] = eval_sets(spec, world)
    return _examinations[repr(parts)]


def clusterer(run: Run) -> DeepCluster | None:
    return next((one for one in objectives_of(run.settings.objective) if isinstance(one, DeepCluster)), None)


def forgetter(run: Run) -> Unlearn | None:
    return next((one for one in objectives_of(run.settings.objective) if isinstance(one, Unlearn)), None)
