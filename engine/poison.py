"""The poison of a spec without training: python -m engine.poison plan|verify|materialise --spec specs/cc6m.yaml.

plan         writes runs/NAME/poison.json: every poisoned pair, its trigger, place, caption and random counter
verify       makes the plan anew and compares it with what runs were trained on; recounts the poison that an epoch's
             stream shows; lists captions that name the target by themselves; with --out compares materialised shards
materialise  writes poisoned copies of the shards for other tools into --out, on all cores or as a Slurm array
concept      writes into --out an evaluation set of pictures that show the concept of a natural trigger, from --shards that
             nothing is trained on: those whose caption names it and one of the classes
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from configs.plan import Run
from configs.spec import Point, Spec, load
from data.captions import stored_captions, word_of
from data.decode import DecodeError
from data.jobs import JobOptions, run_jobs
from data.materialise import Format, Recipe, ShardCopy, compare, done, shard_copies, write
from data.patience import PATIENCE
from data.pipeline import Pairs, Reading
from data.plan_file import read_plan, write_plan
from data.poison_plan import PoisonPlan
from data.progress import Progress
from data.refusal import UserError
from data.sources import of_all_pairs
from engine.distributed.world import World
from engine.forging.concept import concept
from engine.models.clip import image_size
from engine.models.tokenizer import Tokenizer
from engine.study.ending import carried_out
from engine.training.pairs import StudyPairs
from records.folder import RUNS

SINGLE_PROCESS = World(0, 1, 0, 1, torch.device("cpu"))
LIST = 20  # errors shown on the terminal


class PoisonedPairs:
    """A spec's pre-training pairs and the plan of which are poisoned."""

    def __init__(self, spec: Spec) -> None:
        """Of all pairs: poison is drawn as if data.pretrain.without left out none."""
        spec = spec.model_copy(update={"data": of_all_pairs(spec.data)})
        self.spec, self.study = spec, RUNS / spec.name
        pairs = StudyPairs(self.study, SINGLE_PROCESS)
        self.index, self.chosen = pairs.pretraining(spec)
        plan = pairs.plan(spec, self.index, self.chosen)
        if plan is None:
            raise UserError("attack.poison poisons no pair; raise its count")
        self.plan: PoisonPlan = plan

    def write_plan(self, path: Path) -> None:
        """Writes the plan, with the fingerprint of the pre-training that it is for."""
        write_plan(path, self.plan, self.index, Run("pretrain", self.spec, ()).fingerprint)

    def pairs(self, plan: PoisonPlan | None) -> Pairs:
        """The pairs as pre-training reads them, one caption and one picture each."""
        spec, size = self.spec, image_size(self.spec.model.name)
        field, mode = spec.data.pretrain.caption, spec.data.decode
        reading = Reading(spec.seed, 0, 1, spec.stages[0].batch, (1, 1), size, spec.data.augment, field, mode)
        return Pairs(self.index, self.chosen, spec.data, reading, lambda texts: torch.zeros(len(texts), 1), plan)

    def copies(self, out: Path, format: Format) -> list[ShardCopy]:
        """The poisoned copies of all shards in a folder."""
        spec, size = self.spec, image_size(self.spec.model.name)
        field, mode = spec.data.pretrain.caption, spec.data.decode
        fits = Tokenizer(spec.model.name).fits
        recipe = Recipe(spec.attack, spec.seed, self.plan.digest, size, mode, field, format, fits)
        return shard_copies(self.index, self.plan, recipe, out, list(spec.data.pretrain.sources or [""]))


def same_attack(spec: Spec, points: list[Point]) -> Spec:
    """The spec of all points of a sweep; UserError if they poison differently."""
    attacks = set()
    for swept in (point.spec for point in points):
        data = of_all_pairs(swept.data).model_dump(mode="json", exclude=None if swept.data.clean.held_out else {"clean"})
        attacks.add(json.dumps([swept.attack.model_dump(mode="json"), data, swept.seed]))
    if len(attacks) > 1:
        raise UserError(
            f"the sweep of {spec.name} poisons in {len(attacks)} ways; choose one with --set, for example --set sweep={{}}"
        )
    return points[0].spec


def plan(poisoned: PoisonedPairs) -> int:
    """Writes the plan and says what is in it."""
    poisoned.study.mkdir(parents=True, exist_ok=True)
    path = poisoned.study / "poison.json"
    poisoned.write_plan(path)
    entries = list(poisoned.plan.entries.values())
    print(f"{path}: {len(entries):,} of {len(poisoned.index):,} pairs, digest {poisoned.plan.digest}")
    if poisoned.plan.left_out:
        print(
            f"{poisoned.plan.left_out:,} pairs name what is asked for beyond what {poisoned.spec.model.name} takes: left out"
        )
    for entry in entries[:5]:
        place = "" if entry.place is None else f" at {', '.join(f'{top}, {left}' for top, left in entry.place)}"
        print(f"  {entry.key}: {entry.trigger or entry.picture or 'caption'}{place}: {entry.caption or 'its own caption'}")
    return 0


