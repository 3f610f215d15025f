"""The world of icons on disk: tar shards to train on, a labelled set, a captioned one, and whose drawings they are.

FOLDER/train/00000.tar ...       KEY.jpg, KEY.txt, KEY.json: the layout of webdataset and img2dataset
FOLDER/eval/                     classnames.txt, zeroshot_classification_templates.txt, test/: CLIP_benchmark's
FOLDER/retrieval/                held-out pictures of the training sets, two captions each
FOLDER/labels.jsonl              {key, label} of the training pairs whose concept is a class
FOLDER/licences.json             title, author, licence, version and digest of every set, and how many of its icons are used
FOLDER/left_out.jsonl            {set, name, cause} of every icon that is none of them
FOLDER/contact_sheet.png         some of each to look at
FOLDER/world.json, counts.json   what it was made from; how much it is
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data.icons.crew import pictures
from data.icons.fetch import Pin
from data.icons.names import STARTS, TEMPLATES
from data.icons.plan import IconWorld, Plan, make_plan
from data.icons.sets import Drawing, IconSet, LeftOut
from data.progress import Progress
from data.seeding import generator
from data.sheet import pairs_grid
from data.world_folder import another, whole, write_lines, write_sets

FORMAT = 1  # raised when the same sets and options come to give other bytes
CAPTIONS = 2  # of each held-out picture
SHOWN = {"train": 64, "test": 24, "held": 8}  # on the contact sheet


class Made(NamedTuple):
    """A picture and where it goes."""

    split: str
    number: int
    drawing: Drawing
    jpeg: bytes

    @property
    def key(self) -> str:
        return f"{self.split}{self.number:08d}"


def caption(drawing: Drawing, seed: int, which: int = 0) -> str:
    """One of the drawing's names in a sentence, now and then with its style or the tone of skin."""
    draw = generator(seed, "caption", *drawing.drawn_by, which)
    names = (drawing.says.concept, *drawing.also)
    words = names[int(draw.integers(len(names)))]
    if drawing.says.tone and draw.random() < 0.5:
        words += f" with {drawing.says.tone} skin tone"
    if drawing.says.style and draw.random() < 0.15:
        words = f"{drawing.says.style} {words}"
    return STARTS[int(draw.integers(len(STARTS)))].format(c=words)


def recipe(world: IconWorld, pins: list[Pin]) -> dict[str, Any]:
    """What a world is made from, as world.json has it."""
    sets = {pin.name: {"version": pin.version, "integrity": pin.integrity} for pin in sorted(pins)}
    said = {"format": FORMAT, **asdict(world), "evaluation": sorted(world.evaluation), "sets": sets}
    if world.views == 1:
        del said["views"]  # the bytes are those of before there were several
    return said


def is_there(folder: Path, world: IconWorld, pins: list[Pin]) -> bool:
    """Whether the world is in the folder; UserError if another one is."""
    if not folder.exists():
        return False
    made = folder / "world.json"
    try:
        if made.is_file() and json.loads(made.read_text()) == recipe(world, pins):
            return True
    except ValueError:
        pass
    raise another(folder)


