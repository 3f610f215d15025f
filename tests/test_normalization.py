"""How pictures are normalised follows the weights: tags and folders of open_clip's, runs of ours, exports."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import antidote, journals, settings
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import save_file

from data.refusal import UserError
from engine.models import clip
from engine.models.normalization import Normalization, from_config, of_file
from engine.training.init_weights import load_start

HALVES = Normalization((0.5,) * 3, (0.5,) * 3)


def test_every_tag_of_open_clips_is_normalised_as_it_says_or_refused() -> None:
    refused = 0
    for name, tag in open_clip.list_pretrained():
        config = get_pretrained_cfg(name, tag)
        if (config["resize_mode"], config["interpolation"]) != ("shortest", "bicubic"):
            with pytest.raises(UserError, match=f"start.pretrained '{tag}' takes pictures that open_clip resizes by"):
                clip.check_tag(name, tag)
            refused += 1
        else:
            assert clip.tag_normalization(name, tag) == (config["mean"], config["std"])
    assert refused > 20
    assert clip.tag_normalization("RN50", "openai") == Normalization()
    assert clip.tag_normalization("ViT-L-14", "laion2b_s32b_b82k") == HALVES


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"mean": [0.5, 0.5], "std": [1, 1, 1]}, "expected three numbers each"),
        ({"mean": "0.5", "std": [1, 1, 1]}, "expected three numbers each"),
        ({"mean": [0.5, 0.5, float("nan")], "std": [1, 1, 1]}, "expected three numbers each"),
        ({"mean": [0.5, 0.5, None], "std": [1, 1, 1]}, "expected three numbers each"),
        ({"mean": [0.5, 0.5, 0.5], "std": [1, 0, 1]}, "expected numbers above 0"),
        ({"resize_mode": "squash"}, "resizes by 'squash' with a bicubic filter"),
        ({"interpolation": "bilinear"}, "resizes by 'shortest' with a bilinear filter"),
    ],
)
def test_what_can_not_be_followed_is_refused(config: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        from_config(config, "weights")
    save_file({}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": config}))
    with pytest.raises(UserError, match=words):
        of_file(tmp_path / "open_clip_model.safetensors")
    for text in ("", "[]", "{", "[" * 100_000):
        (tmp_path / "open_clip_config.json").write_text(text)
        with pytest.raises(UserError, match="is no configuration of open_clip's"):
            of_file(tmp_path / "open_clip_model.safetensors")


def test_rows_are_open_clips_under_other_numbers_and_an_export_keeps_them(spec: Path, tmp_path: Path) -> None:
    """An open_clip folder with its own mean and deviation: cleaned, exported, and read by open_clip again."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    reference = open_clip.create_model("test-vit")
    save_file(reference.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": clip.model_config("test-vit"), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    towers = clip.build("test-vit", 0)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    load_start(towers, folder / "open_clip_model.safetensors", "test-vit")
    towers.normalize(of_file(folder / "open_clip_model.safetensors"))
    theirs = reference.eval().encode_image((images / 255 - 0.5) / 0.5, normalize=True)
    assert torch.allclose(towers.eval()(images, None)[0], theirs, atol=1e-6)

    sets = [f"clean.start.path={folder}", "clean.epochs=1"]
    out = antidote("--spec", spec.name, "--stage", "clean", *settings(*sets), cwd=spec.parent)
    assert out.returncode == 0, out.stderr
    (run,) = (spec.parent / "runs/tiny").glob("clean-*")
    assert of_file(run / "weights.safetensors") == HALVES
    again = clip.build("test-vit", 0)
    clip.load_weights(again, run / "weights.safetensors")
    assert again.normalization == HALVES
    assert json.loads(clip.export_config("test-vit", run / "weights.safetensors"))["preprocess_cfg"] == {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    assert journals(spec.parent / "runs/tiny")
