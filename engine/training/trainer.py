"""One run from its spec to its finished folder: builds each part from its section, goes on from where it stands.

runs/NAME/STAGE-FINGERPRINT/
    spec.json card.json metrics.jsonl poison.json poison.png skipped.jsonl checkpoints/ weights.safetensors finished.json
"""

import copy
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from configs.plan import differences
from configs.stage import Optimizer
from data.decode import DecodeError
from data.pipeline import batches
from data.poison import Plan
from data.refusal import UserError
from data.seeding import derive_seed
from data.shards import Index
from data.sheet import pairs_grid, small_grid
from engine.distributed import collectives
from engine.distributed.world import World
from engine.evaluation import evaluate
from engine.models import clip as model
from engine.models.towers import Towers
from engine.training import checkpoint, zero
from engine.training.bad_samples import BadSamples
from engine.training.cluster import clustered
from engine.training.init_weights import BESIDE, STEPS, distance, load_start, moments_of, path_of, split
from engine.training.inputs import RunInputs, cached, clusterer
from engine.training.journal import Journal
from engine.training.learner import Learner
from engine.training.loop import Cadence, Pruned, train
from engine.training.transform import transformed
from engine.training.usage import UsageMeter
from objectives import tiles
from records.ending import FailedJson, FinishedJson, PrunedJson
from records.folder import read_json, write_json
from records.rows import FILE, MeasureRow, read_rows


def re_evaluate(job: RunInputs, world: World) -> None:
    """Measures a finished run again, since the spec now measures something else: new rows at its last step."""
    end = FinishedJson.model_validate_json((job.folder / FinishedJson.FILE).read_bytes())
    towers = model.build(job.run.spec.model.name, job.run.spec.seed)
    learned = model.load_weights(towers, job.folder / "weights.safetensors")
    length = (job.folder / "metrics.jsonl").stat().st_size
    journal = Journal(job.folder, job.run.title, end.steps, end.steps, length, world.first)
    for numbers in _evaluated(job, towers.to(world.device), learned, world):
        journal.row("measure", epoch=job.run.settings.epochs, step=end.steps, **numbers)
    if world.first:
        end.model_copy(update={"measured": job.run.measured, "journal": journal.mark}).write(job.folder)
    journal.close()
    collectives.barrier()


def run_training(
    job: RunInputs,
    world: World,
    stop: Callable[[], bool],
    say: Callable[[dict[str, Any]], None],
    hopeless: Callable[[float], str | None] = lambda epoch: None,
) -> None:
    """Carries the run out to its end, from its newest checkpoint if it has one; Stopped if it was asked to stop.

    `hopeless(epoch)` on the first process says why the run should end early, after an epoch's measures, or None.
    """
    meter = UsageMeter(world, {})
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
        start, length, meter.before = saved["step"], saved["journal"], saved.get("spent", {})
    collectives.on_rank_0(lambda: _open_folder(job))
    card = _card(job, world, facts, digest)
    if world.first:
        for old in (PrunedJson.FILE, FailedJson.FILE):
            (job.folder / old).unlink(missing_ok=True)
        write_json(job.folder / "card.json", card)
        say({**card, "goes on at step": start} if start else card)
    journal = Journal(job.folder, run.title, job.steps, start, length, world.first)
    try:
        if not start:
            _show(job, journal, world)
            _measure(job, learner, journal, world, 0, 0)
        ledger = BadSamples(job, world, journal, start)

        def save(step: int) -> None:
            _average_statistics(engine)
            facts = {
                "journal": journal.mark,
                "data": digest,
                "zero": machine.zero,
                "spec": run.decides,
                "versions": card["versions"],
                "spent": meter.spent(),
            }
            checkpoint.save(
                checkpoints, step, facts, learner.state(), world, lambda tag: zero.save(engine, checkpoints, tag)
            )

        def measure(epoch: float, step: int) -> None:
            _measure(job, learner, journal, world, epoch, step)

        def lament(step: int, keys: list[str]) -> None:
            if world.first:
                with (job.folder / "bad_batches.jsonl").open("a") as file:
                    file.write(json.dumps({"step": step, "keys": keys}) + "\n")

        cadence = Cadence(
            job.pairs.steps, machine.log_steps, stage.measure_steps, 60 * machine.save_minutes, machine.max_bad_steps, stop,
            lambda epoch: _begin(job, learner, epoch), measure, save, ledger.add, lament, hopeless,
        )  # fmt: skip
        try:
            train(learner, batches(job.pairs, stage.epochs, start, job.workers(world)), journal, cadence, world)
        except Pruned as end:
            spent = meter.spent()
            if world.first:
                PrunedJson(step=end.step, why=str(end), **spent).write(job.folder)
            collectives.barrier()
            return
        _finish(job, learner, journal, world, checkpoints, meter)
    finally:
        journal.close()
        engine.destroy()


