"""Weights are refused by a model that computes another function, even where tensors fit: tags, open_clip's folders, runs."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from conftest import antidote, settings
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import save_file

from configs.stage import Optimizer
from data.refusal import UserError
from engine.audit import main as audit
from engine.inversion.subject import load_subject
from engine.models import clip
from engine.training.init_weights import check_start
from records.card import Card

QUICK = {"quick_gelu": True}
OTHER = {  # what a configuration beside test-vit's weights says, and the field that is named
    "QuickGELU": (QUICK, "quick_gelu true"),
    "heads": ({"text_cfg": {"heads": 4}}, "text_cfg.heads 4 (of test-vit: 2)"),
    "head width": ({"vision_cfg": {"head_width": 8}}, "vision_cfg.head_width 8 (of test-vit: 16)"),
    "pooling": ({"vision_cfg": {"pool_type": "avg"}}, 'vision_cfg.pool_type "avg" (of test-vit: "tok")'),
    "mask": ({"text_cfg": {"no_causal_mask": True}}, "text_cfg.no_causal_mask true"),
    "unknown": ({"vision_cfg": {"of_next_year": 1}}, "vision_cfg.of_next_year 1 (of test-vit: null)"),
}
SAME: dict[str, dict[str, Any]] = {  # defaults that are written out, fields of training alone, other sections
    "defaults": {"vision_cfg": {"mlp_ratio": 4.0, "pool_type": "tok"}, "text_cfg": {"no_causal_mask": False}},
    "training": {"vision_cfg": {"patch_dropout": 0.5}, "init_logit_bias": -10.0, "quick_gelu": False},
    "nothing": {},
}


def configuration(change: dict[str, Any]) -> dict[str, Any]:
    """test-vit's configuration with some fields changed."""
    config = clip.model_config("test-vit")
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    return config


def folder_with(path: Path, config: Any) -> Path:
    """A folder of open_clip's with test-vit's weights and this configuration."""
    path.mkdir()
    save_file(clip.weights(clip.build("test-vit", 0), {}), path / "open_clip_model.safetensors")
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return path / "open_clip_model.safetensors"


def test_every_tag_is_taken_by_the_models_that_compute_what_it_was_trained_with() -> None:
    refused = 0
    for name, tag in open_clip.list_pretrained():
        config = get_pretrained_cfg(name, tag)
        if (config["resize_mode"], config["interpolation"]) != ("shortest", "bicubic"):
            continue  # refused for that
        if config.get("quick_gelu") and not open_clip.get_model_config(name).get("quick_gelu"):
            refused += 1
            with pytest.raises(UserError, match=f"use the model {name}-quickgelu$"):
                clip.check_tag(name, tag)
            clip.check_tag(f"{name}-quickgelu", tag)
        else:
            clip.check_tag(name, tag)
    assert refused > 20


@pytest.mark.parametrize("case", OTHER)
def test_a_folder_of_another_function_is_refused_by_a_start_and_by_an_audit(case: str, tmp_path: Path) -> None:
    change, told = OTHER[case]
    weights = folder_with(tmp_path / "theirs", configuration(change))
    for read in (
        lambda: check_start(weights, "test-vit", Optimizer(rate=1)),
        lambda: load_subject(str(weights), "test-vit", torch.device("cpu")),
    ):
        with pytest.raises(UserError) as error:
            read()
        assert f"was trained with {told}" in str(error.value)
        assert "as configs/models/NAME.json" in str(error.value)


@pytest.mark.parametrize("case", SAME)
def test_a_folder_of_the_same_function_is_taken(case: str, tmp_path: Path) -> None:
    check_start(folder_with(tmp_path / "theirs", configuration(SAME[case])), "test-vit", Optimizer(rate=1))


@pytest.mark.parametrize("config", [[1], 5, {"vision_cfg": []}, {"text_cfg": "x"}])
def test_a_configuration_that_is_none_is_refused(config: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of open_clip's|no configuration of open_clip's"):
        check_start(folder_with(tmp_path / "theirs", config), "test-vit", Optimizer(rate=1))


def test_a_run_of_another_function_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's card names its model."""
    clip.add_models(_own(tmp_path / "models", "test-vit-quick", configuration(QUICK)))
    weights = tmp_path / "weights.safetensors"
    save_file(clip.weights(clip.build("test-vit", 0), {}), weights)
    monkeypatch.setattr(Card, "read", lambda folder: SimpleNamespace(model="test-vit-quick"))
    check_start(weights, "test-vit-quick", Optimizer(rate=1))
    with pytest.raises(UserError, match=r"quick_gelu true \(of test-vit: false\).* use the model test-vit-quick$"):
        check_start(weights, "test-vit", Optimizer(rate=1))


def _own(folder: Path, name: str, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / f"{name}.json").write_text(json.dumps(config))
    return folder


def test_the_commands_say_so_in_one_sentence(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path / "theirs", configuration(QUICK)).parent
    out = antidote("--spec", spec.name, "--stage", "clean", *settings(f"clean.start.path={folder}"), cwd=spec.parent)
    assert out.returncode == 2
    assert "was trained with quick_gelu true (of test-vit: false)" in out.stderr
    assert "Traceback" not in out.stderr
    assert audit([str(folder), "--model", "test-vit", "--images", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "was trained with quick_gelu true" in capsys.readouterr().err