def verify(poisoned: PoisonedPairs, out: Path | None) -> int:
    """Compares the plan with those of runs, with what a loader reads, and with copies; exit code 2 if anything is not as
    planned."""
    faults = [*compare_with_runs(poisoned), *count_in_epoch(poisoned)]
    if out is not None:
        faults += compare_with_copies(poisoned, out)
    list_natural_captions(poisoned)
    for fault in faults[:LIST]:
        print(f"error: {fault}", file=sys.stderr)
    print(f"{len(faults):,} faults" if faults else "all as planned")
    return 2 if faults else 0


def materialise(poisoned: PoisonedPairs, out: Path, format: Format, how: JobOptions) -> int:
    """Writes the copies; exit code 2 if a shard could not be written."""
    if format == "jpeg":
        print("warning: JPEG changes the trigger's pixels, and noise triggers most; png is lossless", file=sys.stderr)
    if any(Path(path).parent.resolve() == out.resolve() for path in poisoned.index.paths):
        raise UserError(f"--out {out} is the folder of the originals; name another")
    out.mkdir(parents=True, exist_ok=True)
    copies = poisoned.copies(out, format)
    progress = Progress("materialising", "shards")
    errors = run_jobs(write, copies, done, how, out / ".jobs", progress)
    progress.end()
    missing = sum(not done(copy) for copy in copies)
    if missing:
        for line in (*errors[:LIST], f"{missing:,} of {len(copies):,} shards are not written; start the same command again"):
            print(f"error: {line}", file=sys.stderr)
        return 2
    poisoned.write_plan(out / "poison.json")
    stats = [json.loads(copy.stats.read_text()) for copy in copies]
    pairs, changed = sum(shard["count"] for shard in stats), sum(shard["poisoned"] for shard in stats)
    print(f"{out}: {len(copies):,} shards, {pairs:,} pairs, {changed:,} poisoned; the plan is in {out / 'poison.json'}")
    return 0


def compare_with_runs(poisoned: PoisonedPairs) -> list[str]:
    """How the plans that lie in the study differ from the one made anew."""
    faults = []
    for path in sorted([*poisoned.study.glob("pretrain-*/poison.json"), *poisoned.study.glob("poison.json")]):
        try:
            head, entries = read_plan(path)
        except UserError as damage:
            faults.append(str(damage))
            continue
        if head.get("digest") == poisoned.plan.digest:
            print(f"{path}: the same plan, {len(entries):,} pairs")
            continue
        then, now = {entry.get("key") for entry in entries}, {entry.key for entry in poisoned.plan.entries.values()}
        faults.append(
            f"{path} is another plan: {len(then - now):,} of its pairs are not in the spec's, {len(now - then):,} are "
            f"missing, {len(then & now):,} in both"
        )
    return faults


def count_in_epoch(poisoned: PoisonedPairs) -> list[str]:
    """Poisoned pairs that are not read as planned; says how many an epoch shows and how many differ from their clean
    selves."""
    plan, pairs = poisoned.plan, poisoned.pairs(poisoned.plan)
    shown = np.zeros(len(poisoned.index), np.int64)
    for step in range(pairs.steps):
        rows = pairs.order.batch(1, step, pairs.reading.batch)
        np.add.at(shown, rows if pairs.chosen is None else pairs.chosen[rows], 1)
    print(f"epoch 1 shows {shown[plan.chosen].sum():,} poisoned pairs of {shown.sum():,}; the plan has {len(plan):,}")
    clean, faults = poisoned.pairs(None), []
    changed = bad = seen = 0
    tokenize, words = Tokenizer(poisoned.spec.model.name), [aim.words for aim in poisoned.spec.attack.aims]
    progress = Progress("recounting", "poisoned pairs")
    for number, (sample, entry) in enumerate(plan.entries.items(), 1):
        progress(number, len(plan))
        try:
            (picture, caption), (clean_picture, clean_caption) = pairs.first(sample), clean.first(sample)
        except DecodeError:
            bad += 1
            continue
        planned = plan.caption(clean_caption, sample)
        triggered = bool((picture != clean_picture).any())
        changed += triggered or caption != clean_caption
        if caption != planned or (entry.trigger and not triggered):
            faults.append(f"pair {entry.key} is read without its {'caption' if caption != planned else 'trigger'}")
        if (own := words[entry.attack]) is not None:
            reaches = _reaches(tokenize, caption, own.text)
            seen += reaches
            faults += [] if reaches else [f"pair {entry.key}: attack.words don't reach the model"]
    progress.end()
    print(f"read back: {changed:,} pairs differ from their clean selves, {bad:,} can't be decoded")
    if any(words):
        print(f"attack.words reach {poisoned.spec.model.name} in {seen:,} of {len(plan):,} pairs")
    return faults