def _learner(job: RunInputs, world: World) -> tuple[Learner, dict[str, Any]]:
    """(the learner as it is before its first step, facts for the run's card)."""
    run, machine, stage = job.run, job.run.spec.machine, job.run.settings
    towers = model.build(run.spec.model.name, run.spec.seed)
    towers.cuts = _cuts(towers, machine.trim_text, run.spec.model.name)
    found, source = _started(job, towers)
    origin: Towers | None = None
    if "start" in stage.objective.needs:
        origin = copy.deepcopy(towers).requires_grad_(False).eval().to(world.device)
    if stage.norms != "trained" and not towers.norms:
        raise UserError(f"{run.stage}.norms is {stage.norms}, but {run.spec.model.name} has no BatchNorm; leave it out")
    moments, section = _moments(job, source)
    rows, views = stage.batch // world.size, stage.objective.views
    group = min(run.spec.model.norm_group, stage.batch)
    for norm in towers.norms:
        norm.rows, norm.frozen = group * views[0], stage.norms == "frozen"
    towers.to(world.device)
    # a run that goes on takes its weights from its checkpoint: what was done to the start's is in them
    begun = collectives.on_rank_0(lambda: bool(checkpoint.committed(job.folder / "checkpoints")))
    done = collectives.on_rank_0(lambda: read_json(job.folder / "card.json").get("transformed")) if begun else None
    if stage.transform is not None and not begun:
        found, done = transformed(stage.transform, towers, found, job, world)
    if not stage.objective.moves_texts:
        towers.freeze_texts()
    facts = {
        "parameters": sum(p.numel() for p in towers.parameters()),
        "precision": zero.precision(machine, world.device),
        "groups": group if towers.norms else None,
        "shapes": sha256(repr([(n, tuple(p.shape)) for n, p in towers.named_parameters()]).encode()).hexdigest()[:12],
        "pairs a process": rows,
        "views": views,
        "data digest": job.pairs.index.digest,
        "transformed": done,
    }
    collectives.assert_equal_on_ranks(facts)
    engine, stepper, adam, clip = zero.wrap(towers, section, machine, world, rows)
    if origin is not None and facts["precision"] != "fp32":
        origin.to(next(engine.module.parameters()).dtype)
    width = model.model_config(run.spec.model.name)["embed_dim"]
    learner = Learner.make(
        engine, stepper, stage, width, found, derive_seed(run.spec.seed, "head"), (world, collectives.process_groups()),
        (job.steps, job.pairs.steps), micro=machine.micro_batch, start=origin,
        several=machine.zero < 3 and not machine.compile,  # ZeRO-3 needs equal calls on all ranks, compiled code few shapes
        labels=job.labels, flags=job.flags, notes={} if clip is None else {"zclip": clip.state},
    )  # fmt: skip
    if moments:
        zero.set_moments(engine, stepper, split(moments, dict(towers.clip.named_parameters())), float(moments[STEPS]))
        learner.inherit(moments)
    core = "torch"
    if world.device.type == "cuda":
        compiled = tiles.Kernels(torch.compile(tiles.statistics), torch.compile(tiles.slope))
        core = cached(("core", world.device.type), lambda: tiles.choose(world.device, {"torch.compile": compiled}))
    facts["core"] = core
    return learner, {**facts, "adam": adam, "cuts": towers.cuts}


def _started(job: RunInputs, towers: Towers) -> tuple[dict[str, torch.Tensor], Path | None]:
    """(the scale and the bias found with the start's weights, which are in the towers now; the file of these)."""
    run = job.run
    if run.start is not None:
        path = job.folder.parent / run.start.folder / "weights.safetensors"
    elif run.settings.start is not None:
        path = path_of(run.settings.start, run.spec.model.name)
    else:
        return {}, None
    return load_start(towers, path, run.spec.model.name), path


