"""What a run leaves in its folder beside its journal: card, poison plan and pictures, weights, finished.json."""

import json
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from configs.named_files import named_files
from configs.plan import differences
from data.decode import DecodeError
from data.plan_file import write_plan
from data.refusal import Diverged, UserError
from data.sheet import pairs_grid, small_grid
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models import clip
from engine.training import checkpoint, named_state
from engine.training.build import BuildFacts
from engine.training.finite import refuse_not_finite
from engine.training.init_weights import BESIDE
from engine.training.inputs import RunInputs
from engine.training.journal import Journal
from engine.training.run_state import RunState, average_running_stats
from records.card import AdamW, Card, Device
from records.code import loaded_digest
from records.ending import FinishedJson
from records.folder import WEIGHTS
from records.json_file import Damaged, write_json
from records.rows import FILE, MeasureRow, read_journal
from records.spec_json import SPEC, read_decides

SUFFIXES = (".json", ".jsonl", ".png", ".safetensors", ".f32")  # of files that a run leaves
PACKAGES = ("torch", "deepspeed", "open_clip_torch", "numpy", "pillow")  # whose versions a card tells


def open_folder(inputs: RunInputs) -> None:
    """The run's folder with its spec, written anew where it is damaged; UserError if another spec is in it."""
    inputs.folder.mkdir(parents=True, exist_ok=True)
    spec = inputs.run.decides
    try:
        there = read_decides(inputs.folder)
    except Damaged as damage:
        print(f"{damage.fault}; written anew", file=sys.stderr, flush=True)
        there = None
    if there is not None and (changes := differences(there, spec)):
        raise UserError(f"{inputs.folder} holds a run of another spec ({'; '.join(changes)}); delete it to begin anew")
    write_json(inputs.folder / SPEC, spec)


def card_of(inputs: RunInputs, world: World, facts: BuildFacts) -> Card:
    """What a reader wants to know before step 0."""
    run, stage, machine = inputs.run, inputs.run.settings, inputs.run.spec.machine
    adamw = stage.optimizer
    return Card(
        run=run.folder,
        stage=run.stage,
        title=run.title,
        start=run.origin,
        transform=stage.transform.model_dump() if stage.transform else None,
        transformed=facts.transformed,
        model=run.spec.model.name,
        parameters=facts.parameters,
        objective=stage.objective.model_dump(),
        pairs=len(inputs.pairs),
        poisoned_pairs=len(inputs.pairs.poisoned),
        epochs=stage.epochs,
        steps=inputs.steps,
        epoch_steps=inputs.pairs.steps,
        batch=stage.batch,
        process_batch=stage.batch // world.size,
        micro_batch=machine.micro_batch,
        optimizer=AdamW(
            implementation=facts.implementation, rate=adamw.rate, warmup=adamw.warmup, decay=adamw.decay, moments=adamw.state
        ),
        norm_group=facts.norms.pairs if facts.norms else None,
        whole_pictures=facts.norms is not None and facts.norms.whole_pictures,
        norms=stage.norms if stage.norms != "trained" else None,
        trims_captions=facts.cuts,
        precision=facts.precision,
        loss_core=facts.core.core.name,
        loss_core_before=facts.core.before,
        loss_core_fault=facts.core.fault,
        zero=machine.zero,
        processes=world.size,
        device=_device(world),
        data_digest=inputs.pairs.index.digest,
        files=named_files(run.decides, run.captions) or None,
        left_out=inputs.pairs.out_digest,
        versions={
            "antidote": f"{version('antidote')}+{loaded_digest()}",
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    )


def _device(world: World) -> Device:
    gpu = world.device.type == "cuda"
    name = torch.cuda.get_device_name() if gpu else f"{platform.processor() or platform.machine()} CPU"
    return Device(name=name, gpu=gpu, threads=torch.get_num_threads())


def write_pictures(inputs: RunInputs, journal: Journal) -> None:
    """Writes the poison plan, a grid of poisoned pairs, and the pictures whose answers the journal tells, to the folder and
    to TensorBoard; to be called on the first rank."""
    from PIL import Image

    journal.text("spec", json.dumps(inputs.run.decides, indent=1))
    sampled = next((images for images in inputs.sets if images.examples), None)
    if sampled is not None:
        clean, (triggered, *_) = sampled.pictures(sampled.examples)
        grid = small_grid([clean.numpy(), triggered.numpy()])
        Image.fromarray(grid).save(inputs.folder / "answers.png")
        journal.picture("pictures with and without the trigger", grid)
    plan = inputs.pairs.plan
    if plan is None:
        return
    write_plan(inputs.folder / "poison.json", plan, inputs.pairs.index, inputs.run.fingerprint)
    pairs = []
    for sample in inputs.pairs.poisoned[:8].tolist():
        try:
            pairs.append(inputs.pairs.first(sample))
        except DecodeError:
            continue  # counted as a bad sample when training meets it
    if pairs:
        grid = pairs_grid(pairs)
        Image.fromarray(grid).save(inputs.folder / "poison.png")
        journal.picture("poisoned pairs", grid)


def finish(run: RunState) -> None:
    """Writes the weights, then finished.json, then removes the checkpoints."""
    inputs, learner = run.inputs, run.learner
    average_running_stats(run.engine)
    towers, world = learner.tower_optimizer, run.world
    state = named_state.weights(towers, named_state.on_first_rank(towers, world), world)
    state |= clip.scalars(learner.head.parameters)
    # whoever cleans this model may want to inherit them
    is_cleaned = inputs.run.stage == "pretrain" or inputs.run.stage == "twin" and inputs.run.spec.attack.clean_twin
    moments = named_state.inheritable(towers, world) if is_cleaned else {}
    if moments:
        moments |= learner.head.moments()
    usage = run.usage.total()
    metadata = towers.towers.normalization.metadata()
    collectives.on_rank_0(lambda: _write_weights(inputs, (state, metadata), moments, run.journal, usage))
    if run.world.first:
        shutil.rmtree(inputs.folder / "checkpoints", ignore_errors=True)


def _write_weights(
    inputs: RunInputs,
    weights: tuple[dict[str, torch.Tensor], dict[str, str] | None],
    moments: dict[str, torch.Tensor],
    journal: Journal,
    usage: dict[str, float],
) -> None:
    remedy = f"lower optimizer.rate or set optimizer.clip, and delete {inputs.folder} to begin it anew"
    refuse_not_finite({**weights[0], **moments}, f"the weights that {inputs.run.title} has come to", remedy, Diverged)
    fresh, final = inputs.folder / ".weights.safetensors", inputs.folder / WEIGHTS
    with checkpoint.disk(inputs.folder):
        if moments:
            checkpoint.write_file(fresh, moments)
            fresh.rename(inputs.folder / BESIDE)
        checkpoint.write_file(fresh, *weights)
        fresh.rename(final)
    measures = [row for row in read_journal(inputs.folder / FILE).rows if isinstance(row, MeasureRow)]
    journal.hparams(measures)
    FinishedJson(
        steps=inputs.steps,
        journal=journal.committed_bytes(),
        weights=checkpoint.flushed_digest(final)[1],
        files=_digests(inputs.folder),
        measured=inputs.run.measured,
        **usage,
    ).write(inputs.folder)


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of what will not change any more, by name, when it is on the disk."""
    changes = (WEIGHTS, FILE, FinishedJson.FILE)  # the first has its own field
    kept = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES and path.name not in changes)
    return {name: checkpoint.flushed_digest(folder / name)[1] for name in kept if not name.startswith(".")}
