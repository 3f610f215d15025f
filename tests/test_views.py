"""Views made on the device from a few numbers a sample."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augmentation import device
from data.augmentation.augment import SIMCLR, Augment

ALL = Augment(image=(*SIMCLR, "cutout", "noise"), first=("flip",))


def pictures(number: int, side: int, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 1, 3, side, side), dtype=torch.uint8, generator=source)


def made(images: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
    numbers = torch.from_numpy(drawn)
    return device.make_views(images, numbers, device.numbers_used(numbers))


def one(**changes: float) -> np.ndarray:
    """The numbers of a single view of a single sample."""
    out = device.NEUTRAL.copy()
    for name, value in changes.items():
        out[getattr(device, name)] = value
    return out[None, None]


def test_neutral_numbers_leave_a_picture_as_it_is_even_when_the_work_is_done() -> None:
    images = pictures(4, 24)
    neutral = torch.from_numpy(np.tile(device.NEUTRAL, (4, 2, 1)))
    assert device.numbers_used(neutral) == []
    everything = device.make_views(images, neutral, list(range(device.NUMBERS)))
    assert torch.equal(everything, images.expand(-1, 2, -1, -1, -1))


@settings(max_examples=15, deadline=None)
@given(st.integers(8, 48), st.integers(0, 99))
def test_a_view_does_not_depend_on_its_batch(side: int, seed: int) -> None:
    images = pictures(5, side, seed)
    drawn = np.stack([device.draw_views(ALL, 3, 0, f"k{i}", seed) for i in range(5)])
    whole = made(images, drawn)
    assert whole.shape == (5, 3, 3, side, side)
    assert whole.dtype == torch.uint8
    for i in range(5):
        assert torch.equal(made(images[i : i + 1], drawn[i : i + 1])[0], whole[i])
    assert (whole[:, 1] != whole[:, 2]).any()


def test_numbers_are_drawn_from_their_names() -> None:
    assert (device.draw_views(ALL, 2, 0, "k", 1) == device.draw_views(ALL, 2, 0, "k", 1)).all()
    assert (device.draw_views(ALL, 2, 0, "k", 1) != device.draw_views(ALL, 2, 0, "k", 2)).any()
    assert (device.draw_views(Augment(image="none"), 2, 0, "k", 1) == device.NEUTRAL).all()
    with_pillow = device.draw_views(Augment(image=("autoaugment", "flip")), 3, 0, "k", 1)
    assert with_pillow[:, device.SOURCE].tolist() == [0, 1, 2]  # each from its own picture


def test_flip_grey_and_cutout_by_hand() -> None:
    images = pictures(1, 6)
    assert torch.equal(made(images, one(FLIP=1))[0, 0], images[0, 0].flip(-1))
    grey = made(images, one(GREY=1))[0, 0]
    red, green, blue = images[0, 0].double()
    expected = (0.299 * red + 0.587 * green + 0.114 * blue).round()
    assert (grey == grey[0]).all()
    assert (grey[0] - expected).abs().max() <= 1
    hole = made(images, one(HOLE_Y=0.5, HOLE_X=0.0, HOLE=1 / 3))[0, 0]
    assert (hole[:, 2:4, 0] == 0).all()  # two of six pixels high, half of two wide: the rest lies outside
    hole[:, 2:4, 0] = images[0, 0][:, 2:4, 0]
    assert torch.equal(hole, images[0, 0])


def test_a_crop_of_a_quarter_shows_that_quarter() -> None:
    images = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8)
    images[..., :4, 4:] = 200
    assert (made(images, one(TOP=0.0, LEFT=0.5, HIGH=0.5, WIDE=0.5)) >= 100).all()
    assert (made(images, one(TOP=0.5, LEFT=0.0, HIGH=0.5, WIDE=0.5)) <= 100).all()


def test_colours_as_torchvision_changes_them() -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    images = pictures(1, 16)
    for number, change in (
        ("BRIGHT", functional.adjust_brightness),
        ("CONTRAST", functional.adjust_contrast),
        ("COLOUR", functional.adjust_saturation),
    ):
        for factor in (0.6, 1.3):
            out = made(images, one(**{number: factor}))[0, 0].int()
            assert (out - change(images[0, 0], factor).int()).abs().max() <= 2, number
    for shift in (-0.1, 0.07):
        out = made(images, one(HUE=shift))[0, 0].int()
        assert (out - functional.adjust_hue(images[0, 0], shift).int()).abs().max() <= 3


def test_a_blur_keeps_the_mean_and_takes_the_detail() -> None:
    images = pictures(1, 40)
    soft = made(images, one(BLUR=1.5))[0, 0].double()
    assert abs(soft.mean() - images.double().mean()) < 1.5
    assert soft.std() < 0.5 * images.double().std()


@pytest.mark.parametrize("side", [32, 224])
def test_a_blur_is_that_of_the_plain_formula(side: int) -> None:
    """A sum over taps in float64; where it lies between two bytes, float32 may round it the other way."""
    images = pictures(6, side).float()[:, 0]
    numbers = torch.from_numpy(np.tile(device.NEUTRAL, (6, 1)))
    numbers[:, device.BLUR] = torch.tensor([0.0, 0.1, 0.5, 1.0, 1.7, 2.0])
    out = device._blurred(images, numbers)
    assert torch.equal(out[0], images[0])
    reach = max(1, side // 20)
    away = torch.arange(-reach, reach + 1)
    for image, sigma, soft in zip(images[1:], numbers[1:, device.BLUR].double(), out[1:], strict=True):
        taps = torch.exp(-(away**2) / (2 * sigma**2))
        at = torch.arange(side)[:, None] + away
        at = torch.where(at.abs() > side - 1, 2 * (side - 1) - at, at.abs())  # mirrored at the edges
        rows = ((taps / taps.sum())[:, None] * image.double()[:, at]).sum(2)
        exact = ((taps / taps.sum()) * rows[:, :, at]).sum(3)
        assert (soft - exact).abs().max() <= 0.5 + 1e-4


def test_noise_is_normal_and_differs_between_samples() -> None:
    grey = torch.full((2, 1, 3, 128, 128), 128, dtype=torch.uint8)
    drawn = np.concatenate([one(NOISE=20, SEED=1), one(NOISE=20, SEED=2)])
    first, second = made(grey, drawn).double().flatten(1) - 128
    assert abs(first.mean()) < 0.5
    assert abs(first.std() - 20) < 0.5
    assert abs((first.abs() > 40).double().mean() - 0.0455) < 0.005  # beyond two deviations
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.02
    assert abs(torch.corrcoef(torch.stack([first[:-1], first[1:]]))[0, 1]) < 0.02
