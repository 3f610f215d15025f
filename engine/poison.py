"""The poison of a spec without training: python -m engine.poison plan|verify|materialise --spec specs/cc6m.yaml.

plan         writes runs/NAME/poison.json: every poisoned pair, its trigger, place, caption and random counter
verify       makes the plan anew and compares it with what runs were trained on; recounts the poison that an epoch's
             stream shows; lists captions that name the target by themselves; with --out compares materialised shards
materialise  writes poisoned copies of the shards for other tools into --out, on all cores or as a Slurm array
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
from data.jobs import Spread, spread
from data.materialise import Recipe, ShardCopy, compare, done, shard_copies, write
from data.pipeline import Pairs, Reading
from data.poison_plan import PoisonPlan
from data.progress import Progress
from data.refusal import UserError
from engine.distributed.world import World
from engine.models.clip import image_size
from engine.training.inputs import plan_of, pretraining_pairs
from engine.training.outputs import write_plan
from records.folder import RUNS

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
LIST = 20  # entries shown on the terminal


class Poisoned:
    """A spec's pre-training pairs and the plan of which are poisoned."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.study = spec, RUNS / spec.name
        self.index, self.chosen = pretraining_pairs(spec, self.study, ALONE)
        found = plan_of(spec, self.index, self.chosen, self.study, ALONE)
        if found is None:
            raise UserError("attack.poison poisons no pair; raise its count")
        self.plan: PoisonPlan = found

    @property
    def fingerprint(self) -> str:
        """Of the pre-training that the plan is for."""
        return Run("pretrain", self.spec, ()).fingerprint

    def pairs(self, plan: PoisonPlan | None) -> Pairs:
        """The pairs as pre-training reads them, one caption and one picture each."""
        spec, size = self.spec, image_size(self.spec.model.name)
        field, way = spec.data.pretrain.caption, spec.data.decode
        reading = Reading(spec.seed, 0, 1, spec.stages[0].batch, (1, 1), size, spec.data.augment, field, way)
        return Pairs(self.index, self.chosen, spec.data, reading, lambda texts: torch.zeros(len(texts), 1), plan)


def one_attack(spec: Spec, points: list[Point]) -> Spec:
    """The spec of all points of a sweep; UserError if they poison differently."""
    told = set()
    for one in (point.spec for point in points):
        data = one.data.model_dump(mode="json", exclude=None if one.data.clean.held_out else {"clean"})
        told.add(json.dumps([one.attack.model_dump(mode="json"), data, one.seed]))
    if len(told) > 1:
        raise UserError(
            f"the sweep of {spec.name} poisons in {len(told)} ways; choose one with --set, for example --set sweep={{}}"
        )
    return points[0].spec


def plan(asked: Poisoned) -> int:
    """Writes the plan and says what is in it."""
    asked.study.mkdir(parents=True, exist_ok=True)
    path = asked.study / "poison.json"
    write_plan(path, asked.plan, asked.index, asked.fingerprint)
    entries = list(asked.plan.entries.values())
    print(f"{path}: {len(entries):,} of {len(asked.index):,} pairs, digest {asked.plan.digest}")
    for entry in entries[:5]:
        place = "" if entry.place is None else f" at {', '.join(f'{top}, {left}' for top, left in entry.place)}"
        print(f"  {entry.key}: {entry.trigger or entry.picture or 'caption'}{place}: {entry.caption or 'its own caption'}")
    return 0


def verify(asked: Poisoned, out: Path | None) -> int:
    """Compares; exit code 2 if anything is not as planned."""
    faults = [*_against_runs(asked), *_recount(asked)]
    if out is not None:
        faults += _against_copy(asked, out)
    _named_by_themselves(asked)
    for fault in faults[:LIST]:
        print(f"error: {fault}", file=sys.stderr)
    print(f"{len(faults):,} faults" if faults else "all as planned")
    return 2 if faults else 0


def _against_runs(asked: Poisoned) -> list[str]:
    """The plans that lie in the study, against the one made anew."""
    faults = []
    for path in sorted([*asked.study.glob("pretrain-*/poison.json"), *asked.study.glob("poison.json")]):
        told = json.loads(path.read_text())
        if told["plan"]["digest"] == asked.plan.digest:
            print(f"{path}: the same plan, {told['plan']['pairs']:,} pairs")
            continue
        then, now = {entry["key"] for entry in told["entries"]}, {entry.key for entry in asked.plan.entries.values()}
        faults.append(
            f"{path} is another plan: {len(then - now):,} of its pairs are not in the spec's, {len(now - then):,} are "
            f"missing, {len(then & now):,} in both"
        )
    return faults


def _recount(asked: Poisoned) -> list[str]:
    """What the stream shows: poisoned pairs in an epoch, and each of them against its clean self."""
    pairs, clean = asked.pairs(asked.plan), asked.pairs(None)
    seen = np.zeros(len(asked.index), np.int64)
    for step in range(pairs.steps):
        rows = pairs.order.batch(1, step, pairs.reading.batch)
        np.add.at(seen, rows if pairs.chosen is None else pairs.chosen[rows], 1)
    shown = int(seen[asked.plan.chosen].sum())
    print(f"epoch 1 shows {shown:,} poisoned pairs of {int(seen.sum()):,}; the plan has {len(asked.plan):,}")
    faults = []
    changed = bad = 0
    progress = Progress("recounting", "poisoned pairs")
    for number, (sample, entry) in enumerate(asked.plan.entries.items(), 1):
        progress(number, len(asked.plan))
        try:
            (picture, text), (own, its) = pairs.first(sample), clean.first(sample)
        except DecodeError:
            bad += 1
            continue
        planned = asked.plan.caption(its, sample)
        differs = bool((picture != own).any())
        changed += differs or text != its
        if text != planned or (entry.trigger and not differs):
            faults.append(f"pair {entry.key} is read without its {'caption' if text != planned else 'trigger'}")
    progress.end()
    print(f"read back: {changed:,} pairs differ from their clean selves, {bad:,} can't be decoded")
    return faults


