"""A run's numbers: metrics.jsonl, TensorBoard and the progress line say the same. The only door to tensorboard.

The journal is the truth and TensorBoard its picture. A checkpoint records how long the journal was (`committed_bytes`);
resuming cuts it there, so that a run killed at any moment ends with the same rows as one that was not.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from records.rows import FILE


class Journal:
    """Rows of a run that has `steps` steps; does nothing on ranks other than the first."""

    def __init__(self, folder: Path, title: str, steps: int, start: int, length: int, first: bool) -> None:
        """Goes on at step `start`, after the first `length` bytes of an earlier journal."""
        self.first, self.title, self.steps = first, title, steps
        if not first:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = folder / FILE
        path.touch()
        os.truncate(path, length)
        self.file = path.open("a", encoding="utf-8")
        board = folder.parent / "tensorboard" / folder.name
        self.board: Any = SummaryWriter(str(board), purge_step=start + 1 if start else None)
        self.progress = Progress(title, steps, start)

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
        self.file.write(json.dumps({"kind": kind, **numbers}) + "\n")
        self.file.flush()
        for name, value in numbers.items():
            if name not in ("step", "epoch") and isinstance(value, int | float):
                tag = f"{numbers['images']}/{name}" if "images" in numbers else f"train/{name}"
                self.board.add_scalar(tag, value, numbers["step"])
        self.progress.show(kind, numbers)

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


class Progress:
    """A bar on a terminal, a line now and then elsewhere: loss, pairs/s, time left."""

    EVERY = 10.0  # seconds between lines where there is no terminal

    def __init__(self, title: str, steps: int, start: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.title, self.steps, self.begun, self.start, self.said = title, steps, time.monotonic(), start, 0.0
        self.words, self.measured = "", ""
        self.told: set[str] = set()  # the sets of pictures whose costs were told
        self.bars: Bars | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
            )
            tail = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[words]}", markup=False))
            self.bars = Bars(*columns, *tail, console=Console(stderr=True))
            self.task = self.bars.add_task(title, total=steps, completed=start, words="")
            self.bars.start()

    def show(self, kind: str, numbers: dict[str, Any]) -> None:
        """Takes a row of the journal."""
        step = int(numbers["step"])
        if kind == "measure":
            self.measured = " ".join(f"{k} {100 * numbers[k]:.1f} %" for k in ("top1", "asr") if k in numbers)
            self._tell_costs(numbers)
        elif kind == "bad":
            self.words = f"{numbers['bad_steps']} steps without a finite loss"
        else:
            self.words = f"loss {numbers['loss']:.3f}, {numbers.get('pairs_per_s', 0):,.0f} pairs/s"
        words = ", ".join(text for text in (self.words, self.measured) if text)
        if self.bars is not None:
            self.bars.update(self.task, completed=step, words=words)
            return
        now = time.monotonic()
        if now - self.said >= self.EVERY or kind == "measure" and step == self.steps:
            self.said = now
            left = (now - self.begun) / max(1, step - self.start) * (self.steps - step)
            words += f", {left:,.0f} s left" if step > self.start else ""
            print(f"{self.title}: step {step}/{self.steps}, {words}", file=sys.stderr, flush=True)

    def _tell_costs(self, numbers: dict[str, Any]) -> None:
        """Says once for each set of pictures what measuring them takes."""
        if "costs" not in numbers or numbers["images"] in self.told:
            return
        self.told.add(numbers["images"])
        parts = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in numbers["costs"].items())
        words = f"{self.title}: measuring {numbers['images']} takes {parts}"
        if self.bars is not None:
            self.bars.console.print(words, markup=False, highlight=False)
        else:
            print(words, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Takes the bar off."""
        if self.bars is not None:
            self.bars.stop()


def show_report(board: Path, pictures: Mapping[str, Path], said: Sequence[str]) -> None:
    """Puts PNG files by their names, and sentences, into TensorBoard."""
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(board))
    for name, picture in pictures.items():
        writer.add_image(name, np.asarray(Image.open(picture).convert("RGB")), 0, dataformats="HWC")
    writer.add_text("verdict", "\n\n".join(said))
    writer.close()
