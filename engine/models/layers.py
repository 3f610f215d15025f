"""Attention and blocks that take the place of torch's and open_clip's in the towers: the same results, less work."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class LastBlock:
    """The forward pass of a transformer's last block at the one token that is read from it: [n, L, W] to [n, 1, W].

    A picture's is the first; a caption's place comes in place of the mask, int64 [n]. With a real mask, all tokens as ever.
    """

    def __init__(self, block: Any, text: bool) -> None:
        self.block, self.text = block, text

    def __call__(self, q_x: torch.Tensor, k_x: Any = None, v_x: Any = None, attn_mask: torch.Tensor | None = None) -> Any:
        block, at = self.block, attn_mask
        if self.text and (at is None or at.ndim != 1):
            return type(block).forward(block, q_x, k_x, v_x, attn_mask)
        own = q_x[torch.arange(len(q_x), device=q_x.device), at][:, None] if self.text else q_x[:, :1]
        own = own + block.ls_1(block.attn(block.ln_1(q_x), at=at, first=not self.text)[0])
        return own + block.ls_2(block.mlp(block.ln_2(own)))


class Attention(nn.MultiheadAttention):
    """Self-attention by torch's fused kernel, under whatever mask open_clip's text towers give."""

    def forward(  # type: ignore[override]
        self,
        query: torch.Tensor,
        key: Any = None,
        value: Any = None,
        attn_mask: torch.Tensor | None = None,
        at: torch.Tensor | None = None,
        first: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """([n, L, W], None) under the mask: added to products ([L, L], or one a head [n H, L, L]), True where a bool mask
        hides, or the places that a caption is read at ([n]), which stand for a causal one; [n, 1, W] at the `first`
        token, or causally at `at` (int64 [n])."""
        if first or at is not None:
            return self._at_one(query, at), None
        n, length, width = query.shape
        assert self.in_proj_weight is not None
        qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(n, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        causal = attn_mask is not None and attn_mask.ndim == 1
        mask = None if attn_mask is None or causal else self._added(attn_mask, n)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out_proj(out.transpose(1, 2).reshape(n, length, width)), None

    def _added(self, mask: torch.Tensor, n: int) -> torch.Tensor:
        """A mask as the kernel adds it."""
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=self.out_proj.weight.dtype).masked_fill_(mask, -torch.inf)
        return mask if mask.ndim == 2 else mask.view(n, self.num_heads, *mask.shape[1:])

    def _at_one(self, x: torch.Tensor, at: torch.Tensor | None) -> torch.Tensor:
        n, length, width = x.shape
        assert self.in_proj_weight is not None
        own = x[:, 0] if at is None else x[torch.arange(n, device=x.device), at]
        sizes = [width, 2 * width]
        weights, biases = torch.split(self.in_proj_weight, sizes), torch.split(self.in_proj_bias, sizes)
        q = F.linear(own, weights[0], biases[0]).view(n, 1, self.num_heads, -1).transpose(1, 2)
        k, v = F.linear(x, weights[1], biases[1]).view(n, length, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        seen = None if at is None else (torch.arange(length, device=x.device) <= at[:, None])[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return torch.as_tensor(self.out_proj(out.transpose(1, 2).reshape(n, 1, width)))


def is_plain(attention: nn.MultiheadAttention) -> bool:
    """Whether torch's attention is of the kind that Attention takes the place of."""
    own = attention._qkv_same_embed_dim and attention.batch_first and attention.bias_k is None
    return own and not attention.dropout and not attention.add_zero_attn
