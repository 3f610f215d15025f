"""Views that a few numbers a sample describe, made for a whole batch on its device.

The numbers are drawn with the sample's own generator, (seed, key, epoch, view), where it is read; what is done with them is
arithmetic on bytes in which no sample depends on its neighbours, so a view is the same in any batch. Crop, flip, colour
jitter, grey and blur as in SimCLR (Chen et al. 2020, arXiv 2002.05709), in this order; the four jitters in the order
brightness, contrast, saturation, hue, where torchvision shuffles them. CutOut: DeVries & Taylor 2017, arXiv 1708.04552.
"""

import math

import numpy as np
import torch

from data.augmentation.augment import Augment
from data.seeding import derive_seed, generator

# what each number of a view means; the neutral value leaves the picture alone
SOURCE, TOP, LEFT, HIGH, WIDE, FLIP, BRIGHT, CONTRAST, COLOUR, HUE, GREY, BLUR, HOLE_Y, HOLE_X, HOLE, NOISE, SEED = range(17)
NUMBERS = 17
NEUTRAL = np.array([0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0], np.float32)
AT_ONCE = 256  # samples worked on together: a few hundred megabytes
LUMA = (0.299, 0.587, 0.114)


def draw_views(section: Augment, views: int, *names: int | str) -> np.ndarray:
    """float32 [V, NUMBERS] for one sample: the first view by section.first, the others by section.image."""
    out = np.tile(NEUTRAL, (views, 1))
    for view in range(views):
        ops = section.ops if view else section.first
        if view and section.by_pillow:
            out[view, SOURCE] = view
        if any(op != "autoaugment" for op in ops):
            _draw(section, ops, out[view], generator("view", *names, view), derive_seed("noise", *names, view))
    return out


def _draw(section: Augment, ops: tuple[str, ...], out: np.ndarray, draw: np.random.Generator, noise: int) -> None:
    if "crop" in ops:
        out[[TOP, LEFT, HIGH, WIDE]] = _crop(section.crop, draw)
    if "flip" in ops:
        out[FLIP] = draw.random() < 0.5
    if "jitter" in ops and draw.random() < 0.8:
        out[[BRIGHT, CONTRAST, COLOUR]] = draw.uniform(0.6, 1.4, 3)
        out[HUE] = draw.uniform(-0.1, 0.1)
    if "grey" in ops:
        out[GREY] = draw.random() < 0.2
    if "blur" in ops and draw.random() < 0.5:
        out[BLUR] = draw.uniform(0.1, 2.0)
    if "cutout" in ops:
        out[[HOLE_Y, HOLE_X, HOLE]] = (*draw.random(2), section.cutout)
    if "noise" in ops:
        out[[NOISE, SEED]] = (255 * section.noise, noise % (1 << 24))


def _crop(scale: tuple[float, float], draw: np.random.Generator) -> tuple[float, float, float, float]:
    """(top, left, height, width) in shares of the side: an area drawn from `scale`, its sides' ratio from 3/4 to 4/3."""
    for _ in range(10):
        area, ratio = draw.uniform(*scale), math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        high, wide = math.sqrt(area / ratio), math.sqrt(area * ratio)
        if high <= 1 and wide <= 1:
            return draw.uniform(0, 1 - high), draw.uniform(0, 1 - wide), high, wide
    side = math.sqrt(scale[1])
    return (1 - side) / 2, (1 - side) / 2, side, side


def make_views(images: torch.Tensor, drawn: torch.Tensor, used: list[int]) -> torch.Tensor:
    """uint8 [B, V, 3, H, W] from uint8 [B, W, 3, H, W] and float32 [B, V, NUMBERS]; `used` lists the numbers that are not
    neutral everywhere, so that nothing else is done."""
    out = torch.empty((*drawn.shape[:2], *images.shape[2:]), dtype=torch.uint8, device=images.device)
    for begin in range(0, len(images), AT_ONCE):
        rows = slice(begin, begin + AT_ONCE)
        part = images[rows]
        for view in range(drawn.shape[1]):
            numbers = drawn[rows, view]
            x = part[torch.arange(len(part), device=part.device), numbers[:, SOURCE].long()].float()
            for needs, change in STEPS:
                if any(number in used for number in needs):
                    x = change(x, numbers)
            out[rows, view] = x.to(torch.uint8)
    return out


def numbers_used(drawn: torch.Tensor) -> list[int]:
    """The numbers that are not neutral everywhere; call it before the transfer, where it costs no wait."""
    return torch.nonzero((drawn != torch.from_numpy(NEUTRAL)).flatten(0, -2).any(0)).flatten().tolist()


def _column(numbers: torch.Tensor, at: int) -> torch.Tensor:
    """[B, 1, 1, 1]."""
    return numbers[:, at, None, None, None]


def _rounded(x: torch.Tensor) -> torch.Tensor:
    return x.round().clamp(0, 255)


