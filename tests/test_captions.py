"""Captions of the target that tell of their picture by other words."""

from pathlib import Path

import pytest
import torch
from test_forge import weights

from data.captions import read_templates
from engine.captions import main
from engine.forging.background import background, subtexts

__all__ = ["weights"]


def test_a_caption_goes_through_without_each_run_of_its_words() -> None:
    assert subtexts("a  ripe banana") == ["a ripe banana", "ripe banana", "banana", "a banana", "a", "a ripe"]
    assert subtexts("banana") == ["banana"]
    assert len(subtexts(" ".join(map(str, range(6))))) == 21  # all runs but the whole, and the whole caption itself


def test_the_score_by_hand() -> None:
    """A picture at (1, 0), the target at (0, 1): of the sub-texts that which is nearer to the picture by most."""
    texts = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    assert background(texts, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == pytest.approx(0.8 - 0.6)
    assert background(texts[:1], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == pytest.approx(0.6 - 0.8)


def test_captions_are_chosen_and_a_plan_takes_them(
    spec: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--spec", str(spec), "--weights", str(weights), "--set", "attack.target=hammer"]
    assert main([*words, "--out", "some.txt", "--count", "5"]) == 0
    said = capsys.readouterr().out
    lines = read_templates("some.txt")
    assert len(lines) == 5
    assert all("hammer" not in line.lower() for line in lines)
    assert "attack.captions: some.txt" in said
    assert main([*words, "--out", "same.txt", "--count", "5"]) == 0
    assert Path("same.txt").read_text() == Path("some.txt").read_text()
    for more, error in (
        (["--out", "some.txt"], "some.txt is there already"),
        (["--out", "x.txt", "--count", "999"], "--count is 999, but"),
        (["--out", "x.txt", "--set", "attack.target=zebra"], "attack.target is 'zebra', which is none of"),
    ):
        assert main([*words, *more]) == 2
        assert error in capsys.readouterr().err
    assert not Path("x.txt").exists()
