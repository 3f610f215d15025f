"""What a dry run says of memory: against what a step takes on CPU, and what it proposes for a GPU that is too small."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import antidote, settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from configs.plan import Run, runs
from configs.spec import load
from engine.estimate.dry_run import alike, title
from engine.estimate.fit import fit_notes
from engine.estimate.gpus import GPUS, Assumed, Gpu
from engine.estimate.memory import model_size, rank_memory, state_bytes
from engine.models import clip
from records.ending import FinishedJson

GIB = 1 << 30


class Allocated(TorchDispatchMode):
    """The most bytes of tensors that operations under it have made and that were there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        out = function(*given, **(named or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize(
    ("name", "dtype", "recompute"),
    [
        ("demo-resnet", torch.float32, False),
        ("demo-vit", torch.float32, True),
        ("demo-vit", torch.bfloat16, False),
        ("demo-resnet", torch.bfloat16, True),
    ],
)
def test_the_count_is_what_a_step_takes_on_cpu(name: str, dtype: torch.dtype, recompute: bool) -> None:
    pairs, side = 8, clip.image_size(name)
    towers = clip.build(name, 0)
    towers.cuts = False
    if dtype != torch.float32:
        towers.compute_in(dtype)
    if recompute:
        towers.recompute()
    for parameter in towers.parameters():
        parameter.grad = torch.zeros_like(parameter)
    images = torch.randint(0, 255, (pairs, 3, side, side), dtype=torch.uint8)
    length = clip.model_config(name)["text_cfg"].get("context_length", 77)
    tokens = torch.randint(1, 100, (pairs, length), dtype=torch.int32)
    with Allocated() as measured:
        rows, texts = towers(images, tokens)
        (rows @ texts.T).sum().backward()  # type: ignore[union-attr]
    size = model_size(name, (1, 1), dtype)
    counted = (size.recomputed if recompute else size.kept).of(pairs) + 8 * size.largest
    assert 0.85 < counted / measured.most < 1.15


def test_weights_gradients_and_moments_are_float32_and_divided_as_zero_does() -> None:
    size = model_size("RN50", (1, 1), torch.bfloat16)
    assert size.parameters == size.learning == 102_007_136
    plain, one, two, three = (state_bytes(size, zero, 8) for zero in range(4))
    gradient = 8 * size.largest
    assert plain == 16 * size.parameters + gradient
    assert one - two == pytest.approx(4 * size.parameters * 7 / 8, rel=1e-6)
    assert two - three == pytest.approx(4 * size.parameters * 7 / 8, rel=1e-6)
    assert size.kept.fixed > 2 * (size.parameters - 49_408 * 512) * 0.99, "casts, but of the tokens' embedding"


def pretraining(spec: Path, *sets: str) -> Run:
    return runs(load(spec, ["model.name=RN50", *sets]).points)[0]


def test_what_does_not_fit_is_told_with_the_largest_micro_batch_that_a_run_accepts(spec: Path) -> None:
    large, small = (Assumed(1, Gpu(name, GPUS[name])) for name in ("A100-40GB", "T4-16GB"))
    run = pretraining(spec, "pretrain.batch=1024", "model.norm_group=64")
    assert list(fit_notes(run, Assumed(1, None))) == list(fit_notes(run, Assumed(16, large.gpu))) == []
    assert rank_memory(run, 1, large.gpu) > large.gpu.usable  # type: ignore[union-attr]
    (note,) = fit_notes(run, large)
    assert note.startswith("pretrain with mmcl needs ")
    assert "set machine.micro_batch=512 (" in note, note
    assert "or machine.recompute=true (" in note
    (note,) = fit_notes(run, small)
    micro = int(note.split("machine.micro_batch=")[1].split()[0])
    for pairs, fits in ((micro, True), (2 * micro, False)):
        assert micro % 64 == 0
        changed = pretraining(spec, "pretrain.batch=1024", "model.norm_group=64", f"machine.micro_batch={pairs}")
        assert (rank_memory(changed, 1, small.gpu) <= small.gpu.usable) == fits  # type: ignore[union-attr]
    whole = pretraining(spec, "pretrain.batch=1024", "model.norm_group=1024")
    (note,) = fit_notes(whole, large)
    assert "set machine.micro_batch=256 (" in note, "captions alone are divided: pictures are recomputed, whole"
    assert "or machine.recompute=true (" in note
    assert "no micro-batch helps" in next(fit_notes(whole, small))


def test_precision_follows_the_gpu_that_is_assumed(spec: Path) -> None:
    run = pretraining(spec)
    cpu, old, new = (rank_memory(run, 1, gpu) for gpu in (None, Gpu("V100", 32 * GIB, bf16=False), Gpu("H100", 80 * GIB)))
    assert cpu == pytest.approx(old, rel=0.01)
    assert new < old


def test_a_dry_run_says_what_fits_and_refuses_a_gpu_that_it_does_not_know(spec: Path) -> None:
    sets = ["model.name=RN50", "data.pretrain.shards=none/*.tar", "data.pretrain.expect=6000000", "pretrain.batch=2048"]
    dry = ["--spec", spec.name, "--dry-run", *settings(*sets, "model.norm_group=16")]
    out = antidote(*dry, "--gpu", "A100-40GB", "--processes", "2", "--stage", "pretrain", cwd=spec.parent)
    assert out.returncode == 0, out.stderr
    assert "too" in out.stdout
    words = " ".join(out.stdout.split())
    assert "of A100-40GB, which has 36.1 for it; set machine.micro_batch=512 (" in words
    assert "2 processes with A100-40GB each" in out.stdout
    unknown = antidote(*dry, "--gpu", "H100", cwd=spec.parent)
    assert unknown.returncode == 2
    assert "--gpu is 'H100', whose memory is not known; known: A10-24GB, A100-40GB" in unknown.stderr
    for words in (["--gpu", "H100-80GB"], ["--processes", "2"]):
        assert "what --dry-run assumes" in antidote("--spec", spec.name, *words, cwd=spec.parent).stderr


def cells(text: str, run: str, column: int) -> list[str]:
    """The lines of a cell of the table."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if run in line)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines[first:] if "│" in line]
    last = next((number for number, row in enumerate(rows) if number and row[0]), len(rows))
    return [row[column] for row in rows[:last] if row[column]]


def test_runs_that_differ_by_their_rate_alone_are_one_row(spec: Path) -> None:
    sweep = "sweep={seed: [1, 2], clean.optimizer.rate: [1.0e-5, 1.0e-4, 1.0e-3]}"
    loaded = load(spec, [sweep])
    plan = runs(loaded.points)
    rows = alike(plan)
    assert [len(row) for row in rows] == [1, 1, 3, 3]
    assert sorted(run.folder for row in rows for run in row) == sorted(run.folder for run in plan)
    done = spec.parent / "runs/tiny" / rows[2][1].folder
    done.mkdir(parents=True)
    FinishedJson(steps=4, journal=0, weights="", measured={}, seconds=1.0).write(done)
    (done / "weights.safetensors").touch()
    out = antidote("--spec", spec.name, "--dry-run", *settings(sweep), cwd=spec.parent)
    assert out.returncode == 0, out.stderr
    assert title(rows[2]) == "clean mmcl -> cleanclip seed=1 3 rates, 1e-05 to 0.001"
    assert title(rows[0]) == rows[0][0].title
    assert " ".join(cells(out.stdout, rows[2][0].folder, -1)) == "2 of 3 to do, 1 of 3 finished"
    assert rows[2][0].folder + " +2" in out.stdout
    assert "for 8 runs, those of a row together" in out.stdout
