"""What each head of a vision transformer's last block adds to a picture's embedding (Gandelsman et al. 2024, arXiv
2310.05916, section 3).

The embedding is a sum over what the last block reads, writes by each head, by the bias behind them and by its MLP, once the
last norm is taken as the linear map that it is for a given picture, divided by the length of the whole:

    x -> ((x - mean(x)) / std(residual) * weight) P / || embedding ||        and the norm's shift P / || embedding ||
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from data.refusal import UserError
from engine.models.clip import on_meta
from engine.models.layers import LastBlock
from engine.models.towers import Towers

REST = ("read", "bias", "mlp", "shift")  # what stands behind the heads


def check_heads(name: str, what: str) -> None:
    """UserError saying of `what` that it looks at heads, if a model's picture tower is no plain vision transformer."""
    if not isinstance(getattr(_last_block(on_meta(name)), "forward", None), LastBlock):
        raise UserError(
            f"{what} looks at the heads of a vision transformer's last block, and model.name '{name}' has none that are "
            "read from one token; leave it out, or take a ViT of CLIP's"
        )


def _last_block(towers: Towers) -> Any:
    blocks: Any = getattr(getattr(towers.clip.visual, "transformer", None), "resblocks", None)
    return None if blocks is None else blocks[-1]


class HeadParts:
    """Of the pictures that went through the towers last their embeddings' parts [n, H + 4, D]: the heads, then REST."""

    def __init__(self, towers: Towers) -> None:
        self.visual, self.block = towers.clip.visual, _last_block(towers)
        self.count: int = self.block.attn.num_heads
        self.written: dict[str, torch.Tensor] = {}  # on the residual stream: [n, parts, W]
        self.parts: torch.Tensor | None = None

    def taken(self) -> torch.Tensor:
        """The parts, once."""
        assert self.parts is not None
        parts, self.parts = self.parts, None
        return parts

    def read(self, _: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        """Before the block's first norm."""
        self.written = {"read": given[0][:, :1].float()}

    def attended(self, linear: nn.Linear, given: tuple[torch.Tensor, ...]) -> None:
        """Before the heads, [n, 1, W], are put together."""
        inside, weight = given[0].float(), linear.weight.float()
        by_head = weight.view(len(weight), self.count, -1)
        heads = torch.einsum("nhd,whd->nhw", inside.view(len(inside), self.count, -1), by_head)
        bias = linear.bias.float().expand(len(inside), 1, -1)
        self.written |= {"heads": self.block.ls_1(heads).float(), "bias": self.block.ls_1(bias).float()}

    def thought(self, _: nn.Module, given: Any, written: torch.Tensor) -> None:
        """Behind the block's MLP."""
        self.written["mlp"] = written.float()

    def normed(self, norm: nn.LayerNorm, given: tuple[torch.Tensor, ...]) -> None:
        """Before the last norm, of [n, 1, W] or [n, W]."""
        residual = given[0].reshape(len(given[0]), 1, -1).float()
        spread = (residual.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        parts = torch.cat([self.written[name] for name in ("heads", *REST[:-1])], 1)
        scaled = (parts - parts.mean(-1, keepdim=True)) / spread * norm.weight.float()
        scaled = torch.cat([scaled, norm.bias.float().expand(len(parts), 1, -1)], 1)
        out = scaled if self.visual.proj is None else scaled @ self.visual.proj.float()
        self.parts, self.written = out / out.sum(1, keepdim=True).norm(dim=-1, keepdim=True), {}


@contextmanager
def head_parts(towers: Any) -> Iterator[HeadParts]:
    """Within it, what the towers (or DeepSpeed's engine around them) made of the last pictures, in parts."""
    seen = HeadParts(towers if isinstance(towers, Towers) else towers.module)
    block, visual = seen.block, seen.visual
    forward = block.forward
    with ExitStack() as ends:
        block.forward = LastBlock(block, text=False)  # compiled code asks no hooks
        ends.callback(setattr, block, "forward", forward)
        for handle in (
            block.ln_1.register_forward_pre_hook(seen.read),
            block.attn.out_proj.register_forward_pre_hook(seen.attended),
            block.ls_2.register_forward_hook(seen.thought),
            visual.ln_post.register_forward_pre_hook(seen.normed),
        ):
            ends.callback(handle.remove)
        yield seen
