"""What learns, and how it takes one step.

A step: features of both towers (DeepSpeed, in micro-batches) -> objective on the global batch -> gradients of the
features, then of the towers (DeepSpeed averages them over ranks) -> step.

What an objective learns beside the towers (the scale, a bias, a head) stands outside DeepSpeed: whole on every rank, with an
AdamW of its own; its gradient is averaged over ranks, and it is clamped after the step. So it is the same at every ZeRO
stage. A step whose loss or gradient is not finite is not taken, on any rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from configs.stage import Stage
from data.pipeline import Batch
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models.clip import SCALARS
from engine.models.towers import Piece, Towers, cut_of
from engine.training import zero
from engine.training.init_weights import MOMENTS, STEPS
from engine.training.optimizer import rate_at
from objectives.contract import Features, Learned, Objective, Terms
from objectives.exchange import Exchange, Ranks
from objectives.learned import initial


@dataclass
class Outcome:
    """One step: the terms of the global batch and whether the step was taken (0-d, on the device), and its rate."""

    terms: Terms
    taken: torch.Tensor
    rate: float


@dataclass
class Learner:
    """DeepSpeed's engine around the towers, what is learned beside them, and how they step."""

    engine: Any
    stepper: torch.optim.Optimizer  # the AdamW inside the engine
    backward: Callable[[torch.Tensor], Any]  # leaves the towers' gradients, averaged over ranks
    learned: dict[str, torch.Tensor]  # float32 leaves
    bounds: dict[str, Learned]
    adam: torch.optim.Optimizer
    objective: Objective
    stage: Stage
    steps: int
    epoch_steps: int
    world: World
    ranks: Ranks
    memory: dict[str, torch.Tensor]
    micro: int | None = None  # pairs a micro-batch
    several: bool = True  # whether captions run in groups of similar length
    start: Towers | None = None  # frozen
    labels: np.ndarray | None = None  # int64 by sample
    flags: np.ndarray | None = None  # bool by sample
    waits: bool = True  # whether the host asks if the loss is finite; else the optimizer is told on the device
    notes: dict[str, torch.Tensor] = field(default_factory=dict)  # further tensors that a checkpoint keeps

    @classmethod
    def make(
        cls,
        engine: Any,
        stepper: torch.optim.Optimizer,
        stage: Stage,
        width: int,
        found: dict[str, torch.Tensor],
        seed: int,
        places: tuple[World, Ranks],
        span: tuple[int, int],
        **more: Any,
    ) -> "Learner":
        """A learner whose scale and bias start as `found` in the start's weights, or as the objective has them; `span` is
        (steps, steps an epoch)."""
        world, ranks = places
        wanted = initial(stage.objective, width, seed)
        learned = {
            name: found.get(name, one.initial).detach().float().to(world.device).clone().requires_grad_()
            for name, one in wanted.items()
        }
        adam = cls._adam(learned, wanted, stage, world)
        memory = {name: value.to(world.device) for name, value in stage.objective.memory(width).items()}
        waits = world.device.type == "cpu" or not stepper.defaults.get("fused")
        return cls(
            engine, stepper, zero.backward_of(engine, world), learned, wanted, adam, stage.objective.build(), stage, *span,
            world, ranks, memory, waits=waits, **more
        )  # fmt: skip

    @staticmethod
    def _adam(
        learned: dict[str, torch.Tensor], wanted: dict[str, Learned], stage: Stage, world: World
    ) -> torch.optim.Optimizer:
        section = stage.optimizer
        groups = [
            {"params": [learned[name] for name in learned if wanted[name].decays == decays], "weight_decay": decay}
            for decays, decay in ((True, section.decay), (False, 0.0))
        ]
        kept = [group for group in groups if group["params"]]
        return torch.optim.AdamW(kept, lr=section.rate, betas=section.betas, eps=section.eps, fused=True)

    def learn(self, batch: Batch, step: int) -> Outcome:
        """Takes one step (from 0) on this rank's part of a batch."""
        rate = rate_at(step, self.steps, self.stage.optimizer, self.epoch_steps)
        for group in [*self.engine.optimizer.param_groups, *self.adam.param_groups]:
            group["lr"] = rate
        if self.stage.norms == "estimated":
            return self._estimate(batch, step)
        whole = self.forward(batch)
        features, leaves = self.features(batch, whole, step)
        terms = self.objective(features, Exchange(self.ranks))
        asked = [*leaves, *self.learned.values()]
        grads = [
            torch.zeros_like(of) if grad is None else grad
            for of, grad in zip(asked, torch.autograd.grad(terms["loss"], asked, allow_unused=True), strict=True)
        ]
        on_towers, on_learned = grads[: len(leaves)], grads[len(leaves) :]
        means = torch.stack([term.detach().to(terms["loss"].dtype) for term in terms.values()])
        # not finite anywhere: not finite in the mean over ranks, which all of them see
        proof = torch.stack([grad.sum() for grad in on_towers]).sum()[None] * 0.0
        collectives.all_reduce_mean_([*on_learned, means, proof])
        taken = torch.isfinite(torch.cat([proof, means, *(grad.flatten() for grad in on_learned)])).all()
        terms = dict(zip(terms, means.unbind(), strict=True))
        for parameter, grad in zip(self.learned.values(), on_learned, strict=True):
            parameter.grad = grad
        if self.waits and not bool(taken):
            self.engine.module.settle(taken)
            return Outcome(terms, taken, rate)
        self._step(whole, on_towers, taken)
        if self.engine.was_step_applied():
            self._remember(features, taken)
        else:  # fp16's scaler found an overflow
            taken = torch.zeros_like(taken)
        self.engine.module.settle(taken)
        return Outcome(terms, taken, rate)

    def _estimate(self, batch: Batch, step: int) -> Outcome:
        """A step in which BatchNorm's running statistics move and nothing else does."""
        with torch.no_grad():
            features, _ = self.features(batch, self.forward(batch), step)
            terms = self.objective(features, Exchange(self.ranks))
        means = torch.stack([term.detach() for term in terms.values()])
        collectives.all_reduce_mean_([means])
        taken = torch.isfinite(means).all()
        self.engine.module.settle(taken)
        return Outcome(dict(zip(terms, means.unbind(), strict=True)), taken, 0.0)

    def _step(self, whole: tuple[torch.Tensor, torch.Tensor], grads: Sequence[torch.Tensor], taken: torch.Tensor) -> None:
        """The towers' step, and what is learned beside them."""
        if not self.waits:
            refused = (~taken).float()
            self.stepper.found_inf = self.adam.found_inf = refused  # type: ignore[attr-defined]
            grads = [torch.where(taken, grad, 0) for grad in grads]
        share = 1 / self.world.size if self.stage.gather == "published" else 1.0
        # the towers' gradient is that of <features, dL/dfeatures>: DeepSpeed scales and averages it as it would the loss's
        self.backward(share * (torch.cat(whole, 1) * torch.stack(list(grads), 1)).sum())
        self.engine.step()

    def _remember(self, features: Features, taken: torch.Tensor) -> None:
        self.adam.step()
        for name, bound in self.bounds.items():
            if bound.low is not None or bound.high is not None:
                self.learned[name].data.clamp_(bound.low, bound.high)
        if self.memory:
            new = self.stage.objective.remember(features, Exchange(self.ranks))
            self.memory = {name: torch.where(taken, new[name], old) for name, old in self.memory.items()}

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(pictures [B, V, D], captions [B, U, D], U maybe 0) as unit rows; a pair's views go through a tower together."""
        images, tokens, pieces = self.inputs(batch)
        rows, texts = self.engine(images, tokens, pieces)
        texts = rows.new_empty(0, rows.shape[-1]) if texts is None else texts
        return rows.unflatten(0, (len(batch.keys), batch.views)), texts.view(*batch.tokens.shape[:2], rows.shape[-1])

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None, list[Piece]]:
        """What the towers take: pictures and tokens, a pair's views one after the other, and their micro-batches; None for
        the tokens of no captions."""
        device, rows = self.world.device, len(batch.keys)
        views, captions = batch.views, batch.tokens.shape[1]
        pieces = []
        for begin in range(0, rows, self.micro or rows):
            part = batch.tokens[begin : begin + (self.micro or rows)]
            cut = cut_of(part.flatten(0, 1), self.several) if captions else None
            pieces.append(Piece(len(part) * views, len(part) * captions, cut))
        tokens = batch.tokens.flatten(0, 1).to(device, non_blocking=True) if captions else None
        return batch.pictures(device).flatten(0, 1), tokens, pieces

    def features(
        self, batch: Batch, whole: tuple[torch.Tensor, torch.Tensor], step: int
    ) -> tuple[Features, list[torch.Tensor]]:
        """(what the objective sees, its leaves: the pictures' views, then the captions')."""
        images, texts = ([view.detach().contiguous().requires_grad_() for view in rows.unbind(1)] for rows in whole)
        device = self.world.device
        labels = None if self.labels is None else torch.from_numpy(self.labels[batch.samples.numpy()]).to(device)
        flags = None if self.flags is None else torch.from_numpy(self.flags[batch.samples.numpy()]).to(device)
        epoch = step // self.epoch_steps + 1
        start = None if self.start is None else self._start(batch)
        out = Features(tuple(images), tuple(texts), self.learned, start, labels, flags, self.memory, epoch)
        return out, [*images, *texts]

    def _start(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The frozen start's rows of the first view."""
        assert self.start is not None
        with torch.no_grad():
            rows, texts = self.start(*self.inputs(batch.first()))
        return rows, texts

    def moments(self) -> dict[str, torch.Tensor]:
        """The moments of the scale and the bias by open_clip's names, as a run that inherits them reads them."""
        out: dict[str, torch.Tensor] = {}
        for ours, theirs in SCALARS.items():
            state = self.adam.state.get(self.learned[ours], {}) if ours in self.learned else {}
            out |= {f"{theirs}/{key}": state[key].cpu() for key in MOMENTS if key in state}
        return out

    def inherit(self, moments: dict[str, torch.Tensor]) -> None:
        """Takes what `moments` gave, of what is learned here too."""
        for ours, theirs in SCALARS.items():
            if ours in self.learned and f"{theirs}/{MOMENTS[0]}" in moments:
                value = self.learned[ours]
                state = {key: moments[f"{theirs}/{key}"].reshape(1).to(value.device).clone() for key in MOMENTS}
                self.adam.state[value] = {"step": moments[STEPS].clone().to(value.device), **state}

    def renew(self, names: str, seed: int) -> None:
        """Draws again, by this seed, what is learned under names with this beginning; its moments are forgotten."""
        width = self.learned["cluster.weight"].shape[1]
        for name, one in initial(self.stage.objective, width, seed).items():
            if name.startswith(names):
                self.learned[name].data.copy_(one.initial)
                self.adam.state.pop(self.learned[name], None)

    def state(self) -> dict[str, torch.Tensor]:
        """What is learned beside the towers, its moments, the memory, labels: as tensors, for a checkpoint."""
        out = {f"learned/{name}": value.detach().cpu() for name, value in self.learned.items()}
        for name, value in self.learned.items():
            out |= {f"adam/{name}/{key}": moment.cpu() for key, moment in self.adam.state.get(value, {}).items()}
        out |= {f"memory/{name}": value.cpu() for name, value in self.memory.items()}
        out |= {f"note/{name}": value.cpu() for name, value in self.notes.items()}
        if self.labels is not None:
            out["labels"] = torch.from_numpy(self.labels)
        return out

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what `state` gave."""
        for name, value in self.learned.items():
            value.data.copy_(state[f"learned/{name}"])
            begin = f"adam/{name}/"
            moments = {key.removeprefix(begin): moment for key, moment in state.items() if key.startswith(begin)}
            if moments:
                self.adam.state[value] = {key: moment.to(value.device) for key, moment in moments.items()}
        self.memory = {name: state[f"memory/{name}"].to(value.device) for name, value in self.memory.items()}
        for name, value in self.notes.items():
            value.copy_(state[f"note/{name}"])
        if "labels" in state:
            self.labels = state["labels"].numpy()
