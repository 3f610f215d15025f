"""Evaluation is shared over ranks and counts every picture once."""

from pathlib import Path

import pytest
import torch

from configs.spec import load
from engine import evaluate, model
from engine.world import World


def alone(rank: int, size: int) -> World:
    return World(rank, size, 0, 1, torch.device("cpu"))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 7])
def test_ranks_share_the_pictures_evenly_and_each_is_counted_once(spec: Path, ranks: int) -> None:
    loaded = load(spec).spec
    parts = [evaluate.examinations(loaded, alone(rank, ranks))[0] for rank in range(ranks)]
    rows = [row for part in parts for row in part.mine]
    assert rows[:64] == list(range(64))
    assert len({len(part.mine) for part in parts}) == 1


def test_numbers_do_not_depend_on_the_batch_and_the_mode_is_kept(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(spec).spec
    towers, tokenize = model.build("test-vit", 0), model.Tokenizer("test-vit")
    towers.train()
    sets = evaluate.examinations(loaded, alone(0, 1))
    whole = evaluate.evaluate(towers, tokenize, sets, alone(0, 1), 256)
    assert evaluate.evaluate(towers, tokenize, sets, alone(0, 1), 7) == whole
    assert towers.training
    monkeypatch.setattr(evaluate, "HOLD", 0)  # too many pictures to keep: decoded each time
    again = evaluate.examinations(loaded, alone(0, 1))
    assert again[0].held is None
    assert evaluate.evaluate(towers, tokenize, again, alone(0, 1), 256) == whole
    assert whole[0]["images"] == "tiny"
    assert set(whole[0]) == {"images", "top1", "asr"}


def test_pictures_with_the_trigger_are_the_clean_ones_with_a_patch(spec: Path) -> None:
    loaded = load(spec).spec
    clean, marked = evaluate.examinations(loaded, alone(0, 1))[0].pictures([0, 1, 2])
    changed = (clean != marked[0]).any(1).flatten(1).sum(1)
    assert ((changed > 0) & (changed <= 4)).all()  # 16 of 224 pixels is 2 of 32
