"""Cleaning by removing neurons of the picture tower: fine-pruning, and adversarial neuron pruning.

Both look at the first views of clean pairs in the run's own order, with BatchNorm's running statistics, and change no weight
but those of the neurons that they remove. Sums and gradients are those of the global batch, whatever number of processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch.utils.checkpoint import checkpoint

from configs.start import Anp, FinePrune
from data.pipeline import batches
from data.progress import Progress
from data.refusal import UserError
from data.seeding import derive_seed
from engine.distributed import collectives
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World
from engine.models.neurons import Neurons, neurons_of
from engine.models.towers import Piece, Towers, cut_of
from engine.training.inputs import RunInputs
from objectives.contract import Features
from objectives.exchange import Exchange, Ranks
from objectives.learned import initial
from objectives.mmcl import mmcl

MOMENTUM = 0.9  # of the masks' descent (Wu & Wang 2021)


def fine_pruned(section: FinePrune, towers: Towers, job: RunInputs, world: World) -> str:
    """Removes the share of the last stage's or block's neurons whose mean activation over the first clean pairs is lowest
    (Liu et al. 2018, arXiv 1805.12185; of equals the first); what was removed, in words.

    `pairs` beyond those of an epoch are not there, so fewer are averaged over.
    """
    neurons = neurons_of(towers, job.run.spec.model.name, last=True)
    number = int(section.share * len(neurons) + 1e-9)  # 0.29 * 100 is 28.999...
    if number:
        means = activations(neurons, towers, job, world, section.pairs)
        neurons.remove(means.argsort(stable=True)[:number])
    return words(number, neurons)


def activations(neurons: Neurons, towers: Towers, job: RunInputs, world: World, pairs: int) -> torch.Tensor:
    """float64 [K]: each neuron's mean activation over the first clean pairs of epoch 1."""
    batch, rows = job.run.settings.batch, job.run.spec.machine.eval_batch
    share, steps = batch // world.size, job.pairs.steps
    count = min(pairs, len(job.pairs), steps * batch)
    sums = torch.zeros(len(neurons), dtype=torch.float64, device=world.device)
    progress = Progress("activations", "batches") if world.first else None
    with still(towers), neurons.watched(sums), torch.no_grad():
        for step, one in islice(batches(job.pairs, 1, 0, job.workers(world)), -(-count // batch)):
            mine = min(share, max(0, count - step * batch - world.rank * share))  # of the last batch only its beginning
            for part in torch.split(one.first().pictures(world.device)[:mine, 0], rows):
                if len(part):
                    towers(part, None)
            heartbeat()
            if progress is not None:
                progress(step + 1, -(-count // batch))
    if progress is not None:
        progress.end()
    collectives.all_reduce_sum_([sums])
    return sums / count


def anp(section: Anp, towers: Towers, found: dict[str, torch.Tensor], job: RunInputs, world: World) -> str:
    """Removes the neurons of all blocks whose learned mask ends below the threshold (Wu & Wang 2021, arXiv 2110.14430); what
    was removed, in words.

    As in the original, masks decide and are then dropped: neurons that stay keep their weights. Unlike there, BatchNorm
    keeps its running statistics, the perturbation stays within its budget after its one step of ascent, and a removed
    neuron loses its bias too, so that it stays dead.
    """
    neurons = neurons_of(towers, job.run.spec.model.name)
    spec, stage = job.run.spec, job.run.settings
    scale = found.get("scale", initial(stage.objective, 1, 0)["scale"].initial).to(world.device)
    with still(towers):
        match = Match(towers, neurons, scale, collectives.process_groups(), spec.machine.micro_batch or stage.batch)
        masks = learned_masks(section, match, job, world, spec.seed)
    if not bool(masks.isfinite().all()):
        raise UserError(
            f"transform: the loss of anp at budget {section.budget:g} and rate {section.rate:g} is not finite; lower them"
        )
    lost = (masks < section.threshold).nonzero()[:, 0]
    neurons.remove(lost)
    return words(len(lost), neurons)


def words(number: int, neurons: Neurons) -> str:
    """What was removed, for the run's card."""
    return f"removed {number:,} of {len(neurons):,} neurons"


@contextmanager
def still(towers: Towers) -> Iterator[None]:
    """Within it the towers are in evaluation mode and their weights ask for no gradient; then all is as it was."""
    modes = [(module, module.training) for module in towers.modules()]
    asks = [(parameter, parameter.requires_grad) for parameter in towers.parameters()]
    towers.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, ask in asks:
            parameter.requires_grad_(ask)


@dataclass(frozen=True)
class Match:
    """MMCL of a global batch with the neurons' weights and biases scaled, and its slopes."""

    towers: Towers
    neurons: Neurons
    scale: torch.Tensor  # log s, [1]
    ranks: Ranks
    rows: int  # pictures that go through a tower at once

    def texts(self, tokens: torch.Tensor) -> torch.Tensor:
        """Unit rows [B, D] of this rank's captions, int32 [B, L]."""
        with torch.no_grad():
            parts = [(part, [Piece(0, len(part), cut_of(part))]) for part in torch.split(tokens, self.rows)]
            return torch.cat([self.towers(None, part.to(self.scale.device), piece)[1] for part, piece in parts])

    def slopes(
        self, images: torch.Tensor, texts: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(loss of the global batch, 0-d, its gradients in gain and shift, [K] each), the same on every rank.

        images: uint8 [B, 3, H, W], texts: unit rows [B, D] of this rank. All but the last micro-batch keep nothing and run
        again in the backward pass.
        """
        leaves = [values.detach().clone().requires_grad_() for values in (gain, shift)]
        with self.neurons.scaled(*leaves):  # around the backward pass too: its replays need the same scales
            *most, last = torch.split(images, self.rows)
            rows = [checkpoint(self.towers, part, None, use_reentrant=False)[0] for part in most]
            features = Features((torch.cat([*rows, self.towers(last, None)[0]]),), (texts,), {"scale": self.scale})
            loss = mmcl(1.0, features, Exchange(self.ranks))["loss"]
            out = [loss.detach().clone(), *torch.autograd.grad(loss, leaves)]
        collectives.all_reduce_mean_(out)  # ranks hold shares, whose mean is the global batch's
        return out[0], out[1], out[2]


def learned_masks(section: Anp, match: Match, job: RunInputs, world: World, seed: int) -> torch.Tensor:
    """[K] in [0, 1]: the masks after the section's steps of gradient descent with momentum, from 1."""
    masks = torch.ones(len(match.neurons), device=world.device)
    speed = torch.zeros_like(masks)
    epochs = -(-section.steps // job.pairs.steps)
    progress = Progress("adversarial pruning", "steps") if world.first else None
    for step, batch in islice(batches(job.pairs, epochs, 0, job.workers(world)), section.steps):
        one = batch.first()
        pictures, texts = one.pictures(world.device)[:, 0], match.texts(one.tokens[:, 0])
        draw = torch.Generator().manual_seed(derive_seed(seed, "anp", step))  # the same on every rank
        noise = worst(section.budget, match, pictures, texts, masks, draw)
        speed = MOMENTUM * speed + mask_slope(section.alpha, match, pictures, texts, masks, noise)[1]
        masks = (masks - section.rate * speed).clamp(0, 1)
        heartbeat()
        if progress is not None:
            progress(step + 1, section.steps)
    if progress is not None:
        progress.end()
    return masks


def worst(
    budget: float,
    match: Match,
    pictures: torch.Tensor,
    texts: torch.Tensor,
    masks: torch.Tensor,
    draw: torch.Generator,
) -> torch.Tensor:
    """[2, K] in [-budget, budget]: relative changes of weights and of biases that raise the loss, by one step of the
    gradient's sign from a uniform draw (FGSM; Wong et al. 2020, arXiv 2001.03994)."""
    start = budget * (2 * torch.rand(2, len(masks), dtype=torch.float64, generator=draw).to(masks) - 1)
    _, *rising = match.slopes(pictures, texts, masks + start[0], 1 + start[1])
    return (start + budget * torch.stack(rising).sign()).clamp(-budget, budget)


def mask_slope(
    alpha: float,
    match: Match,
    pictures: torch.Tensor,
    texts: torch.Tensor,
    masks: torch.Tensor,
    noise: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha L(m w, b) + (1 - alpha) L((m + d) w, (1 + x) b), 0-d, its gradient in the masks m, [K]); noise: d and x."""
    plain, along, _ = match.slopes(pictures, texts, masks, torch.ones_like(masks))
    hard, across, _ = match.slopes(pictures, texts, masks + noise[0], 1 + noise[1])
    return torch.lerp(hard, plain, alpha), torch.lerp(across, along, alpha)