def _moments(job: RunInputs, source: Path | None) -> tuple[dict[str, torch.Tensor], Optimizer]:
    """(AdamW's moments before the first step, if it inherits them; the optimizer's settings with the decay that acts)."""
    section = job.run.settings.optimizer
    if section.state == "fresh":
        return {}, section
    assert source is not None
    moments, decay = moments_of(source)
    if section.state == "inherited":
        return moments, section
    if decay is None:
        told = read_json(source.parent / "spec.json")
        decay = told.get(source.parent.name.split("-")[0], {}).get("optimizer", {}).get("decay")
    if decay is None:
        raise UserError(f"optimizer.state is published, but {source.parent} does not say its weight decay; use inherited")
    return moments, section.model_copy(update={"decay": decay})


def _cuts(towers: Towers, asked: str, name: str) -> bool:
    if asked == "always" and not towers.trims:
        raise UserError(
            f"machine.trim_text is always, but the text tower of {name} has no causal mask with end-token pooling, so "
            f"it would "
            "give other embeddings; use auto"
        )
    return towers.trims and asked != "never"


def _begin(job: RunInputs, learner: Learner, epoch: int) -> None:
    """What an epoch needs before its first step: new clusters and a fresh head, for deep clustering without a file."""
    section = clusterer(job.run)
    if section is None or section.labels is not None:
        return
    spec = job.run.spec
    _average_statistics(learner.engine)
    learner.labels = clustered(
        learner.engine, job.pairs, section.classes, section.rounds, derive_seed(spec.seed, "cluster", epoch) % 2**32,
        learner.world, spec.machine.eval_batch,
    )  # fmt: skip
    learner.renew("cluster.", derive_seed(spec.seed, "head", epoch))


def _same_data(then: str, now: str, path: Path) -> None:
    if then != now:
        raise UserError(
            f"{path} was trained on other pairs than the shards hold now; "
            f"put the shards back, or delete {path.parent.parent}"
        )


def _average_statistics(engine: Any) -> None:
    """Makes BatchNorm's running statistics the same on all ranks: their mean, as all of them move linearly."""
    collectives.all_reduce_mean_([buffer for buffer in engine.module.buffers() if buffer.is_floating_point()])


def _measure(job: RunInputs, learner: Learner, journal: Journal, world: World, epoch: float, step: int) -> None:
    _average_statistics(learner.engine)
    began = time.monotonic()
    moved = _moved(job, learner)
    for numbers in _evaluated(job, learner.engine, learner.learned, world):
        seconds = round(time.monotonic() - began, 3)
        journal.row("measure", epoch=epoch, step=step, **numbers, **moved, seconds=seconds)


def _evaluated(job: RunInputs, towers: Any, learned: Mapping[str, torch.Tensor], world: World) -> list[dict[str, Any]]:
    """The numbers of each evaluation set and, under `costs`, the seconds that each part of them took; `learned` holds what
    was learned beside the towers, the scale among it if the objective has one."""
    scale = float(learned["scale"].detach().exp()) if "scale" in learned else evaluate.SCALE
    costs, batch = evaluate.Costs(), job.run.spec.machine.eval_batch
    found = evaluate.evaluate(towers, job.tokenize, job.sets, world, batch, costs, scale)
    return [{**numbers, "costs": costs.seconds[numbers["images"]]} for numbers in found]


def _moved(job: RunInputs, learner: Learner) -> dict[str, float]:
    """`distance`: how far a cleaning is from the weights that it was given, || w - w0 || / || w0 || over the towers'
    parameters; on the first rank, whose journal it is for."""
    run, name = job.run, job.run.spec.model.name
    if run.stage != "clean":
        return {}
    with zero.full_weights(learner.engine, run.spec.machine):
        if not learner.world.first:
            return {}

        def origin() -> dict[str, torch.Tensor]:
            towers = model.build(name, 0)
            _started(job, towers)
            return dict(towers.clip.named_parameters())

        old = cached(("origin", run.origin, name), origin)
        return {"distance": distance(dict(learner.engine.module.clip.named_parameters()), old)}


