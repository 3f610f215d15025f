"""What a run works on: its pairs, its evaluation sets, its labels, all checked before anything is trained."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

import numpy as np

from configs.plan import Run
from configs.spec import Spec
from data.annotations import read_flags, read_labels
from data.augmentation.eda import check_synonyms
from data.loader import Workers
from data.pipeline import Pairs, Reading
from data.refusal import UserError
from data.stamped import stamped
from engine.distributed import collectives
from engine.distributed.world import World
from engine.evaluation.feed import rows_at_once
from engine.evaluation.sets import EvalSet, check_fits, eval_set, keeping, set_names
from engine.evaluation.texts import TextRows
from engine.models import clip
from engine.models.neurons import neurons_of
from engine.models.tokenizer import Tokenizer
from engine.models.transforms.contract import CleanPairs, TransformInputs
from engine.training.kmeans import too_many_clusters
from engine.training.labelled_inputs import check_labels, labelled_pairs
from engine.training.norm_groups import norm_groups
from engine.training.pairs import StudyPairs
from engine.training.room import check_room
from objectives.deep_cluster import DeepCluster
from objectives.inverted import Inverted
from objectives.learned import initial
from objectives.safeclip import SafeClip
from objectives.sum import objectives_of
from objectives.unlearn import Unlearn
from records.ending import verify_files


@dataclass
class RunInputs:
    """A run with its data, its evaluation sets and its folder: all that a user's mistake can touch, checked."""

    run: Run
    folder: Path
    pairs: Pairs
    sets: list[EvalSet]
    tokens: TextRows  # of evaluation's texts, tokenised once a run
    workers: Workers  # of this rank, for training and for evaluation
    labels: np.ndarray | None = None  # int64 by sample, -1 for none, where an objective does not make its own
    flags: np.ndarray | None = None  # bool by sample

    def transform_inputs(self, world: World) -> TransformInputs:
        """What a transform of the start's weights may look at."""
        spec, stage = self.run.spec, self.run.settings
        machine = spec.machine
        pairs = CleanPairs(self.pairs, stage.batch, self.workers, machine.eval_batch, machine.micro_batch or stage.batch)
        return TransformInputs(spec.model.name, spec.seed, initial(stage.objective, 1, 0), pairs, world)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.pairs.steps * self.run.settings.epochs


class StudyInputs:
    """What the runs of one study share: its folder, the processes that carry it out, its pairs, and the evaluation sets,
    decoded, of the run before. It goes when the study's work is done. With `scratch`, a folder, it only looks: nothing is
    written elsewhere, no network is used, no picture is decoded."""

    def __init__(self, study: Path, world: World, scratch: Path | None = None) -> None:
        self.study, self.world, self.looks = study, world, scratch is not None
        self.cores = _own_cores(world)
        self.pairs = StudyPairs(study, world, scratch)
        self._measured = ""  # what the sets here are of
        self._read: dict[str, EvalSet] = {}
        self._sets: list[EvalSet] = []

    def eval_set(self, spec: Spec, name: str) -> EvalSet:
        """One evaluation set, no picture decoded; read once for all runs that measure the same in turn."""
        self._forget_others(spec)
        if name not in self._read:
            self._read[name] = eval_set(spec, name, self.world)
        return self._read[name]

    def eval_sets(self, spec: Spec) -> list[EvalSet]:
        """The evaluation sets, decoded once for all runs that measure the same in turn."""
        self._forget_others(spec)
        if not self._sets:
            sets = {name: self.eval_set(spec, name) for name in set_names(spec)}
            check_fits(spec, sets)
            self._sets = keeping(sets.values(), self.world)
        return self._sets

    def _forget_others(self, spec: Spec) -> None:
        """Lets the sets of a run that measured something else go, before new ones are made: both are never held."""
        parts = [spec.data.test, spec.data.labels, spec.data.decode, spec.measure, spec.attack, spec.seed, spec.model.name]
        if self._measured != repr(parts):
            self._measured, self._read, self._sets = repr(parts), {}, []

    def workers(self, spec: Spec) -> Workers:
        """Loader processes of this rank: on GPUs all cores of its share but two, one at least."""
        setting, world = spec.machine.workers, self.world
        number = (0 if world.device.type == "cpu" else max(1, self.cores - 2)) if setting == "auto" else int(setting)
        return Workers(number, world.local_size)


