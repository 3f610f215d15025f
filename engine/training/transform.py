"""What is done to the start's weights before the first step: the one thing that a cleaner may do beside its training."""

import torch

from configs.start import Anp, FinePrune, ShrinkPerturb
from data.seeding import derive_seed
from engine.distributed.world import World
from engine.models import clip as model
from engine.models.towers import Towers
from engine.training.inputs import RunInputs
from engine.training.prune import anp, fine_pruned
from objectives.learned import initial


def transformed(
    section: ShrinkPerturb | FinePrune | Anp,
    towers: Towers,
    found: dict[str, torch.Tensor],
    job: RunInputs,
    world: World,
) -> tuple[dict[str, torch.Tensor], str | None]:
    """Changes the towers in place; (the scale and the bias, given as `found` with the start's weights, as they are then;
    what was done, in words, where the section alone does not say it)."""
    if isinstance(section, ShrinkPerturb):
        return shrunk(section, towers, found, job), None
    if isinstance(section, FinePrune):
        return found, fine_pruned(section, towers, job, world)
    return found, anp(section, towers, found, job, world)


def shrunk(
    section: ShrinkPerturb, towers: Towers, found: dict[str, torch.Tensor], job: RunInputs
) -> dict[str, torch.Tensor]:
    """shrink * theta + perturb * theta_fresh, for every parameter and for the scale and the bias."""
    spec = job.run.spec
    fresh = model.build(spec.model.name, derive_seed(spec.seed, "perturb"))
    with torch.no_grad():
        for old, new in zip(towers.parameters(), fresh.parameters(), strict=True):
            if section.shrink != 1 or section.perturb:
                old.mul_(section.shrink).add_(new.to(old.device), alpha=section.perturb)
    begins = initial(job.run.settings.objective, 1, 0)
    return {
        name: section.shrink * value + section.perturb * begins[name].initial if name in begins else value
        for name, value in found.items()
    }
