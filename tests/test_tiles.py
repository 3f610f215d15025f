"""Tiles of similarities: every core gives the float64 formula's numbers; the fastest is chosen once, for the whole run."""

import importlib.util
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import samples
import torch
import torch.nn.functional as F
from ranks import play

from engine.distributed.world import World
from engine.training import loss_core
from objectives import blocks, choice
from objectives.blocks import TORCH
from objectives.exchange import SINGLE_RANK, Exchange, Ranks
from objectives.infonce import infonce
from objectives.tiles import Core, Layout, Own, log_sum_exps
from records.card import Card

CPU = torch.device("cpu")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which is a part of torch on Linux")
def test_triton_gives_the_float64_formula_for_every_objective() -> None:
    """Losses and all gradients at a scale of 100, ragged tiles with masks and without, rows without any entry."""
    script = str(forked.ROOT / "tests" / "triton_parity.py")
    done = forked.run([sys.executable, script])
    assert done.returncode == 0, done.stderr[-2000:]
    differences = json.loads(done.stdout)
    assert len(differences) > 35
    # in bfloat16 rows the slopes are rounded to 8 bits, and so are the gradients
    assert {case: worst for case, worst in differences.items() if worst > (7e-3 if "bfloat16" in case else 2e-5)} == {}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which is a part of torch on Linux")
def test_kernels_compile_for_an_h100_and_spill_no_register() -> None:
    """By Triton's own compiler and assembler, which need no GPU; bfloat16 rows on its tensor cores."""
    done = forked.run([sys.executable, str(forked.ROOT / "tests" / "triton_registers.py")])
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = json.loads(done.stdout)
    assert len(kernels) == 15
    assert {name: kernel["spilled"] for name, kernel in kernels.items() if kernel["spilled"]} == {}
    assert all(kernel["tensor_cores"] for name, kernel in kernels.items() if "ieee" not in name)
    assert all(kernel["shared"] * kernel["programs"] <= 227 << 10 for kernel in kernels.values())
    wanted = {"_statistics_kernel bf16 plain": 2, "_slope_kernel bf16 plain": 3}
    assert {name: kernels[name]["programs"] for name in wanted} == wanted


def gradients(core: Core, dtype: torch.dtype, layout: Layout, *rows: torch.Tensor) -> list[torch.Tensor]:
    given = [part.detach().to(dtype).requires_grad_() for part in rows]
    row, column, own = log_sum_exps(given[0], given[1], torch.tensor(100.0), core, layout)
    out = torch.cat([row, column]).clamp(min=-1e4).sum() - 2 * own.sum()
    return [row.detach(), column.detach(), own.detach(), *torch.autograd.grad(out, given)]


def test_rows_that_do_not_count_may_be_far_above_those_that_do() -> None:
    """At a scale of 100 they are 200 above the sum, where float32's exponential is infinite: they add nothing, not NaN."""
    side = F.normalize(torch.ones(8, 3), dim=1)
    counts = torch.arange(8) % 2 == 0
    right = torch.where(counts[:, None], -side, side)
    for some in (counts, torch.zeros(8).bool()):
        layout = Layout(None, None, some, some, Own(0, 0, 8))
        single, double = (gradients(TORCH, dtype, layout, side, right) for dtype in (torch.float32, torch.float64))
        assert all(torch.allclose(a.double(), b, rtol=1e-5, atol=1e-4) for a, b in zip(single, double, strict=True))


def test_bfloat16_rows_are_summed_in_float32() -> None:
    """Log-sum-exps to float32's precision; gradients rounded once, at the end: also where a row has found its own pair, so
    that probability and target all but cancel."""
    draw = torch.Generator().manual_seed(0)
    left = F.normalize(torch.randn(60, 32, generator=draw), dim=1).bfloat16()
    right = F.normalize(left.float() + 0.35 * torch.randn(60, 32, generator=draw), dim=1).bfloat16()
    layout = Layout(own=Own(0, 0, 60))
    ours, plain = (gradients(TORCH, dtype, layout, left, right) for dtype in (torch.bfloat16, torch.float64))
    assert all(a.dtype == torch.float32 and torch.allclose(a.double(), b, atol=1e-4) for a, b in zip(ours[:3], plain[:3]))
    for a, b in zip(ours[3:], plain[3:], strict=True):
        assert bool(((a.double() - b).norm(dim=1) <= 2**-8 * b.norm(dim=1) + 5e-3).all())  # a rounded p: 0.2
    assert 5 < int((plain[3].norm(dim=1) < 1).sum()) < 60


