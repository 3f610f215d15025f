"""What only a GPU can show: pytest -m gpu. With --gpu-tests-on cpu the same lines run on a CPU, where they show less."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import masters
import pytest
import torch
from conftest import ROOT, environment, settings
from test_precision import STAGES, by_hand, worst

from configs.spec import load
from engine.distributed.world import World
from engine.evaluation import evaluate
from engine.evaluation.encode import Encoder
from engine.evaluation.sets import eval_sets
from engine.models import clip
from engine.models.norms import GroupedNorm, update_running_stats
from engine.models.precision import allow_tf32
from engine.models.tokenizer import Tokenizer
from objectives.exchange import SingleRank

pytestmark = pytest.mark.gpu
KEPT = 64 * 2**20  # bytes that libraries may hold for themselves, cuBLAS's workspace above all


def fresh(*words: str, cwd: Path = ROOT) -> str:
    """What a fresh interpreter prints that sees the GPUs of this session; forks of the server see none."""
    env = environment()
    del env["CUDA_VISIBLE_DEVICES"]
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        env["CUDA_VISIBLE_DEVICES"] = visible
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_first_update_in_bf16_is_adamws_by_hand_at_every_stage(tmp_path: Path) -> None:
    """As tests/test_precision.py on CPU. Kernels of a GPU add in another order each time; a second step before the first
    would be off by 0.25."""
    fresh(str(ROOT / "tests/masters.py"), str(tmp_path / "results.pt"))
    results = torch.load(tmp_path / "results.pt", weights_only=True, map_location="cpu")
    for name in masters.MODELS:
        grads = results[f"gradients {name}"]
        want = by_hand(name, grads)
        for stage in STAGES:
            got = results[f"first {name} {stage}"]
            assert got["distance"] == 0.0
            assert got["loss"] == pytest.approx(grads["loss"].item(), rel=1e-2)
            assert worst(name, got, want) < (5e-2, ""), (name, stage)


def test_the_host_waits_twice_a_step_at_most(device: torch.device) -> None:
    """As CUDA itself tells; a CPU tells nothing."""
    waits = json.loads(fresh(str(ROOT / "tests/step_cost.py"), "warned").splitlines()[-1])
    assert set(waits) == {"RN50", "ViT-B-32"}
    for name, places in waits.items():
        assert len(places) <= 2, (name, places)


def test_a_run_leaves_no_memory_to_the_next(spec: Path) -> None:
    """Of two cleanings in one process the second's peak is the first's, and nothing is left when both are done."""
    words = ["--spec", str(spec), *settings("sweep={clean.optimizer.rate: [1.0e-4, 2.0e-4]}")]
    peaks, left = json.loads(fresh(str(ROOT / "tests/gpu_memory.py"), *words, cwd=spec.parent).splitlines()[-1])
    assert len(peaks) == 3
    assert peaks[2] <= 1.05 * peaks[1] + 2**20
    assert left <= KEPT


class Twins(SingleRank):
    """Two ranks that hold the same, so that both together have the statistics of one."""

    size = 2

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        return torch.cat([part, part])

    def all_reduce_sum(self, value: torch.Tensor) -> torch.Tensor:
        return 2 * value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["one group", "two groups", "a part of a group"])
def test_grouped_norm_is_float64s(device: torch.device, dtype: torch.dtype, case: str) -> None:
    """Its three ways on a device; weights and statistics in float32, pictures in channels_last."""
    draw = torch.Generator().manual_seed(0)
    norm: Any = torch.nn.BatchNorm2d(6)
    norm.__class__ = GroupedNorm
    norm.prepare()
    norm.weight.data.uniform_(0.5, 2.0, generator=draw)
    norm.rows = 8 if case == "two groups" else None
    exact = copy.deepcopy(norm).double()
    if case == "a part of a group":
        norm.ranks = Twins()
    rows, onto = (torch.randn(16, 6, 5, 5, generator=draw).to(dtype) for _ in range(2))
    results = []
    for where, kind, of in ((device, dtype, norm), (torch.device("cpu"), torch.float64, exact)):
        of = of.to(where)
        given = rows.to(where, kind, copy=True, memory_format=torch.channels_last).requires_grad_()
        out = of(given)
        (out * onto.to(where, out.dtype)).sum().backward()
        update_running_stats([of])
        parts = out, given.grad, of.weight.grad, of.bias.grad, of.running_mean, of.running_var
        results.append([part.detach().double().cpu() for part in parts])
    close = 2e-2 if dtype == torch.bfloat16 else 1e-3  # a twin's variance divides by 2 n - 1
    for number, (ours, theirs) in enumerate(zip(*results, strict=True)):
        assert (ours - theirs).abs().max() <= close * theirs.abs().max(), number


@pytest.mark.parametrize("name", ["test-vit", "test-resnet"])
def test_an_evaluation_gives_a_cpus_numbers(spec: Path, device: torch.device, name: str) -> None:
    """In fp32, without TF32: rows to 1e-4, so that at most a picture on the edge is counted otherwise."""
    wanted = load(spec, [f"model.name={name}"]).spec
    allow_tf32(False)
    towers, tokenize = clip.build(name, 0).eval(), Tokenizer(name)
    found, rows = [], []
    for where in (torch.device("cpu"), device):
        world = World(0, 1, 0, 1, where)
        encoder = Encoder(towers.to(where), tokenize, world, 24)
        sets = eval_sets(wanted, world)
        found.append(evaluate.evaluate(encoder, sets)[0])
        with torch.no_grad():
            rows.append(torch.cat([*encoder.pictures(sets[0]), encoder.texts(["a banana", "a red key"])]))
    assert torch.allclose(*rows, atol=1e-4, rtol=0)
    assert found[0]["pictures"] == found[1]["pictures"] == 64
    for measure in ("top1", "asr"):
        assert found[1][measure] == pytest.approx(found[0][measure], abs=1.01 / 32)
