"""One run while it trains: what learns, what it is written to, and what is done with it between steps."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from configs.named_files import refuse_changed_file
from data.refusal import UserError
from data.seeding import derive_seed
from data.shards import same_pairs
from engine.distributed import collectives
from engine.distributed.world import World
from engine.evaluation.encode import SCALE, Encoder
from engine.evaluation.evaluate import EvalCosts, evaluate
from engine.training import checkpoint, learner_state, named_state
from engine.training.bad_samples import BadBatches, BadSamples
from engine.training.init_weights import distance
from engine.training.inputs import RunInputs, clusterer, sorter
from engine.training.journal import Journal
from engine.training.kmeans import clustered
from engine.training.learner import Learner
from engine.training.pair_losses import PairLosses
from engine.training.safe_pairs import risky_pairs
from engine.training.usage import UsageMeter
from records.card import Card
from records.manifest import BadSteps, Manifest


@dataclass(frozen=True)
class Position:
    """Where a run stood when its checkpoint was saved."""

    step: int
    journal_bytes: int
    usage: Mapping[str, float]
    bad: BadSteps | None
    due: bool = False  # whether the evaluation at this step is still to be done


def restore(inputs: RunInputs, learner: Learner, world: World) -> Position:
    """Loads the newest checkpoint, if there is one, into the learner; where the run goes on. UserError if it can't go on
    from there."""
    newest = checkpoint.newest(inputs.folder / "checkpoints")
    if newest is None:
        return Position(0, 0, {}, BadSteps())
    path, manifest = newest
    if not same_pairs(manifest.data, inputs.pairs.index.digest):
        raise UserError(
            f"{path} was trained on other pairs than the shards hold now; "
            f"put the shards back, or delete {path.parent.parent}"
        )
    card = collectives.on_rank_0(lambda: Card.read_whole(inputs.folder))
    if card is not None and card.left_out != inputs.pairs.out_digest:
        raise UserError(
            f"{path} was trained without other pairs than are left out now, as their scores were made anew; put the scores "
            f"back, or delete {path.parent.parent}"
        )
    collectives.on_rank_0(lambda: refuse_changed_file(inputs.folder, card.files if card else None))
    learner_state.restore(learner, path, world)
    return Position(manifest.step, manifest.journal, manifest.spent, manifest.bad, manifest.due)


@dataclass
class RunState:
    """A run's parts while it trains; every rank calls the same methods at the same step."""

    inputs: RunInputs
    world: World
    learner: Learner
    journal: Journal
    bad_samples: BadSamples
    bad_batches: BadBatches
    usage: UsageMeter
    versions: Mapping[str, str]  # of Python and packages
    start_weights: Mapping[str, torch.Tensor]  # what a cleaning starts from, on the first rank
    stop: Callable[[], bool] = lambda: False  # whether this process was asked to stop
    pair_losses: PairLosses | None = None  # where those of the first epochs are noted

    @property
    def engine(self) -> Any:
        """DeepSpeed's, around the towers."""
        return self.learner.tower_optimizer.engine

    def seed(self, step: int) -> None:
        """Seeds torch's generators by the step and the rank. What a model draws by itself, as dropout does, then does not
        depend on what was drawn before, and no checkpoint need keep a random state."""
        torch.manual_seed(derive_seed(self.inputs.run.spec.seed, "step", step, self.world.rank))

    def begin_epoch(self, epoch: int) -> None:
        """What an epoch (from 1) needs before its first step: for SafeCLIP which pairs are risky; for deep clustering
        without a file new clusters and a fresh head."""
        if (sorts := sorter(self.inputs.run)) is not None and epoch > sorts.warmup:
            average_running_stats(self.engine)
            annotations, rows = self.learner.annotations, self.inputs.run.spec.machine.eval_batch
            annotations.flags = risky_pairs(self.engine, self.inputs.pairs, sorts, annotations.flags, self.world, rows)
        section = clusterer(self.inputs.run)
        if section is None or section.labels is not None:
            return
        spec = self.inputs.run.spec
        average_running_stats(self.engine)
        self.learner.annotations.labels = clustered(
            self.engine, self.inputs.pairs, section, derive_seed(spec.seed, "cluster", epoch) % 2**32, self.world,
            spec.machine.eval_batch,
        )  # fmt: skip
        self.learner.head.renew("cluster.", derive_seed(spec.seed, "head", epoch))

    def measure(self, epoch: float, step: int) -> None:
        """A row of the journal for each evaluation set; Cut, and no row, if a rank is asked to stop meanwhile."""
        average_running_stats(self.engine)
        began = time.monotonic()
        moved = self._distance()
        for numbers in evaluate_sets(self.inputs, self.engine, self.learner.head.parameters, self.world, self.asked):
            seconds = round(time.monotonic() - began, 3)
            self.journal.row("measure", epoch=epoch, step=step, **numbers, **moved, seconds=seconds)

    def asked(self) -> bool:
        """Whether any rank was asked to stop; all ranks ask at the same places."""
        return sum(collectives.all_reduce_sum([int(self.stop())])) > 0

    def _distance(self) -> dict[str, float]:
        """`distance`: how far a cleaning is from the weights that it was given, || w - w0 || / || w0 || over the towers'
        parameters; on the first rank, whose journal it is for."""
        if self.inputs.run.stage != "clean":
            return {}
        towers = self.learner.tower_optimizer
        weights = named_state.weights(towers, named_state.on_first_rank(towers, self.world), self.world)
        return {"distance": distance(weights, self.start_weights)} if self.world.first else {}

    def save(self, step: int, due: bool = False) -> None:
        """Commits a checkpoint; `due` whether the evaluation at this step is still to be done."""
        average_running_stats(self.engine)
        manifest = Manifest(
            step=step,
            journal=self.journal.committed_bytes(),
            data=self.inputs.pairs.index.digest,
            zero=self.inputs.run.spec.machine.zero,
            world=self.world.size,
            spec=self.inputs.run.decides,
            versions=dict(self.versions),
            spent=dict(self.usage.total()),
            due=due,
            bad=self.bad_batches.committed(),
        )
        files = learner_state.share(self.learner, self.world)
        checkpoint.save(self.inputs.folder / "checkpoints", manifest, files)


def average_running_stats(engine: Any) -> None:
    """Makes BatchNorm's running statistics the same on all ranks: their mean, as all of them move linearly."""
    collectives.all_reduce_mean_([buffer for buffer in engine.module.buffers() if buffer.is_floating_point()])


def evaluate_sets(
    inputs: RunInputs,
    towers: Any,
    learned: Mapping[str, torch.Tensor],
    world: World,
    leave: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """The numbers of each evaluation set and, under `costs`, the seconds that each part of them took; `learned` holds what
    was learned beside the towers, the scale among it if the objective has one. Cut when `leave` says so on all ranks."""
    scale = float(learned["scale"].detach().exp()) if "scale" in learned else SCALE
    costs = EvalCosts()
    batch = inputs.run.spec.machine.eval_batch
    sets = evaluate(Encoder(towers, inputs.tokens, world, batch, scale, inputs.workers, leave), inputs.sets, costs)
    return [{**numbers, "costs": costs.seconds[numbers["images"]]} for numbers in sets]
