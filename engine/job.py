"""One run from its spec to its finished folder: builds each part from its section, goes on from where it stands.

runs/NAME/STAGE-FINGERPRINT/
    spec.json card.json metrics.jsonl poison.json poison.png skipped.jsonl checkpoints/ weights.safetensors finished.json
"""

import copy
import json
import os
import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.plan import Run, differences
from configs.spec import Spec
from data.augment import check_augment
from data.chance import derive, lowest, ranks
from data.decode import Bad
from data.pipeline import CleanSource, Data, Pairs, Reading, batches, clean_rows
from data.poison import Plan, make_plan, read_templates
from data.progress import Progress
from data.refusal import Refusal
from data.shards import Index, read_index
from data.sheet import pairs_grid
from engine import checkpoint, evaluate, model, zero
from engine import world as processes
from engine.cluster import clustered, read_flags, read_labels
from engine.journal import Journal, read_rows
from engine.learner import Learner
from engine.towers import Towers
from engine.train import Cadence, train
from engine.world import World
from objectives import tiles
from objectives.deep_cluster import DeepCluster
from objectives.sum import objectives_of
from objectives.unlearn import Unlearn


@dataclass
class Job:
    """A run with its data, its evaluation sets and its folder: all that a user's mistake can touch, checked."""

    run: Run
    folder: Path
    pairs: Pairs
    sets: list[evaluate.Examination]
    tokenize: model.Tokenizer
    labels: np.ndarray | None = None  # int64 by sample, -1 for none, where an objective reads them from a file
    flags: np.ndarray | None = None  # bool by sample

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.pairs.steps * self.run.settings.epochs


def prepare(run: Run, study: Path, world: World) -> Job:
    """The job of a run; Refusal for whatever is wrong with its data, its model or its batch."""
    spec, stage = run.spec, run.settings
    if stage.batch % world.size:
        low = stage.batch // world.size * world.size
        near = " and ".join(f"{n:,}" for n in (low, low + world.size) if n)
        field = "clean.batch" if run.stage == "clean" else "pretrain.batch"
        raise Refusal(
            f"{field} is {stage.batch:,}, which does not divide over {world.size} processes; nearest that do: {near}"
        )
    tokenize = model.Tokenizer(spec.model.name)
    _divides(run, world)
    if stage.objective.views[1] > 1:
        check_augment(spec.data.augment)
    index, chosen, plan = _pretraining(run, study, world)
    if run.stage == "clean":
        _same_start(run, study, index)
        index, chosen, plan = _cleaning(run, study, world, index, plan)
    size = model.image_size(spec.model.name)
    source = spec.data.pretrain
    reading = Reading(
        spec.seed, world.rank, world.size, stage.batch, stage.objective.views, size, spec.data.augment, source.caption,
        spec.data.decode,
    )  # fmt: skip
    pairs = Pairs(index, chosen, spec.data, reading, tokenize, plan)
    labels = flags = None
    if (section := _clusterer(run)) is not None and section.labels is not None:
        labels = read_labels(section.labels, index, section.classes)
    if (forgets := _forgetter(run)) is not None:
        flags = read_flags(forgets.flags, index)
    return Job(run, study / run.folder, pairs, _sets(run, world), tokenize, labels, flags)


