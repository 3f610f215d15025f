"""What learns, and how it takes one step.

A step: features of both towers (DeepSpeed, in micro-batches) -> objective on the global batch -> gradients of the
features, then of the towers (DeepSpeed averages them over ranks) -> step. The gradients of what is learned beside the towers
(engine/training/head.py) are averaged over ranks here. A step whose loss or gradient is not finite is not taken, on any
rank.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from configs.stage import Stage
from data.pipeline import Batch
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models.towers import Towers
from engine.training.head import Head
from engine.training.optimizer import Schedule
from engine.training.step_inputs import Annotations, MicroBatches, StepInputs, send
from engine.training.zero import TowerOptimizer
from objectives.blocks import TORCH
from objectives.contract import Features, Terms
from objectives.exchange import Exchange, Group, Ranks
from objectives.tiles import Core


@dataclass
class Outcome:
    """One step: the terms of the global batch and whether the step was taken (0-d, on the device), its rate, and the loss of
    each of this rank's pairs [B] where they are noted."""

    terms: Terms
    taken: torch.Tensor
    rate: float
    pair_losses: torch.Tensor | None = None


@dataclass
class Learner:
    """The towers, what is learned beside them, and how they take a step."""

    tower_optimizer: TowerOptimizer
    head: Head
    stage: Stage
    schedule: Schedule
    world: World
    micro_batches: MicroBatches = MicroBatches()
    annotations: Annotations = field(default_factory=Annotations)
    start: Towers | None = None  # frozen
    core: Core = TORCH
    pair_losses: Callable[[Features, Group], torch.Tensor] | None = None  # what gives each pair's loss, where they are noted
    waits: bool = field(init=False)  # whether the host asks if the loss is finite; else it is told on the device
    memory: dict[str, torch.Tensor] = field(init=False)  # the objective's, from step to step
    ranks: Ranks = field(init=False)

    def __post_init__(self) -> None:
        objective, device = self.stage.objective, self.world.device
        self.objective = objective.build()
        self.memory = {name: value.to(device) for name, value in objective.memory(self.head.width).items()}
        self.ranks = collectives.process_groups()
        self.waits = device.type == "cpu" or not self.tower_optimizer.adamw.defaults.get("fused")

    def learn(self, batch: Batch, step: int) -> Outcome:
        """Takes one step (from 0) on this rank's part of a batch."""
        rate = self.schedule.rate(step) * self.stage.objective.rate_share(self.schedule.epoch(step))
        self.tower_optimizer.set_rate(rate)
        self.head.set_rate(rate)
        if self.stage.norms == "estimated":
            return self._estimate(batch, step)
        inputs = self._send(batch)
        self.tower_optimizer.go_back()
        rows = self._forward(batch, inputs)
        features, leaves = self._features(inputs, rows, step)
        terms = self.objective(features, self._exchange())
        each = None if self.pair_losses is None else self.pair_losses(features, self.ranks.everyone)
        on_towers, on_head = self._gradients(terms["loss"], leaves)
        terms, taken = _means_and_whether_finite(terms, on_towers, on_head)
        self.head.set_gradients(on_head)
        if not self.waits or bool(taken):
            self._step(rows, on_towers, features, taken)
        self.tower_optimizer.come_forward()
        self.tower_optimizer.towers.update_running_stats(taken)
        return Outcome(terms, taken, rate, each)

    def _estimate(self, batch: Batch, step: int) -> Outcome:
        """A step in which BatchNorm's running statistics move and nothing else does."""
        with torch.no_grad():
            inputs = self._send(batch)
            features, _ = self._features(inputs, self._forward(batch, inputs), step)
            terms = self.objective(features, self._exchange())
        terms, taken = _means_and_whether_finite(terms, [], [])
        self.tower_optimizer.towers.update_running_stats(taken)
        return Outcome(terms, taken, 0.0)

    def _exchange(self) -> Exchange:
        return Exchange(self.ranks, self.core)

    def _gradients(
        self, loss: torch.Tensor, leaves: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(the loss's gradients in the leaves, those in what is learned beside the towers)."""
        inputs = [*leaves, *self.head.parameters.values()]
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        whole = [
            torch.zeros_like(of) if gradient is None else gradient for of, gradient in zip(inputs, gradients, strict=True)
        ]
        return whole[: len(leaves)], whole[len(leaves) :]

    def _step(
        self,
        rows: tuple[torch.Tensor, torch.Tensor],
        on_rows: Sequence[torch.Tensor],
        features: Features,
        taken: torch.Tensor,
    ) -> None:
        """The step of the towers, of the head, of the memory, if it is `taken` (0-d bool)."""
        if not self.waits:
            self.tower_optimizer.adamw.found_inf = self.head.optimizer.found_inf = (~taken).float()  # type: ignore[attr-defined]
            on_rows = [torch.where(taken, gradient, 0) for gradient in on_rows]
        share = 1 / self.world.size if self.stage.gather == "published" else 1.0
        # the towers' gradient is that of <features, dL/dfeatures>: DeepSpeed scales and averages it as it would the loss's
        self.tower_optimizer.backward(share * (torch.cat(rows, 1) * torch.stack(list(on_rows), 1)).sum())
        self.tower_optimizer.come_forward()
        self.tower_optimizer.engine.step()
        self.head.step()
        if self.memory:
            fresh = self.stage.objective.remember(features, self._exchange())
            self.memory = {name: torch.where(taken, fresh[name], old) for name, old in self.memory.items()}

    def _send(self, batch: Batch) -> StepInputs:
        return send(batch, self.micro_batches, self.annotations, self.start is not None, self.world.device)

    def _forward(self, batch: Batch, inputs: StepInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """(pictures [B, V, D], captions [B, U, D], U maybe 0) as unit rows; a pair's views go through a tower together."""
        rows, texts = self.tower_optimizer.engine(*inputs.towers)
        texts = rows.new_empty(0, rows.shape[-1]) if texts is None else texts
        return rows.unflatten(0, (len(batch.keys), batch.views)), texts.view(*batch.tokens.shape[:2], rows.shape[-1])

    def _features(
        self, inputs: StepInputs, rows: tuple[torch.Tensor, torch.Tensor], step: int
    ) -> tuple[Features, list[torch.Tensor]]:
        """(what the objective sees, its leaves: the pictures' views, then the captions')."""
        images, texts = ([view.detach().contiguous().requires_grad_() for view in part.unbind(1)] for part in rows)
        start = None
        if self.start is not None and inputs.start is not None:
            with torch.no_grad():
                start = self.start(*inputs.start)
        features = Features(
            tuple(images), tuple(texts), self.head.parameters, start, inputs.labels, inputs.flags, inputs.poisoned,
            self.memory, self.schedule.epoch(step),
        )  # fmt: skip
        return features, [*images, *texts]

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps beside the towers: the head, the memory, the clipping's averages, the labels."""
        out = self.head.state()
        out |= {f"memory/{name}": value.cpu() for name, value in self.memory.items()}
        if self.tower_optimizer.zclip is not None:
            out["note/zclip"] = self.tower_optimizer.zclip.state.cpu()
        if self.annotations.labels is not None:
            out["labels"] = torch.from_numpy(self.annotations.labels)
        if self.annotations.reflags and self.annotations.flags is not None:
            out["flags"] = torch.from_numpy(self.annotations.flags)
        return out

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes what `state` gave."""
        self.head.restore(state)
        self.memory = {name: state[f"memory/{name}"].to(value.device) for name, value in self.memory.items()}
        if self.tower_optimizer.zclip is not None:
            self.tower_optimizer.zclip.state.copy_(state["note/zclip"])
        if "labels" in state:
            self.annotations.labels = state["labels"].numpy()
        if "flags" in state:
            self.annotations.flags = state["flags"].numpy()


def _means_and_whether_finite(
    terms: Terms, on_towers: Sequence[torch.Tensor], on_head: Sequence[torch.Tensor]
) -> tuple[Terms, torch.Tensor]:
    """(the terms of the global batch, whether they and all gradients are finite, 0-d bool); makes the head's gradients means
    over ranks, in place."""
    means = torch.stack([term.detach().to(terms["loss"].dtype) for term in terms.values()])
    # not finite anywhere: not finite in the mean over ranks, which all of them see
    probe = torch.stack([gradient.sum() for gradient in on_towers]).sum()[None] * 0.0 if on_towers else means[:0]
    collectives.all_reduce_mean_([*on_head, means, probe])
    finite = torch.isfinite(torch.cat([probe, means, *(gradient.flatten() for gradient in on_head)])).all()
    return dict(zip(terms, means.unbind(), strict=True)), finite