def _own_cores(world: World) -> int:
    """This rank's share of the cores that it may use: some launchers give each rank cores of its own, others all to all."""
    mine = (gethostname(), sorted(os.sched_getaffinity(0)))
    return max(1, len(mine[1]) // collectives.gather_objects(mine).count(mine))


def prepare_inputs(run: Run, shared: StudyInputs) -> RunInputs:
    """What a run works on; UserError for whatever is wrong with its data, its model or its batch."""
    check_labels(run)
    for check in SETTINGS:
        check(run, shared.world)
    check_words(run)
    tokenize = Tokenizer(run.spec.model.name)
    pairs, labels, flags = read_pairs(run, shared, shared.world, tokenize)
    workers, sets = shared.workers(run.spec), shared.eval_sets(run.spec)
    rows = [rows_at_once(one, run.spec.machine.eval_batch, shared.world.device) for one in sets]
    for size in (pairs.batch_bytes, *(n * one.row_bytes for n, one in zip(rows, sets, strict=True))):
        workers.ahead(size)
    return RunInputs(run, shared.study / run.folder, pairs, sets, TextRows(tokenize), workers, labels, flags)


def read_pairs(
    run: Run, shared: StudyInputs, world: World, tokenize: Tokenizer, planned: bool = False
) -> tuple[Pairs, np.ndarray | None, np.ndarray | None]:
    """(what a run is trained on, labels and flags as RunInputs has them); UserError for whatever is wrong with them.
    `planned` as StudyPairs.of takes it."""
    spec, labelled = run.spec, run.spec.data.clean.labelled
    reading = _reading(run, world)
    if run.stage == "clean" and labelled is not None:
        pictures = labelled_pairs(run, labelled, reading, tokenize)
        return pictures, pictures.labels, None
    chosen = shared.pairs.of(run, planned)
    pairs = Pairs(chosen.index, chosen.chosen, spec.data, reading, tokenize, chosen.plan, chosen.out)
    labels = flags = None
    if (section := clusterer(run)) is not None:
        if section.labels is not None:
            labels = read_labels(section.labels, chosen.index, section.classes)
        elif section.classes > len(pairs):
            raise too_many_clusters(section.classes, len(pairs))
    if (unlearn := unlearner(run)) is not None:
        verify_files(Path(unlearn.flags).parent, Path(unlearn.flags).name)  # it may be a finished run's plan
        flags = read_flags(unlearn.flags, chosen.index)
    return pairs, labels, flags


def check_words(run: Run) -> None:
    """UserError if captions are to be varied by what is not on this machine."""
    if run.captions is not None:
        check_synonyms(run.captions)


def _reading(run: Run, world: World) -> Reading:
    """How this rank reads the run's pairs."""
    spec, stage = run.spec, run.settings
    size, section = clip.image_size(spec.model.name), inverter(run)
    marks = None if section is None else stamped(section.stamp, section.share, size)
    return Reading(
        spec.seed, world.rank, world.size, stage.batch, stage.objective.views, size, run.augment, spec.data.pretrain.caption,
        spec.data.decode, marks,
    )  # fmt: skip


def _check_batch(run: Run, world: World) -> None:
    """UserError if the batch is not shared evenly by the processes."""
    batch = run.settings.batch
    if batch % world.size:
        low = batch // world.size * world.size
        near = " and ".join(f"{n:,}" for n in (low, low + world.size) if n)
        field = "clean.batch" if run.stage == "clean" else "pretrain.batch"
        raise UserError(f"{field} is {batch:,}, which does not divide over {world.size} processes; nearest that do: {near}")


def _check_groups(run: Run, world: World) -> None:
    """UserError if a process's pairs, or a micro-batch, don't go with BatchNorm's groups."""
    if run.settings.batch % world.size == 0:
        norm_groups(run, world.size)


def _check_model(run: Run, world: World) -> None:
    """UserError if the model is unknown, or has not what the stage does with its neurons, its BatchNorm or its captions."""
    spec, stage = run.spec, run.settings
    Tokenizer(spec.model.name)
    towers = clip.on_meta(spec.model.name)
    if stage.transform is not None and stage.transform.removes_neurons:
        neurons_of(towers, spec.model.name)
    if stage.norms != "trained" and not towers.norms:
        raise UserError(f"{run.stage}.norms is {stage.norms}, but {spec.model.name} has no BatchNorm; leave it out")
    if spec.machine.trim_text == "always" and not towers.trims:
        raise UserError(
            f"machine.trim_text is always, but the text tower of {spec.model.name} has no causal mask with end-token "
            "pooling, so it would give other embeddings; use auto"
        )


def _check_adam(run: Run, world: World) -> None:
    """UserError if AdamW is asked for in a form that needs a GPU, and there is none."""
    if run.spec.machine.adam == "deepspeed_fused" and world.device.type != "cuda":
        raise UserError("machine.adam is 'deepspeed_fused', which does not work here (it needs a GPU); use auto")


def _check_path(run: Run, world: World) -> None:
    """UserError if weights are to be moved that no process has whole."""
    if run.settings.optimizer.path is not None and run.spec.machine.zero == 3:
        stage = "clean" if run.stage == "clean" else "pretrain"
        raise UserError(
            f"{stage}.optimizer.path moves weights that machine.zero 3 has in parts; set machine.zero to 2, or leave it out"
        )


# what can be refused by the spec, the number of processes and their device alone, whatever the objective
SETTINGS: tuple[Callable[[Run, World], None], ...] = (
    _check_batch, _check_model, _check_groups, _check_adam, _check_path, check_room,
)  # fmt: skip


def clusterer(run: Run) -> DeepCluster | None:
    """The part of the run's objective that learns from clusters, if there is one."""
    return next((section for section in objectives_of(run.settings.objective) if isinstance(section, DeepCluster)), None)


def sorter(run: Run) -> SafeClip | None:
    """The part of the run's objective that tells safe pairs from risky ones, if there is one."""
    return next((section for section in objectives_of(run.settings.objective) if isinstance(section, SafeClip)), None)


def inverter(run: Run) -> Inverted | None:
    """The part of the run's objective that stamps pictures, if there is one; UserError if there are two."""
    found = [section for section in objectives_of(run.settings.objective) if isinstance(section, Inverted)]
    if len(found) > 1:
        raise UserError(
            f"an objective of kind sum has {len(found)} parts of kind inverted; a picture carries one stamp: keep one"
        )
    return found[0] if found else None


def unlearner(run: Run) -> Unlearn | None:
    """The part of the run's objective that unlearns pairs, if there is one."""
    return next((section for section in objectives_of(run.settings.objective) if isinstance(section, Unlearn)), None)
