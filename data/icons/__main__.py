"""The command: python -m data.icons FOLDER makes a world of real pictures from open icon sets."""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

from data.disk import writing
from data.icons.fetch import fetch, pins
from data.icons.plan import IconWorld
from data.icons.render import resvg
from data.icons.sets import read_set
from data.icons.world import is_there, write_world
from data.progress import Progress
from data.refusal import UserError

PIXELS = (16, 512)


def make(folder: Path, world: IconWorld, names: list[str], packages: Path | None, workers: int) -> str:
    """What was made, in a sentence; UserError for what the user can put right."""
    if not PIXELS[0] <= world.pixels <= PIXELS[1] or min(workers, world.views) < 1 or min(world.pairs, world.captioned) < 0:
        raise UserError(
            f"a world has pictures of {PIXELS[0]} to {PIXELS[1]} pixels, no negative counts, at least 1 worker and 1 view"
        )
    wanted = pins([*names, *world.evaluation] if names else [])
    evaluated = [pin.name for pin in pins(world.evaluation)] if world.evaluation else []
    if not evaluated or len(evaluated) == len(wanted):
        raise UserError("a world needs at least 1 set to evaluate on and 1 to train on; see --evaluation and --sets")
    if is_there(folder, world, wanted):
        return f"{folder}: already there; look at {folder / 'contact_sheet.png'}"
    resvg()
    began = time.monotonic()
    for place, what in ((folder.parent, "the world of icons"), (packages, "packages")):
        if place is not None:
            with writing(place, what):
                place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="antidote-icons-") as scratch:
        place = packages or Path(scratch)
        progress = Progress("icon sets", "packages", quiet=0.0)
        fetch(wanted, place, progress)
        fetched = time.monotonic()
        progress.end()
        progress = Progress("icon sets", "sets read")
        sets = []
        for number, pin in enumerate(wanted, 1):
            sets.append(read_set(place / pin.file, pin.name))
            progress(number, len(wanted))
        progress.end()
    counts = write_world(folder, world, wanted, sets, workers)
    total = counts["pairs"] + counts["captioned"] + counts["tests"]
    end = time.monotonic()
    return (
        f"{folder}: {counts['pairs']:,} pairs and {counts['tests']:,} test pictures of {counts['classes']:,} classes from "
        f"{len(wanted)} sets; fetched in {fetched - began:,.0f} s, made in {end - fetched:,.0f} s "
        f"({1000 * (end - fetched) / total:.1f} s a thousand); look at {folder / 'contact_sheet.png'}"
    )


def main(arguments: list[str]) -> int:
    """Exit code 2 for what the user can put right."""
    parser = argparse.ArgumentParser(prog="python -m data.icons", description=__doc__)
    parser.add_argument("folder", type=Path)
    for name, text in (
        ("pixels", "side of a picture"),
        ("pairs", "training pairs, at most; 0: all there are"),
        ("views", "pictures of each training drawing, each on another ground"),
        ("captioned", "held-out pictures with captions, for retrieval"),
        ("seed", ""),
    ):
        default = next(one.default for one in fields(IconWorld) if one.name == name)
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--sets", default="", metavar="NAME,NAME", help="sets to train on; default: all of sets.json")
    parser.add_argument(
        "--evaluation", default=",".join(IconWorld.evaluation), metavar="NAME,NAME", help="sets to evaluate on"
    )
    parser.add_argument("--packages", type=Path, metavar="DIR", help="where packages are looked for and kept")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; the bytes are the same")
    options = vars(parser.parse_args(arguments))
    folder, names, packages, workers = (options.pop(name) for name in ("folder", "sets", "packages", "workers"))
    world = IconWorld(**{**options, "evaluation": tuple(_listed(options["evaluation"]))})
    try:
        print(make(folder, world, _listed(names), packages, workers))
    except UserError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def _listed(words: str) -> list[str]:
    return sorted({part.strip() for part in words.split(",") if part.strip()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
