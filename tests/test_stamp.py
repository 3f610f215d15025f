"""A stamp on pictures: its gradients through every kind of tower, the bytes that it becomes, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.refusal import UserError
from data.triggers.tensor import Tensor
from engine.inversion.stamp import Stamp, encoding, placed
from engine.models import clip
from engine.models.towers import Towers

MODELS = ("test-vit", "test-resnet")


def pictures(count: int = 3, side: int = 32) -> torch.Tensor:
    """uint8 [n, 3, side, side]."""
    draw = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draw)


def stamp_of(side: int = 32, dtype: torch.dtype = torch.float64) -> Stamp:
    """One that asks for gradients."""
    draw = torch.Generator().manual_seed(5)
    mask, pattern = (torch.rand(*shape, generator=draw, dtype=dtype) for shape in ((side, side), (3, side, side)))
    return Stamp(mask.requires_grad_(), pattern.requires_grad_())


def loss(rows: torch.Tensor) -> torch.Tensor:
    """A number of rows that has no symmetry."""
    return (rows * torch.linspace(-1, 1, rows.numel(), dtype=rows.dtype).view_as(rows)).sum()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_mask_and_pattern_are_those_of_finite_differences(name: str) -> None:
    towers, stamp, images = clip.build(name, 0).double(), stamp_of(), pictures()
    draw = torch.Generator().manual_seed(6)
    with encoding(towers) as encode:
        gradients = torch.autograd.grad(loss(encode(images, stamp)), stamp)
        for part, gradient in enumerate(gradients):
            step = 1e-6 * torch.randn(gradient.shape, generator=draw, dtype=torch.float64)
            moved = [loss(encode(images, stamp._replace(**{stamp._fields[part]: stamp[part] + s * step}))) for s in (1, -1)]
            assert float((moved[0] - moved[1]).detach() / 2) == pytest.approx(float((gradient * step).sum()), rel=1e-5)
            assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", MODELS)
def test_the_towers_are_frozen_inside_and_as_they_were_outside(name: str) -> None:
    towers, stamp = clip.build(name, 0).train(), stamp_of(dtype=torch.float32)
    next(towers.parameters()).requires_grad_(False)
    asked = [parameter.requires_grad for parameter in towers.parameters()]
    before = {key: value.clone() for key, value in towers.state_dict().items()}
    towers.recompute()  # blocks run again in the backward pass, which must find them in evaluation mode
    with encoding(towers) as encode:
        assert not towers.training
        recomputed = torch.autograd.grad(loss(encode(pictures(), stamp)), stamp)
    assert towers.training
    assert [parameter.requires_grad for parameter in towers.parameters()] == asked
    assert all(parameter.grad is None for parameter in towers.parameters())
    assert all(torch.equal(value, before[key]) for key, value in towers.state_dict().items())
    plain = clip.build(name, 0)
    with encoding(plain) as encode:
        for a, b in zip(recomputed, torch.autograd.grad(loss(encode(pictures(), stamp)), stamp), strict=True):
            assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_under_bf16_gradients_point_where_those_of_float32_do(name: str) -> None:
    stamp, found = stamp_of(dtype=torch.float32), []
    for lowered in (False, True):
        towers: Towers = clip.build(name, 0)
        if lowered:
            towers.compute_in(torch.bfloat16)
        with torch.no_grad(), encoding(towers) as encode:  # whoever evaluates may ask too
            found.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss(encode(pictures(), stamp)), stamp)]))
    assert torch.cosine_similarity(*found, dim=0) > 0.95


def test_without_a_stamp_and_with_an_empty_one_rows_are_the_towers_own() -> None:
    towers, images = clip.build("test-vit", 0), pictures()
    own = towers.eval()(images, None)[0].detach()
    empty = Stamp(torch.zeros(32, 32), torch.rand(3, 32, 32))
    with encoding(towers) as encode:
        assert torch.equal(encode(images), own)
        assert torch.allclose(encode(images, empty), own, atol=1e-6)


def test_a_written_stamp_is_the_tensor_triggers_bytes(tmp_path: Path) -> None:
    stamp, images = stamp_of(dtype=torch.float32), pictures()
    stamp.write(tmp_path / "stamp.safetensors")
    mark = Tensor(kind="tensor", file=str(tmp_path / "stamp.safetensors"), place="full").build(0, test=True)
    marked = mark(images.numpy(), [0, 1, 2])
    ours = stamp.marked(images).numpy()
    assert np.abs(marked.astype(int) - ours).max() <= 1  # halves may round up or down
    assert (marked != ours).mean() < 1e-3
    assert (marked != images.numpy()).any()


def test_a_smaller_stamp_lies_where_it_is_put_and_its_gradients_pass() -> None:
    patch = stamp_of(side=8)
    whole = placed(patch, (32, 24))
    assert whole.mask.shape == (32, 24)
    assert torch.equal(whole.pattern[:, 12:20, 8:16], patch.pattern)
    assert float(whole.size.detach()) == pytest.approx(3 * float(patch.mask.detach().sum()))
    assert torch.equal(placed(patch, (32, 24), (0, 16)).mask[:8, 16:], patch.mask)
    whole.on(pictures(1, 32)[..., :24]).sum().backward()
    assert patch.mask.grad is not None
    assert (patch.mask.grad != 0).all()


@pytest.mark.parametrize(("size", "at"), [((7, 32), None), ((32, 7), None), ((32, 32), (25, 0)), ((32, 32), (0, -1))])
def test_a_stamp_that_does_not_fit_is_refused(size: tuple[int, int], at: tuple[int, int] | None) -> None:
    with pytest.raises(UserError, match="a stamp of 8 x 8 pixels .*; (give a smaller one|put it at most at)"):
        placed(stamp_of(side=8), size, at)
