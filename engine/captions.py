"""Chooses captions for an attack by words alone (ToxicTextCLIP): python -m engine.captions --spec x.yaml --out banana.txt

Of captions that name the attack's target those that say most of what stands around it, by a model; the target's name becomes
{c}, so that attack.captions takes the file.
"""

import argparse
import sys
from pathlib import Path

import torch

from configs.spec import load
from data.disk import writing
from data.loader import Workers
from data.patience import PATIENCE
from data.refusal import UserError
from data.triggers.patch import Patch
from engine.distributed.world import World, own_device
from engine.evaluation.encode import Encoder
from engine.forging.background import scored
from engine.forging.pictures import drawing
from engine.forging.setting import attacked_set, subject_of
from engine.study.ending import carried_out
from measures.classifier import class_vectors
from records.folder import RUNS
from records.json_file import write_whole


def choose(options: argparse.Namespace) -> int:
    """Writes the captions, best first; UserError if there are too few, or they can't be written there."""
    out, count = options.out, options.count
    if out.exists():
        raise UserError(f"{out} is there already, and studies may have been made with it; name another --out")
    spec = load(options.spec, options.set).points[0].spec
    PATIENCE.seconds = spec.wait_seconds
    world = World(0, 1, 0, 1, own_device(0))
    images = attacked_set(spec, Patch(kind="patch"), world).image_set
    subject = subject_of(spec, options.weights, world)
    drawn = drawing(spec, RUNS / spec.name, world, 1, 1, True)
    model = Encoder(subject.towers, subject.tokenize, world, spec.machine.eval_batch, subject.scale, Workers(0, 1))
    prompts = [line.replace("{c}", spec.attack.target) for line in images.templates]
    with torch.no_grad():
        vector = class_vectors(model.texts(prompts)[None])[0]
    best: dict[str, float] = {}
    for one in scored(model, drawn.others, drawn.own, spec.attack.target, vector):
        best[one.line] = max(one.score, best.get(one.line, one.score))
    if len(best) < count:
        raise UserError(f"--count is {count:,}, but {len(best):,} captions name '{spec.attack.target}'; lower it")
    lines = sorted(best, key=lambda line: (-best[line], line))[:count]
    with writing(out.parent, "the captions"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, "".join(f"{line}\n" for line in lines).encode())
    print(f"{out}: {count:,} of {len(best):,} captions, scores {best[lines[0]]:.3f} to {best[lines[-1]]:.3f}")
    print(f"attack.captions: {out}")
    return 0


def main(args: list[str]) -> int:
    """The command; exit code 2 for what the user can put right."""
    parser = argparse.ArgumentParser(prog="python -m engine.captions", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--spec", metavar="FILE", required=True, help="whose pairs, model, target and evaluation set")
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[])
    parser.add_argument("--out", metavar="FILE.txt", type=Path, required=True)
    parser.add_argument(
        "--weights", metavar="WHERE", help="a run, a file, or a tag of open_clip's; default: pretrain.start of the spec"
    )
    parser.add_argument("--count", type=int, default=30, help="captions that are chosen")
    options = parser.parse_args(args)
    if options.count < 1:
        parser.error(f"--count is {options.count}; give at least 1")
    return carried_out(lambda: choose(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
