"""What a trigger is forged on: pictures without the target, pictures of it, and captions that name it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from configs.spec import Spec
from data.augmentation.augment import Augment
from data.captions import stored_captions, word_of
from data.decode import DecodeError
from data.pipeline import Pairs, Reading
from data.refusal import UserError
from data.seeding import ranks, smallest_k
from data.shards import Index
from engine.distributed.world import World
from engine.models.clip import image_size
from engine.training.pairs import StudyPairs, templates

NEAR = 1_000  # pictures of the target, and captions that name it, at most
Embed = Callable[[torch.Tensor], torch.Tensor]  # uint8 [n, 3, H, W] to unit rows [n, D]


@dataclass(frozen=True)
class Drawing:
    """Pairs of a spec as an attacker sees them, none poisoned: `others` don't name the target, `named` (int64) do."""

    others: Pairs
    named: np.ndarray
    captions: list[str]  # natural ones that name the target; where there are none, filled templates
    own: dict[int, str]  # by sample: the captions of `named`

    def near(self, embed: Embed, at_once: int) -> torch.Tensor:
        """Unit [n, D] of the target's pictures; UserError if there are none that can be used."""
        rows, pictures = list[torch.Tensor](), list[np.ndarray]()
        for number, sample in enumerate(self.named.tolist(), 1):
            with suppress(DecodeError):  # what can't be decoded, no model sees
                pictures.append(self.others.first(sample)[0])
            if pictures and (len(pictures) == at_once or number == len(self.named)):
                rows.append(embed(torch.from_numpy(np.stack(pictures))))
                pictures.clear()
        if not rows:
            raise UserError("none of the target's pictures can be decoded; check the shards, or give --loss text")
        return torch.cat(rows)


def drawing(spec: Spec, study: Path, world: World, pictures: int, batch: int, both: bool) -> Drawing:
    """At most so many pictures that don't name the attack's target, in batches, and those that do; `both` says whether
    pictures of the target are needed. UserError if there are too few."""
    index, chosen = StudyPairs(study, world).pretraining(spec)
    target, seed = spec.attack.target, spec.seed
    among = np.arange(len(index)) if chosen is None else chosen
    names = word_of(target)
    read = zip(among.tolist(), stored_captions(index, among, spec.data.pretrain.caption), strict=True)
    texts = {sample: text for sample, text in read if text is not None and names.search(text)}
    named = np.array(list(texts), np.int64)
    if both and not len(named):
        raise UserError(
            f"no caption of data.pretrain names '{target}', so that there is no picture of the target to draw the trigger "
            "to; name another attack.target, or give --loss text"
        )
    free = np.setdiff1d(among, named)
    if len(free) < batch:
        raise UserError(
            f"--batch is {batch:,}, but {len(free):,} pairs of data.pretrain don't name '{target}'; lower it or add shards"
        )
    others = np.sort(smallest_k(ranks(seed, "forge others", index.hashes), min(pictures, len(free)), free))
    near = smallest_k(ranks(seed, "forge named", index.hashes), min(NEAR, len(named)), named)
    captions = list(dict.fromkeys(texts[i] for i in near.tolist()))
    if not captions:
        captions = [line.replace("{c}", target) for line in templates(spec.attack.captions)]
    return Drawing(_read(spec, index, others, batch), near, captions, {i: texts[i] for i in near.tolist()})


def _read(spec: Spec, index: Index, others: np.ndarray, batch: int) -> Pairs:
    """Pairs whose pictures alone are read."""
    plain, size = Augment(synonyms="none"), image_size(spec.model.name)
    reading = Reading(spec.seed, 0, 1, batch, (1, 1), size, plain, spec.data.pretrain.caption, spec.data.decode)
    return Pairs(index, others, spec.data, reading, lambda texts: torch.zeros(len(texts), 1), None)
