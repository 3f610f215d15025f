"""A run's numbers: metrics.jsonl, TensorBoard and the progress line say the same. The only door to tensorboard.

The journal is the truth and TensorBoard its picture. A checkpoint records how long the journal was (`committed_bytes`);
resuming cuts it there, so that a run killed at any moment ends with the same rows as one that was not.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from data.progress import Progress
from records.lines import read_lines, seal
from records.rows import FILE, MeasureRow, in_words, row_of
from records.study_json import RunEntry

UNDRAWN = ("step", "epoch", "pictures", "others", "classes", "anew")  # numbers of a row that are no curves
SAID = ("seed", "cleaner", "clean.optimizer.rate", "pretrain.optimizer.rate")  # swept settings with a name of their own


class Journal:
    """Rows of a run that has `steps` steps; does nothing on ranks other than the first."""

    def __init__(self, folder: Path, run: RunEntry, steps: int, start: int, length: int, first: bool) -> None:
        """Goes on at step `start`, after the first `length` bytes of an earlier journal."""
        self.first, self.steps = first, steps
        if not first:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = folder / FILE
        path.touch()
        os.truncate(path, length)
        self.last_digest = read_lines(path).last
        self.run, self.group = run, "pre-training" if run.stage != "clean" else "after" if run.after else "cleaning"
        board, earlier = folder.parent / "tensorboard" / board_name(run), folder.parent / "tensorboard" / folder.name
        if earlier.is_dir() and not board.exists():  # as runs of before November 2026 were named
            board.parent.mkdir(parents=True, exist_ok=True)
            earlier.rename(board)
        self.board: Any = SummaryWriter(str(board), purge_step=start + 1 if start else None)
        self.file = path.open("a", encoding="utf-8")
        self.progress = Progress(run.title, "steps", start, quiet=0)
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
            if name not in UNDRAWN and isinstance(value, int | float):
                tag = self._tag(in_words(name, numbers.get("targets")), numbers.get("images"))
                self.board.add_scalar(tag, value, numbers["step"])
        self._show(kind, numbers)

    def _tag(self, name: str, images: str | None) -> str:
        """What TensorBoard calls a number: pre-training, with the twin's, cleaning, and what comes after are groups of their
        own."""
        return "/".join(part for part in (self.group, images, name) if part)

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

    def hparams(self, measures: Sequence[MeasureRow]) -> None:
        """What was set and what came out, for TensorBoard's table of runs; results are the curves' own tags."""
        if not self.first:
            return
        from torch.utils.tensorboard.summary import hparams

        last = {row.images: row for row in measures}
        results = {
            self._tag(in_words(name, row.targets), images): value
            for images, row in last.items()
            for name, value in row.numbers().items()
            if name not in UNDRAWN and name != "seconds"
        }
        summaries: Any = hparams
        for summary in summaries(settings_of(self.run), results):
            self.board.file_writer.add_summary(summary)

    def close(self) -> None:
        """Flushes and closes everything, each part whatever is wrong with another: on a full disk flushing fails too."""
        if self.first:
            with ExitStack() as ends:
                ends.callback(self.board.close)
                ends.callback(self.file.close)
                ends.callback(self.progress.end)


def board_name(run: RunEntry) -> str:
    """What TensorBoard calls a run: its stage, objective, cleaner and rate, and the beginning of its fingerprint, such as
    clean/mmcl/CleanCLIP/rate=3e-3-b72d65; of one that probes a cleaned model after, and how, in the stage's place."""
    rate = "" if run.rate is None else f"rate={np.format_float_scientific(run.rate, trim='-', exp_digits=1)}-"
    stage = run.stage if run.after is None else f"after-{run.after.kind}{'-twin' * run.after.twin}"
    parts = [stage, run.pretrain_objective, *([run.cleaner] if run.cleaner else [])]
    plain = [re.sub(r"[^\w+=-]+", "_", part)[:60] or "_" for part in parts]
    return "/".join([*plain, f"{rate}{run.run.rpartition('-')[2][:6]}"])


def settings_of(run: RunEntry) -> dict[str, bool | int | float | str]:
    """What sets a run apart, by short names: stage, objective, cleaner, rate, seed, other swept settings of one value."""
    whole = {"stage": run.stage, "pre-training": run.pretrain_objective, "cleaner": run.cleaner or "", "seed": run.seed}
    swept = {name: value for name, value in run.swept.items() if isinstance(value, bool | int | float | str)}
    others = {".".join(name.split(".")[-2:]): value for name, value in swept.items() if name not in SAID}
    return {name: value for name, value in {**whole, "rate": run.rate, **others}.items() if value is not None}


def show_report(board: Path, pictures: Mapping[str, Path], said: Sequence[str]) -> None:
    """Puts PNG files by their names, and sentences, into TensorBoard."""
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(board))
    with closing(writer):
        for name, picture in pictures.items():
            writer.add_image(name, np.asarray(Image.open(picture).convert("RGB")), 0, dataformats="HWC")
        writer.add_text("verdict", "\n\n".join(said))