def test_under_bf16_rows_are_rounded_before_they_are_multiplied() -> None:
    """The leaves stay float32; the loss is that of the rounded rows."""
    draw = torch.Generator().manual_seed(0)
    left, right = (F.normalize(torch.randn(20, 16, generator=draw), dim=1).requires_grad_() for _ in range(2))
    scale = torch.tensor(30.0)
    rounded = Exchange(SINGLE_RANK, TORCH._replace(dtype=torch.bfloat16))
    forth, _ = infonce(left, right, scale, rounded)
    plain, _ = infonce(left.bfloat16().double(), right.bfloat16().double(), scale.double(), Exchange(SINGLE_RANK))
    assert forth.item() == pytest.approx(plain.item(), abs=1e-5)
    assert torch.autograd.grad(forth, left)[0].dtype == torch.float32


@pytest.mark.parametrize("ranks", [2, 6])
def test_under_bf16_ranks_exchange_rounded_rows(ranks: int) -> None:
    """The loss of one rank, as every product is of the same rounded rows; gradients to bfloat16's precision."""
    draw = torch.Generator().manual_seed(0)
    whole = [F.normalize(torch.randn(24, 16, generator=draw), dim=1) for _ in range(2)]

    def act(rank: int, places: Ranks) -> tuple[float, torch.Tensor]:
        share = 24 // places.everyone.size
        mine = [rows[rank * share : (rank + 1) * share].clone().requires_grad_() for rows in whole]
        forth, back = infonce(mine[0], mine[1], torch.tensor(30.0), Exchange(places, TORCH._replace(dtype=torch.bfloat16)))
        grads = torch.autograd.grad((forth + back) / places.everyone.size, mine)
        assert all(grad.dtype == torch.float32 for grad in grads)
        return (forth + back).item(), torch.cat(grads, 1)

    (want, grad), played = act(0, SINGLE_RANK), play(ranks, act)
    assert [loss for loss, _ in played] == pytest.approx([want] * ranks, rel=1e-6)
    got = torch.cat([part for _, part in played])
    assert 0 < float((got - grad).norm() / grad.norm()) < 2**-7


def test_the_fastest_core_that_gives_the_same_numbers_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong, a failing and a slow rival of plain torch; then one that a clock says is faster."""

    def fails(*_: Any) -> Any:
        raise RuntimeError("no compiler\nat all")

    clock = [0.0]  # which stands still but for the slow one, however busy the machine is

    def slowly(*given: Any) -> Any:
        clock[0] += 0.02
        return blocks.slope(*given)

    wrong = blocks.Kernels(blocks.statistics, lambda *given: blocks.slope(*given) * 1.01)
    kinds = {"wrong": wrong, "failing": blocks.Kernels(fails, fails), "slow": blocks.Kernels(blocks.statistics, slowly)}
    rivals = {name: blocks.core(name, kernels) for name, kernels in kinds.items()} | {"torch": TORCH}
    rivals["same"] = TORCH._replace(name="same")
    monkeypatch.setattr(choice, "core_of", rivals.__getitem__)
    monkeypatch.setattr(blocks, "_near_slope", lambda *_: None)  # a CPU's own way, past a core's kernels
    monkeypatch.setattr(blocks, "_near_statistics", lambda *_: None)
    faults = {name: choice.fault(name, CPU, torch.float32, 16) for name in rivals}
    assert faults == {
        "torch": None, "same": None, "slow": None, "wrong": "it gives other numbers than plain torch",
        "failing": "RuntimeError: no compiler",
    }  # fmt: skip
    monkeypatch.setattr(choice.time, "perf_counter", lambda: clock[0])
    assert choice.fastest(CPU, torch.float32, 16, ("wrong", "slow", "torch", "failing"), side=64) == "torch"
    rivals["triton"] = rivals["slow"]
    assert (
        choice.fastest(CPU, torch.float32, 16, ("torch", "triton", "torch.compile"), side=64) == "torch"
    )  # asks for no third
    ticks = iter([0.0, 9.0, 10.0, 11.0])
    monkeypatch.setattr(choice.time, "perf_counter", lambda: next(ticks))
    assert choice.fastest(CPU, torch.float32, 16, ("torch", "same"), side=64) == "same"


def test_a_new_shape_compiles_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile's core, compiled by a first tile as the choice does, then given other numbers of rows."""
    from torch._dynamo.testing import CompileCounter

    monkeypatch.setattr(blocks, "_near_slope", lambda *_: None)
    monkeypatch.setattr(blocks, "_near_statistics", lambda *_: None)
    counter = CompileCounter()
    core = blocks.compiled(backend=counter)
    sizes = ((20, 23), (7, 11), (40, 13), (33, 33))
    draw = torch.Generator().manual_seed(0)
    frames = []
    for m, n in sizes:
        rows = [torch.randn(count, 8, generator=draw) for count in (m, n)]
        some = [torch.rand(count, generator=draw) < 0.8 for count in (m, n)]
        for layout in (Layout(own=Own(0, 0, 5)), Layout(None, None, *some)):
            ours, plain = (gradients(one, torch.float32, layout, *rows) for one in (core, TORCH))
            assert all(torch.allclose(a, b, atol=1e-3, rtol=1e-5) for a, b in zip(ours, plain, strict=True))
        frames.append(counter.frame_count)
    assert frames == [4] * 4  # statistics and slope, with masks and without