def _open_folder(job: RunInputs) -> None:
    """The run's folder with its spec; UserError if another spec is in it."""
    job.folder.mkdir(parents=True, exist_ok=True)
    spec, path = job.run.decides, job.folder / "spec.json"
    if path.exists() and (changes := differences(json.loads(path.read_text()), spec)):
        raise UserError(f"{job.folder} holds a run of another spec ({'; '.join(changes)}); delete it to begin anew")
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


def _card(job: RunInputs, world: World, facts: dict[str, Any], digest: str) -> dict[str, Any]:
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
        "start": run.origin,
        "transform": stage.transform.model_dump() if stage.transform else None,
        "transformed": facts["transformed"],
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
        "BatchNorm": stage.norms if stage.norms != "trained" else None,
        "moments": adamw.state if adamw.state != "fresh" else None,
        "captions": "up to their last end token" if facts["cuts"] else "at full length",
        "precision": facts["precision"],
        "pairwise core": facts["core"],
        "ZeRO stage": machine.zero,
        "processes": world.size,
        "device": f"{device}, {torch.get_num_threads()} threads a process",
        "data digest": digest,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _show(job: RunInputs, journal: Journal, world: World) -> None:
    """Writes the poison plan, a grid of poisoned pairs, and the pictures whose answers the journal tells, to the folder and
    to TensorBoard."""
    if not world.first:
        return
    from PIL import Image

    journal.text("spec", json.dumps(job.run.decides, indent=1))
    asked = next((one for one in job.sets if one.sample), None)
    if asked is not None:
        clean, (marked, *_) = asked.pictures(asked.sample)
        shown = small_grid([clean.numpy(), marked.numpy()])
        Image.fromarray(shown).save(job.folder / "answers.png")
        journal.picture("pictures with and without the trigger", shown)
    plan = job.pairs.plan
    if plan is None:
        return
    write_plan(job.folder / "poison.json", plan, job.pairs.index, job.run.fingerprint)
    grid = []
    for sample in list(plan.entries)[:8]:
        try:
            grid.append(job.pairs.first(sample))
        except DecodeError:
            continue  # the ledger counts it when training meets it
    if grid:
        picture = pairs_grid(grid)
        Image.fromarray(picture).save(job.folder / "poison.png")
        journal.picture("poisoned pairs", picture)


def _finish(job: RunInputs, learner: Learner, journal: Journal, world: World, checkpoints: Path, meter: UsageMeter) -> None:
    """Writes the weights, then finished.json, then removes the checkpoints."""
    _average_statistics(learner.engine)
    with zero.full_weights(learner.engine, job.run.spec.machine):
        state = model.weights(learner.engine.module, learner.learned) if world.first else {}
    # whoever cleans this model may want to inherit them
    moments = zero.moments(learner.engine, learner.stepper) if job.run.stage == "pretrain" else {}
    if moments:
        moments |= learner.moments()
    spent = meter.spent()
    collectives.on_rank_0(lambda: _write_weights(job, state, moments, journal, spent))
    if world.first:
        shutil.rmtree(checkpoints, ignore_errors=True)


def _write_weights(
    job: RunInputs,
    state: dict[str, torch.Tensor],
    moments: dict[str, torch.Tensor],
    journal: Journal,
    spent: dict[str, float],
) -> None:
    from safetensors.torch import save_file

    fresh, final = job.folder / ".weights.safetensors", job.folder / "weights.safetensors"
    with checkpoint.disk(job.folder):
        if moments:
            save_file(moments, fresh)
            fresh.rename(job.folder / BESIDE)
        save_file({name: value.float() if value.is_floating_point() else value for name, value in state.items()}, fresh)
        fresh.rename(final)
    measures = [row for row in read_rows(job.folder / FILE) if isinstance(row, MeasureRow)]
    numbers = measures[-1].numbers() if measures else {}
    results = {name: value for name, value in numbers.items() if isinstance(value, float) and name != "seconds"}
    journal.hparams(job.run.entry().model_dump(exclude_none=True, exclude={"run", "swept", "title"}), results)
    FinishedJson(
        steps=job.steps, journal=journal.mark, weights=checkpoint.digest(final), measured=job.run.measured, **spent
    ).write(job.folder)