def _against_copy(asked: Poisoned, out: Path) -> list[str]:
    """Materialised shards, member by member."""
    faults, pairs, poisoned = [], 0, 0
    work = _tasks(asked, out, None)
    progress = Progress("comparing", "shards")
    for number, task in enumerate(work, 1):
        if not task.target.is_file():
            faults.append(f"{task.target} is missing; run materialise again")
            continue
        told = compare(task)
        pairs, poisoned = pairs + told.pairs, poisoned + told.poisoned
        faults += [f"{task.target}: {words}" for words in told.wrong]
        progress(number, len(work))
    progress.end()
    print(f"{out}: {len(work):,} shards, {pairs:,} pairs, {poisoned:,} poisoned")
    return faults


def _named_by_themselves(asked: Poisoned) -> None:
    """Lists pairs whose own caption names a target: natural company of the poison."""
    path = asked.study / "names_target.jsonl"
    every = np.arange(len(asked.index))
    progress = Progress("reading captions", "pairs")
    words = {aim.target: word_of(aim.target) for aim in asked.spec.attack.aims}
    counts = dict.fromkeys(words, 0)
    asked.study.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for sample, text in enumerate(stored_captions(asked.index, every, asked.spec.data.pretrain.caption)):
            if not sample % 4096:
                progress(sample, len(every))
            for target, pattern in words.items():
                if text is not None and pattern.search(text):
                    counts[target] += 1
                    told = {"key": asked.index.keys[sample], "target": target, "caption": text}
                    file.write(json.dumps({**told, "poisoned": bool(asked.plan.chosen[sample])}) + "\n")
    progress.end()
    for target, number in counts.items():
        print(f"{number:,} of {len(every):,} captions name '{target}' by themselves (listed in {path})")


def _tasks(asked: Poisoned, out: Path, format: str | None) -> list[ShardCopy]:
    """The copies to make, or, without a format, those that were made in the format that the first of them has."""
    spec = asked.spec
    if format is None:
        told = next(iter(sorted(out.rglob("*_stats.json"))), None)
        if told is None:
            raise UserError(f"--out {out} holds no materialised shards; run materialise first")
        format = "png" if json.loads(told.read_text())["made"][-1] == "png" else "jpeg"
    size, way = image_size(spec.model.name), spec.data.decode
    recipe = Recipe(
        spec.attack,
        spec.seed,
        asked.plan.digest,
        size,
        way,
        spec.data.pretrain.caption,
        "png" if format == "png" else "jpeg",
    )
    names = list(spec.data.pretrain.sources) if spec.data.pretrain.sources else [""]
    return shard_copies(asked.index, asked.plan, recipe, out, names)


def materialise(asked: Poisoned, out: Path, format: str, how: Spread) -> int:
    """Writes the copies; exit code 2 if a shard could not be written."""
    if format == "jpeg":
        print("warning: JPEG changes the trigger's pixels, and noise triggers most; png is lossless", file=sys.stderr)
    if any(Path(path).parent.resolve() == out.resolve() for path in asked.index.paths):
        raise UserError(f"--out {out} is the folder of the originals; name another")
    out.mkdir(parents=True, exist_ok=True)
    work = _tasks(asked, out, format)
    progress = Progress("materialising", "shards")
    failed = spread(write, work, done, how, out / ".jobs", progress)
    progress.end()
    whole = [task for task in work if done(task)]
    if len(whole) < len(work):
        for line in failed[:LIST]:
            print(f"error: {line}", file=sys.stderr)
        print(f"error: {len(work) - len(whole):,} of {len(work):,} shards are not written; start the same command again",
              file=sys.stderr)  # fmt: skip
        return 2
    write_plan(out / "poison.json", asked.plan, asked.index, asked.fingerprint)
    told = [json.loads(task.stats.read_text()) for task in work]
    total, poisoned = sum(one["count"] for one in told), sum(one["poisoned"] for one in told)
    print(f"{out}: {len(work):,} shards, {total:,} pairs, {poisoned:,} poisoned; the plan is in {out / 'poison.json'}")
    return 0


def main(given: list[str]) -> int:
    """The command; exit code 2 for what the user can put right."""
    parser = argparse.ArgumentParser(prog="python -m engine.poison", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=("plan", "verify", "materialise"))
    parser.add_argument("--spec", metavar="FILE", required=True)
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[])
    parser.add_argument("--out", type=Path, help="folder of the poisoned copies")
    parser.add_argument("--format", choices=("png", "jpeg"), default="png", help="of poisoned pictures")
    Spread.arguments(parser)
    options = parser.parse_args(given)
    if options.what == "materialise" and options.out is None:
        parser.error("materialise needs --out FOLDER")
    how = Spread(options.jobs, options.slurm, options.hours)
    try:
        loaded = load(options.spec, options.set)
        asked = Poisoned(one_attack(loaded.spec, loaded.points))
        if options.what == "plan":
            return plan(asked)
        if options.what == "verify":
            return verify(asked, options.out)
        return materialise(asked, options.out, options.format, how)
    except UserError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    from engine.poison import main as command

    sys.exit(command(sys.argv[1:]))
