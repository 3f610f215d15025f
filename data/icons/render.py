"""A drawing as a picture: on a ground and, where its set leaves the ink to others, in an ink, both drawn at random.

What a package holds is data: its SVG is parsed here, of elements and references alone that need nothing from outside (resvg
would read any file that an <image> names), and what was parsed is what resvg gets.
"""

import colorsys
import io
import re
from functools import cache
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from data.icons.sets import Drawing
from data.refusal import UserError
from data.seeding import generator

SVG = "http://www.w3.org/2000/svg"
ELEMENTS = {
    "svg", "g", "a", "path", "circle", "rect", "ellipse", "line", "polyline", "polygon", "defs", "linearGradient",
    "radialGradient", "stop", "clipPath", "mask", "use", "symbol", "pattern", "filter", "feBlend", "feColorMatrix",
    "feComponentTransfer", "feComposite", "feDropShadow", "feFlood", "feFuncA", "feFuncB", "feFuncG", "feFuncR",
    "feGaussianBlur", "feMerge", "feMergeNode", "feMorphology", "feOffset", "title", "desc", "animate",
    "animateMotion", "animateTransform", "set", "mpath",
}  # fmt: skip
PARTS = 20_000  # elements of a drawing
DEEP = 60  # elements inside each other
TRIES = 6  # grounds
APART = 70  # levels between ink and ground, on average over the drawing
SEEN = 30  # levels between the picture and its ground there, where ink may be thin or translucent
FULL = 0.012  # share of the picture that a drawing covers, at least
ElementTree.register_namespace("", SVG)


class BadIcon(ValueError):
    """No picture comes of a drawing; says why in a word."""


@cache
def resvg() -> Any:
    """The package resvg_py; UserError without it."""
    try:
        import resvg_py
    except ImportError:
        raise UserError(
            "the package resvg-py, which draws icons, is not installed; install it: "
            "python -m pip install --constraint constraints.txt -e '.[icons]'"
        ) from None
    return resvg_py


def checked(body: str) -> str:
    """The elements of a drawing, written anew; BadIcon if it is no SVG, or holds what is none of its own."""
    try:
        root = ElementTree.fromstring(f'<svg xmlns="{SVG}" xmlns:xlink="http://www.w3.org/1999/xlink">{body}</svg>')
    except (ElementTree.ParseError, ValueError):
        raise BadIcon("no_svg") from None
    parts, level, depth = 0, [root], 0
    while level:
        depth += 1
        parts += len(level)
        if depth > DEEP or parts > PARTS:
            raise BadIcon("too_many_elements")
        for element in level:
            _check(element)
        level = [child for element in level for child in element]
    return "".join(ElementTree.tostring(child, encoding="unicode") for child in root)


def _check(element: ElementTree.Element) -> None:
    space, _, tag = element.tag.rpartition("}")
    if space != f"{{{SVG}" or tag not in ELEMENTS:
        raise BadIcon("foreign_element")
    for name, value in element.attrib.items():
        if name.rpartition("}")[2] == "href" and not value.startswith("#"):
            raise BadIcon("outside_reference")
        links = re.findall(r"url\(([^)]*)", value, re.IGNORECASE)
        if "\\" in value or not all(link.strip(" \t\r\n'\"").startswith("#") for link in links):
            raise BadIcon("outside_reference")


def picture(drawing: Drawing, pixels: int, seed: int) -> bytes:
    """The JPEG of a drawing, a pure function of its arguments; BadIcon if none comes of it."""
    draw = generator(seed, "icon", *drawing.drawn_by)
    ink = _colour(draw)
    paint = np.asarray(Image.open(io.BytesIO(_drawn(drawing, pixels, ink, draw))).convert("RGBA"), np.float32)
    alpha = paint[..., 3:] / 255
    if alpha.mean() < FULL:
        raise BadIcon("empty_picture")
    for _ in range(TRIES):
        ground = _ground(pixels, draw)
        apart = np.abs(paint[..., :3] - ground).max(-1, keepdims=True)
        out = ground + alpha * (paint[..., :3] - ground)
        inks, seen = ((weight * apart).sum() / alpha.sum() for weight in (alpha, alpha**2))
        # of a drawing that covers all of its picture it is its own parts that must differ
        if inks >= APART and seen >= SEEN and out.std((0, 1)).max() >= 8:
            break
    else:
        raise BadIcon("uniform_picture")
    file = io.BytesIO()
    Image.fromarray(out.round().astype(np.uint8)).save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()


