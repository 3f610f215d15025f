"""A finished run and a stopped one as the engine leaves them, without training; how a file is damaged; what reads them."""

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import samples
import torch
from PIL import Image
from safetensors.torch import save_file

from configs.plan import Run
from configs.spec import Loaded
from data.refusal import UserError
from engine.export import export
from engine.models import clip
from engine.study import lock
from engine.study.check import refuse_changed
from engine.study.reuse import reuse_finished_runs
from engine.study.scheduler import Scheduler
from engine.study.status import StatusReader
from engine.training import checkpoint, init_weights, outputs
from engine.training.loss_core import _name as core_name
from engine.training.tensor_files import TensorFiles
from records.card import Card
from records.digests import forget
from records.ending import FinishedJson, verify_files
from records.folder import WEIGHTS
from records.json_file import write_json
from records.lines import seal
from records.manifest import Manifest
from records.rows import FILE, read_rows, row_of
from records.skipped import SkippedPair, read_skipped, write_skipped
from report.load import read_study
from report.verdict import make_report

STEPS = 12
Seen = dict[str, Any]  # what each reader has read


def make(study: Path, loaded: Loaded) -> None:
    """A study of one finished pre-training and one cleaning that stopped after its second checkpoint."""
    scheduler = Scheduler.of(loaded, study, None)
    study.mkdir(parents=True)
    scheduler.write_study_json("python engine/run.py")
    first, last = scheduler.runs
    _begin(study / first.folder, first)
    state = clip.weights(clip.build("test-vit", 0), {"scale": torch.ones(1)})
    save_file({name: value for name, value in state.items() if "resblocks" not in name}, study / first.folder / WEIGHTS)
    save_file({"visual.proj/exp_avg": torch.rand(40)}, study / first.folder / init_weights.BESIDE)
    _end(study / first.folder, first)
    home, marks = study / last.folder, _begin(study / last.folder, last)
    for step in (8, STEPS):
        facts = {"data": "0", "zero": 0, "world": 1, "versions": {"torch": "1"}, "spent": {"seconds": 2.5}}
        manifest = Manifest(step=step, journal=marks[step], spec=last.decides, **facts)  # type: ignore[arg-type]
        files = {"weights-0000-00.safetensors": {"visual.proj": torch.rand(30)}, "learner.safetensors": {"a": torch.ones(2)}}
        checkpoint.save(home / "checkpoints", manifest, files)
    content = {"host": "elsewhere", "machine": "x", "pid": 1, "began": 0.5, "since": "then"}
    write_json(home / "claim.1", content)


def _begin(home: Path, run: Run) -> list[int]:
    """The files of a run that has taken its steps; the length of its journal before each step."""
    home.mkdir()
    write_json(home / "spec.json", run.decides)
    Card.model_validate(samples.card(run=run.folder, stage=run.stage, title=run.title)).write(home)
    marks, last = [], ""
    with (home / FILE).open("w") as file:
        for step in range(STEPS):
            marks.append(file.tell())
            rows = [("step", {"epoch": 1, "step": step, "loss": 1.5 / (1 + step), "pairs_per_s": 20.5, "seconds": 0.25})]
            if step % 4 == 0:
                rates = {"top1": 0.5 + step / 100, "asr": 0.75 - step / 20}
                rows.append(("measure", {"epoch": step / 4, "step": step, "images": "tiny", **rates}))
            for kind, numbers in rows:
                line, last = seal(row_of(kind, numbers).text(), last)
                file.write(line)
                file.flush()
    marks.append((home / FILE).stat().st_size)
    write_skipped(home / "skipped.jsonl", [SkippedPair(key=f"{n:09d}", shard="00001.tar", cause="cut") for n in range(3)])
    (home / "poison.json").write_text(json.dumps({"plan": {"pairs": 1}, "entries": [{"key": "000000007"}]}))
    for name in ("poison.png", "answers.png"):
        Image.new("RGB", (4, 4), (9, 8, 7)).save(home / name)
    return marks


def _end(home: Path, run: Run) -> None:
    digest = checkpoint.digest(home / WEIGHTS)
    facts = {"weights": digest, "files": outputs._digests(home), "measured": run.measured, "seconds": 3.5}
    FinishedJson(steps=STEPS, journal=(home / FILE).stat().st_size, **facts).write(home)  # type: ignore[arg-type]


KINDS = ("flip", "flip", "flip", "flip number", "flip number", "flip number", "flip number", "flip key", "cut", "add",
         "empty", "[]", "{}", "null", "5", "binary", "deep", "digits", "half")  # fmt: skip


