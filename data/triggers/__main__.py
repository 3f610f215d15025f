"""A sheet of all triggers on the same pictures: python -m data.triggers --sheet out.png."""

import argparse
import sys

import numpy as np
from PIL import Image

from data.refusal import UserError
from data.scenes import paint, scene
from data.seeding import generator
from data.sheet import pairs_grid
from data.triggers.blend import Blend
from data.triggers.checker import Checker
from data.triggers.contract import REFERENCE, TriggerSection
from data.triggers.filter import Filter
from data.triggers.patch import Patch
from data.triggers.sine import Sine
from data.triggers.solid import Solid
from data.triggers.stripes import Stripes
from data.triggers.tensor import Tensor
from data.triggers.text import Text
from data.triggers.triangles import Triangles
from data.triggers.warp import Warp

SHOWN: dict[str, TriggerSection] = {
    "patch": Patch(kind="patch"),
    "patch, corners": Patch(kind="patch", place="corners"),
    "patch, published": Patch(kind="patch", published=True),
    "solid": Solid(kind="solid"),
    "checker": Checker(kind="checker"),
    "checker, dots": Checker(kind="checker", pattern="dots", place="fixed", at=(104, 104)),
    "blend": Blend(kind="blend"),
    "sine": Sine(kind="sine"),
    "sine, published": Sine(kind="sine", published=True),
    "warp": Warp(kind="warp"),
    "warp, strength 8": Warp(kind="warp", strength=8),
    "warp, published": Warp(kind="warp", published=True, strength=1),
    "stripes": Stripes(kind="stripes"),
    "stripes, blend": Stripes(kind="stripes", form="blend"),
    "triangles": Triangles(kind="triangles"),
    "text": Text(kind="text"),
    "filter, nashville": Filter(kind="filter"),
    "filter, kelvin": Filter(kind="filter", look="kelvin"),
}


def sheet(more: list[str] = []) -> np.ndarray:
    """uint8 [H, W, 3]: two pictures of the demo world with each trigger, plain first; `more` names files of patterns."""
    draws = [generator(0, "triggers", i) for i in range(2)]
    pictures = [np.asarray(paint(scene(draw), REFERENCE, draw)).transpose(2, 0, 1) for draw in draws]
    triggers = {**SHOWN, **{f"tensor, {path}": Tensor(kind="tensor", file=path) for path in more}}
    pairs = [(picture, "plain") for picture in pictures]
    for name, section in triggers.items():
        marked = section.build(0)(np.stack(pictures), [1, 2])
        pairs += [(picture, name) for picture in marked]
    return pairs_grid(pairs, columns=8)


def main() -> None:
    """Writes the sheet."""
    parser = argparse.ArgumentParser(description="a sheet of all triggers on the same pictures")
    parser.add_argument("--sheet", required=True, metavar="OUT.png")
    parser.add_argument("--file", action="append", default=[], help="a pattern of your own, for kind: tensor")
    options = parser.parse_args()
    try:
        Image.fromarray(sheet(options.file)).save(options.sheet)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(options.sheet)


if __name__ == "__main__":
    main()
