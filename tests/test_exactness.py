"""Loss, every gradient and BatchNorm's running statistics: equal on 1, 2, 3, 4 ranks, in any micro-batch, at any ZeRO
stage."""

import sys
from typing import Any

import forked
import pytest
import torch
from conftest import ROOT, environment

Results = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Results]:
    """What tests/exactness.py computes on 1 to 4 ranks."""
    out: dict[int, Results] = {}
    folder = tmp_path_factory.mktemp("exactness")
    for ranks in (1, 2, 3, 4):
        path = folder / f"{ranks}.pt"
        command = [sys.executable, str(ROOT / "tests/exactness.py"), str(path)]
        done = forked.run_ranks(command, ranks, 400, env=environment(OMP_NUM_THREADS="1"))
        assert done.returncode == 0, done.stderr[-3000:]
        out[ranks] = torch.load(path, weights_only=True)
    return out


def worst(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> tuple[float, str]:
    """(largest difference of an entry over the tensor's largest, or over 1 if that is smaller; the tensor's name)."""
    assert got.keys() == want.keys()
    return max(((got[name] - of).abs().max().item() / max(1.0, of.abs().max().item()), name) for name, of in want.items())


@pytest.mark.timeout(900)
def test_float64_is_equal_to_1e_10_on_any_number_of_ranks_in_any_micro_batch(results: dict[int, Results]) -> None:
    cases = [case for case in results[1] if case.startswith("float64")]
    assert len(cases) == 48
    for case in cases:
        kind, model = case.split()[1:3]
        want = results[1][f"float64 {kind} {model} micro None"]
        assert any(value.abs().max() > 1e-3 for name, value in want.items() if name.startswith("clip."))
        for ranks, found in results.items():
            assert case not in found or worst(found[case], want) < (1e-10, ""), (case, ranks)
    assert all(sum(case.startswith("float64") for case in found) >= 26 for found in results.values())


@pytest.mark.timeout(900)
def test_deepspeed_is_equal_to_1e_5_at_every_stage(results: dict[int, Results]) -> None:
    for model in ("test-vit", "test-resnet"):
        want = results[1][f"zero 0 cleanclip {model} micro None"]
        cases = [case for case in results[1] if case.startswith("zero") and f"cleanclip {model}" in case]
        assert len(cases) >= 8
        for case in cases:
            for ranks, found in results.items():
                assert worst(found[case], want) < (1e-5, ""), (case, ranks)
    for case in (case for case in results[1] if case.startswith("zero 1") and case.endswith("test-vit")):
        for ranks, found in results.items():
            assert worst(found[case], results[1][case]) < (1e-5, ""), (case, ranks)


@pytest.mark.timeout(900)
def test_one_step_of_descent_under_deepspeed_moves_by_the_float64_gradient(results: dict[int, Results]) -> None:
    from engine.models import clip

    before: dict[str, Any] = dict(clip.build("test-vit", 1).named_parameters())
    grads, after = results[1]["float64 cleanclip test-vit micro None"], results[4]["zero 3 cleanclip test-vit micro 8"]
    for name, parameter in before.items():
        assert torch.allclose(parameter.detach() - after[name], grads[name].float(), atol=1e-5), name


@pytest.mark.timeout(900)
def test_published_gathering_gives_the_towers_one_over_w_and_the_scale_all(results: dict[int, Results]) -> None:
    whole = results[1]["published"]
    for ranks, found in results.items():
        for name, value in found["published"].items():
            share = ranks if name.startswith("clip.") else 1
            assert torch.allclose(value * share, whole[name], atol=1e-10), (name, ranks)