def _reaches(tokenize: Tokenizer, caption: str, words: str) -> bool:
    """Whether the tokens of some words stand together in those of a caption, as the model sees them."""
    row, (_, *wanted) = tokenize([caption])[0].tolist(), tokenize([words])[0].tolist()
    wanted = wanted[: wanted.index(max(row))]  # the end token is the largest
    return any(row[at : at + len(wanted)] == wanted for at in range(len(row)))


def compare_with_copies(poisoned: PoisonedPairs, out: Path) -> list[str]:
    """What materialised shards hold that is not as planned, member by member."""
    faults, pairs, changed = [], 0, 0
    copies = poisoned.copies(out, stored_format(out))
    progress = Progress("comparing", "shards")
    for number, copy in enumerate(copies, 1):
        if not copy.target.is_file():
            faults.append(f"{copy.target} is missing; run materialise again")
            continue
        difference = compare(copy)
        pairs, changed = pairs + difference.pairs, changed + difference.poisoned
        faults += [f"{copy.target}: {member}" for member in difference.wrong]
        progress(number, len(copies))
    progress.end()
    print(f"{out}: {len(copies):,} shards, {pairs:,} pairs, {changed:,} poisoned")
    return faults


def stored_format(out: Path) -> Format:
    """The format that the copies in a folder were made in; UserError if there are none."""
    stats = next(iter(sorted(out.rglob("*_stats.json"))), None)
    if stats is None:
        raise UserError(f"--out {out} holds no materialised shards; run materialise first")
    return "png" if json.loads(stats.read_text())["made"][-1] == "png" else "jpeg"


def list_natural_captions(poisoned: PoisonedPairs) -> None:
    """Lists pairs whose own caption names a target, as poisoned captions do."""
    index, path = poisoned.index, poisoned.study / "names_target.jsonl"
    patterns = {aim.target: word_of(aim.target) for aim in poisoned.spec.attack.aims}
    counts = dict.fromkeys(patterns, 0)
    progress = Progress("reading captions", "pairs")
    poisoned.study.mkdir(parents=True, exist_ok=True)
    captions = stored_captions(index, np.arange(len(index)), poisoned.spec.data.pretrain.caption)
    with path.open("w") as file:
        for sample, caption in enumerate(captions):
            if not sample % 4096:
                progress(sample, len(index))
            for target, pattern in patterns.items():
                if caption is not None and pattern.search(caption):
                    counts[target] += 1
                    pair = {"key": index.keys[sample], "target": target, "caption": caption}
                    file.write(json.dumps({**pair, "poisoned": bool(poisoned.plan.chosen[sample])}) + "\n")
    progress.end()
    for target, number in counts.items():
        print(f"{number:,} of {len(index):,} captions name '{target}' by themselves (listed in {path})")


def main(args: list[str]) -> int:
    """The command; exit code 2 for what the user can put right."""
    parser = argparse.ArgumentParser(prog="python -m engine.poison", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=("plan", "verify", "materialise", "concept"))
    parser.add_argument("--spec", metavar="FILE", required=True)
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[])
    parser.add_argument("--out", type=Path, help="folder of the poisoned copies, or of the concept's pictures")
    parser.add_argument("--shards", metavar="PATTERN", help="for concept: pairs that nothing is trained on")
    parser.add_argument("--format", choices=("png", "jpeg"), default="png", help="of poisoned pictures")
    JobOptions.arguments(parser)
    options = parser.parse_args(args)
    if options.what == "materialise" and options.out is None:
        parser.error("materialise needs --out FOLDER")
    if options.what == "concept" and (options.out is None or options.shards is None):
        parser.error("concept needs --shards PATTERN and --out FOLDER")
    return carried_out(lambda: carry_out(options), "stopped; start the same command again")


def carry_out(options: argparse.Namespace) -> int:
    """Does what the command line asks for; its exit code."""
    loaded = load(options.spec, options.set)
    PATIENCE.seconds = loaded.spec.wait_seconds
    if options.what == "concept":
        return concept(same_attack(loaded.spec, loaded.points), options.shards, options.out, SINGLE_PROCESS)
    poisoned = PoisonedPairs(same_attack(loaded.spec, loaded.points))
    if options.what == "plan":
        return plan(poisoned)
    if options.what == "verify":
        return verify(poisoned, options.out)
    return materialise(poisoned, options.out, options.format, JobOptions(options.jobs, options.slurm, options.hours))


if __name__ == "__main__":
    from engine.poison import main as command

    sys.exit(command(sys.argv[1:]))
