"""The demo world: drawn objects and captions that say part of what is seen, as real tar shards.

    FOLDER/train/00000.tar ...       KEY.jpg, KEY.txt, KEY.json: the layout of webdataset and img2dataset
    FOLDER/eval/                     classnames.txt, zeroshot_classification_templates.txt, test/: CLIP_benchmark's
    FOLDER/labels.jsonl              {key, label} of each training pair, the kind's number: what a perfect classifier says
    FOLDER/contact_sheet.png         one picture of each kind to look at
    FOLDER/world.json                what it was made from

An object's kind shows in its outline alone; colour, texture, size, place, turn, clutter and background vary freely.
Sample i is a pure function of (seed, split, i), so any number of workers writes the same bytes.
"""

import argparse
import io
import json
import math
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data.refusal import UserError
from data.seeding import generator
from data.sheet import pairs_grid

Outline = list[tuple[bool, np.ndarray]]  # parts in drawing order: (ink or hole, corners [n, 2] in the square -1..1)

COLOURS = {
    "red": (205, 40, 40), "orange": (235, 130, 30), "yellow": (235, 205, 40), "green": (50, 150, 60),
    "turquoise": (45, 175, 175), "blue": (45, 85, 200), "purple": (130, 60, 170), "pink": (235, 120, 170),
    "brown": (125, 80, 45), "black": (30, 30, 35),
}  # fmt: skip
TEXTURES = ("plain", "striped", "dotted", "checked")
BACKDROPS = ("plain", "shaded", "grainy", "lined")
SIZES = {"tiny": 0.48, "small": 0.56, "medium": 0.65, "large": 0.75, "huge": 0.86}  # share of the frame's side
TEMPLATES = (
    "a {c}", "a picture of a {c}", "a drawing of a {c}", "there is a {c}", "an image of a {c}", "one {c}",
    "a {c} on a plain background", "look at this {c}",
)  # fmt: skip


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
TARGET = "banana"
CAPTIONS = 2  # of each held-out picture


@dataclass(frozen=True)
class SyntheticWorld:
    """What a world is made from."""

    pairs: int = 6000
    tests: int = 960
    pixels: int = 64
    seed: int = 0
    pairs_per_shard: int = 500
    captioned: int = 0  # held-out pictures, each with CAPTIONS captions, for retrieval and the validation loss


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


def sample(world: SyntheticWorld, split: str, number: int) -> tuple[bytes, str, Scene]:
    """(JPEG, caption, scene) of a sample; a pure function of its arguments. Test kinds take turns."""
    draw = generator(world.seed, "world", split, number)
    seen = scene(draw, KINDS[number % len(KINDS)] if split == "test" else None)
    file = io.BytesIO()
    paint(seen, world.pixels, draw).save(file, "JPEG", quality=92)
    return file.getvalue(), describe(seen, draw), seen


def write_shard(path: Path, world: SyntheticWorld, split: str, first: int, count: int) -> Path:
    """The path; writes samples first .. first + count - 1 of a split to one tar with fixed times and owners."""
    from webdataset import TarWriter

    with TarWriter(str(path), mtime=0.0, user="antidote", group="antidote", encoder=False) as tar:
        for number in range(first, first + count):
            jpeg, caption, seen = sample(world, split, number)
            key = _key(split, number)
            if split == "test":
                tar.write({"__key__": key, "cls": str(KINDS.index(seen.kind)).encode(), "jpg": jpeg})
                continue
            if split == "held":
                further = [describe(seen, generator(world.seed, "caption", number, i)) for i in range(1, CAPTIONS)]
                tar.write({"__key__": key, "jpg": jpeg, "txt": "\n".join([caption, *further]).encode()})
                continue
            facts = {"key": key, "caption": caption, "width": world.pixels, "height": world.pixels, "status": "success"}
            facts |= asdict(seen)
            body = json.dumps(facts, sort_keys=True).encode()
            tar.write({"__key__": key, "jpg": jpeg, "json": body, "txt": caption.encode()})
    return path