def _divides(run: Run, world: World) -> None:
    """Refusal if a process's pairs, or a micro-batch, are no whole number of BatchNorm's groups."""
    if not model.has_norms(run.spec.model.name):
        return
    batch, micro = run.settings.batch, run.spec.machine.micro_batch
    group = min(run.spec.model.norm_group, batch)
    field = "clean.batch" if run.stage == "clean" else "pretrain.batch"
    rows = batch // world.size
    if rows % group:
        step = group * world.size
        near = " and ".join(f"{n:,}" for n in (batch // step * step, batch // step * step + step) if n)
        parts = [n for n in range(1, rows + 1) if rows % n == 0 and n <= group][-2:]
        fits = max(n for n in range(1, world.size + 1) if batch % (n * group) == 0 or n == 1)
        alone = "--stage clean" if run.stage == "clean" else "--stage pretrain"
        raise Refusal(
            f"model.norm_group is {run.spec.model.norm_group:,}, but with {field} {batch:,} each of {world.size} processes "
            f"holds {rows:,} pairs, which is no multiple of {group:,}; nearest {field} that is: {near}; or nearest "
            f"model.norm_group: {' and '.join(f'{n:,}' for n in parts)}; or run this stage on {fits} process"
            f"{'es' * (fits > 1)} ({alone})"
        )
    if micro is not None and micro < rows and micro % group:
        near = " and ".join(f"{n:,}" for n in (micro // group * group, micro // group * group + group) if n)
        raise Refusal(
            f"machine.micro_batch is {micro:,}, which is no multiple of BatchNorm's groups of {group:,} pairs "
            f"(model.norm_group); nearest that are: {near}"
        )


def _same_start(run: Run, study: Path, index: Index) -> None:
    """Refusal if the start was trained on other pairs than the shards hold now: which were poisoned would be unknown."""
    assert run.start is not None
    folder = study / run.start.folder
    if finished(folder) and json.loads((folder / "card.json").read_text())["data digest"] != index.digest:
        raise Refusal(
            f"{folder} was trained on other pairs than {run.spec.data.pretrain.shards} holds now; put the shards back, "
            "give the spec another name, or delete that folder"
        )


def _pretraining(run: Run, study: Path, world: World) -> tuple[Index, np.ndarray | None, Plan | None]:
    """(the pre-training pairs, which of them are used (None: all), the plan of which are poisoned); no plan for the
    untouched twin."""
    index, chosen = pretraining_pairs(run.spec, study, world)
    if run.stage == "twin":
        return index, chosen, None
    return index, chosen, plan_of(run.spec, index, chosen, study, world)


def pretraining_pairs(spec: Spec, study: Path, world: World) -> tuple[Index, np.ndarray | None]:
    """(the index of the pre-training shards, which of its pairs are used; None: all)."""
    index = _index(spec.data.pretrain.patterns, study, world, spec.data)
    if not spec.data.clean.held_out or spec.data.clean.shards is not None:
        return index, None
    return index, np.setdiff1d(np.arange(len(index)), held_out(index, spec.seed, spec.data.clean))


def held_out(index: Index, seed: int, clean: CleanSource) -> np.ndarray:
    """int64: the pairs that are kept out of the pre-training for the cleaning."""
    assert clean.pairs is not None
    if clean.pairs >= len(index):
        raise Refusal(f"data.clean.pairs is {clean.pairs:,}, held out of {len(index):,} pairs; none would be left")
    return lowest(ranks(seed, "held out", index.hashes), clean.pairs)


def plan_of(spec: Spec, index: Index, chosen: np.ndarray | None, study: Path, world: World) -> Plan | None:
    """The plan of a spec's attack on an index; None if it poisons nothing. Captions, if the attack asks what they say, are
    read by the first rank alone."""
    attack = spec.attack
    if not any(aim.poison.number(len(index) if chosen is None else len(chosen)) for aim in attack.aims):
        return None

    def make() -> Plan:
        lines = {aim.captions: templates(aim.captions) for aim in attack.aims}
        reading = Reading(spec.seed, 0, 1, 1, (1, 1), 1, spec.data.augment, spec.data.pretrain.caption)
        bare = Pairs(index, None, spec.data, reading, lambda texts: torch.zeros(len(texts), 1), None)
        return make_plan(index, attack, spec.seed, lines, bare.captions, chosen)

    plan: Plan = _once(("plan", spec.data, attack, spec.seed, study), lambda: processes.together(make))
    return plan


def templates(name: str) -> list[str]:
    """The templates of poisoned captions under a name."""
    return model.imagenet().templates if name == "imagenet" else read_templates(name)


def _cleaning(
    run: Run, study: Path, world: World, pretrained: Index, plan: Plan | None
) -> tuple[Index, np.ndarray, Plan | None]:
    """(the pairs that the clean set is part of, which of them, the plan of the poisoned ones left in it)."""
    spec = run.spec
    clean, poisoned = spec.data.clean, np.array(list(plan.entries) if plan else [], np.int64)
    if clean.shards is not None:
        index = _index(clean.shards, study, world, spec.data)
        both = np.isin(index.hashes, pretrained.hashes)
        if clean.held_out and both.any():
            raise Refusal(
                f"data.clean.held_out is true, but {int(both.sum()):,} of the {len(index):,} pairs of {clean.shards} are in "
                "data.pretrain too; name other shards, or set it to false"
            )
        excluded = np.isin(index.hashes, pretrained.hashes[poisoned])
    else:
        index, excluded = pretrained, np.zeros(len(pretrained), bool)
        excluded[poisoned] = True
        if clean.held_out:
            return index, np.sort(held_out(index, spec.seed, clean)), None
    named = ("clean", spec.data, spec.attack, spec.seed, study)
    chosen = _once(named, lambda: clean_rows(index, spec.seed, clean, excluded, poisoned))
    left = plan.only(poisoned[: clean.leftover].tolist(), len(index), spec.attack) if plan and clean.leftover else None
    return index, chosen, left


_made: dict[str, Any] = {}
_examinations: dict[str, list[evaluate.Examination]] = {}


def _once(named: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What `make` gives, made once a process: the runs of a study share their data, and millions of keys take a while."""
    if repr(named) not in _made:
        _made[repr(named)] = make()
    return _made[repr(named)]


def _index(shards: str | dict[str, str], study: Path, world: World, data: Data) -> Index:
    """The index of some shards."""

    def read() -> Index:
        progress = Progress("indexing", "shards") if world.first else None
        try:
            return read_index(
                shards, study.parent / ".index", (world.rank, world.size), processes.barrier, data.schemes,
                data.pretrain.caption, progress or (lambda done, total: processes.beat()),
            )  # fmt: skip
        except Refusal as refusal:
            hint = f"; make them with: {data.made_by}" if data.made_by and "match no" in str(refusal) else ""
            raise Refusal(f"{refusal}{hint}", alone=refusal.alone) from None
        finally:
            if progress is not None:
                progress.end()

    index: Index = _once(("index", shards, data.pretrain.caption, study), read)
    return index


def _sets(run: Run, world: World) -> list[evaluate.Examination]:
    """The evaluation sets, decoded once for all runs that measure the same."""
    spec = run.spec
    parts = [spec.data.test, spec.data.labels, spec.data.decode, spec.measure, spec.attack, spec.seed, spec.model.name]
    if repr(parts) not in _examinations:
        _examinations.clear()
        _examinations[repr(parts)] = evaluate.examinations(spec, world)
    return _examinations[repr(parts)]


def finished(folder: Path) -> bool:
    """Whether the run in a folder ended and its weights are there."""
    return (folder / "finished.json").is_file() and (folder / "weights.safetensors").is_file()


def current(folder: Path, run: Run) -> bool:
    """Whether the run in a folder is finished and was measured as the spec says now."""
    if not finished(folder):
        return False
    told: dict[str, Any] = json.loads((folder / "finished.json").read_text())
    return bool(told["measured"] == run.measured)


def remeasure(job: Job, world: World) -> None:
    """Measures a finished run again, since the spec now measures something else: new rows at its last step."""
    told = json.loads((job.folder / "finished.json").read_text())
    towers = model.build(job.run.spec.model.name, job.run.spec.seed)
    model.load_weights(towers, job.folder / "weights.safetensors")
    length = (job.folder / "metrics.jsonl").stat().st_size
    journal = Journal(job.folder, job.run.title, told["steps"], told["steps"], length, world.first)
    batch = job.run.spec.machine.eval_batch
    for numbers in evaluate.evaluate(towers.to(world.device), job.tokenize, job.sets, world, batch):
        journal.row("measure", epoch=job.run.settings.epochs, step=told["steps"], **numbers)
    if world.first:
        write_json(job.folder / "finished.json", {**told, "measured": job.run.measured, "journal": journal.mark})
    journal.close()
    processes.barrier()


def perform(job: Job, world: World, stop: Callable[[], bool], say: Callable[[dict[str, Any]], None]) -> None:
    """Carries the run out to its end, from its newest checkpoint if it has one; Stopped if it was asked to stop."""
    began = time.monotonic()
    run, machine, stage = job.run, job.run.spec.machine, job.run.settings
    learner, facts = _learner(job, world)
    engine = learner.engine
    checkpoints, digest = job.folder / "checkpoints", job.pairs.index.digest
    found = checkpoint.newest(checkpoints, world, machine.zero)
    start, length = 0, 0
    if found is not None:
        path, saved = found
        _same_data(saved["data"], digest, path)
        zero.load(engine, path.parent, path.name)
        learner.restore(checkpoint.own_state(path, world.rank))
        start, length = saved["step"], saved["journal"]
    processes.together(lambda: _open_folder(job))
    card = _card(job, world, facts, digest)
    if world.first:
        write_json(job.folder / "card.json", card)
        say({**card, "goes on at step": start} if start else card)
    journal = Journal(job.folder, run.title, job.steps, start, length, world.first)
    try:
        if not start:
            _show(job, journal, world)
            _measure(job, learner, journal, world, 0, 0)
        ledger = Ledger(job, world, journal, start)

        def save(step: int) -> None:
            _average_statistics(engine)
            facts = {
                "journal": journal.mark,
                "data": digest,
                "zero": machine.zero,
                "spec": run.decides,
                "versions": card["versions"],
            }
            checkpoint.save(
                checkpoints, step, facts, learner.state(), world, lambda tag: zero.save(engine, checkpoints, tag)
            )

        def measure(epoch: int, step: int) -> None:
            _measure(job, learner, journal, world, epoch, step)

        def lament(step: int, keys: list[str]) -> None:
            if world.first:
                with (job.folder / "bad_batches.jsonl").open("a") as file:
                    file.write(json.dumps({"step": step, "keys": keys}) + "\n")

        cadence = Cadence(
            job.pairs.steps, machine.log_steps, 60 * machine.save_minutes, machine.max_bad_steps, stop,
            lambda epoch: _begin(job, learner, epoch), measure, save, ledger.add, lament,
        )  # fmt: skip
        workers = _workers(machine.workers, world)
        train(learner, batches(job.pairs, stage.epochs, start, workers), journal, cadence, world)
        _finish(job, learner, journal, world, checkpoints, time.monotonic() - began)
    finally:
        journal.close()
        engine.destroy()


def _learner(job: Job, world: World) -> tuple[Learner, dict[str, Any]]:
    """(the learner as it is before its first step, facts for the run's card)."""
    run, machine, stage = job.run, job.run.spec.machine, job.run.settings
    towers = model.build(run.spec.model.name, run.spec.seed)
    towers.cuts = _cuts(towers, machine.trim_text, run.spec.model.name)
    found: dict[str, torch.Tensor] = {}
    origin: Towers | None = None
    if run.start is not None:
        weights = job.folder.parent / run.start.folder / "weights.safetensors"
        found = model.load_weights(towers, weights)
        if "start" in stage.objective.needs:
            origin = copy.deepcopy(towers).requires_grad_(False).eval().to(world.device)
    rows, views = stage.batch // world.size, stage.objective.views
    group = min(run.spec.model.norm_group, stage.batch)
    for norm in towers.norms:
        norm.rows = group * views[0]
    facts = {
        "parameters": sum(p.numel() for p in towers.parameters()),
        "precision": zero.precision(machine, world.device),
        "groups": group if towers.norms else None,
        "shapes": sha256(repr([(n, tuple(p.shape)) for n, p in towers.named_parameters()]).encode()).hexdigest()[:12],
        "pairs a process": rows,
        "views": views,
        "data digest": job.pairs.index.digest,
    }
    processes.agree(facts)
    engine, stepper, adam, clip = zero.wrap(towers.to(world.device), stage.optimizer, machine, world, rows)
    if origin is not None and facts["precision"] != "fp32":
        origin.to(next(engine.module.parameters()).dtype)
    width = model.model_config(run.spec.model.name)["embed_dim"]
    learner = Learner.make(
        engine, stepper, stage, width, found, derive(run.spec.seed, "head"), (world, processes.ranks()),
        (job.steps, job.pairs.steps), micro=machine.micro_batch, start=origin,
        several=machine.zero < 3 and not machine.compile,  # ZeRO-3 needs equal calls on all ranks, compiled code few shapes
        labels=job.labels, flags=job.flags, notes={} if clip is None else {"zclip": clip.state},
    )  # fmt: skip
    core = "torch"
    if world.device.type == "cuda":
        compiled = tiles.Kernels(torch.compile(tiles.statistics), torch.compile(tiles.slope))
        core = _once(("core", world.device.type), lambda: tiles.choose(world.device, {"torch.compile": compiled}))
    facts["core"] = core
    return learner, {**facts, "adam": adam, "cuts": towers.cuts}


def _cuts(towers: Towers, asked: str, name: str) -> bool:
    if asked == "always" and not towers.trims:
        raise Refusal(
            f"machine.trim_text is always, but the text tower of {name} has no causal mask with end-token pooling, so "
            f"it would "
            "give other embeddings; use auto"
        )
    return towers.trims and asked != "never"


def _begin(job: Job, learner: Learner, epoch: int) -> None:
    """What an epoch needs before its first step: new clusters and a fresh head, for deep clustering without a file."""
    section = _clusterer(job.run)
    if section is None or section.labels is not None:
        return
    spec = job.run.spec
    _average_statistics(learner.engine)
    learner.labels = clustered(
        learner.engine, job.pairs, section.classes, section.rounds, derive(spec.seed, "cluster", epoch) % 2**32,
        learner.world, spec.machine.eval_batch,
    )  # fmt: skip
    learner.renew("cluster.", derive(spec.seed, "head", epoch))


def _clusterer(run: Run) -> DeepCluster | None:
    return next((one for one in objectives_of(run.settings.objective) if isinstance(one, DeepCluster)), None)


def _forgetter(run: Run) -> Unlearn | None:
    return next((one for one in objectives_of(run.settings.objective) if isinstance(one, Unlearn)), None)


def _workers(workers: int | str, world: World) -> int:
    if workers != "auto":
        return int(workers)
    return 0 if world.device.type == "cpu" else min(8, max(1, (os.cpu_count() or 1) // world.local_size - 1))


def _same_data(then: str, now: str, path: Path) -> None:
    if then != now:
        raise Refusal(
            f"{path} was trained on other pairs than the shards hold now; "
            f"put the shards back, or delete {path.parent.parent}"
        )


def _average_statistics(engine: Any) -> None:
    """Makes BatchNorm's running statistics the same on all ranks: their mean, as all of them move linearly."""
    processes.mean_([buffer for buffer in engine.module.buffers() if buffer.is_floating_point()])


def _measure(job: Job, learner: Learner, journal: Journal, world: World, epoch: int, step: int) -> None:
    _average_statistics(learner.engine)
    began = time.monotonic()
    for numbers in evaluate.evaluate(learner.engine, job.tokenize, job.sets, world, job.run.spec.machine.eval_batch):
        journal.row("measure", epoch=epoch, step=step, **numbers, seconds=round(time.monotonic() - began, 3))


class Ledger:
    """Pairs that can't be used, listed in skipped.jsonl by shard, key and cause, and shown as shares in TensorBoard; Refusal
    beyond data.max_bad. Per shard, what should be there = good pairs + those listed."""

    def __init__(self, job: Job, world: World, journal: Journal, step: int) -> None:
        index = job.pairs.index
        self.path, self.world, self.journal = job.folder / "skipped.jsonl", world, journal
        self.lost = {shard: (pairs, why) for shard, pairs, why in index.lost}
        self.total = len(index) + len(index.bad) + sum(pairs for pairs, _ in self.lost.values())
        self.most = job.run.spec.data.max_bad
        self.entries: dict[str, tuple[str, str]] = {}
        told = read_rows(self.path)
        for entry in told:
            if "key" in entry:
                self.entries[entry["key"]] = (entry["shard"], entry["cause"])
        if world.first and not any("key" not in entry for entry in told):
            with self.path.open("a") as file:
                for shard, (pairs, why) in self.lost.items():
                    print(f"about {pairs:,} pairs are lost: {why}", file=sys.stderr)
                    file.write(json.dumps({"shard": shard, "cause": "lost", "pairs": pairs, "why": why}) + "\n")
        self.add(list(index.bad), step)

    def add(self, skipped: list[tuple[str, str, str]], step: int) -> None:
        """Takes the same entries on every rank."""
        new = {key: (shard, cause) for shard, key, cause in skipped if key not in self.entries}
        self.entries.update(new)
        if new and self.world.first:
            with self.path.open("a") as file:
                file.writelines(json.dumps({"key": k, "shard": s, "cause": c}) + "\n" for k, (s, c) in new.items())
        causes = Counter(cause for _, cause in self.entries.values())
        causes["lost"] = sum(pairs for pairs, _ in self.lost.values())
        causes = +causes
        self.journal.shares("skipped", {cause: n / self.total for cause, n in causes.items()}, step)
        if causes.total() > self.most * self.total:
            shards = Counter(shard for shard, _ in self.entries.values())
            shards.update({shard: pairs for shard, (pairs, _) in self.lost.items()})
            worst = ", ".join(f"{n:,} in {shard}" for shard, n in shards.most_common(3))
            why = next((f"; {why.split(';')[0]}" for _, why in self.lost.values()), "")
            raise Refusal(
                f"{causes.total():,} of {self.total:,} pairs can't be used ({', '.join(sorted(causes))}; {worst}{why}), "
                f"more than data.max_bad = {self.most:.2%}; mend or remove those shards, or raise data.max_bad; "
                f"all are listed in {self.path}"
            )


def _open_folder(job: Job) -> None:
    """The run's folder with its spec; Refusal if another spec is in it."""
    job.folder.mkdir(parents=True, exist_ok=True)
    spec, path = job.run.decides, job.folder / "spec.json"
    if path.exists() and (changes := differences(json.loads(path.read_text()), spec)):
        raise Refusal(f"{job.folder} holds a run of another spec ({'; '.join(changes)}); delete it to begin anew")
    write_json(path, spec)


def write_plan(path: Path, plan: Plan, index: Index, fingerprint: str) -> None:
    """The plan as JSON: a head, then the pairs in the order of their draw, a line each."""
    head = {"spec": fingerprint, "seed": plan.seed, "data": index.digest, "pairs": len(plan), "digest": plan.digest}
    rows = [
        json.dumps({**asdict(entry), "shard": os.path.basename(index.path(sample))})
        for sample, entry in plan.entries.items()
    ]
    fresh = path.with_name(f".{path.name}")
    text = json.dumps({"plan": head, "entries": []})[:-2] + "\n" + ",\n".join(rows) + "\n]}\n"
    fresh.write_text(text)
    os.replace(fresh, path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(fresh, path)


def _card(job: Job, world: World, facts: dict[str, Any], digest: str) -> dict[str, Any]:
    """What a reader wants to know before step 0."""
    run, stage, machine = job.run, job.run.settings, job.run.spec.machine
    device = (
        torch.cuda.get_device_name() if world.device.type == "cuda" else f"{platform.processor() or platform.machine()} CPU"
    )
    adamw = stage.optimizer
    packages = ("torch", "deepspeed", "open_clip_torch", "numpy", "pillow")
    return {
        "run": run.folder,
        "title": run.title,
        "start": run.start.folder if run.start else None,
        "model": f"{run.spec.model.name}, {facts['parameters']:,} parameters and the scale",
        "objective": stage.objective.model_dump(),
        "pairs": len(job.pairs),
        "poisoned pairs": len(job.pairs.plan) if job.pairs.plan else 0,
        "epochs": stage.epochs,
        "steps": f"{job.steps:,} ({job.pairs.steps:,} an epoch)",
        "batch": f"{stage.batch:,} ({stage.batch // world.size:,} a process)",
        "optimizer": f"{facts['adam']} AdamW, rate {adamw.rate:g}, warm-up {adamw.warmup} steps, decay {adamw.decay:g}",
        "micro-batch": f"{machine.micro_batch:,} pairs" if machine.micro_batch else None,
        "BatchNorm groups": f"{facts['groups']:,} pairs" if facts["groups"] else None,
        "captions": "up to their last end token" if facts["cuts"] else "at full length",
        "precision": facts["precision"],
        "pairwise core": facts["core"],
        "ZeRO stage": machine.zero,
        "processes": world.size,
        "device": f"{device}, {torch.get_num_threads()} threads a process",
        "data digest": digest,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _show(job: Job, journal: Journal, world: World) -> None:
    """Writes the poison plan, and a grid of poisoned pairs, to the folder and to TensorBoard."""
    if not world.first:
        return
    journal.text("spec", json.dumps(job.run.decides, indent=1))
    plan = job.pairs.plan
    if plan is None:
        return
    write_plan(job.folder / "poison.json", plan, job.pairs.index, job.run.fingerprint)
    grid = []
    for sample in list(plan.entries)[:8]:
        try:
            grid.append(job.pairs.first(sample))
        except Bad:
            continue  # the ledger counts it when training meets it
    if grid:
        from PIL import Image

        picture = pairs_grid(grid)
        Image.fromarray(picture).save(job.folder / "poison.png")
        journal.picture("poisoned pairs", picture)


def _finish(job: Job, learner: Learner, journal: Journal, world: World, checkpoints: Path, seconds: float) -> None:
    """Writes the weights, then finished.json, then removes the checkpoints."""
    _average_statistics(learner.engine)
    with zero.full_weights(learner.engine, job.run.spec.machine):
        state = model.weights(learner.engine.module, learner.learned) if world.first else {}
    processes.together(lambda: _write_weights(job, state, journal, seconds))
    if world.first:
        shutil.rmtree(checkpoints, ignore_errors=True)


def _write_weights(job: Job, state: dict[str, torch.Tensor], journal: Journal, seconds: float) -> None:
    from safetensors.torch import save_file

    fresh, final = job.folder / ".weights.safetensors", job.folder / "weights.safetensors"
    with checkpoint.disk(job.folder):
        save_file({name: value.float() if value.is_floating_point() else value for name, value in state.items()}, fresh)
        fresh.rename(final)
    last = [row for row in read_rows(job.folder / "metrics.jsonl") if row["kind"] == "measure"]
    results = {
        name: value for row in last[-1:] for name, value in row.items() if isinstance(value, float) and name != "seconds"
    }
    card = job.run.card()
    journal.hparams({k: v for k, v in card.items() if v is not None and k not in ("run", "swept", "title")}, results)
    write_json(
        job.folder / "finished.json",
        {
            "steps": job.steps,
            "journal": journal.mark,
            "weights": checkpoint.digest(final),
            "measured": job.run.measured,
            "seconds": round(seconds, 1),
        },
    )
