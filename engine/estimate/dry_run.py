"""What a study would do, before it does it: --dry-run touches nothing and needs no data.

Memory of a rank = weights, gradients and AdamW's states as ZeRO splits them + what the towers keep for backward
(counted on the meta device, so exact for eager mode) of one micro-batch + features, their gradients and blocks of
similarities. Bytes of a step, per rank
and ring: gradients 2 P (W-1)/W, at stage 3 also the weights, plus the features of the other ranks in a row and a column
of the grid (objectives/exchange.py), forward and backward.
"""

import io
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from configs.plan import Run
from configs.spec import Loaded
from configs.stage import Stage
from configs.sweep import Optuna
from data.refusal import UserError
from data.shards import read_index
from data.sources import Data
from engine.distributed.world import rank_from_env
from engine.estimate.cost import Cost, cost, how
from engine.models import clip
from engine.training.checkpoint import committed
from engine.training.labelled_inputs import check_labels, read
from objectives.exchange import grid
from objectives.tiles import BLOCK
from records.folder import finished

GIB = 1 << 30


def dry_run(loaded: Loaded, runs: Iterable[Run], folder: Path, dollars: float | None = None) -> str:
    """The plan of every run as text: a table, then what it means for this number of processes; `dollars` is the price of one
    GPU-hour."""
    from rich.console import Console
    from rich.table import Table

    _, world, _, _ = rank_from_env()
    spec = loaded.spec
    table = Table(title=f"study {spec.name}: {folder}", title_justify="left")
    sizes = ("steps", "pairs", "poisoned", "parameters", "memory/rank", "bytes/rank/step", "GPU-h")
    for column in ("run", "what", *sizes, "state"):
        table.add_column(column, overflow="fold", justify="left" if column in ("run", "what", "state") else "right")
    notes: set[str] = set()
    whole = Cost()
    for run in runs:
        pairs = drawn(run, notes)
        one = None if pairs is None else cost(run, pairs, notes)
        whole += one or Cost()
        table.add_row(*_row(run, folder, world, pairs, one, notes))
    if isinstance(search := spec.sweep.search, Optuna):
        arms = len(loaded.arms)
        notes.add(f"the search proposes {search.trials:,} cleanings for each of {arms:,} arms; the known ones are listed")
    out = io.StringIO()
    console = Console(file=out, width=150)
    console.print(table)
    price = "" if dollars is None else f", {whole.hours * dollars:,.0f} dollars"
    for note in (*sorted(notes), f"in all {whole.hours:,.1f} GPU-hours{price}", *how(dollars)):
        console.print(note, markup=False, highlight=False)
    console.print(
        f"{world} process{'es' * (world > 1)}, ZeRO stage {spec.machine.zero}; nothing was written", highlight=False
    )
    return out.getvalue()


def drawn(run: Run, notes: set[str]) -> int | None:
    """The pairs of one epoch, less the last, partial batch: from the shards, or as the spec expects, or None."""
    total, poisoned = _pairs(run, notes)
    if run.stage != "clean" or total is None:
        return total
    clean = run.spec.data.clean
    return min(clean.pairs or total, total - (0 if clean.shards else poisoned or 0))


def _row(run: Run, folder: Path, world: int, pairs: int | None, one: Cost | None, notes: set[str]) -> list[str]:
    spec, stage = run.spec, run.settings
    check_labels(run)
    poisoned = _pairs(run, notes)[1]
    parameters, learning, kept, width = size(spec.model.name, stage.objective.views)
    memory = states(parameters, learning, spec.machine.zero, spec.machine.precision, world)
    rows = stage.batch // world
    views = sum(stage.objective.views)
    gathered = max(grid(world)) * rows * width * 4
    # activations of a micro-batch; features, their gradients and gathered blocks of both; a few blocks of similarities
    memory += min(rows, spec.machine.micro_batch or rows) * kept + 2 * views * (rows * width * 4 + gathered) + 16 * BLOCK**2
    shown = "" if run.stage == "clean" or poisoned is None else f"{0 if run.stage == 'twin' else poisoned:,}"
    return [
        run.folder,
        run.title,
        "?" if one is None else f"{one.steps:,}",
        "?" if pairs is None else f"{pairs:,}",
        shown,
        f"{parameters:,}",
        f"{memory / GIB:.2f} GiB",
        f"{traffic(parameters, learning, spec.machine.zero, world, rows, width, stage) / 1e6:,.1f} MB",
        "?" if one is None else f"{one.hours:,.1f}",
        _state(folder / run.folder),
    ]


