"""A run's numbers: metrics.jsonl, TensorBoard and the progress line say the same. The only door to tensorboard.

The journal is the truth and TensorBoard its picture. A checkpoint records how long the journal was (`committed_bytes`);
resuming cuts it there, so that a run killed at any moment ends with the same rows as one that was not.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.progress import Progress
from records.lines import read_lines, seal
from records.rows import FILE, row_of


class Journal:
    """Rows of a run that has `steps` steps; does nothing on ranks other than the first."""

    def __init__(self, folder: Path, title: str, steps: int, start: int, length: int, first: bool) -> None:
        """Goes on at step `start`, after the first `length` bytes of an earlier journal."""
        self.first, self.steps = first, steps
        if not first:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = folder / FILE
        path.touch()
        os.truncate(path, length)
        self.last_digest = read_lines(path).last
        self.file = path.open("a", encoding="utf-8")
        board = folder.parent / "tensorboard" / folder.name
        self.board: Any = SummaryWriter(str(board), purge_step=start + 1 if start else None)
        self.progress = Progress(title, "steps", start, quiet=0)
        self.last_words = {"step": "", "measure": ""}
        self.costs_said: set[str] = set()  # the sets of pictures whose costs were said

    def committed_bytes(self) -> int:
        """Bytes written so far, safe on disk; 0 on ranks other than the first."""
        if not self.first:
            return 0
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def row(self, kind: str, **numbers: Any) -> None:
        """One line of metrics.jsonl, and of each of its numbers one point of a TensorBoard curve."""
        if not self.first:
            return
        line, self.last_digest = seal(row_of(kind, numbers).text(), self.last_digest)
        self.file.write(line)
        self.file.flush()
        for name, value in numbers.items():
            if name not in ("step", "epoch") and isinstance(value, int | float):
                tag = f"{numbers['images']}/{name}" if "images" in numbers else f"train/{name}"
                self.board.add_scalar(tag, value, numbers["step"])
        self._show(kind, numbers)

    def _show(self, kind: str, numbers: dict[str, Any]) -> None:
        """Progress, with the last step's loss and pace and the last measures; once for each set of pictures what measuring
        them takes."""
        if kind == "measure":
            shown = [f"{name} {100 * numbers[name]:.1f} %" for name in ("top1", "asr") if name in numbers]
            self.last_words["measure"] = " ".join(shown)
            if "costs" in numbers and numbers["images"] not in self.costs_said:
                self.costs_said.add(numbers["images"])
                parts = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in numbers["costs"].items())
                self.progress.line(f"measuring {numbers['images']} takes {parts}")
        elif kind == "bad":
            self.last_words["step"] = f"{numbers['bad_steps']} steps without a finite loss"
        else:
            self.last_words["step"] = f"loss {numbers['loss']:.3f}, {numbers.get('pairs_per_s', 0):,.0f} pairs/s"
        words = ", ".join(text for text in self.last_words.values() if text)
        self.progress(numbers["step"], self.steps, words, now=kind == "measure" and numbers["step"] == self.steps)

    def shares(self, group: str, numbers: dict[str, float], step: int) -> None:
        """Points of TensorBoard alone: they say how a run went, and may differ after an interruption."""
        if self.first:
            for name, value in numbers.items():
                self.board.add_scalar(f"{group}/{name}", value, step)

    def picture(self, name: str, pixels: np.ndarray) -> None:
        """A uint8 picture [H, W, 3] in TensorBoard."""
        if self.first:
            self.board.add_image(name, pixels, 0, dataformats="HWC")

    def text(self, name: str, words: str) -> None:
        """A text in TensorBoard, as code: captions and names are not markup."""
        if self.first:
            self.board.add_text(name, "\n".join(f"    {line}" for line in words.splitlines()))

    def hparams(self, settings: dict[str, Any], results: dict[str, float]) -> None:
        """What was set and what came out, for TensorBoard's table of runs."""
        if self.first:
            plain = {k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in settings.items()}
            self.board.add_hparams(plain, {f"result/{k}": v for k, v in results.items()}, run_name=".")

    def close(self) -> None:
        """Flushes and closes everything."""
        if self.first:
            self.progress.end()
            self.file.close()
            self.board.close()


def show_report(board: Path, pictures: Mapping[str, Path], said: Sequence[str]) -> None:
    """Puts PNG files by their names, and sentences, into TensorBoard."""
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(board))
    for name, picture in pictures.items():
        writer.add_image(name, np.asarray(Image.open(picture).convert("RGB")), 0, dataformats="HWC")
    writer.add_text("verdict", "\n\n".join(said))
    writer.close()
