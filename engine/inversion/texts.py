"""A scan of the text tower in AMDET's manner (arXiv 2512.00343): one token's vector that makes all captions alike.

    loss = - mean cosine of captions with the vector, over pairs of different ones
           + 0.1 mean cosine with the same caption without it + 0.1 mean cosine with a clean tower's, if there is one

AMDET asks it of all tokens' outputs of one prompt, as a diffusion model reads them; CLIP reads one output a caption, so it
is asked of captions here. The vector stands as first word. It is learned on the scale of the vocabulary, e = mean + std z,
by Adam of rate 0.08 and decay 1e-5 on z, and is never longer than the longest of the vocabulary's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from data.refusal import UserError
from data.seeding import generator
from engine.inversion.decree import self_cosine
from engine.inversion.search import Watch
from engine.models.towers import Piece, Towers, cut_of

WORD = "x"  # one token of CLIP's, in whose place the vector is put
BESIDE = 0.1  # weight of each of the two terms that push the vector away from what is natural
RATE, DECAY, BATCH, NEAREST = 0.08, 1e-5, 10, 5


class VectorFound(NamedTuple):
    """Its vector, the mean cosine of prompts with it and without, the mean row [D] with it, and (token, mean cosine with
    that token in its place) of the vocabulary's nearest."""

    vector: torch.Tensor
    assimilation: float
    plain: float
    row: torch.Tensor
    tokens: list[tuple[int, float]]


class TextEncode:
    """Prompts with a vector as first word to unit rows, by frozen towers."""

    def __init__(self, towers: Towers, tokenize: Callable[[list[str]], torch.Tensor]) -> None:
        tables = [m for name, m in towers.clip.named_modules() if name.split(".")[-1] == "token_embedding"]
        if len(tables) != 1 or not isinstance(tables[0], nn.Embedding):
            raise UserError("the model's text tower is none of CLIP's kind, which the text scan needs; leave out texts")
        self.towers, self.tokenize, self.table = towers, tokenize, tables[0]

    def __call__(self, prompts: list[str], vector: torch.Tensor | None) -> torch.Tensor:
        """[n, D]; without a vector the prompts as they are."""
        tokens = self.tokenize(prompts if vector is None else [f"{WORD} {prompt}" for prompt in prompts])
        tokens = tokens.to(torch.int32)
        piece = [Piece(0, len(tokens), cut_of(tokens))]
        with self._in_place(vector):
            _, rows = self.towers(None, tokens.to(self.table.weight.device), piece)
        assert rows is not None
        return torch.as_tensor(rows)

    @contextmanager
    def _in_place(self, vector: torch.Tensor | None) -> Iterator[None]:
        """Within it the second token of each caption, the first behind its start, is the vector."""
        if vector is None:
            yield
            return

        def put(module: nn.Module, inputs: object, out: torch.Tensor) -> torch.Tensor:
            own = vector.to(out.dtype).expand(len(out), 1, -1)
            return torch.cat([out[:, :1], own, out[:, 2:]], 1)

        hook = self.table.register_forward_hook(put)
        try:
            yield
        finally:
            hook.remove()


def text_scan(
    encode: TextEncode, clean: TextEncode | None, prompts: tuple[list[str], list[str]], steps: int, seed: int, watch: Watch
) -> VectorFound:
    """The vector learned on some prompts, at least 2, and what it does to others; UserError if the clean tower's vectors are
    of another width."""
    table = encode.table.weight.detach().float()
    if clean is not None and clean.table.weight.shape[1] != table.shape[1]:
        raise UserError(
            f"the clean text tower takes vectors of {clean.table.weight.shape[1]} numbers and the audited one "
            f"of {table.shape[1]}; give weights of the same model"
        )
    z = torch.from_numpy(generator(seed, "texts", "first").standard_normal(table.shape[1])).to(table).requires_grad_()
    learned, others = prompts
    adam = torch.optim.Adam([z], lr=RATE, weight_decay=DECAY)
    space = _Space(table.mean(0), table.std(0), float(table.norm(dim=1).max()))
    count = min(BATCH, len(learned))
    for step in range(steps):
        chosen = generator(seed, "texts", step).choice(len(learned), count, replace=False)
        part, vector = [learned[at] for at in chosen], space.vector(z)
        rows = encode(part, vector)
        with torch.no_grad():
            own = encode(part, None)
        loss = -self_cosine(rows) + BESIDE * (rows * own).sum(1).mean()
        if clean is not None:
            loss = loss + BESIDE * (rows * clean(part, vector)).sum(1).mean()
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
        watch(step + 1)
    with torch.no_grad():
        vector = space.vector(z)
        rows, plain = encode(others, vector), encode(others, None)
        near = torch.cosine_similarity(table, vector[None]).topk(NEAREST).indices
        tokens = [(int(at), float(self_cosine(encode(others, table[at])))) for at in near]
    return VectorFound(vector, float(self_cosine(rows)), float(self_cosine(plain)), rows.mean(0), tokens)


class _Space(NamedTuple):
    """Where the vocabulary's vectors lie."""

    mean: torch.Tensor
    deviation: torch.Tensor
    longest: float

    def vector(self, z: torch.Tensor) -> torch.Tensor:
        """[W]: mean + deviation z, cut to the longest of the vocabulary's lengths."""
        vector = self.mean + self.deviation * z
        return torch.as_tensor(vector * (self.longest / vector.norm()).clamp(max=1))
