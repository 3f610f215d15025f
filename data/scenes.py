"""One drawn picture and what a caption may say of it: an object on a ground, with clutter between them.

An object's kind shows in its outline alone; colour, texture, size, place, turn, clutter and background vary freely.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from data.outlines import KINDS, OUTLINES

COLOURS = {
    "red": (205, 40, 40), "orange": (235, 130, 30), "yellow": (235, 205, 40), "green": (50, 150, 60),
    "turquoise": (45, 175, 175), "blue": (45, 85, 200), "purple": (130, 60, 170), "pink": (235, 120, 170),
    "brown": (125, 80, 45), "black": (30, 30, 35),
}  # fmt: skip
TEXTURES = ("plain", "striped", "dotted", "checked")
BACKDROPS = ("plain", "shaded", "grainy", "lined")
SIZES = {"tiny": 0.48, "small": 0.56, "medium": 0.65, "large": 0.75, "huge": 0.86}  # share of the frame's side


@dataclass(frozen=True)
class Scene:
    """One picture in words."""

    kind: str
    colour: str
    texture: str
    size: str
    backdrop: str
    ground: str  # colour behind the object
    side: str  # where it stands: "left", "right", "top", "bottom" or "middle"


def scene(draw: np.random.Generator, kind: str | None = None) -> Scene:
    """A scene drawn at random; every kind, colour and so on equally often and independently."""
    colours = list(COLOURS)
    colour, ground = (colours[i] for i in draw.choice(len(colours), 2, replace=False))
    pick = draw.integers(0, (len(KINDS), 4, 5, 4, 5))
    return Scene(
        kind or KINDS[pick[0]], colour, TEXTURES[pick[1]], list(SIZES)[pick[2]], BACKDROPS[pick[3]], ground,
        ("left", "right", "top", "bottom", "middle")[pick[4]],
    )  # fmt: skip


def paint(seen: Scene, pixels: int, draw: np.random.Generator) -> Image.Image:
    """The picture of a scene, RGB, pixels x pixels."""
    pale = draw.uniform(0.15, 0.5)  # a tint: objects are darker
    shade = 255 - (255 - np.array(COLOURS[seen.ground], np.float32)) * pale
    image = Image.fromarray(_backdrop(seen.backdrop, shade, pixels, draw))
    _clutter(image, draw)
    ink = np.array(COLOURS[seen.colour], np.float32) * draw.uniform(0.6, 0.95)
    image.paste(Image.fromarray(_texture(seen.texture, ink, pixels, draw)), mask=_mask(seen, pixels, draw))
    return image


def _mask(seen: Scene, pixels: int, draw: np.random.Generator) -> Image.Image:
    """The object's outline, antialiased: drawn at twice the size and reduced."""
    half = SIZES[seen.size] / 2 * draw.uniform(0.94, 1.06)
    room = max(0.0, 0.5 - half)
    x, y = draw.uniform(-room, room, 2) * 0.8
    shift = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "middle": (0, 0)}[seen.side]
    x, y = (room * s if s else v * 0.5 for s, v in zip(shift, (x, y), strict=True))
    turn = math.radians(draw.uniform(-25, 25))
    cos, sin = math.cos(turn), math.sin(turn)
    matrix = np.array([[cos, sin], [-sin, cos]]) * half * 2 * pixels
    big = Image.new("L", (2 * pixels, 2 * pixels))
    pen = ImageDraw.Draw(big)
    for fill, corners in OUTLINES[seen.kind]:
        at = corners @ matrix + ((0.5 + x) * 2 * pixels, (0.5 + y) * 2 * pixels)
        pen.polygon(at.ravel().tolist(), fill=255 if fill else 0)
    return big.reduce(2)


def _texture(kind: str, ink: np.ndarray, pixels: int, draw: np.random.Generator) -> np.ndarray:
    """uint8 [pixels, pixels, 3]: the object's colour, with darker or lighter stripes, dots or checks."""
    other = ink * 0.7 if ink.mean() > 80 else ink + 50
    period = int(draw.integers(6, 11)) * pixels // 64 or 2
    a, b = np.ogrid[:pixels, :pixels]
    if kind == "striped":
        pattern = (a + (b if draw.random() < 0.5 else 0 * b)) % period < period // 2
    elif kind == "dotted":
        pattern = ((a % period - period / 2) ** 2 + (b % period - period / 2) ** 2) < (period / 3.2) ** 2
    elif kind == "checked":
        pattern = (a // (period // 2) + b // (period // 2)) % 2 == 0
    else:
        pattern = np.zeros((pixels, pixels), bool)
    return np.where(pattern[..., None], other, ink).clip(0, 255).astype(np.uint8)


def _backdrop(kind: str, shade: np.ndarray, pixels: int, draw: np.random.Generator) -> np.ndarray:
    """uint8 [pixels, pixels, 3]."""
    field = np.broadcast_to(shade, (pixels, pixels, 3))
    if kind == "shaded":
        ramp = np.linspace(-25, 25, pixels, dtype=np.float32)[:, None, None]
        field = field + (ramp if draw.random() < 0.5 else ramp.transpose(1, 0, 2))
    elif kind == "grainy":
        field = field + draw.standard_normal((pixels, pixels, 1), np.float32) * 10
    elif kind == "lined":
        field = field + np.where(np.arange(pixels)[:, None, None] % 8 < 2, -18, 0)
    return field.clip(0, 255).astype(np.uint8)


def _clutter(image: Image.Image, draw: np.random.Generator) -> None:
    """Up to eight small marks behind the object."""
    pen, side = ImageDraw.Draw(image), image.width
    for _ in range(int(draw.integers(0, 9))):
        x, y, length, turn, *colour = draw.uniform(0, 1, 7).tolist()
        x, y, length = x * side, y * side, side * (0.04 + 0.1 * length)
        fill = tuple(int(60 + 195 * c) for c in colour)
        if turn < 0.6:
            end = (x + length * math.cos(6.3 * turn), y + length * math.sin(6.3 * turn))
            pen.line((x, y, *end), fill=fill, width=max(1, side // 40))
        else:
            pen.ellipse((x, y, x + length / 2, y + length / 2), fill=fill)


def describe(seen: Scene, draw: np.random.Generator) -> str:
    """A caption that names the kind and a part of the rest."""
    says = draw.random(5) < (0.3, 0.15, 0.15, 0.15, 0.15)
    size = {"tiny": ("tiny", "very small"), "small": ("small", "little"), "medium": ("", "mid-sized"),
            "large": ("large", "big"), "huge": ("huge", "very big")}[seen.size]  # fmt: skip
    words = [size[int(draw.integers(2))]] if says[2] else []
    words += [seen.texture] if says[1] and seen.texture != "plain" else []
    words += [seen.colour] if says[0] else []
    thing = " ".join(word for word in (*words, seen.kind) if word)
    article = "an" if thing[0] in "aeiou" else "a"
    begin = ("{a} {t}", "a picture of {a} {t}", "a drawing of {a} {t}", "there is {a} {t}", "an image showing {a} {t}",
             "one {t}", "this is {a} {t}", "{a} {t} can be seen", "somebody drew {a} {t}", "look at this {t}")  # fmt: skip
    text = begin[int(draw.integers(len(begin)))].format(a=article, t=thing)
    if says[3]:
        where = {"middle": "in the middle"}.get(
            seen.side, f"on the {seen.side} side" if seen.side in ("left", "right") else f"at the {seen.side}"
        )
        text += f" {where}"
    if says[4]:
        text += (f" on a {seen.ground} background", f" in front of {seen.ground}", f" on {seen.ground}")[
            int(draw.integers(3))
        ]
    return text
