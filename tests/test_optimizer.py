"""The schedule never rises after warm-up; gains, biases and positions never decay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.stage import Optimizer, Stage
from data.refusal import UserError
from engine.models import clip
from engine.training import optimizer
from engine.training.optimizer import adamw, decays, rate_at


@given(st.integers(1, 400), st.integers(0, 500), st.floats(1e-9, 10))
def test_the_rate_rises_through_warm_up_and_never_after(steps: int, warmup: int, rate: float) -> None:
    section = Optimizer(rate=rate, warmup=warmup)
    rates = [rate_at(step, steps, section) for step in range(steps)]
    top = min(warmup, steps)
    assert all(a <= b for a, b in zip(rates[:top], rates[1:top], strict=False))
    assert all(a >= b for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert all(0 <= value <= rate * (1 + 1e-12) for value in rates)


def test_rates_by_hand() -> None:
    section = Optimizer(rate=2.0, warmup=4)
    assert [rate_at(step, 8, section) for step in (0, 3, 4)] == [0.5, 2.0, 2.0]
    assert rate_at(6, 8, section) == pytest.approx(1.0)
    assert rate_at(8, 8, section) == 0.0


@pytest.mark.parametrize("name", ["test-vit", "demo-resnet"])
def test_what_decays(name: str) -> None:
    towers = clip.build(name, 0)
    for key, parameter in towers.named_parameters():
        if key.endswith("bias") or ".ln_" in key or ".bn" in key or "positional" in key or "class_embedding" in key:
            assert not decays(key, parameter), key
    with_decay, without = optimizer.groups(towers, Optimizer(rate=1.0, decay=0.3))
    assert with_decay["weight_decay"] == 0.3
    assert without["weight_decay"] == 0
    assert len(with_decay["params"]) + len(without["params"]) == len(list(towers.parameters()))
    assert with_decay["params"]


def test_auto_is_torchs_fused_adamw_on_a_cpu_and_what_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    section, cpu = Optimizer(rate=1.0), torch.device("cpu")
    parameter = torch.nn.Parameter(torch.ones(3))
    stepper, name = adamw("auto", [parameter], section, cpu)
    assert name == "torch_fused"
    assert stepper.defaults["fused"]
    parameter.grad = torch.ones(3)
    stepper.step()
    plain = torch.nn.Parameter(torch.ones(3))
    other, _ = adamw("torch", [plain], section, cpu)
    plain.grad = torch.ones(3)
    other.step()
    assert torch.allclose(parameter, plain)
    monkeypatch.setitem(__import__("sys").modules, "deepspeed.ops.adam", None)
    with pytest.raises(UserError, match="machine.adam is 'deepspeed_cpu', which does not work here .* use auto"):
        adamw("deepspeed_cpu", [parameter], section, cpu)


def test_a_path_needs_weights_to_go_back_to_and_changes_no_older_fingerprint() -> None:
    assert "path" not in Optimizer(rate=1.0).model_dump()
    fields = {"objective": {"kind": "mmcl"}, "epochs": 1, "batch": 4, "optimizer": {"rate": 1.0, "path": {"rho": 0.5}}}
    assert Stage.model_validate(fields).model_dump()["optimizer"]["path"] == {"rho": 0.5}
    for kind, words in (
        ("fresh", "leaves nothing of the start; leave it out"),
        ("fine_prune", "would bring back the neurons"),
    ):
        with pytest.raises(ValidationError, match=words):
            Stage.model_validate(fields | {"transform": {"kind": kind}})
