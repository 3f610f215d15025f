"""What heads of a vision transformer add to embeddings, and the detector that reads it."""

from dataclasses import replace

import pytest
import torch

from data.refusal import UserError
from engine.models import clip
from engine.models.heads import REST, check_heads, head_parts
from engine.models.towers import Towers
from measures.contract import Encoded, NotFinite
from measures.heads import heads, infected


def stirred(name: str) -> Towers:
    """Towers whose norms and biases are not as at the beginning, where many of them are 1 and 0."""
    towers = clip.build(name, 0).eval()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=source)
    return towers


def pictures(count: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


@pytest.mark.parametrize(("name", "size", "count"), [("test-vit", 32, 2), ("demo-vit", 64, 4)])
def test_the_parts_sum_to_the_embedding(name: str, size: int, count: int) -> None:
    """And are what they are called: without a head's part of the stream the embedding's own sum lacks it alone."""
    towers = stirred(name)
    images = pictures(5, size)
    plain, _ = towers(images, None)
    with torch.no_grad(), head_parts(towers) as seen:
        rows, _ = towers(images, None)
        assert seen.count == count
        parts = seen.taken()
    assert parts.shape == (5, count + len(REST), rows.shape[1])
    assert torch.equal(rows, plain)
    assert (parts.sum(1) - rows).abs().max() < 1e-5
    assert parts[:, :count].norm(dim=-1).min() > 1e-3
    block = towers.clip.visual.transformer.resblocks[-1]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in towers.modules())
    silent = block.attn.out_proj.weight.view(-1, count, block.attn.out_proj.weight.shape[1] // count)
    with torch.no_grad(), head_parts(towers) as seen:
        silent[:, 1] = 0.0
        towers(images, None)
        changed = seen.taken()
    assert changed[:, 1].abs().max() < 1e-6
    assert torch.equal(towers(images, None)[0], towers(images, None)[0])


def test_parts_are_the_same_where_the_block_is_compiled() -> None:
    towers = stirred("test-vit")
    images = pictures(3, 32)
    with torch.no_grad(), head_parts(towers) as seen:
        towers(images, None)
        want = seen.taken()
    towers.clip.visual.transformer.resblocks[-1].forward = compiled = lambda x, **_: x  # a block that asks no hooks
    with torch.no_grad(), head_parts(towers) as seen:
        towers(images, None)
        assert torch.equal(seen.taken(), want)
    assert towers.clip.visual.transformer.resblocks[-1].forward is compiled


def test_a_model_without_such_heads_is_told() -> None:
    check_heads("test-vit", "measure heads")
    for name in ("test-resnet", "demo-resnet"):
        with pytest.raises(UserError, match=f"measure heads looks at the heads of .* model.name '{name}' has none"):
            check_heads(name, "measure heads")


def test_infected_heads_by_hand() -> None:
    """Agreements .5, -.1, .001 at 0.002: two. A picture is rejected above what references have, or above a fixed number."""
    assert infected(torch.tensor([[0.5, -0.1, 0.001], [0.5, 0.1, 0.002], [1.0, 1.0, 1.0]]), 0.002).tolist() == [2, 1, 0]
    eye, few, many = torch.eye(4), torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.5, 0.0, 0.0]])
    agreements = few.repeat(6, 1), few.repeat(4, 1), many.repeat(4, 1)
    encoded = Encoded(eye, eye, torch.arange(4), eye, eye, torch.full((4,), 3), references=eye, heads=agreements)
    found = heads(0.002, None, 1.0, encoded)
    assert (found["heads_auroc_at1"], found["heads_tpr_at1"], found["heads_fpr_at1"]) == (1, 1, 0)
    assert heads(0.002, 2, 1.0, encoded)["heads_tpr_at1"] == 0
    assert heads(0.002, 0, 1.0, encoded)["heads_fpr_at1"] == 1
    damaged = agreements[1].clone()
    damaged[1, 2] = torch.nan
    with pytest.raises(NotFinite, match="1 of 4 embeddings of heads"):
        replace(encoded, heads=(agreements[0], damaged, agreements[2]))
    with pytest.raises(ValueError, match="heads needs what the heads"):
        heads(0.002, None, 1.0, replace(encoded, heads=None))
