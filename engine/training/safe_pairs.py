"""Which pairs SafeCLIP takes for safe in an epoch: by the cosines of all pairs under the weights at its beginning.

Pairs are encoded in evaluation mode, poison applied, in pieces that do not depend on the number of ranks; rank 0 decides and
tells the others. What was decided is in the checkpoints, so that an epoch that is gone on with keeps it, and the next one
knows how many pairs were safe before.
"""

import warnings
from typing import Any

import numpy as np
import torch

from data.decode import DecodeError
from data.pipeline import Pairs
from data.refusal import UserError
from data.seeding import ranks
from engine.distributed import collectives
from engine.distributed.watchdog import heartbeat
from engine.distributed.world import World
from engine.evaluation.evaluate import judged
from measures.contract import NotFinite
from objectives.safeclip import SafeClip


def risky_pairs(
    towers: Any, pairs: Pairs, section: SafeClip, before: np.ndarray | None, world: World, rows: int
) -> np.ndarray:
    """bool by sample of the index: those that are not safe, given those of the epoch `before`; `rows` pairs go through the
    towers at once. UserError if too few are safe at first."""
    cosines = pair_cosines(towers, pairs, world, rows)
    chosen = np.arange(len(pairs.index)) if pairs.chosen is None else pairs.chosen
    order = ranks(pairs.reading.seed, "safe", pairs.index.hashes)[chosen]
    batch = pairs.reading.batch

    def decide() -> np.ndarray:
        known = None if before is None else int((~before[chosen]).sum())
        return safe(cosines, order, section, known, batch)

    risky = np.ones(len(pairs.index), bool)
    risky[chosen] = ~collectives.on_rank_0(decide)
    return risky


def safe(cosines: np.ndarray, order: np.ndarray, section: SafeClip, before: int | None, batch: int) -> np.ndarray:
    """bool [N]: the safe ones of pairs with these cosines (NaN: can't be used), of which `before` were safe in the epoch
    before (None: they are told apart for the first time); of equal cosines those of the smaller `order`."""
    known = ~np.isnan(cosines)
    out = np.zeros(len(cosines), bool)
    if before is None:
        if known.sum() > 1:
            out[known] = upper_posterior(cosines[known]) >= section.posterior
        if out.sum() < batch:
            raise UserError(
                f"objective safeclip finds {int(out.sum()):,} of {int(known.sum()):,} pairs safe with a posterior of "
                f"{section.posterior:g}, fewer than a batch of {batch:,}; warm up longer (objective.unimodal, a higher "
                "rate), or lower objective.posterior or the batch"
            )
        return out
    most = max(before, round(section.most * len(cosines)))
    number = min(before + round(section.growth * len(cosines)), most)
    by_cosine = np.lexsort((order, -np.where(known, cosines, -np.inf)))
    out[by_cosine[: min(number, int(known.sum()))]] = True
    return out


def upper_posterior(values: np.ndarray) -> np.ndarray:
    """float64 [N]: of each value the posterior of the upper of two Gaussians, fitted by expectation-maximisation from the
    quartiles; nothing in it is drawn, so that the same values always give the same."""
    from sklearn.mixture import GaussianMixture

    column = values.astype(np.float64)[:, None]
    spread = max(float(column.var()), 1e-8)
    start = {
        "weights_init": [0.5, 0.5],
        "means_init": np.quantile(column, [0.25, 0.75])[:, None],
        "precisions_init": np.full((2, 1, 1), 1 / spread),
    }
    mixture = GaussianMixture(2, tol=1e-6, reg_covar=1e-8, max_iter=1000, **start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that values are alike, or that a thousand rounds are not enough
        mixture.fit(column)
    posterior: np.ndarray = mixture.predict_proba(column)[:, int(mixture.means_[:, 0].argmax())]
    return posterior


def pair_cosines(towers: Any, pairs: Pairs, world: World, rows: int) -> np.ndarray:
    """float32 [len(pairs)]: the cosine of each pair's first view, NaN where it can't be decoded; UserError where embeddings
    are not finite."""
    pieces = -(-len(pairs) // rows)
    share = -(-pieces // world.size)
    training, out = towers.training, torch.full((share * rows,), torch.nan)
    towers.eval()
    with torch.no_grad():
        for at in range(share):  # as many on every rank, as ZeRO-3 wants it
            heartbeat()
            piece = min(world.rank * share + at, pieces - 1)
            part = range(piece * rows, min(len(pairs), (piece + 1) * rows))
            out[at * rows :][: len(part)] = _cosines(towers, pairs, [pairs.sample(row) for row in part], world)
    towers.train(training)
    whole: np.ndarray = collectives.gather_rows(out.to(world.device))[: len(pairs)].cpu().numpy()
    with judged("safeclip"):
        if wrong := int(np.isinf(whole).sum()):
            raise NotFinite(f"{wrong:,} of {len(whole):,} pairs have embeddings that are not finite, or of length 0")
    return whole


def _cosines(towers: Any, pairs: Pairs, samples: list[int], world: World) -> torch.Tensor:
    """float32 [n] on the CPU; NaN for samples that can't be decoded, infinite where an embedding has no direction."""
    size = pairs.reading.size
    pictures, texts, bad = list[torch.Tensor](), list[str](), list[int]()
    for sample in samples:
        try:
            picture, text = pairs.first(sample)
        except DecodeError:  # never trained on
            picture, text = np.zeros((3, size, size), np.uint8), ""
            bad.append(len(pictures))
        pictures.append(torch.from_numpy(np.ascontiguousarray(picture)))
        texts.append(text)
    tokens = pairs.tokenize(texts).to(torch.int32)
    images, captions = towers(torch.stack(pictures).to(world.device), tokens.to(world.device))
    lengths = images.norm(dim=1) * captions.norm(dim=1)
    cosines = torch.linalg.vecdot(images.float(), captions.float())
    cosines = torch.where(lengths.isfinite() & (lengths > 0), cosines, torch.inf).cpu()
    cosines[bad] = torch.nan
    return cosines