def _drawn(drawing: Drawing, pixels: int, ink: np.ndarray, draw: np.random.Generator) -> bytes:
    """PNG with alpha: the drawing at a random size, place and slight turn."""
    left, top, width, height = drawing.box
    side = pixels * draw.uniform(0.66, 0.94)
    scale = side / max(width, height)
    tilt = draw.uniform(-15, 15) if draw.random() < 0.4 else 0.0
    room = (pixels - side) / 2
    x, y = pixels / 2 + draw.uniform(-room, room, 2)
    flip_x, flip_y = (-1 if flip else 1 for flip in drawing.flips)
    move = (
        f"translate({x:.4f} {y:.4f}) rotate({90 * drawing.turns + tilt:.4f}) "
        f"scale({scale * flip_x:.6f} {scale * flip_y:.6f}) translate({-left - width / 2:.4f} {-top - height / 2:.4f})"
    )
    red, green, blue = (int(level) for level in ink)
    svg = (
        f'<svg xmlns="{SVG}" width="{pixels}" height="{pixels}" viewBox="0 0 {pixels} {pixels}" '
        f'color="#{red:02x}{green:02x}{blue:02x}"><g transform="{move}"><svg x="{left}" y="{top}" width="{width}" '
        f'height="{height}" viewBox="{left} {top} {width} {height}">{checked(drawing.body)}</svg></g></svg>'
    )
    try:
        return bytes(resvg().svg_to_bytes(svg_string=svg, skip_system_fonts=True))
    except ValueError:
        raise BadIcon("not_drawn") from None


def _colour(draw: np.random.Generator, pale: float = 0.0) -> np.ndarray:
    """float32 [3], levels of 255: any hue; near black, white or grey one time in three."""
    hue, much, light = draw.uniform(0, 1, 3)
    vivid = draw.random() < 2 / 3
    rgb = colorsys.hsv_to_rgb(hue, (0.35 + 0.65 * much) * (1 - pale) if vivid else 0.08 * much, 0.1 + 0.9 * max(light, pale))
    return np.array(rgb, np.float32) * 255


def _ground(pixels: int, draw: np.random.Generator) -> np.ndarray:
    """float32 [pixels, pixels, 3]: plain, shaded, striped, spotted or grainy; pale more often than not."""
    one = _colour(draw, pale=0.7 if draw.random() < 0.6 else 0.0)
    other = (one + draw.uniform(-45, 45, 3).astype(np.float32)).clip(0, 255)
    across, down = np.meshgrid(*(np.arange(pixels, dtype=np.float32) / pixels,) * 2)
    angle, period, x, y = draw.uniform(0, 2 * np.pi), draw.uniform(0.12, 0.4), *draw.uniform(0, 1, 2)
    along = across * np.float32(np.cos(angle)) + down * np.float32(np.sin(angle))
    kind = int(draw.integers(5))
    mix = np.zeros_like(along)
    if kind == 1:
        mix = (along + 1.5) / 3
    elif kind == 2:
        mix = (along % period < period / 2).astype(np.float32)
    elif kind == 3:
        mix = (np.hypot(across - x, down - y) < 0.15 + period).astype(np.float32)
    field = one + mix[..., None] * (other - one)
    if kind == 4:
        field = field + draw.standard_normal((pixels, pixels, 1), np.float32) * 9
    out: np.ndarray = field.clip(0, 255).astype(np.float32)
    return out
