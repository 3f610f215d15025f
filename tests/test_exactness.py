"""Loss, every gradient and BatchNorm's running statistics: equal on 1, 2, 3, 4 ranks, in any micro-batch, at any ZeRO
stage."""

import ast
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import forked
import pytest
import torch
from conftest import ROOT, environment

Results = dict[str, dict[str, torch.Tensor]]
RANKS = [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
pytestmark = pytest.mark.timeout(3000)
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "3", "--master-port", "0", "--standalone"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Results]:
    """What tests/exactness.py computes on so many ranks; on three of them as torchrun starts it."""
    folder = tmp_path_factory.mktemp("exactness")

    @cache
    def of(ranks: int) -> Results:
        path, env = folder / f"{ranks}.pt", environment(OMP_NUM_THREADS="1")
        script = [str(ROOT / "tests/exactness.py"), str(path)]
        if ranks == 3:
            done = forked.run([sys.executable, *TORCHRUN, *script], 1200, env=env)
        else:
            done = forked.run_ranks([sys.executable, *script], ranks, 1200, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(path, weights_only=True)  # type: ignore[no-any-return]

    return of


def test_scripts_that_tests_import_leave_the_path_alone() -> None:
    """Run by themselves they put the repository first; imported, they would take somebody's folder off."""
    trees = {path.stem: ast.parse(path.read_text()) for path in sorted((ROOT / "tests").glob("*.py"))}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    assert {"exactness", "masters", "step_cost"} <= imported
    for name in sorted(trees.keys() & imported):
        at_import = [part for part in trees[name].body if not isinstance(part, ast.FunctionDef | ast.ClassDef | ast.If)]
        wrong = [ast.unparse(part) for part in at_import if "sys.path" in ast.unparse(part)]
        assert not wrong, f"tests/{name}.py: {wrong}"


def worst(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> tuple[float, str]:
    """(largest difference of an entry over the tensor's largest, or over 1 if that is smaller; the tensor's name)."""
    assert got.keys() == want.keys()
    return max(((got[name] - of).abs().max().item() / max(1.0, of.abs().max().item()), name) for name, of in want.items())


@pytest.mark.parametrize("ranks", RANKS)
def test_float64_is_equal_to_1e_10_on_any_number_of_ranks_in_any_micro_batch(
    results: Callable[[int], Results], ranks: int
) -> None:
    single, several = results(1), results(ranks)
    cases = [case for case in several if case.startswith("float64")]
    assert len(cases) == 56 if ranks == 1 else len(cases) >= 30
    for case in cases:
        kind, model = case.split()[1:3]
        want = single[f"float64 {kind} {model} micro None"]
        assert any(value.abs().max() > 1e-3 for name, value in want.items() if name.startswith("clip."))
        assert worst(several[case], want) < (1e-10, ""), case


@pytest.mark.parametrize("ranks", RANKS)
def test_batch_norm_groups_that_ranks_hold_together_are_those_of_one_process(
    results: Callable[[int], Results], ranks: int
) -> None:
    """Groups of half the batch and of all of it, in one pass and in micro-batches smaller than they are."""
    single, several = results(1), results(ranks)
    cases = [case for case in several if case.startswith("groups of")]
    assert len(cases) == (2 if ranks == 3 else 4)
    for case in cases:
        want = single[f"{case.split(' micro')[0]} micro None"]
        assert any(value.abs().max() > 1e-3 for name, value in want.items() if name.startswith("clip.visual."))
        assert worst(several[case], want) < (1e-10, ""), case
    for case in (case for case in several if "groups of" in case and case.startswith("zero")):
        assert worst(several[case], single["zero 0 groups of 48 micro None"]) < (1e-5, ""), case


@pytest.mark.parametrize("ranks", RANKS)
def test_deepspeed_is_equal_to_1e_5_at_every_stage(results: Callable[[int], Results], ranks: int) -> None:
    single, several = results(1), results(ranks)
    for model in ("test-vit", "test-resnet"):
        want = single[f"zero 0 cleanclip {model} micro None"]
        cases = [case for case in single if case.startswith("zero") and f"cleanclip {model}" in case]
        assert len(cases) >= 8
        for case in cases:
            assert worst(several[case], want) < (1e-5, ""), case
    for case in (case for case in single if case.startswith("zero 1") and case.endswith("test-vit")):
        assert worst(several[case], single[case]) < (1e-5, ""), case


@pytest.mark.parametrize("ranks", RANKS)
def test_one_step_of_descent_under_deepspeed_moves_by_the_float64_gradient(
    results: Callable[[int], Results], ranks: int
) -> None:
    from engine.models import clip

    before: dict[str, Any] = dict(clip.build("test-vit", 1).named_parameters())
    grads = results(1)["float64 cleanclip test-vit micro None"]
    after = results(ranks)["zero 3 cleanclip test-vit micro 8"]
    for name, parameter in before.items():
        assert torch.allclose(parameter.detach() - after[name], grads[name].float(), atol=1e-5), name


@pytest.mark.parametrize("ranks", RANKS)
def test_published_gathering_gives_the_towers_one_over_w_and_the_scale_all(
    results: Callable[[int], Results], ranks: int
) -> None:
    whole = results(1)["published"]
    for name, value in results(ranks)["published"].items():
        share = ranks if name.startswith("clip.") else 1
        assert torch.allclose(value * share, whole[name], atol=1e-10), name
