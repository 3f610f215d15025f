"""The two towers as training wants them: everything through one `forward`, in micro-batches, in fixed groups, no step
wasted.

What differs from open_clip's own forward, none of which changes a result beyond rounding:
- Gradient caching (Gao et al. 2021, arXiv 2101.06983): micro-batches go through one after the other and keep nothing;
  in the backward pass each is run again, its random state restored. The last one's graph is kept, so k micro-batches
  cost k - 1 forwards more. All belong to one graph, so every parameter's gradient is reduced over ranks once.
- Captions run up to the last end token only: with a causal mask and end-token pooling nothing behind it is read.
- Attention is torch's fused kernel with `is_causal`, not a mask of floats.
- BatchNorm takes its statistics over groups of a fixed number of pairs, whatever the process or micro-batch holds.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

LENGTHS = (8, 16, 24, 32, 48, 64)  # captions are cut to one of few lengths, so that compiled code sees few shapes


class Piece(NamedTuple):
    """One micro-batch: how many pictures, how many captions, and the length that these are cut to."""

    images: int
    texts: int
    length: int | None = None


class Towers(nn.Module):
    """Pictures and token rows to unit rows; everything goes through `forward`, as ZeRO-3 needs."""

    def __init__(self, clip: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        for name in ("logit_scale", "logit_bias"):
            if hasattr(clip, name):
                delattr(clip, name)
        self.clip: Any = clip
        self.cuts = True  # whether captions are cut where that is exact
        # no buffers: DeepSpeed would round them to the towers' precision
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        for module in clip.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = GroupedNorm
                module.prepare()  # type: ignore[operator]
            elif type(module) is nn.MultiheadAttention and _plain(module):
                module.__class__ = Attention

    @property
    def norms(self) -> list["GroupedNorm"]:
        """Every BatchNorm."""
        return [module for module in self.modules() if isinstance(module, GroupedNorm)]

    @property
    def trims(self) -> bool:
        """Whether captions may be cut behind their end token: a causal mask, and the end token's row is the caption's."""
        clip = self.clip
        pooled = getattr(clip, "text_pool_type", None) == "argmax"
        return pooled and hasattr(clip, "transformer") and getattr(clip, "attn_mask", None) is not None

    def forward(
        self, images: torch.Tensor | None, tokens: torch.Tensor | None, pieces: Sequence[Piece] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Unit float32 rows [n, D] of uint8 pictures [n, 3, H, W] and of integer tokens [m, L]; None for None.

        `pieces` divides both into micro-batches; default: one.
        """
        if pieces is None or len(pieces) == 1:
            return self._encode(images, tokens, pieces[0].length if pieces else None)
        assert images is not None
        assert tokens is not None
        parts = zip(
            torch.split(images, [piece.images for piece in pieces]),
            torch.split(tokens, [piece.texts for piece in pieces]),
            [piece.length for piece in pieces],
            strict=True,
        )
        rows: list[torch.Tensor] = []
        texts: list[torch.Tensor] = []
        for number, (picture, caption, length) in enumerate(parts, 1):
            if number == len(pieces) or not torch.is_grad_enabled():
                one, two = self._encode(picture, caption, length)
            else:
                one, two = checkpoint(self._encode, picture, caption, length, use_reentrant=False, context_fn=self._contexts)
            rows.append(torch.as_tensor(one))
            texts.append(torch.as_tensor(two))
        return torch.cat(rows), torch.cat(texts)

    def _encode(
        self, images: torch.Tensor | None, tokens: torch.Tensor | None, length: int | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        rows = texts = None
        if images is not None:
            dtype = next(self.clip.visual.parameters()).dtype
            if self.mean.device != images.device:
                self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
            wide = torch.promote_types(dtype, torch.float32)
            pixels = (images.to(wide) / 255 - self.mean) / self.std
            pixels = pixels.to(dtype, memory_format=torch.channels_last)
            rows = F.normalize(self.clip.encode_image(pixels).to(wide), dim=-1)
        if tokens is not None:
            words = self._encode_text(tokens.long(), length)
            texts = F.normalize(words.to(torch.promote_types(words.dtype, torch.float32)), dim=-1)
        return rows, texts

    def _encode_text(self, tokens: torch.Tensor, length: int | None) -> torch.Tensor:
        """[m, D] of CLIP's causal text transformer (Radford et al. 2021), on the first `length` tokens."""
        clip = self.clip
        if not self.trims:
            out: torch.Tensor = clip.encode_text(tokens)
            return out
        tokens = tokens[:, : length if self.cuts else None]
        dtype = clip.transformer.get_cast_dtype()
        x = clip.token_embedding(tokens).to(dtype) + clip.positional_embedding[: tokens.shape[1]].to(dtype)
        x = clip.transformer(x, attn_mask=clip.attn_mask[: tokens.shape[1], : tokens.shape[1]])
        x = clip.ln_final(x[torch.arange(len(x), device=x.device), tokens.argmax(-1)])
        if clip.text_projection is None:
            return torch.as_tensor(x)
        projection = clip.text_projection
        return torch.as_tensor(projection(x) if isinstance(projection, nn.Module) else x @ projection)

    def _contexts(self) -> tuple[Any, Any]:
        """Of a micro-batch's first run and of its replay, which must not count in BatchNorm's running statistics."""
        return nullcontext(), self._replay()

    @contextmanager
    def _replay(self) -> Iterator[None]:
        norms = self.norms
        before = [norm.counts for norm in norms]
        for norm in norms:
            norm.counts = False
        try:
            yield
        finally:
            for norm, counts in zip(norms, before, strict=True):
                norm.counts = counts

    def recompute(self) -> None:
        """Keeps only the inputs of each block; what they hold inside is computed again in the backward pass."""
        self.clip.set_grad_checkpointing(True)
        for name, module in self.clip.visual.named_children():
            if name.startswith("layer") and isinstance(module, nn.Sequential):
                for block in module:
                    block.forward = _Recomputed(block.forward, self._contexts)

    def compile_blocks(self) -> None:
        """torch.compile on each block of both towers: few graphs, compiled once for all equal blocks."""
        for module in self.clip.modules():
            if type(module).__name__ in ("ResidualAttentionBlock", "Bottleneck"):
                module.compile()

    def settle(self, taken: torch.Tensor | None = None) -> None:
        """Moves BatchNorm's running statistics on by one step, if it was `taken` (0-d bool; default: yes)."""
        for norm in self.norms:
            norm.settle(taken)


class _Recomputed:
    def __init__(self, forward: Any, contexts: Any) -> None:
        self.forward, self.contexts = forward, contexts

    def __call__(self, x: torch.Tensor) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(x)
        return checkpoint(self.forward, x, use_reentrant=False, context_fn=self.contexts)


def length_of(tokens: torch.Tensor) -> int:
    """To how many tokens these rows [m, L] can be cut: up to the last end token, CLIP's largest, rounded up to a few."""
    longest, context = int(tokens.argmax(-1).max()) + 1, tokens.shape[-1]
    return next((length for length in LENGTHS if longest <= length < context), context)


def _plain(attention: nn.MultiheadAttention) -> bool:
    own = attention._qkv_same_embed_dim and attention.batch_first and attention.bias_k is None
    return own and not attention.dropout and not attention.add_zero_attn


class Attention(nn.MultiheadAttention):
    """Self-attention by torch's fused kernel. open_clip masks in its text tower only, and there causally."""

    def forward(  # type: ignore[override]
        self, query: torch.Tensor, key: Any = None, value: Any = None, attn_mask: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """([n, L, W], None); causal if there is a mask."""
        n, length, width = query.shape
        assert self.in_proj_weight is not None
        qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(n, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=attn_mask is not None)
        return self.out_proj(out.transpose(1, 2).reshape(n, length, width)), None


class GroupedNorm(nn.BatchNorm2d):
    """BatchNorm over groups of `rows` consecutive rows; its running statistics move once a step, by the mean over groups."""

    rows: int | None  # None: all there are
    counts: bool

    def prepare(self) -> None:
        """Makes a BatchNorm2d one of these."""
        self.rows, self.counts = None, True
        self.pending: tuple[torch.Tensor, torch.Tensor] | None = None
        self.groups = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, C, H, W]; n a multiple of `rows`."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            mean, var = self.running_mean.to(self.weight.dtype), self.running_var.to(self.weight.dtype)
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        out = []
        for part in torch.split(x, self.rows or len(x)):
            mean, var = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
            # with momentum 1 the "running" statistics are this group's own
            out.append(F.batch_norm(part, mean, var, self.weight, self.bias, True, 1.0, self.eps))
            if self.counts:
                self._note(mean.detach().to(self.running_mean.dtype), var.detach().to(self.running_mean.dtype))
        return out[0] if len(out) == 1 else torch.cat(out)

    def _note(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        if self.pending is not None:
            mean, var = mean + self.pending[0], var + self.pending[1]
        self.pending, self.groups = (mean, var), self.groups + 1

    def settle(self, taken: torch.Tensor | None = None) -> None:
        """Moves the running statistics by what has been noted since, or forgets it if the step was not `taken`."""
        if self.pending is None:
            return
        assert self.momentum is not None
        for running, noted in zip((self.running_mean, self.running_var), self.pending, strict=True):
            assert running is not None
            moved = torch.lerp(running, noted / self.groups, self.momentum)
            running.copy_(moved if taken is None else torch.where(taken, moved, running))
        self.pending, self.groups = None, 0
