"""A study is a set of runs, each done once: shared, killed, failing, stopped early, searched, spread over processes."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import forked
import pytest
from conftest import ROOT, SELDOM, SPEC, antidote, environment, journals, plan, settings
from forkserver import DRAWN

from configs.sweep import Median
from engine.study import lock
from engine.study.search import prune_reason
from engine.study.status import StatusReader, main
from engine.study.time_left import time_left
from records.card import Card
from records.code import DECIDES, digest_now
from records.ending import FinishedJson, TakenOver
from report.load import read_study
from report.submission import read_submission
from report.verdict import make_report

RATE = "clean.optimizer.rate"
ONE_THREAD = SPEC.replace("workers: 0}}", "workers: 0, threads: 1}}")  # two would sum in another order than one
TWELVE = """\
sweep:
  cleaner:
    MMCL: {clean.objective: {kind: mmcl}}
    CleanCLIP: {clean.objective: {kind: cleanclip}}
    shrink-perturb: {clean.transform: {kind: shrink_perturb, shrink: 0.9}}
    PAR: {clean.objective: {kind: par}}
  clean.optimizer.rate: {low: 1.0e-5, high: 1.0e-3, scale: log, points: 3}
"""


@pytest.fixture
def twelve(world: Path, tmp_path: Path) -> Path:
    """A spec of one pre-training and twelve cleanings."""
    path = tmp_path / "tiny.yaml"
    path.write_text(ONE_THREAD.format(world=world) + TWELVE)
    return path


def test_what_another_study_has_finished_is_taken_over(spec: Path, world: Path) -> None:
    """The pre-training of a second study that measures otherwise, and elsewhere; not where it is refused, nor what is not
    finished."""
    spec.write_text(spec.read_text().replace("save_minutes: 0", "save_minutes: 60"))
    first = antidote("--spec", str(spec), "--stage", "pretrain", cwd=spec.parent)
    assert first.returncode == 0, first.stderr
    runs = spec.parent / "runs"
    (old,) = runs.glob("tiny/pretrain-*")
    asked = ("measure=[{kind: zero_shot, images: tiny}]", "data.test={tiny: elsewhere}")
    (spec.parent / "elsewhere").symlink_to(world / "eval")
    out = antidote("--spec", str(spec), *settings("name=second", *asked), cwd=spec.parent)
    assert out.returncode == 0, out.stderr
    assert f"{old.name} (pretrain mmcl): finished in runs/tiny, taken over from there" in out.stderr
    new = runs / "second" / old.name
    assert (new / "weights.safetensors").samefile(old / "weights.safetensors")
    rows = [json.loads(line) for line in (new / "metrics.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in (old / "metrics.jsonl").read_text().splitlines()]
    assert rows[: len(before)] == before
    assert "asr" not in rows[-1]  # measured again, as the second study asks
    assert [row["anew"] for row in rows if "anew" in row] == [True]
    read = read_study(runs / "second")
    (kept,) = [record.evaluations for record in read.records if record.run.run == old.name]
    assert [row["epoch"] for row in kept] == [rows[-1]["epoch"]], "the epochs before were measured on other pictures"
    assert any("1 of 2 runs were measured again on other pictures" in note for note in make_report(read).notes)
    ends = [FinishedJson.read(home) for home in (old, new)]
    assert ends[0] is not None
    assert ends[1] is not None
    card = Card.read(old)
    assert card is not None
    assert card.versions["antidote"] == f"{version('antidote')}+{digest_now(DECIDES)}"
    mark = ends[1].taken_over
    assert (ends[0].taken_over, mark) == (None, TakenOver(study="tiny", seconds=ends[0].seconds))
    assert rows[-1]["seconds"] > 0
    assert ends[1].seconds >= ends[0].seconds  # to a tenth of a second, in which the tiny set is measured
    assert antidote("--spec", str(spec), *settings("name=second", *asked), cwd=spec.parent).returncode == 0
    assert FinishedJson.read(new) == ends[1], "a second launch takes nothing over, and the mark stays"
    assert len(list(runs.glob("second/clean-*/finished.json"))) == 1
    (old / "finished.json").rename(old / "hidden.json")
    (new / "finished.json").unlink()
    third = antidote("--spec", str(spec), "--stage", "pretrain", *settings("name=third"), cwd=spec.parent)
    assert "(pretrain mmcl): finished in" not in third.stderr
    assert journals(runs / "third")[old.name] == journals(runs / "tiny")[old.name]
    fourth = antidote(
        "--spec", str(spec), "--stage", "pretrain", *settings("name=fourth", "machine.adopt=false"), cwd=spec.parent
    )
    assert "taken over" not in fourth.stderr
    assert not (runs / "fourth" / old.name / "weights.safetensors").samefile(
        runs / "third" / old.name / "weights.safetensors"
    )


def test_a_run_of_other_pairs_or_in_another_precision_is_not_taken_over(spec: Path, world: Path) -> None:
    place, runs = spec.parent / "here", spec.parent / "runs"
    shutil.copytree(world / "train", place)
    words = ("--spec", str(spec), "--stage", "pretrain")
    sets = ("pretrain.epochs=0", f"data.pretrain.shards={place}/*.tar")
    assert antidote(*words, *settings(*sets), cwd=spec.parent).returncode == 0
    (old,) = runs.glob("tiny/pretrain-*")
    (place / "00003.tar").unlink()
    second = antidote(*words, *settings(*sets, "name=second"), cwd=spec.parent)
    assert second.returncode == 0, second.stderr
    assert f"runs/tiny/{old.name} was made of other pairs than its shards hold now; not taken over" in second.stderr
    third = antidote(*words, *settings(*sets, "name=third", "machine.precision=bf16"), cwd=spec.parent)
    assert f"runs/second/{old.name} was made in fp32, and machine.precision is bf16; not taken over" in third.stderr
    fourth = antidote(*words, *settings(*sets, "name=fourth", "machine.precision=fp32"), cwd=spec.parent)
    assert f"{old.name} (pretrain mmcl): finished in runs/second, taken over from there" in fourth.stderr
    cards = {study: Card.read(runs / study / old.name) for study in ("tiny", "second", "third", "fourth")}
    said = {study: (card.data_digest, card.precision) for study, card in cards.items() if card}
    assert said["tiny"][0] != said["second"][0] == said["third"][0] == said["fourth"][0]
    assert [said[study][1] for study in ("second", "third", "fourth")] == ["fp32", "bf16", "fp32"]


def test_a_file_of_other_bytes_is_another_study(spec: Path, world: Path) -> None:
    captions = spec.parent / "captions.txt"
    captions.write_bytes((world / "eval/zeroshot_classification_templates.txt").read_bytes())
    words = ("--spec", str(spec), "--stage", "pretrain", *settings("pretrain.epochs=0", f"attack.captions={captions}"))
    assert antidote(*words, cwd=spec.parent).returncode == 0
    (run,) = (spec.parent / "runs/tiny").glob("pretrain-*")
    captions.write_text("a {c}\n")
    for more in ((), ("--dry-run",)):
        refused = antidote(*words, *more, cwd=spec.parent)
        assert refused.returncode == 2
        assert f"runs/tiny/{run.name} was begun when {captions} held other bytes" in refused.stderr
    other = antidote(*words, *settings("name=other"), cwd=spec.parent)
    assert f"{captions} held other bytes; not taken over" in other.stderr
    assert len({plan(spec.parent / "runs" / name, run.name)[0]["caption"] for name in ("tiny", "other")}) == 2


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(ONE_THREAD.format(world=world) + TWELVE)
    out = antidote("--spec", "tiny.yaml", *SELDOM, cwd=folder, **DRAWN)
    assert out.returncode == 0, out.stderr
    return folder / "runs/tiny"


def table(study: Path) -> list[dict[str, str]]:
    rows = csv.DictReader((study / "report/results.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in ("seconds", "pairs_per_s")} for row in rows]


def started(spec: Path, *words: str, script: list[str] | None = None) -> forked.Popen:
    command = [sys.executable, *(script or [str(ROOT / "engine/run.py")]), "--spec", str(spec), *words]
    return forked.Popen(
        command, cwd=spec.parent, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def until(what: Any, process: forked.Popen) -> Any:
    """What `what` gives, once it gives anything; fails when the process ends before."""
    deadline = time.monotonic() + forked.HANGS
    while not (value := what()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    return value


def owners(study: Path, stage: str = "clean") -> list[int]:
    """The processes that own runs of a stage."""
    processes = [lock.owner(path.parent) for path in study.glob(f"{stage}-*/claim.*")]
    return [process.pid for process in processes if process is not None and process.alive]


def ended(study: Path) -> int:
    return len(list(study.glob("*/finished.json")))


def test_twelve_runs_killed_three_times_end_with_the_same_table(undisturbed: Path, twelve: Path) -> None:
    """SIGKILL of one run while two go on at once, SIGKILL of all there is, then a full disk; then to the end."""
    study = twelve.parent / "runs/tiny"
    spread = settings("sweep.executor=local", "sweep.jobs=2")
    first = started(twelve, *spread)
    try:
        victim = until(lambda: owners(study), first)[0]
        os.kill(victim, signal.SIGKILL)
        before = ended(study)
        until(lambda: ended(study) > before + 1, first)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert ended(study) < 13
    full = started(twelve, script=[str(ROOT / "tests/full_disk.py"), "3"])
    _, said = full.communicate()
    assert full.returncode == 2, said
    assert "disk full while saving a checkpoint" in said
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("go on with: ")
    assert ended(study) < 13
    assert not list(study.glob("*/failed.json")), "a full disk is no fault of the run"
    out = antidote("--spec", str(twelve), *spread, cwd=twelve.parent)
    assert out.returncode == 0, out.stderr
    assert table(study) == table(undisturbed)
    assert journals(study) == journals(undisturbed)
    for path in undisturbed.glob("*/weights.safetensors"):
        assert (study / path.parent.name / path.name).read_bytes() == path.read_bytes()
    assert len(table(study)) == 3 + 12 * 2
    assert not owners(study)


@pytest.mark.slow  # by day two jobs of one launch share it, and are killed
def test_two_launches_share_a_study_and_do_no_run_twice(undisturbed: Path, twelve: Path) -> None:
    both = [started(twelve) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    done = [re.findall(r"run \d+ of 13: .*?\(((?:clean|pretrain)-[0-9a-f]+)\)", words) for words in said]
    assert sorted(done[0] + done[1]) == sorted(path.parent.name for path in undisturbed.glob("*/finished.json"))
    assert all(done), "both did some"
    assert table(twelve.parent / "runs/tiny") == table(undisturbed)


def test_a_run_that_fails_leaves_the_others_alone_and_is_named(twelve: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = settings("sweep={clean.optimizer.rate: [1.0e+30, 1.0e-4]}", "clean.epochs=3", "machine.max_bad_steps=2")
    for bad in (2, 3):  # the second time it is tried again, and counts on
        out = antidote("--spec", str(twelve), *sets, cwd=twelve.parent)
        assert out.returncode == 2
        assert "1 of 3 runs failed; the same command tries them again" in out.stderr
        assert out.stderr.count(f"the loss was not finite in the last {bad} steps") == 2  # when it happens, and at the end
        assert "Traceback" not in out.stderr
    study = twelve.parent / "runs/tiny"
    assert len(list(study.glob("clean-*/finished.json"))) == 1
    (failure,) = study.glob("clean-*/failed.json")
    assert json.loads(failure.read_text())["diverged"] is True
    assert main([str(study)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 runs done, 0 running, 0 left, 1 failed" in said
    assert "failed: the loss was not finite" in said


def test_what_needs_a_failed_run_is_not_tried(twelve: Path) -> None:
    sets = settings("pretrain.optimizer.rate=1e30", "sweep={}", "machine.max_bad_steps=2")
    out = antidote("--spec", str(twelve), *sets, cwd=twelve.parent)
    assert out.returncode == 2
    assert "2 of 2 runs failed" in out.stderr
    assert "what it starts from failed" in out.stderr


def test_a_run_whose_process_died_five_times_is_given_up(twelve: Path) -> None:
    words = settings("sweep={}")
    from configs.plan import runs
    from configs.spec import load

    run = runs(load(twelve, words[1::2]).points)[-1]
    home = twelve.parent / "runs/tiny" / run.folder
    home.mkdir(parents=True)
    dead = lock.LockFile.of_this_process(lock.DEATHS - 1).model_copy(update={"pid": 2**22 + 1})
    (home / "claim.9").write_text(dead.model_dump_json())
    out = antidote("--spec", str(twelve), *words, cwd=twelve.parent)
    assert out.returncode == 2
    assert "its process died 5 times without coming further" in out.stderr
    again = antidote("--spec", str(twelve), *words, cwd=twelve.parent)
    assert again.returncode == 0, again.stderr


def test_a_study_that_others_carry_out_is_joined_with_the_same_spec_only(undisturbed: Path, twelve: Path) -> None:
    shutil.copytree(undisturbed, twelve.parent / "runs/tiny")
    owned = lock.acquire(twelve.parent / "runs/tiny" / "clean-0")
    assert owned is not None
    out = antidote("--spec", str(twelve), *settings("clean.epochs=2", "machine.log_steps=2"), cwd=twelve.parent)
    owned.release()
    assert out.returncode == 2
    assert "is being carried out under another spec (clean.epochs: 1 -> 2; running: clean-0)" in out.stderr


def test_sigterm_saves_the_runs_of_all_jobs(undisturbed: Path, twelve: Path) -> None:
    study = twelve.parent / "runs/tiny"
    process = started(twelve, *settings("sweep.executor=local", "sweep.jobs=2", "clean.epochs=40", "sweep={seed: [3]}"),
                      *settings("sweep.executor=local"))  # fmt: skip
    until(lambda: owners(study) and list(study.glob("clean-*/checkpoints/step-*")), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 143, said
    assert "stopped and saved" in said
    assert not list(study.glob("*/claim.*")), "given back"
    assert list(study.glob("clean-*/checkpoints/step-*/manifest.json"))


@pytest.mark.slow
def test_runs_are_pruned_by_the_median_rule_and_go_on_without_it(world: Path, tmp_path: Path) -> None:
    """Of five cleanings the two that destroy the model reach nothing; they stop after the first epoch that may stop."""
    (tmp_path / "tiny.yaml").write_text(SPEC.format(world=world))
    sweep = {RATE: [0.0, 1e-8, 1e-7, 0.5, 1.0]}
    rule = {"kind": "median", "after": 1, "runs": 2, "cap": 1.0}
    sets = settings("clean.epochs=3", "clean.objective={kind: mmcl}", "pretrain.epochs=8")
    out = antidote("--spec", "tiny.yaml", *sets, *settings(f"sweep={json.dumps({**sweep, 'stop': rule})}"), cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    study = tmp_path / "runs/tiny"
    stopped = {path.parent.name: json.loads(path.read_text()) for path in study.glob("clean-*/stopped.json")}
    assert len(stopped) == 2
    assert all(
        re.match(r"after epoch 1 its best of .* was below .*, the median of \d others'", end["why"])
        for end in stopped.values()
    )
    assert StatusReader(study).read().count("stopped") == 2
    assert len(read_submission(study).decided) == 6  # they are whole, and part of what was tried
    out = antidote("--spec", "tiny.yaml", *sets, *settings(f"sweep={json.dumps(sweep)}"), cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert out.stderr.count("goes on at step") == 2
    assert not list(study.glob("*/stopped.json"))
    epochs = {name: [row["epoch"] for row in rows if row["kind"] == "measure"] for name, rows in journals(study).items()}
    assert all(measured == [0, 1, 2, 3] for name, measured in epochs.items() if name.startswith("clean"))


def test_the_median_rule_by_hand(tmp_path: Path) -> None:
    """Best accuracies at ASR <= 5 % after epoch 2: 0.5, 0.3 and, for one that never came below the cap, 0.05 - 0.4."""
    rule = Median(kind="median", after=2, runs=3)

    def journal(name: str, *points: tuple[float, float]) -> Path:
        (tmp_path / name).mkdir()
        rows = [{"kind": "measure", "epoch": e, "step": e, "asr": asr, "top1": top1} for e, (asr, top1) in enumerate(points)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    start = (1.0, 0.9)
    others = [
        journal("a", start, (0.04, 0.5), (0.03, 0.4), (0.01, 0.9)),
        journal("b", start, (0.5, 0.9), (0.05, 0.3)),
        journal("c", start, (0.6, 0.9), (0.4, 0.9)),
        journal("short", start, (0.01, 0.9)),
    ]
    low, high = journal("low", start, (0.9, 0.9), (0.02, 0.2)), journal("high", start, (0.9, 0.9), (0.02, 0.3))
    assert prune_reason(rule, low, others, 1) is None, "too early"
    assert prune_reason(rule, low, others[1:], 2) is None, "too few"
    assert prune_reason(rule, low, others, 2) == "after epoch 2 its best of 0.2000 was below 0.3000, the median of 3 others'"
    assert prune_reason(rule, high, others, 2) is None


def test_a_search_ends_with_the_same_runs_however_it_is_carried_out(world: Path, tmp_path: Path) -> None:
    sweep = {
        RATE: {"low": 1e-5, "high": 1e-2, "scale": "log"},
        "search": {"kind": "optuna", "trials": 5, "together": 2, "cap": 1.0},
    }
    finished = []
    for name, more in (("here", {}), ("local", {"executor": "local", "jobs": 2})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tiny.yaml").write_text(ONE_THREAD.format(world=world))
        out = antidote("--spec", "tiny.yaml", *SELDOM, *settings(f"sweep={json.dumps({**sweep, **more})}"), cwd=folder)
        assert out.returncode == 0, out.stderr
        finished.append(sorted(path.parent.name for path in folder.glob("runs/tiny/clean-*/finished.json")))
        assert len(json.loads((folder / "runs/tiny/study.json").read_text())["runs"]) == 6
    assert len(finished[0]) == 5
    assert finished[0] == finished[1]
    assert len(list((tmp_path / "here/runs/tiny/search").iterdir())) == 2


def test_status_tells_runs_by_their_folders(undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    shutil.copytree(undisturbed, study)
    clean = sorted(study.glob("clean-*"))
    for path in clean[:4]:
        (path / "finished.json").unlink()
    owned = lock.acquire(clean[0])
    dead = lock.LockFile.of_this_process().model_copy(update={"pid": 2**22 + 1})
    (clean[1] / "claim.1").write_text(dead.model_dump_json())
    (clean[2] / "failed.json").write_text(json.dumps({"message": "no [luck]", "when": "x", "host": "h"}))
    status = StatusReader(study).read()
    states = {run.run: run.state for run in status.runs}
    assert [states[path.name] for path in clean[:5]] == ["running", "lost", "failed", "to do", "finished"]
    assert time_left(status.runs, 2) == (0, 0), "those that are left have taken all their steps"
    next(study.glob("pretrain-*/finished.json")).unlink()
    assert StatusReader(study).read().count("waiting") == 1
    assert main([str(study)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "8 of 13 runs done, 1 running (100 %), 3 left, 1 failed, best so far" in said
    assert "no [luck]" in said
    ended = {run.stage for run in status.runs if run.state == "finished" and None not in (run.top1, run.asr)}
    assert ended == {"pretrain", "clean"}, "each has its last rates"
    assert owned is not None
    owned.release()
    assert main([str(tmp_path)]) == 2
    assert "is not a study" in capsys.readouterr().err


def test_the_status_command_is_short_and_needs_no_torch(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "engine.study", "runs/none"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 2
    assert "error: runs/none is not a study" in out.stderr
    assert not re.search(r"\| +(torch|deepspeed)$", out.stderr, re.MULTILINE)


def test_the_engine_of_a_run_is_gone_when_the_next_is_built_also_after_an_error(spec: Path) -> None:
    spec.write_text(spec.read_text() + "sweep: {clean.optimizer.rate: [1.0e-4, 2.0e-4, 3.0e-4]}\n")
    sets = spec.read_text().replace("epochs: 2", "epochs: 0").replace("epochs: 1", "epochs: 0")
    spec.write_text(sets)
    out = forked.run([sys.executable, str(ROOT / "tests/one_after_another.py"), spec.name], cwd=spec.parent)
    assert out.stdout.splitlines()[-1] == "2 4 0", out.stdout + out.stderr
    assert "the second run fails" in out.stderr