@pytest.fixture
def going_on(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run that began with Triton and has a checkpoint."""
    Card.model_validate(samples.card(loss_core="triton")).write(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "step-000000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    yield tmp_path
    choice.core_of.cache_clear()


WORLD = World(0, 1, 0, 1, CPU)


def test_a_run_keeps_its_core(going_on: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that does not work, plain torch takes its place, and the card says both; later it is taken again."""
    assert loss_core.loss_core(going_on / "new", WORLD, "fp32", 8) == (TORCH, None, None)
    here = loss_core.loss_core(going_on, WORLD, "fp32", 8)  # a CPU runs no Triton
    assert (here.core, here.before) == (TORCH, "triton")
    assert here.fault is not None
    assert here.fault.endswith("(rank 0)")
    card = Card.model_validate(
        samples.card(loss_core=here.core.name, loss_core_before=here.before, loss_core_fault=here.fault)
    )
    lines = {fact.label: fact.text for fact in card.facts()}
    assert lines["loss core"] == "torch"
    assert lines["loss core before"] == f"triton, which does not work here: {here.fault}"
    card.write(going_on)
    monkeypatch.setattr(choice, "fault", lambda *_: None)
    monkeypatch.setattr(choice, "core_of", lambda name: TORCH._replace(name=name))
    again = loss_core.loss_core(going_on, WORLD, "bf16", 8)
    assert (again.core.name, again.core.dtype, again.before) == ("triton", torch.bfloat16, None)


RANK = """
import sys
import torch
from pathlib import Path
from engine.distributed.world import World, destroy_distributed, init_distributed
from engine.training import loss_core
from objectives import choice
from objectives.blocks import TORCH

world = init_distributed()
gpu = World(world.rank, world.size, 0, 1, torch.device("cuda"))  # of which nothing is asked
choice.fastest = lambda *_: f"core of rank {world.rank}"
choice.core_of = lambda name: TORCH._replace(name=name)
broken = False
choice.fault = lambda *_: "no driver" if broken and world.rank == 1 else None
first = loss_core.loss_core(Path("nowhere"), gpu, "fp32", 8)
broken = True
then = loss_core.loss_core(Path("nowhere"), gpu, "fp32", 8)
Path(f"{sys.argv[1]}/{world.rank}").write_text(f"{first.core.name}|{then.core.name}|{then.fault}")
destroy_distributed()
"""


def test_rank_0_chooses_for_all_ranks(tmp_path: Path) -> None:
    """And what does not work on one of them, none takes."""
    script = tmp_path / "rank.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(forked.ROOT)!r})\n" + textwrap.dedent(RANK))
    done = forked.run_ranks([sys.executable, str(script), str(tmp_path)], 2, 100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["core of rank 0|torch|no driver (rank 1)"] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", choice.NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_core_works_on_a_gpu(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """The numbers of float64 on the CPU for rows as they are, ragged blocks of more than one kind, scale 100."""
    if device.type == "cpu" and name != "torch":
        pytest.skip("a core of GPUs")
    assert choice.fault(name, device, dtype, 512) is None
    draw = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(3001, 200, generator=draw), dim=-1).to(dtype) for _ in range(2)]
    kinds = ((device, dtype, choice.core_of(name)), (CPU, torch.float64, TORCH))
    values, grads = [], []
    for where, kind, core in kinds:
        given = [part.to(where, kind, copy=True).requires_grad_() for part in rows]
        scale = torch.tensor(100.0, device=where, dtype=torch.promote_types(kind, torch.float32))
        forth, back = infonce(*given, scale, Exchange(SINGLE_RANK, core))
        (forth + back).backward()
        values.append([forth.item(), back.item()])
        grads.append([part.grad.double().cpu() for part in given])
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    close = 1e-2 if dtype == torch.bfloat16 else 1e-4
    assert all(torch.allclose(a, b, atol=close * float(b.abs().max()), rtol=0) for a, b in zip(*grads, strict=True))
