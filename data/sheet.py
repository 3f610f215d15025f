"""Pictures of pairs for people to look at."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw

CELL = 128  # pixels a picture is shown with
BAND = 46  # pixels for its caption
SIDE = 112  # pixels, at most, of a picture without one


def pairs_grid(pairs: list[tuple[np.ndarray, str]], columns: int = 4) -> np.ndarray:
    """uint8 [H, W, 3]: pictures (uint8 [3, h, w]) with their captions below, row by row."""
    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (columns * (CELL + 8), rows * (CELL + BAND)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pixels, caption) in enumerate(pairs):
        x, y = i % columns * (CELL + 8) + 4, i // columns * (CELL + BAND)
        image = Image.fromarray(pixels.transpose(1, 2, 0)).resize((CELL, CELL), Image.Resampling.NEAREST)
        sheet.paste(image, (x, y + 2))
        printable = "".join(c if c.isprintable() and c.isascii() else "?" for c in caption)
        draw.multiline_text((x, y + CELL + 4), "\n".join(textwrap.wrap(printable, 21)[:3]), fill="black", spacing=1)
    return np.asarray(sheet)


def small_grid(rows: list[np.ndarray]) -> np.ndarray:
    """uint8 [n * side, m * side, 3]: n rows of pictures (uint8 [m, 3, h, w]), at most SIDE pixels a side, without gaps."""
    side = min(rows[0].shape[-1], SIDE)

    def small(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BOX))

    return np.concatenate([np.concatenate([small(picture) for picture in row], 1) for row in rows])
