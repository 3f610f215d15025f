"""The one loop; pre-training and cleaning both use it.

A step: features of both towers (DeepSpeed) -> objective on the global batch -> gradients of the features, then of the
towers (DeepSpeed averages them over ranks) -> step -> scale.

The learned scale stands beside the towers, one number on every rank with an Adam of its own: its gradient is averaged
over ranks, and after the step it is clamped to at most 100. So it is the same at every ZeRO stage.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from configs.stage import Optimizer
from data.pipeline import Batch
from data.refusal import Refusal
from engine import world as processes
from engine.journal import Journal
from engine.model import MAX_SCALE
from engine.optimizer import rate_at
from engine.world import World
from objectives.contract import Features, Objective, Terms


@dataclass
class Learner:
    """What learns: DeepSpeed's engine around the towers, the scale, and how they step."""

    engine: Any
    log_scale: torch.Tensor  # float32 [1], leaf
    scale_adam: torch.optim.Optimizer
    objective: Objective
    section: Optimizer
    steps: int

    @classmethod
    def make(
        cls, engine: Any, log_scale: float, objective: Objective, section: Optimizer, steps: int, world: World
    ) -> "Learner":
        """A learner whose scale starts at exp(log_scale)."""
        scale = torch.tensor([log_scale], dtype=torch.float32, device=world.device, requires_grad=True)
        adam = torch.optim.AdamW([scale], lr=section.rate, betas=section.betas, eps=section.eps, weight_decay=0.0)
        return cls(engine, scale, adam, objective, section, steps)

    def state(self) -> dict[str, torch.Tensor]:
        """The scale and its moments, as tensors."""
        moments = self.scale_adam.state.get(self.log_scale, {})
        return {"scale": self.log_scale.detach().cpu(), **{f"scale_{name}": moments[name].cpu() for name in moments}}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what `state` gave."""
        self.log_scale.data.copy_(state["scale"])
        moments = {name.removeprefix("scale_"): value for name, value in state.items() if name.startswith("scale_")}
        if moments:
            self.scale_adam.state[self.log_scale] = {
                name: value if name == "step" else value.to(self.log_scale.device) for name, value in moments.items()
            }


def learn(learner: Learner, batch: Batch, step: int, world: World) -> tuple[Terms, float]:
    """Takes one step (from 0) on this rank's part of a batch; returns this rank's terms and the rate."""
    rate = rate_at(step, learner.steps, learner.section)
    for group in [*learner.engine.optimizer.param_groups, *learner.scale_adam.param_groups]:
        group["lr"] = rate
    whole = forward(learner.engine, batch, world)
    images, texts = (part.detach().requires_grad_() for part in whole)
    terms = learner.objective(Features(images, texts, learner.log_scale.exp().squeeze()), processes.gather, world.rank)
    learner.log_scale.grad = None
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    assert learner.log_scale.grad is not None
    processes.mean_([learner.log_scale.grad])
    # the towers' gradient is that of <features, dL/dfeatures>: DeepSpeed scales and averages it as it would the loss's
    assert images.grad is not None
    assert texts.grad is not None
    learner.engine.backward((whole[0] * images.grad).sum() + (whole[1] * texts.grad).sum())
    learner.engine.step()
    if learner.engine.was_step_applied():
        learner.scale_adam.step()
        learner.log_scale.data.clamp_(0.0, MAX_SCALE)
    return terms, rate


def forward(engine: Any, batch: Batch, world: World) -> tuple[torch.Tensor, torch.Tensor]:
    """(pictures, captions) as unit rows [V, B, D]; all views go through a tower together."""
    rows, views = batch.images.shape[:2]
    images = batch.images.transpose(0, 1).reshape(views * rows, *batch.images.shape[2:])
    tokens = batch.tokens.transpose(0, 1).reshape(views * rows, -1)
    first, second = engine(images.to(world.device, non_blocking=True), tokens.to(world.device, non_blocking=True))
    return first.view(views, rows, -1), second.view(views, rows, -1)


@dataclass
class Cadence:
    """When things are due, and what to call then; every rank calls the same at the same step."""

    epoch_steps: int
    log_steps: int
    save_seconds: float
    stop: Callable[[], bool]  # whether this process was asked to stop
    measure: Callable[[int, int], None]  # (epoch, step)
    save: Callable[[int], None]  # (step)
    account: Callable[[list[tuple[str, str, str]]], None]  # samples newly skipped, of all ranks


class Stopped(Exception):
    """The run was asked to stop and has saved."""


def train(learner: Learner, feed: Iterable[tuple[int, Batch]], journal: Journal, cadence: Cadence, world: World) -> None:
    """Steps through the feed; Stopped after a save when any rank was asked to stop."""
    saved, logged, last = time.monotonic(), time.monotonic(), -1
    skipped: list[tuple[str, str, str]] = []
    for step, batch in feed:
        terms, rate = learn(learner, batch, step, world)
        skipped.extend(batch.skipped)
        done, last = step + 1, step if last < 0 else last
        ends_epoch = done % cadence.epoch_steps == 0
        if done % cadence.log_steps and not ends_epoch:
            continue
        epoch = -(-done // cadence.epoch_steps)
        numbers = _numbers(learner, terms, batch, world)
        seconds, logged = time.monotonic() - logged, time.monotonic()
        pace = (done - last) * len(batch.keys) * world.size / max(seconds, 1e-9)
        last = done
        timing = {"pairs_per_s": round(pace, 1), "seconds": round(seconds, 3)}
        journal.row("step", epoch=epoch, step=done, **numbers, rate=rate, **timing)
        if not math.isfinite(numbers["loss"]):
            raise Refusal(f"the loss is {numbers['loss']} at step {done}; lower optimizer.rate or set optimizer.clip")
        if ends_epoch:
            cadence.measure(epoch, done)
            logged = time.monotonic()
        due = world.first and time.monotonic() - saved >= cadence.save_seconds
        stop, save, new = processes.totals([int(cadence.stop()), int(due), len(skipped)])
        if new:
            cadence.account([entry for part in processes.gather_objects(skipped) for entry in part])
            skipped = []
        if save or stop:
            cadence.save(done)
            saved = time.monotonic()
        if stop:
            raise Stopped


def _numbers(learner: Learner, terms: Terms, batch: Batch, world: World) -> dict[str, float]:
    """The terms of the global batch, the scale, the gradient's norm where DeepSpeed knows it, the poisoned pairs."""
    values = torch.stack([term.detach().float() for term in terms.values()])
    processes.mean_([values])
    numbers = dict(zip(terms, values.tolist(), strict=True))
    numbers["scale"] = learner.log_scale.exp().item()
    norm = learner.engine.get_global_grad_norm()
    if norm is not None:
        numbers["grad_norm"] = float(norm)
    numbers["poisoned"] = processes.totals([int(batch.poisoned.sum())])[0]
    return numbers
