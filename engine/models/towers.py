"""The two towers as training wants them: everything through one `forward`, in micro-batches, in fixed groups, no step
wasted.

What differs from open_clip's own forward, none of which changes a result beyond rounding:
- Gradient caching (Gao et al. 2021, arXiv 2101.06983): micro-batches go through one after the other and keep nothing;
  in the backward pass each is run again, its random state restored. The last one's graph is kept, so k micro-batches
  cost k - 1 forwards more. All belong to one graph, so every parameter's gradient is reduced over ranks once.
- Captions run up to their end token only, in groups of similar length: with a causal mask and end-token pooling nothing
  behind it is read.
- A transformer's last block is computed at the one token that is read from it.
- Attention is torch's fused kernel with `is_causal`, not a mask of floats.
- BatchNorm takes its statistics over groups of a fixed number of pairs, whatever the process or micro-batch holds. Where a
  group is larger than a micro-batch, pictures go through whole, with their blocks recomputed, and captions in micro-batches.

Under bf16 the parameters stay float32 (engine/models/precision.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from engine.models.layers import Attention, LastBlock, is_plain
from engine.models.normalization import Normalization
from engine.models.norms import GroupedNorm, update_running_stats
from engine.models.precision import Casts

OPENAI = Normalization()
FEW = 4  # captions of a length that are not run by themselves, but with those of the next
BLOCKS = ("Bottleneck", "ResidualAttentionBlock")  # classes that are compiled, and recomputed, each by itself
GRAPHS = 64  # of one block's code
LENGTHS = (8, 16, 24, 32, 48, 64)  # captions are cut to one of few lengths, so that compiled code sees few shapes


class Cut(NamedTuple):
    """Captions by length: how many of them in turn are cut to which length, and in which order they come."""

    parts: tuple[tuple[int, int], ...]  # (rows, length)
    order: torch.Tensor | None = None  # int64 [m], on the towers' device; None: as they are
    back: torch.Tensor | None = None  # its inverse


class Piece(NamedTuple):
    """One micro-batch: how many pictures, how many captions, and how these are cut."""

    images: int
    texts: int
    cut: Cut | None = None


class Towers(nn.Module):
    """Pictures and token rows to unit rows; everything goes through `forward`, as ZeRO-3 needs."""

    def __init__(self, clip: nn.Module, normalization: Normalization = OPENAI) -> None:
        super().__init__()
        for name in ("logit_scale", "logit_bias"):
            if hasattr(clip, name):
                delattr(clip, name)
        self.clip: Any = clip
        self.cuts = True  # whether captions are cut where that is exact
        self.casts: Casts | None = None  # None: computes in the parameters' own type
        self.whole_pictures = False  # whether micro-batches divide captions alone
        self.unit = True  # whether rows are divided by their length
        self.normalize(normalization)
        for module in clip.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = GroupedNorm
                module.prepare()  # type: ignore[operator]
            elif type(module) is nn.MultiheadAttention and is_plain(module):
                module.__class__ = Attention
        for tower, text in ((clip, True), (self.clip.visual, False)):
            block = _last(tower)
            if block is not None and (self.trims if text else _takes_the_first(tower)):
                block.forward = LastBlock(block, text)

    def normalize(self, normalization: Normalization) -> None:
        """Sets how pictures are normalised, from now on."""
        self.normalization = normalization
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in normalization)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Makes the towers compute in a lower precision than their parameters have, from now on."""
        self.casts = Casts(self.clip, dtype)

    @cached_property
    def norms(self) -> list[GroupedNorm]:
        """Every BatchNorm."""
        return [module for module in self.modules() if isinstance(module, GroupedNorm)]

    @property
    def trims(self) -> bool:
        """Whether captions may be cut behind their end token: a causal mask, the end token's row is the caption's, and all
        blocks are plain."""
        clip = self.clip
        pooled = getattr(clip, "text_pool_type", None) == "argmax" and getattr(clip, "attn_mask", None) is not None
        return pooled and _last(clip) is not None

    def forward(
        self, images: torch.Tensor | None, tokens: torch.Tensor | None, pieces: Sequence[Piece] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Unit float32 rows [n, D] of pictures [n, 3, H, W], uint8 or real ones from 0 to 255 that may carry a gradient, and
        of integer tokens [m, L]; None for None.

        `pieces` divides both into micro-batches; default: one.
        """
        if pieces is None or len(pieces) == 1:
            return self._encode(images, tokens, pieces[0].cut if pieces else None)
        if self.whole_pictures and images is not None:
            rows, _ = self._encode(images, None, None)
            return rows, None if tokens is None else self._encode_pieces(None, tokens, pieces)[1]
        return self._encode_pieces(images, tokens, pieces)

    def _encode_pieces(
        self, images: torch.Tensor | None, tokens: torch.Tensor | None, pieces: Sequence[Piece]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        parts = zip(
            _split(images, [piece.images for piece in pieces]),
            _split(tokens, [piece.texts for piece in pieces]),
            [piece.cut for piece in pieces],
            strict=True,
        )
        rows: list[torch.Tensor | None] = []
        texts: list[torch.Tensor | None] = []
        for number, (picture, caption, cut) in enumerate(parts, 1):
            if number == len(pieces) or not torch.is_grad_enabled():
                image_rows, text_rows = self._encode(picture, caption, cut)
            else:
                image_rows, text_rows = checkpoint(
                    self._encode, picture, caption, cut, use_reentrant=False, context_fn=self._contexts
                )
            rows.append(image_rows)
            texts.append(text_rows)
        return _joined(rows), _joined(texts)

    def _encode(
        self, images: torch.Tensor | None, tokens: torch.Tensor | None, cut: Cut | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        with nullcontext() if self.casts is None else self.casts.kept():
            return self._rows(images, tokens, cut)

    def _rows(
        self, images: torch.Tensor | None, tokens: torch.Tensor | None, cut: Cut | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        rows = texts = None
        if images is not None:
            dtype = self._dtype()
            if self.mean.device != images.device:
                self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
            wide = torch.promote_types(dtype, torch.float32)
            pixels = (images.to(wide) / 255 - self.mean) / self.std
            pixels = pixels.to(dtype, memory_format=torch.channels_last)
            rows = self._ended(self.clip.encode_image(pixels).to(wide))
        if tokens is not None:
            words = self._encode_text(tokens.long(), cut)
            texts = self._ended(words.to(torch.promote_types(words.dtype, torch.float32)))
        return rows, texts

    def _ended(self, rows: torch.Tensor) -> torch.Tensor:
        return F.normalize(rows, dim=-1) if self.unit else rows

    def _encode_text(self, tokens: torch.Tensor, cut: Cut | None) -> torch.Tensor:
        """[m, D] of CLIP's text transformer, each caption as far as its cut goes."""
        if self.casts is not None:
            self.casts.put([self.clip])  # what it owns itself
        if not self.trims:
            out: torch.Tensor = self.clip.encode_text(tokens)
            return out
        if cut is None or not self.cuts:
            return self._causal(tokens)
        parts = torch.split(tokens if cut.order is None else tokens[cut.order], [rows for rows, _ in cut.parts])
        rows = [self._causal(part[:, :length]) for part, (_, length) in zip(parts, cut.parts, strict=True)]
        return rows[0] if cut.back is None else torch.cat(rows)[cut.back]

    def _dtype(self) -> torch.dtype:
        """What the towers compute in."""
        return next(self.clip.parameters()).dtype if self.casts is None else self.casts.dtype

    def _causal(self, tokens: torch.Tensor) -> torch.Tensor:
        """[m, D] of the causal transformer at the end tokens (Radford et al. 2021)."""
        clip, length = self.clip, tokens.shape[1]
        x = clip.token_embedding(tokens).to(self._dtype()) + clip.positional_embedding[:length]
        # stands for a causal mask, and the last block answers at these places alone
        x = clip.ln_final(clip.transformer(x, attn_mask=tokens.argmax(-1))[:, 0])
        if clip.text_projection is None:
            return torch.as_tensor(x)
        projection = clip.text_projection
        return torch.as_tensor(projection(x) if isinstance(projection, nn.Module) else x @ projection)

    def _contexts(self) -> tuple[Any, Any]:
        """Of a pass that is run twice: its first run, and its replay, which must not count in BatchNorm's running statistics
        and takes statistics over ranks from the first."""
        replayed: dict[GroupedNorm, torch.Tensor] = {}
        return self._run(replayed, counts=True), self._run(replayed, counts=False)

    @contextmanager
    def _run(self, replayed: dict[GroupedNorm, torch.Tensor], counts: bool) -> Iterator[None]:
        norms = self.norms
        before = [(norm.counts, norm.replayed) for norm in norms]
        for norm in norms:
            norm.counts, norm.replayed = norm.counts and counts, replayed
        try:
            yield
        finally:
            for norm, (counted, outer) in zip(norms, before, strict=True):
                norm.counts, norm.replayed = counted, outer

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within it the towers are in evaluation mode and their weights ask for no gradient; then all is as it was."""
        modes = [(module, module.training) for module in self.modules()]
        asks = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        self.eval().requires_grad_(False)
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, ask in asks:
                parameter.requires_grad_(ask)

    def freeze_texts(self) -> None:
        """Takes the text tower out of the training."""
        for name, parameter in self.clip.named_parameters():
            parameter.requires_grad_(name.startswith("visual."))

    def recompute(self) -> None:
        """Keeps only the inputs of each block; what they hold inside is computed again in the backward pass."""
        self.clip.set_grad_checkpointing(True)
        self.recompute_resnet()

    def recompute_resnet(self) -> None:
        """The same for the stem and the blocks of a ResNet alone, of which open_clip recomputes none."""
        visual = self.clip.visual
        layers = [module for name, module in visual.named_children() if name.startswith("layer")]
        blocks = [block for layer in layers if isinstance(layer, nn.Sequential) for block in layer]
        if blocks:
            visual.stem = _Recomputed(visual.stem, self._contexts)
        for block in blocks:
            block.forward = _Recomputed(block.forward, self._contexts)

    def compile_blocks(self, backend: Any = "inductor") -> None:
        """torch.compile on each block of both towers: few graphs, compiled once for all equal blocks.

        All of a ResNet's blocks count as one function, with a graph for each of its 8 kinds, in evaluation, in training and
        in a replay: more than torch keeps by default, after which it would run the rest as it is.
        """
        import torch._dynamo

        torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
        for module in self.clip.modules():
            if type(module).__name__ in BLOCKS:
                module.forward = _Compiled(module, backend)

    def update_running_stats(self, taken: torch.Tensor | None = None) -> None:
        """Moves BatchNorm's running statistics on by one step, if it was `taken` (0-d bool; default: yes)."""
        update_running_stats(self.norms, taken)


class _Compiled:
    """The compiled forward pass of a block. Its norms note statistics as if for the first time in a step: torch would keep a
    graph for each number of notes before."""

    def __init__(self, block: nn.Module, backend: Any) -> None:
        self.forward = torch.compile(block.forward, backend=backend)
        self.norms = [module for module in block.modules() if isinstance(module, GroupedNorm)]

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        before = [norm.noted for norm in self.norms]
        for norm in self.norms:
            norm.noted = []
        try:
            return self.forward(*inputs, **named)
        finally:
            for norm, noted in zip(self.norms, before, strict=True):
                norm.noted = noted + norm.noted


class _Recomputed:
    def __init__(self, forward: Any, contexts: Any) -> None:
        self.forward, self.contexts = forward, contexts

    def __call__(self, x: torch.Tensor) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(x)
        return checkpoint(self.forward, x, use_reentrant=False, context_fn=self.contexts)


def _split(whole: torch.Tensor | None, sizes: list[int]) -> Sequence[torch.Tensor | None]:
    return [None] * len(sizes) if whole is None else torch.split(whole, sizes)


def _joined(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def cut_of(tokens: torch.Tensor, several: bool = False) -> Cut:
    """How these rows [m, L] can be cut without losing an end token, CLIP's largest: all to one length, or to `several`."""
    ends, context = tokens.argmax(-1) + 1, tokens.shape[-1]
    bounds = torch.tensor([*(length for length in LENGTHS if length < context), context])
    bins = torch.bucketize(ends, bounds)
    if not several:
        return Cut(((len(tokens), int(bounds[int(bins.max())])),))
    parts: list[tuple[int, int]] = []
    waiting = 0
    for count, length in zip(torch.bincount(bins, minlength=len(bounds)).tolist(), bounds.tolist(), strict=True):
        waiting += count
        if count and waiting >= FEW:
            parts.append((waiting, length))
            waiting = 0
    if waiting:  # few long ones: by themselves
        parts.append((waiting, int(bounds[int(bins.max())])))
    if len(parts) == 1:
        return Cut(tuple(parts))
    order = bins.argsort(stable=True)
    return Cut(tuple(parts), order, order.argsort())


def _last(tower: Any) -> Any:
    """The last block of a tower's transformer, if it is of the plain kind."""
    blocks: Any = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if blocks is None or type(blocks[-1]).__name__ != "ResidualAttentionBlock":
        return None
    return blocks[-1] if isinstance(blocks[-1].attn, Attention) else None


def _takes_the_first(visual: Any) -> bool:
    """Whether a vision transformer reads nothing but the first token from its last block."""
    return visual.pool_type == "tok" and visual.attn_pool is None and not visual.output_tokens