def _pairs(run: Run, notes: set[str]) -> tuple[int | None, int | None]:
    """(pairs that the run draws from, poisoned pairs); from the shards, or as the spec expects, or None."""
    data = run.spec.data
    if run.stage == "clean" and data.clean.labelled is not None:
        return _labelled(data.clean.labelled, data.clean.pairs, notes), None
    made = f"; make them with: {data.made_by}" if data.made_by else ""
    held = _held(data.pretrain.patterns, data, data.pretrain.expect, "data.pretrain.expect", made, notes)
    if held is not None and data.clean.held_out and not data.clean.shards and run.stage != "clean":
        held -= data.clean.pairs or 0
    poisoned = None if held is None else sum(aim.poison.number(held) for aim in run.spec.attack.aims)
    if run.stage == "clean" and data.clean.shards:
        held = _held(data.clean.shards, data, data.clean.pairs, "data.clean.pairs", "", notes)
    return held, poisoned


_counts: dict[str, int | UserError] = {}
_absent: dict[str, str] = {}  # why shards can't be read


def _held(
    shards: str | dict[str, str], data: Data, expected: int | None, field: str, hint: str, notes: set[str]
) -> int | None:
    """The pairs in some shards, read once for all runs; what the spec expects, with a note, where they can't be read."""
    known = repr((shards, data.schemes, data.pretrain.caption))
    if known not in _counts:
        try:
            with TemporaryDirectory() as cache:
                index = read_index(shards, Path(cache), schemes=data.schemes, caption=data.pretrain.caption, beside=False)
                _counts[known] = len(index)
        except UserError as refusal:
            _counts[known] = refusal
    held = _counts[known]
    if isinstance(held, UserError):
        notes.add(f"{str(held).split(';')[0]}: counting on {field} = {expected}{hint}")
        return expected
    return held


def _labelled(folder: str, expected: int | None, notes: set[str]) -> int | None:
    """The labelled pictures in a folder; what the spec expects, with a note, where they can't be read."""
    try:
        return len(read(folder))
    except UserError as refusal:
        notes.add(f"{str(refusal).split(';')[0]}: counting on data.clean.pairs = {expected}")
        return expected


def _state(folder: Path) -> str:
    if finished(folder):
        return "finished"
    done = committed(folder / "checkpoints")
    return f"at step {int(done[-1].name.removeprefix('step-')):,}" if done else "to do"


_sizes: dict[tuple[str, tuple[int, int]], tuple[int, int, int, int]] = {}


def size(name: str, views: tuple[int, int]) -> tuple[int, int, int, int]:
    """(parameters, those that learn, bytes kept for backward a pair, width of the embedding) of a model, without allocating
    it; without views of the caption the text tower does not learn."""
    if (name, views) not in _sizes:
        towers = clip.on_meta(name)
        side, length = clip.image_size(name), clip.model_config(name)["text_cfg"].get("context_length", 77)
        rows, captions = (2 * n for n in views)  # two pairs: BatchNorm refuses one
        own = {p.untyped_storage()._cdata for p in towers.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()  # two views of one storage are kept once
            if storage._cdata not in own:
                kept[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            images, texts = towers(
                torch.empty(rows, 3, side, side, dtype=torch.uint8, device="meta"),
                torch.empty(captions, length, dtype=torch.int32, device="meta") if captions else None,
            )
        each = sum(storage.nbytes() for storage in kept.values()) // 2
        learning = towers if captions else towers.clip.visual
        counts = [sum(p.numel() for p in part.parameters()) for part in (towers, learning)]
        _sizes[name, views] = counts[0], counts[1], each, images.shape[-1]
    return _sizes[name, views]


def states(parameters: int, learning: int, zero: int, precision: str, world: int) -> int:
    """Bytes of weights, and for those that learn of gradients, float32 master weights and moments, on one rank (Rajbhandari
    et al. 2020)."""
    half = precision in ("bf16", "fp16") or (precision == "auto" and torch.cuda.is_available())
    weights, gradients = (2, 2) if half else (4, 4)
    optimizer = 12 if half or zero else 8
    each = gradients / (world if zero >= 2 else 1) + optimizer / (world if zero else 1)
    return int(parameters * weights / (world if zero >= 3 else 1) + learning * each)


def traffic(parameters: int, learning: int, zero: int, world: int, rows: int, width: int, stage: Stage) -> float:
    """Bytes that one rank sends in one step, at two bytes a gradient element on GPUs and four on CPU."""
    each = 2 if torch.cuda.is_available() else 4
    gradients = (2 * learning + (parameters if zero == 3 else 0)) * each * (world - 1) / world
    lines, piles = grid(world)
    # each view of one side crosses a row or a column of the grid, forward and backward
    return gradients + sum(stage.objective.views) / 2 * 2 * (lines + piles - 2) * rows * width * 4