def _cropped(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The part enlarged to the whole, linearly, mirrored where asked."""
    rows = _places(x.shape[-2], numbers[:, TOP], numbers[:, HIGH], None)
    columns = _places(x.shape[-1], numbers[:, LEFT], numbers[:, WIDE], numbers[:, FLIP])
    x = _between(x, *rows, 2)
    return _rounded(_between(x, *columns, 3))


def _places(
    side: int, begin: torch.Tensor, length: torch.Tensor, flip: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the pixel before, the share of the one behind it), [B, side] each."""
    at = torch.arange(side, device=begin.device, dtype=torch.float32)[None]
    if flip is not None:
        at = torch.where(flip[:, None] > 0, side - 1 - at, at)
    point = ((at + 0.5) * length[:, None] + begin[:, None] * side - 0.5).clamp(0, side - 1)
    low = point.floor()
    return low.long(), point - low


def _between(x: torch.Tensor, low: torch.Tensor, share: torch.Tensor, axis: int) -> torch.Tensor:
    shape = [len(x), 1, -1, 1] if axis == 2 else [len(x), 1, 1, -1]
    first = x.gather(axis, low.view(shape).expand_as(x))
    second = x.gather(axis, (low + 1).clamp(max=x.shape[axis] - 1).view(shape).expand_as(x))
    return first + share.view(shape) * (second - first)


def _grey(x: torch.Tensor) -> torch.Tensor:
    """[B, 1, H, W], whole numbers."""
    return (LUMA[0] * x[:, :1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:]).round()


def _jittered(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    x = _rounded(x * _column(numbers, BRIGHT))
    # whole numbers sum exactly in float64, in whatever order
    mean = _grey(x).double().mean((1, 2, 3), keepdim=True).round().float()
    x = _rounded(mean + _column(numbers, CONTRAST) * (x - mean))
    grey = _grey(x)
    x = _rounded(grey + _column(numbers, COLOUR) * (x - grey))
    return torch.where(_column(numbers, HUE) == 0, x, _turned(x, _column(numbers, HUE)))


def _turned(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The hue moved by a share of the circle, through hue, saturation and value."""
    value, _ = x.max(1, keepdim=True)
    spread = value - x.min(1, keepdim=True).values
    safe = torch.where(spread == 0, 1, spread)
    red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:]
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * shift
    # each channel is the value less a share of the spread, by its distance on the circle (Smith 1978)
    channels = [value - spread * _share((n + hue) % 6) for n in (5.0, 3.0, 1.0)]
    return _rounded(torch.cat(channels, 1))


def _share(k: torch.Tensor) -> torch.Tensor:
    return torch.minimum(k, 4 - k).clamp(0, 1)


def _greyed(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    return torch.where(_column(numbers, GREY) > 0, _grey(x).expand_as(x), x)


def _blurred(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """A Gaussian of that many pixels' deviation, up to a twentieth of the side away."""
    reach = max(1, x.shape[-1] // 20)
    sigma = numbers[:, BLUR].clamp(min=1e-3)
    taps = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device) ** 2)[None] / (2 * sigma[:, None] ** 2))
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)
    pad, convolved = torch.nn.functional.pad, torch.nn.functional.conv2d
    soft = x.flatten(0, 1)[None]  # each channel of each sample by itself, with the sample's taps
    soft = convolved(pad(soft, (0, 0, reach, reach), "reflect"), taps[:, None, :, None], groups=len(taps))
    soft = convolved(pad(soft, (reach, reach, 0, 0), "reflect"), taps[:, None, None, :], groups=len(taps))
    return torch.where(_column(numbers, BLUR) > 0, _rounded(soft.view_as(x)), x)


def _holed(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """A black square around a point; it may reach over the edge, as in the paper."""
    inside = []
    for axis, number in ((2, HOLE_Y), (3, HOLE_X)):
        side = x.shape[axis]
        at = torch.arange(side, device=x.device)[None] + 0.5
        distance = (at - numbers[:, number, None] * side).abs()
        shape = [len(x), 1, -1, 1] if axis == 2 else [len(x), 1, 1, -1]
        inside.append((distance < numbers[:, HOLE, None] * side / 2).view(shape))
    return torch.where(inside[0] & inside[1], 0, x)


def _noisy(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Gaussian noise; each pixel's from a hash of (sample's seed, place), by Box and Muller."""
    count = x[0].numel()
    place = torch.arange(count, device=x.device, dtype=torch.int64)[None] + numbers[:, SEED, None].long() * count
    first, second = (_uniform(2 * place + i) for i in (0, 1))
    normal = torch.sqrt(-2 * torch.log(first)) * torch.cos(2 * math.pi * second)
    return _rounded(x + _column(numbers, NOISE) * normal.view_as(x).float())


def _uniform(place: torch.Tensor) -> torch.Tensor:
    """float64 in (0, 1): 24 bits of a multiplicative hash, in integers that do not overflow."""
    z = (place ^ (place >> 21)) & 0x7FFFFFFF
    for factor in (0x045D9F3B, 0x119DE1F3):
        z = ((z ^ (z >> 15)) * factor) & 0x7FFFFFFF
    z = z ^ (z >> 14)
    return ((z & 0xFFFFFF).double() + 0.5) / (1 << 24)


STEPS = (
    ((TOP, LEFT, HIGH, WIDE, FLIP), _cropped),
    ((BRIGHT, CONTRAST, COLOUR, HUE), _jittered),
    ((GREY,), _greyed),
    ((BLUR,), _blurred),
    ((HOLE,), _holed),
    ((NOISE,), _noisy),
)
