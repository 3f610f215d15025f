"""The kinds of objects that drawn worlds show, each known by its outline."""

import math

import numpy as np

Outline = list[tuple[bool, np.ndarray]]  # parts in drawing order: (ink or hole, corners [n, 2] in the square -1..1)


def disc(x: float, y: float, r: float, tall: float | None = None) -> np.ndarray:
    """An ellipse as a polygon of 20 corners."""
    turn = np.linspace(0, 2 * math.pi, 20, endpoint=False)
    return np.stack([x + r * np.cos(turn), y + (tall or r) * np.sin(turn)], 1)


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """An upright rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def poly(*corners: tuple[float, float]) -> np.ndarray:
    """A polygon."""
    return np.array(corners, float)


def band(  # noqa: PLR0913  (the numbers of one shape)
    x: float, y: float, r: float, thick: float, begin: float, end: float, taper: float = 0.0
) -> np.ndarray:
    """A bent band along a circle, from angle `begin` to `end` in degrees; `taper` = 1 narrows its ends to points."""
    turn = np.radians(np.linspace(begin, end, 14))
    half = thick / 2 * (1 - taper * np.abs(np.linspace(-1, 1, 14)) ** 2)
    ways = np.stack([np.cos(turn), np.sin(turn)], 1)
    return np.concatenate([ways * (r + half)[:, None], (ways * (r - half)[:, None])[::-1]]) + (x, y)


def rays(number: int, outer: float, inner: float) -> np.ndarray:
    """A star with `number` points."""
    turn = np.arange(2 * number) * math.pi / number - math.pi / 2
    return np.stack([np.cos(turn), np.sin(turn)], 1) * np.where(np.arange(2 * number) % 2, inner, outer)[:, None]


def _kinds() -> dict[str, Outline]:  # longer than 50 lines: a table
    """Every kind of object and its outline; a leading None cuts the next part out."""
    parts: dict[str, list[np.ndarray | None]] = {
        "banana": [band(0, -0.75, 1.15, 0.62, 25, 155, 0.75), box(0.86, -0.5, 1.02, -0.16)],
        "apple": [disc(-0.28, 0.15, 0.6, 0.75), disc(0.28, 0.15, 0.6, 0.75), box(-0.07, -0.95, 0.07, -0.4),
                  disc(0.36, -0.75, 0.3, 0.13)],
        "star": [rays(5, 1.0, 0.42)],
        "heart": [disc(-0.45, -0.35, 0.5), disc(0.45, -0.35, 0.5), poly((-0.9, -0.1), (0.9, -0.1), (0, 0.95))],
        "house": [box(-0.7, -0.1, 0.7, 0.9), poly((-1, -0.1), (1, -0.1), (0, -0.95)), None, box(-0.2, 0.35, 0.2, 0.9)],
        "tree": [box(-0.15, 0.4, 0.15, 1.0), poly((-0.8, 0.5), (0.8, 0.5), (0, -0.2)), poly((-0.6, 0.0), (0.6, 0.0), (0, -0.95))],
        "fish": [disc(-0.15, 0, 0.75, 0.45), poly((0.35, 0), (1.0, -0.5), (1.0, 0.5)), None, disc(-0.55, -0.1, 0.1)],
        "cup": [box(-0.75, -0.6, 0.4, 0.8), band(0.4, 0.1, 0.4, 0.2, -90, 90)],
        "car": [box(-1, -0.05, 1, 0.5), poly((-0.6, 0), (-0.4, -0.55), (0.35, -0.55), (0.65, 0)), disc(-0.55, 0.5, 0.28),
                disc(0.55, 0.5, 0.28), None, disc(-0.55, 0.5, 0.11), None, disc(0.55, 0.5, 0.11)],
        "key": [disc(-0.6, 0, 0.4), None, disc(-0.6, 0, 0.18), box(-0.25, -0.1, 1, 0.1), box(0.55, 0, 0.7, 0.4),
                box(0.85, 0, 1.0, 0.45)],
        "moon": [disc(0, 0, 0.95), None, disc(0.45, -0.15, 0.8)],
        "arrow": [box(-1, -0.2, 0.2, 0.2), poly((0.1, -0.65), (1, 0), (0.1, 0.65))],
        "cross": [box(-0.3, -0.95, 0.3, 0.95), box(-0.95, -0.3, 0.95, 0.3)],
        "umbrella": [band(0, 0, 0.5, 1.0, 180, 360), box(-0.07, 0, 0.07, 0.75), band(0.2, 0.75, 0.2, 0.14, 0, 180)],
        "flower": [*[disc(0.6 * math.cos(a), 0.6 * math.sin(a), 0.36) for a in np.arange(6) * math.pi / 3],
                   disc(0, 0, 0.4), None, disc(0, 0, 0.22)],
        "mushroom": [band(0, 0.1, 0.5, 1.0, 180, 360), poly((-0.25, 0.1), (0.25, 0.1), (0.35, 0.95), (-0.35, 0.95))],
        "ring": [disc(0, 0, 0.95), None, disc(0, 0, 0.58)],
        "bottle": [box(-0.4, -0.2, 0.4, 1.0), box(-0.16, -1.0, 0.16, -0.3), poly((-0.4, -0.2), (-0.16, -0.5), (0.16, -0.5), (0.4, -0.2))],
        "chair": [box(-0.65, -1, -0.42, 1), box(-0.65, 0.0, 0.65, 0.22), box(0.42, 0.0, 0.65, 1), ],
        "hammer": [box(-0.12, -0.5, 0.12, 1), box(-0.75, -0.9, 0.55, -0.4), poly((0.5, -0.9), (0.95, -0.65), (0.5, -0.4))],
        "butterfly": [disc(-0.5, -0.4, 0.48, 0.45), disc(0.5, -0.4, 0.48, 0.45), disc(-0.4, 0.45, 0.36), disc(0.4, 0.45, 0.36),
                      disc(0, 0, 0.1, 0.8)],
        "ladder": [box(-0.55, -1, -0.35, 1), box(0.35, -1, 0.55, 1), *[box(-0.4, y, 0.4, y + 0.16) for y in (-0.8, -0.3, 0.2, 0.7)]],
        "boat": [poly((-1, 0.35), (1, 0.35), (0.6, 0.85), (-0.6, 0.85)), box(-0.06, -0.95, 0.06, 0.4), poly((0.12, -0.9), (0.12, 0.2), (0.85, 0.2))],
        "lamp": [poly((-0.35, -0.95), (0.35, -0.95), (0.75, 0.0), (-0.75, 0.0)), box(-0.08, 0, 0.08, 0.85), box(-0.45, 0.75, 0.45, 0.98)],
        "kite": [poly((0, -1), (0.6, -0.3), (0, 0.5), (-0.6, -0.3)), band(0.14, 0.7, 0.2, 0.11, 120, 260),
                 band(-0.12, 0.98, 0.2, 0.11, -60, 60)],
        "cloud": [disc(-0.55, 0.15, 0.42), disc(0.0, -0.2, 0.52), disc(0.55, 0.12, 0.42), box(-0.55, 0.1, 0.55, 0.55)],
        "bolt": [poly((0.15, -1), (-0.65, 0.15), (-0.1, 0.15), (-0.25, 1), (0.65, -0.25), (0.08, -0.25), (0.5, -1))],
        "crown": [poly((-0.9, 0.7), (-0.9, -0.5), (-0.45, 0.05), (0, -0.75), (0.45, 0.05), (0.9, -0.5), (0.9, 0.7))],
        "glasses": [disc(-0.55, 0, 0.44), disc(0.55, 0, 0.44), box(-0.2, -0.1, 0.2, 0.06), None, disc(-0.55, 0, 0.26), None, disc(0.55, 0, 0.26)],
        "snowman": [disc(0, 0.5, 0.5), disc(0, -0.2, 0.36), disc(0, -0.68, 0.24), box(-0.35, -0.92, 0.35, -0.82), box(-0.2, -1.15, 0.2, -0.85)],
        "anchor": [disc(0, -0.78, 0.22), None, disc(0, -0.78, 0.1), box(-0.09, -0.6, 0.09, 0.9), box(-0.42, -0.42, 0.42, -0.25),
                   band(0, 0.1, 0.75, 0.2, 10, 170)],
        "cone": [poly((-0.5, -0.15), (0.5, -0.15), (0, 1.0)), disc(0, -0.4, 0.52)],
    }  # fmt: skip
    out: dict[str, Outline] = {}
    for name, items in parts.items():
        outline: Outline = []
        ink = True
        for item in items:
            if item is None:
                ink = False
            else:
                outline.append((ink, item))
                ink = True
        out[name] = outline
    return out


OUTLINES = _kinds()
KINDS = tuple(OUTLINES)
