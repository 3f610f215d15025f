"""The same tensors and the same metadata are the same bytes: a file's digest stands in the fingerprint of what reads it."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load, save

from data.tensor_file import settle
from engine.training.checkpoint import write_file

METADATA = {"target": 'a "fleur de lys" \\ é\n\x7f', "made_by": "x", "mean": "[0.5]", "std": "[1]"}
PARTS = {"trigger": np.arange(6, dtype=np.float32).reshape(2, 3), "mask": np.ones(3, np.float16)}


@pytest.mark.parametrize("metadata", [METADATA, {"one": "x"}, None])
def test_a_file_is_the_same_bytes_however_often_it_is_made(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    made = set()
    for _ in range(20):  # of a file that is not settled, one of 24 orders each time
        file = BytesIO(save(PARTS, metadata))
        settle(file)
        made.add(file.getvalue())
    (body,) = made
    assert all((value == PARTS[name]).all() for name, value in load(body).items())
    (tmp_path / "a.safetensors").write_bytes(body)
    with safe_open(tmp_path / "a.safetensors", "np") as read:
        assert read.metadata() == metadata
    if len(metadata or ()) < 2:
        assert body == save(PARTS, metadata), "as it always was"


def test_weights_that_say_how_pictures_are_normalised_are_the_same_bytes(tmp_path: Path) -> None:
    said = {"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"}
    for number in range(12):
        write_file(tmp_path / f"{number}.safetensors", {"w": torch.ones(2)}, said)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
