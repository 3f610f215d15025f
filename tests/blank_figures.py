"""Figures saved blank: to draw those of a report takes seconds, more than to train a tiny study."""

import io
from typing import Any

from matplotlib.figure import Figure
from PIL import Image


def save_blank(figure: Figure, out: io.BytesIO, format: str, **more: Any) -> None:
    """In place of Figure.savefig: a file of that kind without anything on it."""
    if format == "png":
        Image.new("L", (1, 1)).save(out, "PNG")
    else:
        out.write({"pdf": b"%PDF-1.4", "svg": b'<svg xmlns="http://www.w3.org/2000/svg"></svg>'}[format])
