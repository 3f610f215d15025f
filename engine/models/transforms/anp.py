"""Adversarial neuron pruning (Wu & Wang 2021, arXiv 2110.14430): neurons whose loss rises most when their weights are
perturbed are removed.

It looks at the first views of clean pairs in the run's own order, with BatchNorm's running statistics, and changes no weight
but those of the neurons that it removes. Gradients are those of the global batch, whatever number of processes.
"""

from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from configs.start import Anp
from data.refusal import UserError
from data.seeding import derive_seed
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models.neurons import Neurons, neurons_of
from engine.models.towers import Piece, Towers, cut_of
from engine.models.transforms.contract import CleanPairs, Scalars, TransformInputs
from objectives.contract import Features
from objectives.exchange import Exchange, Ranks
from objectives.mmcl import mmcl

MOMENTUM = 0.9  # of the masks' descent (Wu & Wang 2021)


def anp(section: Anp, towers: Towers, scalars: Scalars, inputs: TransformInputs) -> tuple[Scalars, str]:
    """Removes the neurons of all blocks whose learned mask ends below the threshold.

    As in the original, masks decide and are then dropped: neurons that stay keep their weights. Unlike there, BatchNorm
    keeps its running statistics, the perturbation stays within its budget after its one step of ascent, and a removed
    neuron loses its bias too, so that it stays dead.
    """
    neurons = neurons_of(towers, inputs.model)
    scale = scalars.get("scale", inputs.fresh["scale"].initial).to(inputs.world.device)
    with towers.frozen():
        loss = NeuronLoss(towers, neurons, scale, collectives.process_groups(), inputs.pairs.grad_rows)
        masks = learned_masks(section, loss, inputs.pairs, inputs.world, inputs.seed)
    if not bool(masks.isfinite().all()):
        raise UserError(
            f"transform: the loss of anp at budget {section.budget:g} and rate {section.rate:g} is not finite; lower them"
        )
    below = (masks < section.threshold).nonzero()[:, 0]
    neurons.remove(below)
    return scalars, neurons.removed(len(below))


@dataclass(frozen=True)
class NeuronLoss:
    """MMCL of a global batch with the neurons' weights and biases scaled, and its gradients."""

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

    def gradients(
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


def learned_masks(section: Anp, loss: NeuronLoss, pairs: CleanPairs, world: World, seed: int) -> torch.Tensor:
    """[K] in [0, 1]: the masks after the section's steps of gradient descent with momentum, from 1."""
    masks = torch.ones(len(loss.neurons), device=world.device)
    speed = torch.zeros_like(masks)
    for step, batch in pairs.first_batches(section.steps, "adversarial pruning", world):
        pictures, texts = batch.pictures(world.device)[:, 0], loss.texts(batch.tokens[:, 0])
        draw = torch.Generator().manual_seed(derive_seed(seed, "anp", step))  # the same on every rank
        noise = adversarial_noise(section.budget, loss, pictures, texts, masks, draw)
        speed = MOMENTUM * speed + mask_gradient(section.alpha, loss, pictures, texts, masks, noise)[1]
        masks = (masks - section.rate * speed).clamp(0, 1)
    return masks


def adversarial_noise(
    budget: float,
    loss: NeuronLoss,
    pictures: torch.Tensor,
    texts: torch.Tensor,
    masks: torch.Tensor,
    draw: torch.Generator,
) -> torch.Tensor:
    """[2, K] in [-budget, budget]: relative changes of weights and of biases that raise the loss, by one step of the
    gradient's sign from a uniform draw (FGSM; Wong et al. 2020, arXiv 2001.03994)."""
    start = budget * (2 * torch.rand(2, len(masks), dtype=torch.float64, generator=draw).to(masks) - 1)
    _, *rising = loss.gradients(pictures, texts, masks + start[0], 1 + start[1])
    return (start + budget * torch.stack(rising).sign()).clamp(-budget, budget)


def mask_gradient(
    alpha: float,
    loss: NeuronLoss,
    pictures: torch.Tensor,
    texts: torch.Tensor,
    masks: torch.Tensor,
    noise: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha L(m w, b) + (1 - alpha) L((m + d) w, (1 + x) b), 0-d, its gradient in the masks m, [K]); noise: d and x."""
    plain, along, _ = loss.gradients(pictures, texts, masks, torch.ones_like(masks))
    hard, across, _ = loss.gradients(pictures, texts, masks + noise[0], 1 + noise[1])
    return torch.lerp(hard, plain, alpha), torch.lerp(across, along, alpha)