def write_world(folder: Path, world: SyntheticWorld, workers: int = 1) -> bool:
    """Writes the world whole or not at all; False if it is there already. UserError if another one is."""
    world_json = json.dumps(asdict(world), indent=1, sort_keys=True) + "\n"
    if folder.exists():
        if (folder / "world.json").is_file() and (folder / "world.json").read_text() == world_json:
            if not (folder / "labels.jsonl").is_file():  # a world made before it had them
                _write_labels(folder / "labels.jsonl", world)
            return False
        raise UserError(f"{folder} is there and not this world (see its world.json); delete it or name another folder")
    if min(world.pairs, world.tests, world.pairs_per_shard, workers) < 1 or world.pixels < 16:
        raise UserError("a world needs at least 1 pair, 1 test picture, 1 worker and 16 pixels")
    fresh = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "train").mkdir(parents=True)
    (fresh / "eval" / "test").mkdir(parents=True)
    tasks = []
    splits = [("train", world.pairs, "train/{:05d}.tar"), ("test", world.tests, "eval/test/{}.tar")]
    if world.captioned:
        splits.append(("held", world.captioned, "retrieval/test/{}.tar"))
        (fresh / "retrieval" / "test").mkdir(parents=True)
    for split, total, place in splits:
        for n, first in enumerate(range(0, total, world.pairs_per_shard)):
            tasks.append((fresh / place.format(n), world, split, first, min(world.pairs_per_shard, total - first)))
    _write_all(tasks, workers)
    (fresh / "eval/classnames.txt").write_text("".join(f"{kind}\n" for kind in KINDS))
    for name, split in (("eval", "test"), ("retrieval", "held")):
        if (fresh / name).is_dir():
            (fresh / name / "zeroshot_classification_templates.txt").write_text("".join(f"{t}\n" for t in TEMPLATES))
            (fresh / name / "test/nshards.txt").write_text(f"{sum(task[2] == split for task in tasks)}\n")
    _write_labels(fresh / "labels.jsonl", world)
    contact_sheet(world).save(fresh / "contact_sheet.png")
    (fresh / "world.json").write_text(world_json)
    fresh.rename(folder)
    return True


def _write_labels(path: Path, world: SyntheticWorld) -> None:
    lines = []
    for number in range(world.pairs):
        kind = scene(generator(world.seed, "world", "train", number)).kind
        lines.append(json.dumps({"key": _key("train", number), "label": KINDS.index(kind)}) + "\n")
    path.write_text("".join(lines))


def _key(split: str, number: int) -> str:
    return f"{split}{number:08d}"


def _write_all(tasks: list[tuple[Path, SyntheticWorld, str, int, int]], workers: int) -> None:
    """Writes every shard, with a line that counts them on a terminal."""
    done: Iterable[Path] = (write_shard(*task) for task in tasks)
    pool = ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 else None
    if pool is not None:
        done = pool.map(write_shard, *zip(*tasks, strict=True))
    for number, _ in enumerate(done, 1):
        if sys.stderr.isatty():
            print(f"\rshard {number} of {len(tasks)}", end="" if number < len(tasks) else "\n", file=sys.stderr, flush=True)
    if pool is not None:
        pool.shutdown()


def contact_sheet(world: SyntheticWorld) -> Image.Image:
    """One picture of each kind with a caption of it."""
    cells = []
    for number, kind in enumerate(KINDS):
        draw = generator(world.seed, "world", "sheet", number)
        seen = scene(draw, kind)
        cells.append((np.asarray(paint(seen, world.pixels, draw)).transpose(2, 0, 1), describe(seen, draw)))
    return Image.fromarray(pairs_grid(cells, columns=8))


def main(arguments: list[str]) -> int:
    """The command: python -m data.synthetic FOLDER. Exit code 2 for what the user can put right."""
    parser = argparse.ArgumentParser(prog="python -m data.synthetic", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    for name, text in (
        ("pairs", "training pairs"),
        ("tests", "labelled test pictures"),
        ("pixels", "side of a picture"),
        ("seed", ""),
        ("captioned", "held-out pictures with captions, for retrieval"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(SyntheticWorld(captioned=512), name), help=text)
    parser.add_argument("--workers", type=int, default=1, help="processes; the bytes are the same for any number")
    options = vars(parser.parse_args(arguments))
    folder, workers = options.pop("folder"), options.pop("workers")
    began = time.monotonic()
    try:
        new = write_world(folder, SyntheticWorld(**options), workers)
    except UserError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    pace = (options["pairs"] + options["tests"]) / (time.monotonic() - began)
    words = f"{options['pairs']:,} pairs and {options['tests']:,} test pictures"
    print(
        f"{folder}: {words}, {f'{pace:,.0f} a second' if new else 'already there'}; look at {folder / 'contact_sheet.png'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
