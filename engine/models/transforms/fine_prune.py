"""Fine-pruning (Liu et al. 2018, arXiv 1805.12185): the neurons that clean pictures excite least are removed.

It looks at the first views of clean pairs in the run's own order, with BatchNorm's running statistics, and changes no weight
but those of the neurons that it removes. Sums are those of the global batch, whatever number of processes.
"""

import torch

from configs.start import FinePrune
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models.neurons import Neurons, neurons_of
from engine.models.towers import Towers
from engine.models.transforms.contract import CleanPairs, Scalars, TransformInputs


def fine_prune(section: FinePrune, towers: Towers, scalars: Scalars, inputs: TransformInputs) -> tuple[Scalars, str]:
    """Removes the share of the last stage's or block's neurons whose mean activation over the first clean pairs is lowest;
    of equals the first.

    `pairs` beyond those of an epoch are not there, so fewer are averaged over.
    """
    neurons = neurons_of(towers, inputs.model, last=True)
    number = int(section.share * len(neurons) + 1e-9)  # 0.29 * 100 is 28.999...
    if number:
        means = activations(neurons, towers, inputs.pairs, section.pairs, inputs.world)
        neurons.remove(means.argsort(stable=True)[:number])
    return scalars, neurons.removed(number)


def activations(neurons: Neurons, towers: Towers, pairs: CleanPairs, count: int, world: World) -> torch.Tensor:
    """float64 [K]: each neuron's mean activation over the first `count` clean pairs of epoch 1."""
    share = pairs.batch // world.size
    count = min(count, len(pairs.dataset), pairs.dataset.steps * pairs.batch)
    sums = torch.zeros(len(neurons), dtype=torch.float64, device=world.device)
    with towers.frozen(), neurons.watched(sums), torch.no_grad():
        for step, batch in pairs.first_batches(-(-count // pairs.batch), "activations", world):
            # of the last batch only its beginning
            mine = min(share, max(0, count - step * pairs.batch - world.rank * share))
            for part in torch.split(batch.pictures(world.device)[:mine, 0], pairs.eval_rows):
                if len(part):
                    towers(part, None)
    collectives.all_reduce_sum_([sums])
    return sums / count