def damage(path: Path, kind: str, draw: random.Random) -> None:
    """Puts other content in a file's place; the links to it stay as they were."""
    body = path.read_bytes()
    at = draw.choice([0, len(body) - 1, draw.randrange(len(body))])
    if kind.startswith("flip"):
        wanted = {"flip number": b"0123456789.-e", "flip key": b'":{}[], \n'}.get(kind, b"")
        places = [place for place, byte in enumerate(body[:20_000]) if byte in wanted] or [at]
        at = draw.choice(places)
        body = body[:at] + bytes([body[at] ^ (1 << draw.randrange(8))]) + body[at + 1 :]
    else:
        body = {
            "cut": body[:at], "half": body[: len(body) // 2], "add": body + draw.choice([b"\n", b"{", b"7", b"\0"]),
            "empty": b"",
            "binary": bytes(draw.randrange(256) for _ in range(300)), "deep": b"[" * 100_000,
            "digits": b'{"step": ' + b"9" * 5000 + b"}\n",
        }.get(kind, kind.encode())  # fmt: skip
    path.unlink()
    path.write_bytes(body)


def copied(study: Path, target: Path) -> Path:
    """The study again, of links; the owners of its locks have just given a sign of life."""
    shutil.copytree(study, target, copy_function=os.link)
    for lock_file in target.glob(f"*/{lock.NAME}.*"):
        lock_file.touch()
    return target


def _tensors(path: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in init_weights.read(path).items()}


def _resumed(home: Path) -> Any:
    newest = checkpoint.newest(home / "checkpoints")
    assert newest is not None
    path, manifest = newest
    files = TensorFiles(path.glob("*.safetensors"))
    rows = read_rows(home / FILE, manifest.journal)
    return manifest, {name: files.whole(name).tolist() for name in files.kinds()}, rows


def _reported(study: Path) -> Any:
    report = make_report(read_study(study))
    read = report.study
    records = [(r.run, r.state, r.card, r.end, r.pace, r.poison, r.answers) for r in read.records]
    return (read.plan, read.results, records), report.notes


def _status(study: Path) -> Any:
    runs = StatusReader(study).read().runs
    facts = [(run.run, run.state, run.step, run.rate, run.seconds, run.points) for run in runs]
    return facts, [run.reason for run in runs]


def _export(home: Path, scratch: Path) -> Any:
    folder = export(home, scratch / "exported")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _reuse(runs: list[Run], study: Path) -> Any:
    other = study.parent / "other"
    other.mkdir()
    taken = reuse_finished_runs(runs, other)
    return [(run.folder, source.name, {path.name: path.read_bytes() for path in (other / run.folder).iterdir()})
            for run, source in taken]  # fmt: skip


def readers(loaded: Loaded, study: Path, scratch: Path) -> dict[str, Callable[[], Any]]:
    """Everything that reads a study's folder, by name, in the order in which it may change it."""
    first, last = Scheduler.of(loaded, study, None).runs
    home, going = study / first.folder, study / last.folder

    def scheduled() -> Any:
        scheduler = Scheduler.of(loaded, study, None)
        refuse_changed(scheduler)
        return [scheduler.state(run) for run in scheduler.runs], scheduler.next()

    def measured() -> Any:
        verify_files(home, WEIGHTS)
        end = FinishedJson.read(home)
        assert end is not None
        return end, read_rows(home / FILE, end.journal)

    def opened() -> Any:
        outputs.open_folder(SimpleNamespace(folder=going, run=last))  # type: ignore[arg-type]
        return json.loads((going / "spec.json").read_text())

    return {
        "report": lambda: _reported(study),
        "status": lambda: _status(study),
        "lock": lambda: (lock.acquire(going), lock.running(study)),
        "schedule": scheduled,
        "reuse": lambda: _reuse([first, last], study),
        "export": lambda: _export(home, scratch),
        "start": lambda: _tensors(home / WEIGHTS),
        "moments": lambda: _tensors(home / init_weights.BESIDE),
        "measure again": measured,
        "start's card": lambda: Card.read(home),
        "core": lambda: core_name(going),
        "skipped": lambda: read_skipped(going / "skipped.jsonl"),
        "resume": lambda: _resumed(going),
        "spec": opened,
    }


def seen(loaded: Loaded, study: Path, scratch: Path) -> tuple[Seen, str]:
    """What each reader has read, or the UserError that it has raised; what was printed, of which the study's place is left
    out."""
    forget()
    words, out = io.StringIO(), {}
    with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
        for name, read in readers(loaded, study, scratch).items():
            try:
                out[name] = read()
            except UserError as error:
                out[name] = error
    return out, words.getvalue()
