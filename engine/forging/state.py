"""How far a forging has come, kept beside the trigger's file from epoch to epoch: the same command goes on from there, and
ends with the same trigger as one that was never stopped."""

import json
from pathlib import Path
from typing import NamedTuple

import torch

from data.disk import writing
from data.refusal import UserError
from records.json_file import write_whole

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # as torch's Adam names them


class Point(NamedTuple):
    """Where a forging stood at an epoch's end."""

    values: torch.Tensor  # of the pattern
    moments: dict[str, torch.Tensor]  # Adam's
    history: list[dict[str, float]]  # an entry for each epoch


class State:
    """The file of a forging known by a `key`, the digest of all that decides it."""

    def __init__(self, out: Path, key: str) -> None:
        self.path, self.key = out.with_name(f".{out.name}.partial"), key

    def read(self) -> Point | None:
        """Where an earlier launch stood; None if there was none. UserError if it was of another forging, or is damaged."""
        if not self.path.is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                said = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in ("values", *MOMENTS)}
                history = list(json.loads(said["history"]))
        except (SafetensorError, KeyError, ValueError, TypeError):
            raise UserError(f"{self.path} is damaged; delete it, and the forging begins anew") from None
        if said.get("key") != self.key:
            raise UserError(f"{self.path} is of another forging, not finished; give that command again, or delete the file")
        return Point(tensors.pop("values"), tensors, history)

    def write(self, point: Point) -> None:
        """Keeps it, whole or not at all."""
        from safetensors.torch import save

        tensors = {"values": point.values, **point.moments}
        body = save(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            {"key": self.key, "history": json.dumps(point.history)},
        )
        with writing(self.path.parent, "how far the forging has come"):
            write_whole(self.path, body)

    def end(self) -> None:
        """Takes the file away: the trigger is written."""
        self.path.unlink(missing_ok=True)
