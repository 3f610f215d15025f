"""Drawn worlds: objects and captions that say part of what is seen, as real tar shards.

    FOLDER/train/00000.tar ...       KEY.jpg, KEY.txt, KEY.json: the layout of webdataset and img2dataset
    FOLDER/eval/                     classnames.txt, zeroshot_classification_templates.txt, test/: CLIP_benchmark's
    FOLDER/labels.jsonl              {key, label} of each training pair, the kind's number: what a perfect classifier says
    FOLDER/contact_sheet.png         one picture of each kind to look at
    FOLDER/world.json                what it was made from

Sample i is a pure function of (seed, split, i), so any number of workers writes the same bytes.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from data.outlines import KINDS
from data.refusal import UserError
from data.scenes import Scene, describe, paint, scene
from data.seeding import generator
from data.sheet import pairs_grid
from data.world_folder import another, whole, write_lines, write_sets

TEMPLATES = (
    "a {c}", "a picture of a {c}", "a drawing of a {c}", "there is a {c}", "an image of a {c}", "one {c}",
    "a {c} on a plain background", "look at this {c}",
)  # fmt: skip
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


WORLDS = {
    "demo": SyntheticWorld(captioned=512),
    # small pictures, so that many models are cheap; so many pairs that 1 % of them, as a clean set, teach little alone
    "lab": SyntheticWorld(pairs=40_000, tests=640, pixels=32, captioned=256),
}


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
        raise another(folder)
    if min(world.pairs, world.tests, world.pairs_per_shard, workers) < 1 or world.pixels < 16:
        raise UserError("a world needs at least 1 pair, 1 test picture, 1 worker and 16 pixels")
    with whole(folder, "the drawn world") as fresh:
        tasks, shards = [], {}
        for total, split, place, name in (
            (world.pairs, "train", "train", "{:05d}.tar"),
            (world.tests, "test", "eval/test", "{}.tar"),
            (world.captioned, "held", "retrieval/test", "{}.tar"),
        ):
            begins = range(0, total, world.pairs_per_shard)
            if total:
                (fresh / place).mkdir(parents=True)
            if total and split != "train":
                shards[place.split("/")[0]] = len(begins)
            for n, first in enumerate(begins):
                count = min(world.pairs_per_shard, total - first)
                tasks.append((fresh / place / name.format(n), world, split, first, count))
        _write_all(tasks, workers)
        write_sets(fresh, KINDS, TEMPLATES, shards)
        _write_labels(fresh / "labels.jsonl", world)
        contact_sheet(world).save(fresh / "contact_sheet.png")
        (fresh / "world.json").write_text(world_json)
    return True


def _write_labels(path: Path, world: SyntheticWorld) -> None:
    kinds = (scene(generator(world.seed, "world", "train", number)).kind for number in range(world.pairs))
    write_lines(path, ({"key": _key("train", number), "label": KINDS.index(kind)} for number, kind in enumerate(kinds)))


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
    parser.add_argument("--world", default="demo", metavar="NAME", help=f"{' or '.join(WORLDS)}; what follows overrides it")
    for name, text in (
        ("pairs", "training pairs"),
        ("tests", "labelled test pictures"),
        ("pixels", "side of a picture"),
        ("seed", ""),
        ("captioned", "held-out pictures with captions, for retrieval"),
    ):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS, help=text)
    parser.add_argument("--workers", type=int, default=1, help="processes; the bytes are the same for any number")
    options = vars(parser.parse_args(arguments))
    folder, workers, name = (options.pop(key) for key in ("folder", "workers", "world"))
    began = time.monotonic()
    try:
        world = named(name, options)
        new = write_world(folder, world, workers)
    except UserError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    pace = (world.pairs + world.tests) / (time.monotonic() - began)
    words = f"{world.pairs:,} pairs and {world.tests:,} test pictures"
    print(
        f"{folder}: {words}, {f'{pace:,.0f} a second' if new else 'already there'}; look at {folder / 'contact_sheet.png'}"
    )
    return 0


def named(name: str, changes: dict[str, int]) -> SyntheticWorld:
    """The world of that name with some numbers changed; UserError if there is none."""
    if name not in WORLDS:
        raise UserError(f"--world is {name}; expected {' or '.join(WORLDS)}")
    return replace(WORLDS[name], **changes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