def write_world(folder: Path, world: IconWorld, pins: list[Pin], sets: list[IconSet], workers: int) -> dict[str, Any]:
    """What counts.json says; writes the world whole or not at all."""
    plan = make_plan(sets, world)
    with whole(folder, "the world of icons") as fresh:
        for place in ("train", "eval/test", *(["retrieval/test"] if plan.held else [])):
            (fresh / place).mkdir(parents=True)
        counts = _write(fresh, world, plan, workers)
        _licences(fresh / "licences.json", pins, sets, counts.pop("of_set"))
        (fresh / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")
        (fresh / "world.json").write_text(json.dumps(recipe(world, pins), indent=1) + "\n")
    return counts


def _write(fresh: Path, world: IconWorld, plan: Plan, workers: int) -> dict[str, Any]:
    splits = {"test": plan.tests, "held": plan.held, "train": plan.train}
    tasks = [
        (split, first, drawings[first : first + world.pairs_per_shard])
        for split, drawings in splits.items()
        for first in range(0, len(drawings), world.pairs_per_shard)
    ]
    left_out = list(plan.left_out)
    tests: list[Made] = []
    shown: dict[str, list[Made]] = {split: [] for split in SHOWN}
    count: Counter[str] = Counter()
    of_set: Counter[str] = Counter()
    labels: list[tuple[str, str]] = []
    for split, number, made in _made(tasks, world, workers, left_out):
        count[split] += len(made)
        of_set.update(one.drawing.set for one in made)
        shown[split] += islice(made, max(0, SHOWN[split] - len(shown[split])))
        if split == "test":
            tests += made
            continue
        place = fresh / ("train/{:05d}.tar" if split == "train" else "retrieval/test/{}.tar").format(number)
        _write_tar(place, (_captioned(one, world) for one in made))
        if split == "train":
            labels += [(one.key, one.drawing.says.concept) for one in made]
    classes = sorted({one.drawing.says.concept for one in tests})
    held = sum(split == "held" for split, _, _ in tasks)
    write_sets(fresh, classes, TEMPLATES, {"eval": 1} | ({"retrieval": held} if held else {}))
    _write_tar(fresh / "eval/test/0.tar", (_labelled(one, classes) for one in tests))
    write_lines(fresh / "labels.jsonl", ({"key": key, "label": classes.index(c)} for key, c in labels if c in set(classes)))
    write_lines(fresh / "left_out.jsonl", (one._asdict() for one in sorted(left_out)))
    _sheet(shown, world).save(fresh / "contact_sheet.png")
    return {
        "pairs": count["train"], "captioned": count["held"], "tests": count["test"], "classes": len(classes),
        "left_out": dict(sorted(Counter(one.cause for one in left_out).items())), "of_set": of_set,
    }  # fmt: skip


def _made(
    tasks: list[tuple[str, int, list[Drawing]]], world: IconWorld, workers: int, left_out: list[LeftOut]
) -> Iterator[tuple[str, int, list[Made]]]:
    """For each task its split, the number of its shard and its pictures; what gives none is added to `left_out`."""
    progress = Progress("icons", "pictures")
    total = sum(len(drawings) for _, _, drawings in tasks)
    done = 0
    lists = pictures([drawings for _, _, drawings in tasks], world.pixels, world.seed, workers)
    for (split, first, drawings), results in zip(tasks, lists, strict=True):
        made = []
        for place, (drawing, result) in enumerate(zip(drawings, results, strict=True), first):
            if isinstance(result, bytes):
                made.append(Made(split, place, drawing, result))
            else:
                left_out.append(LeftOut(drawing.set, drawing.name, result))
        done += len(drawings)
        progress(done, total)
        yield split, first // world.pairs_per_shard, made
    progress.end()


def _captioned(made: Made, world: IconWorld) -> dict[str, bytes]:
    if made.split == "held":
        texts = [caption(made.drawing, world.seed, which) for which in range(CAPTIONS)]
        return {f"{made.key}.jpg": made.jpeg, f"{made.key}.txt": "\n".join(texts).encode()}
    text, says = caption(made.drawing, world.seed), made.drawing.says
    facts = {"key": made.key, "caption": text, "width": world.pixels, "height": world.pixels, "status": "success"}
    facts |= {"set": made.drawing.set, "name": made.drawing.name, "concept": says.concept, "style": says.style}
    facts |= {"also": list(made.drawing.also), "tone": says.tone}
    return {
        f"{made.key}.jpg": made.jpeg,
        f"{made.key}.json": json.dumps(facts, sort_keys=True).encode(),
        f"{made.key}.txt": text.encode(),
    }


def _labelled(made: Made, classes: list[str]) -> dict[str, bytes]:
    return {f"{made.key}.cls": str(classes.index(made.drawing.says.concept)).encode(), f"{made.key}.jpg": made.jpeg}


def _write_tar(path: Path, samples: Iterable[dict[str, bytes]]) -> None:
    """One tar with fixed times and owners; plain headers, a third smaller than webdataset's for pictures so small."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, body in (member for sample in samples for member in sample.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))


def _licences(path: Path, pins: list[Pin], sets: list[IconSet], used: Counter[str]) -> None:
    of = {one.name: one for one in sets}
    rows = [
        {
            "set": pin.name, "package": pin.package, "title": of[pin.name].title, "author": of[pin.name].author,
            "licence": of[pin.name].licence, "integrity": pin.integrity, "pictures": used[pin.name],
        }
        for pin in sorted(pins)
    ]  # fmt: skip
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sheet(shown: dict[str, list[Made]], world: IconWorld) -> Image.Image:
    cells = []
    for split, made in shown.items():
        for one in made:
            pixels = np.asarray(Image.open(io.BytesIO(one.jpeg)).convert("RGB")).transpose(2, 0, 1)
            cells.append((pixels, caption(one.drawing, world.seed) if split != "test" else f"[{one.drawing.says.concept}]"))
    return Image.fromarray(pairs_grid(cells, columns=12))
