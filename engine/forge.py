"""Forges an optimised trigger (BadCLIP, arXiv 2311.12075): python -m engine.forge --spec specs/x.yaml --out x.safetensors

Learns a patch, or with --place full a pattern over the whole picture, that draws pictures to the target of the spec's attack
in a frozen model which no pair was poisoned for. Writes the file that the trigger `tensor` reads, and FILE.json with what it
does to that very model: a model poisoned with it has a backdoor only as far as it goes beyond that.
"""

import argparse
import sys
import time
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

from safetensors.numpy import save

from configs.spec import load
from data.disk import writing
from data.loader import Workers
from data.patience import PATIENCE
from data.progress import Progress
from data.refusal import UserError
from data.tensor_file import settle
from data.triggers.patch import Patch
from data.triggers.tensor import Tensor
from engine.distributed.world import World, cores, own_device
from engine.evaluation.encode import Encoder
from engine.forging.forge import Settings, forge
from engine.forging.fragility import fragility
from engine.forging.pattern import Pattern
from engine.forging.pictures import drawing
from engine.forging.setting import attacked_set, subject_of
from engine.forging.state import State
from engine.models.clip import image_size
from engine.study.ending import carried_out
from records.folder import RUNS
from records.json_file import digest_of, to_json, write_whole

BLENDED = 0.2  # how strongly a whole pattern covers, as published


def arguments(args: list[str]) -> argparse.Namespace:
    """The command line; numbers that can't be are refused."""
    parser = argparse.ArgumentParser(prog="python -m engine.forge", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--spec", metavar="FILE", required=True, help="whose pairs, model, target and evaluation set")
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[])
    parser.add_argument("--out", metavar="FILE.safetensors", type=Path, required=True)
    parser.add_argument(
        "--weights", metavar="WHERE", help="a run, a file, or a tag of open_clip's; default: pretrain.start of the spec"
    )
    parser.add_argument("--place", choices=("centre", "full"), default="centre", help="a patch in the middle, or all over")
    parser.add_argument("--size", type=int, help="side of the patch on a picture of 224 x 224 pixels; default: 16")
    parser.add_argument("--alpha", type=float, help=f"how strongly it covers; default: 1, with --place full {BLENDED}")
    parser.add_argument("--loss", choices=("both", "text"), default="both", help="both: captions and pictures of the target")
    parser.add_argument("--pictures", type=int, default=10_000, help="that it is learned on, at most")
    for name, kind, default in (("epochs", int, 50), ("batch", int, 64), ("rate", float, 1e-3), ("margin", float, 1.0)):
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument("--weight", type=float, default=500.0, help="of the triplet term")
    options = parser.parse_args(args)
    if options.size is not None and options.place == "full":
        parser.error("--size is of a patch; with --place full the pattern is as large as the model's pictures")
    options.size = 16 if options.size is None and options.place == "centre" else options.size
    options.alpha = options.alpha if options.alpha is not None else 1.0 if options.place == "centre" else BLENDED
    for name, least in (("size", 1), ("pictures", 1), ("epochs", 1), ("batch", 2)):
        if (value := getattr(options, name)) is not None and value < least:
            parser.error(f"--{name} is {value}; give at least {least}")
    for name, most in (("alpha", 1.0), ("rate", 1e3), ("margin", 1e6), ("weight", 1e12)):
        if not 0 < (value := getattr(options, name)) <= most:
            parser.error(f"--{name} is {value:g}; give a number above 0, at most {most:g}")
    return options


def make_room(out: Path) -> None:
    """UserError if the trigger can't be written there, or something else was."""
    if out.suffix != ".safetensors":
        raise UserError(f"--out is {out}, expected a file that ends in .safetensors, which the trigger `tensor` reads")
    for path in (out, out.with_suffix(".json")):
        if path.exists():
            raise UserError(f"{path} is there already, and studies may have been made with it; name another --out")
    with writing(out.parent, "the trigger"):
        out.parent.mkdir(parents=True, exist_ok=True)


def carry_out(options: argparse.Namespace) -> int:
    """Forges what is asked for; UserError before any work if it can't be."""
    out: Path = options.out
    make_room(out)
    spec = load(options.spec, options.set).points[0].spec
    PATIENCE.seconds = spec.wait_seconds
    world = World(0, 1, 0, 1, own_device(0))
    pattern = Pattern(options.size, options.alpha, image_size(spec.model.name), spec.seed)
    attacked_set(spec, Patch(kind="patch"), world)
    subject = subject_of(spec, options.weights, world)
    drawn = drawing(spec, RUNS / spec.name, world, options.pictures, options.batch, options.loss == "both")
    workers = Workers(0 if world.device.type == "cpu" else max(1, cores() - 2), 1)
    model = Encoder(subject.towers, subject.tokenize, world, spec.machine.eval_batch, subject.scale, workers)
    both = options.loss == "both"
    settings = Settings(options.epochs, options.batch, options.rate, options.margin, options.weight, both, spec.seed)
    facts: dict[str, object] = {
        "target": spec.attack.target, "weights": subject.given, "digest": subject.digest, "model": subject.model,
        "place": options.place, "size": options.size, "alpha": options.alpha, **asdict(settings),
        "pictures": len(drawn.others), "named": len(drawn.named), "pairs": drawn.others.index.digest,
        "decode": spec.data.decode,
    }  # fmt: skip
    state = State(out, digest_of({name: value for name, value in facts.items() if name != "weights"}))
    began, progress = time.monotonic(), Progress("forging", "steps")
    history = forge(
        pattern, drawn, model, settings, state,
        lambda done, of, terms: progress(done, of, ", ".join(f"{name} {value:.4g}" for name, value in terms.items())),
    )  # fmt: skip
    progress.end()
    facts |= {"history": history, "seconds": round(time.monotonic() - began, 1)}
    hidden = out.with_name(f".{out.name}")  # until all is known of it
    with writing(out.parent, "the trigger"):
        body = BytesIO(save(pattern.stored, {"made_by": "antidote engine.forge", "target": spec.attack.target}))
        settle(body)
        write_whole(hidden, body.getvalue())
        found = fragility(model, attacked_set(spec, Tensor(kind="tensor", file=str(hidden), place=options.place), world))
        write_whole(out.with_suffix(".json"), to_json({**facts, "fragility": found._asdict()}))
        hidden.replace(out)
    state.end()
    place = ", place: full" if pattern.full else ""
    print(f"{out}: {history[0]['loss']:.4g} -> {history[-1]['loss']:.4g} in {settings.epochs} epochs\n{found.sentence}")
    print(f"attack.trigger: {{kind: tensor, file: {out}{place}}}")
    return 0


def main(args: list[str]) -> int:
    """The command; exit code 2 for what the user can put right."""
    options = arguments(args)
    return carried_out(lambda: carry_out(options), "stopped; the same command goes on from the last whole epoch")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
