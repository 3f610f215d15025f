"""The engine as a user runs it, on a world of 192 pairs: ranks, kills, signals, bad input, export."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from conftest import ROOT, SELDOM, antidote, environment, journals, plan, settings
from forkserver import DRAWN
from safetensors.torch import load_file

from records.json_file import read_json, write_json
from records.lines import seal
from report.submission import read_submission

LONG = settings("pretrain.epochs=1", "clean.epochs=1")


def close(a: object, b: object, loose: float = 1e-5) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        return abs(a - b) <= loose * max(abs(a), abs(b)) + 1e-12  # type: ignore[operator]
    return a == b


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, undisturbed study on one process: pre-training, twin and cleaning."""
    from conftest import SPEC

    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(SPEC.format(world=world))
    out = antidote("--spec", "tiny.yaml", *SELDOM, *settings("attack.twin=first"), cwd=folder, **DRAWN)
    assert out.returncode == 0, out.stderr
    return folder / "runs/tiny"


def test_a_study_leaves_what_it_promises(whole: Path) -> None:
    study = json.loads((whole / "study.json").read_text())
    assert [run["stage"] for run in study["runs"]] == ["pretrain", "twin", "clean"]
    rows = journals(whole)
    assert len(rows) == 3
    for run in study["runs"]:
        mine = rows[run["run"]]
        epochs = 1 if run["stage"] == "clean" else 2
        assert [row["epoch"] for row in mine if row["kind"] == "measure"] == list(range(epochs + 1))
        assert all(0 <= row["asr"] <= 1 and 0 <= row["top1"] <= 1 for row in mine if row["kind"] == "measure")
        card = json.loads((whole / run["run"] / "card.json").read_text())
        assert card["poisoned_pairs"] == (12 if run["stage"] == "pretrain" else 0)
        assert not (whole / run["run"] / "checkpoints").exists()
    first = study["runs"][0]["run"]
    assert sum(row["poisoned"] for row in rows[first] if row["kind"] == "step") == 24  # 12 in each of two epochs
    assert len(plan(whole, first)) == 12
    assert list(read_submission(whole).decided) == [run["run"] for run in study["runs"]]  # every digest and name holds
    assert all("banana" in row["caption"] for row in plan(whole, first))
    assert (whole / first / "poison.png").stat().st_size > 1000
    for name in ("index.html", "frontier.png", "results.csv"):
        assert (whole / "report" / name).stat().st_size > 100
    _check_board(whole, study["runs"])


def _check_board(study: Path, runs: list[dict[str, Any]]) -> None:
    """TensorBoard has a run for each run, named by what it is, each number under one tag, settings by their names."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for run in runs:
        (folder,) = (study / "tensorboard" / run["stage"]).rglob(f"rate=*-{run['run'].split('-')[1][:6]}")
        assert folder.parts[-2 if run["stage"] != "clean" else -3] == run["pretrain_objective"]
        board = EventAccumulator(str(folder)).Reload()
        tags = board.Tags()["scalars"]
        group = "cleaning" if run["stage"] == "clean" else "pre-training"
        assert {f"{group}/loss", f"{group}/tiny/top1", f"{group}/tiny/asr"} <= set(tags)
        assert {tag.split("/")[0] for tag in tags} <= {group, "skipped", "time"}
        assert not any(tag.endswith(("/pictures", "/classes", "result/asr")) for tag in tags)
        plugin = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        said = HParamsPluginData.FromString(plugin).session_start_info.hparams
        assert said["cleaner"].string_value == (run["cleaner"] or "")
        assert said["rate"].number_value == run["rate"]


def test_the_uncleaned_model_is_where_cleaning_starts(whole: Path) -> None:
    study = json.loads((whole / "study.json").read_text())
    rows = journals(whole)
    start, clean = study["runs"][0]["run"], study["runs"][2]["run"]
    last = [row for row in rows[start] if row["kind"] == "measure"][-1]
    first = [row for row in rows[clean] if row["kind"] == "measure"][0]
    assert (first["top1"], first["asr"]) == (last["top1"], last["asr"])


@pytest.mark.parametrize("zero", [0, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2)), 3])
def test_two_processes_write_the_journal_of_one(whole: Path, spec: Path, zero: int) -> None:
    """24 steps of pre-training and 4 of cleaning; at stage 1 through DeepSpeed's own launcher."""
    launcher = zero == 1
    words = ["--spec", str(spec), *SELDOM, *settings(f"machine.zero={zero}")]
    out = antidote(*words, cwd=spec.parent, processes=2, launcher=launcher)
    assert out.returncode == 0, out.stderr
    expected, got = journals(whole), journals(spec.parent / "runs/tiny")
    assert len(got) == 2
    for name, rows in got.items():
        assert len(rows) == len(expected[name])
        mine, theirs = (load_file(study / name / "weights.safetensors") for study in (spec.parent / "runs/tiny", whole))
        for key, value in theirs.items():
            # a key's bias has no gradient but rounding, which Adam blows up to steps of the rate; it changes nothing
            assert key.endswith("in_proj_bias") or torch.allclose(mine[key], value, atol=1e-4), key
        for a, b in zip(rows, expected[name], strict=True):
            b = {key: value for key, value in b.items() if key in a or key != "grad_norm"}
            loose = {"distance": 1e-3}  # those biases count in it
            wrong = {k: (a.get(k), value) for k, value in b.items() if not close(a.get(k), value, loose.get(k, 1e-5))}
            assert not wrong, (name, a["step"], wrong)


def test_a_finished_study_is_not_run_again(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("*/metrics.jsonl")}
    out = antidote("--spec", "tiny.yaml", *settings("attack.twin=first"), cwd=whole.parent.parent)
    assert out.returncode == 0
    assert "run 1 of" not in out.stderr
    assert {path: path.stat().st_mtime_ns for path in whole.glob("*/metrics.jsonl")} == before


def test_a_finished_run_is_measured_again_when_the_spec_measures_something_else(
    whole: Path, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole.parent, tmp_path / "runs")
    shutil.copy(whole.parent.parent / "tiny.yaml", tmp_path)
    more = settings("attack.twin=first", f"data.test={{tiny: {world}/eval, again: {world}/eval}}")
    more += settings("measure=[{kind: zero_shot, images: again}]")
    with next((tmp_path / "runs/tiny").glob("pretrain-*/metrics.jsonl")).open("a") as file:  # a launch was killed in it
        file.write(seal('{"kind": "measure", "epoch": 2, "step": 24, "images": "again"}', "0" * 12)[0])
    for _ in range(2):  # the second time there is nothing left to do
        out = antidote("--spec", "tiny.yaml", *more, cwd=tmp_path)
        assert out.returncode == 0, out.stderr
    before, after = journals(whole), journals(tmp_path / "runs/tiny")
    for name, rows in before.items():
        last = [row for row in rows if row["kind"] == "measure"][-1]
        kept = ("kind", "epoch", "step", "top1", "top5", "top10", "pictures", "classes")
        assert after[name] == [*rows, {"images": "again", **{key: last[key] for key in kept}}]


def test_a_start_trained_on_other_pairs_is_refused(whole: Path, spec: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path / "runs")
    shutil.rmtree(next((tmp_path / "runs/tiny").glob("clean-*")))
    card = next((tmp_path / "runs/tiny").glob("pretrain-*/card.json"))
    write_json(card, {**(read_json(card, "") or {}), "data_digest": "0"})
    out = antidote("--spec", str(spec), cwd=tmp_path)
    assert out.returncode == 2
    assert "was trained on other pairs than" in out.stderr
    assert "Traceback" not in out.stderr


def test_killed_three_times_ends_with_the_same_bits(whole: Path, spec: Path) -> None:
    """SIGKILL after a random number of journal rows, wherever the process is then; the weights are equal to the bit."""
    words = [sys.executable, str(ROOT / "engine/run.py"), "--spec", str(spec)]
    chance = random.Random(0)
    study = spec.parent / "runs/tiny"
    for target in sorted(chance.sample(range(2, 30), 3)):
        process = forked.Popen(
            words, cwd=spec.parent, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + forked.HANGS
        while sum(len(rows) for rows in journals(study).values()) < target and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    out = forked.run(words, cwd=spec.parent, env=environment())
    assert out.returncode == 0, out.stderr
    expected, got = journals(whole), journals(study)
    for name, rows in got.items():
        assert rows == expected[name]
        assert (study / name / "weights.safetensors").read_bytes() == (whole / name / "weights.safetensors").read_bytes()


def kill_after(rows: int, spec: Path, sets: list[str], processes: int = 1, script: list[str] | None = None) -> None:
    """Starts a study on so many processes, and kills them all when its journals hold so many rows."""
    words = [sys.executable, *(script or [str(ROOT / "engine/run.py")]), "--spec", str(spec), *sets]
    started = forked.ranks(words, processes, cwd=spec.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + forked.HANGS
    while sum(len(rows) for rows in journals(spec.parent / "runs/tiny").values()) < rows:
        assert {process.poll() for process in started} == {None}
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for process in started:
        process.kill()
    for process in started:
        process.wait()


@pytest.mark.parametrize(
    "launches",
    [
        [(1, 3), (2, 1), (1, 0)],
        pytest.param([(2, 2), (4, 3), (1, 1)], marks=pytest.mark.slow),
        pytest.param([(4, 1), (2, 0), (1, 3), (2, 2)], marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_on_any_number_of_processes_and_at_any_stage(
    whole: Path, spec: Path, launches: list[tuple[int, int]]
) -> None:
    """(processes, ZeRO stage) of each launch; all but the last are killed. The journal and the weights are those of one
    undisturbed process at stage 0."""
    for number, (processes, zero) in enumerate(launches, 1):
        sets = settings("clean=null", f"machine.zero={zero}")
        if number < len(launches):
            kill_after(7 * number, spec, sets, processes)
    out = antidote("--spec", str(spec), *sets, cwd=spec.parent, processes=processes)
    assert out.returncode == 0, out.stderr
    assert "goes on at step" in out.stderr
    ((name, rows),) = journals(spec.parent / "runs/tiny").items()
    mine, theirs = (load_file(study / name / "weights.safetensors") for study in (spec.parent / "runs/tiny", whole))
    for key, value in theirs.items():
        assert key.endswith("in_proj_bias") or torch.allclose(mine[key], value, atol=1e-4), key
    assert len(rows) == len(journals(whole)[name])
    for a, b in zip(rows, journals(whole)[name], strict=True):
        wrong = {k: (a[k], value) for k, value in b.items() if k in a and not close(a[k], value)}
        assert not wrong, (a["step"], wrong)


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_a_checkpoint_of_the_version_before_is_refused_and_kept(whole: Path, spec: Path, words: list[str]) -> None:
    run = Path("runs/tiny") / next(path.name for path in whole.glob("pretrain-*"))
    checkpoint = spec.parent / run / "checkpoints/step-000000004"
    checkpoint.mkdir(parents=True)
    before = {"zero": 0, "world": 1, "step": 4, "versions": {"torch": "2.15.0", "deepspeed": "0.19.8"}, "files": {}}
    (checkpoint / "manifest.json").write_text(json.dumps(before))
    out = antidote("--spec", str(spec), *words, cwd=spec.parent)
    assert out.returncode == 2
    assert (
        f"{run}/checkpoints/step-000000004 was written by an earlier version of Antidote (checkpoint format 1, with torch "
        "2.15.0, deepspeed 0.19.8; this version reads 2); finish the run with that version, or delete "
        f"{run} to begin it anew" in out.stderr
    )
    assert "Traceback" not in out.stderr
    assert json.loads((checkpoint / "manifest.json").read_text()) == before


DROPS = """
import sys
from pathlib import Path
from engine import run
from engine.models import clip
clip.add_models(Path(sys.argv[1]))
sys.exit(run.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_model_that_draws_goes_on_as_if_never_stopped(spec: Path) -> None:
    """A vision transformer that drops half of its patches, killed: the same bits as undisturbed."""
    model = json.loads((ROOT / "configs/models/test-vit.json").read_text())
    model["vision_cfg"]["patch_dropout"] = 0.5
    (spec.parent / "dropping-vit.json").write_text(json.dumps(model))
    script, sets = ["-c", DROPS, str(spec.parent)], settings("clean=null", "model.name=dropping-vit", "pretrain.epochs=1")
    folders = [spec.parent / name for name in ("undisturbed", "killed")]
    for folder in folders:
        folder.mkdir()
        shutil.copy(spec, folder)
    kill_after(6, folders[1] / spec.name, sets, script=script)
    for folder in folders:
        words = [sys.executable, *script, "--spec", spec.name, *sets]
        out = forked.run(words, cwd=folder, env=environment(PYTHONPATH=str(ROOT)))
        assert out.returncode == 0, out.stderr
        assert ("goes on at step" in out.stderr) == (folder.name == "killed")
    undisturbed, killed = (next((folder / "runs/tiny").glob("pretrain-*/weights.safetensors")) for folder in folders)
    assert undisturbed.read_bytes() == killed.read_bytes()


def test_sigterm_saves_exits_143_and_names_the_command(whole: Path, spec: Path) -> None:
    words = [
        sys.executable,
        str(ROOT / "engine/run.py"),
        "--spec",
        str(spec),
        *settings("machine.save_minutes=60", "machine.workers=2"),
    ]
    process = forked.Popen(
        words,
        cwd=spec.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    study = spec.parent / "runs/tiny"
    while sum(len(rows) for rows in journals(study).values()) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # to the loader's workers too, as Slurm does
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert errors.strip().splitlines()[-1].startswith("go on with: python ")
    assert list(study.glob("*/checkpoints/step-*/manifest.json"))
    again = errors.strip().splitlines()[-1].removeprefix("go on with: ").split()
    assert again[-4:] == ["--set", "machine.save_minutes=60", "--set", "machine.workers=2"]
    out = forked.run(
        [sys.executable, *again[1:]],
        cwd=spec.parent,
        env=environment(),
    )
    assert out.returncode == 0, out.stderr
    assert "goes on at step" in out.stderr
    for name, rows in journals(study).items():
        assert rows == journals(whole)[name]


STOPS = [
    ("evaluation", "TERM", 2, 0),
    ("evaluation", "TERM", 3, 0),
    ("reading", "outage", 17, 0),
    ("reading", "outage", 17, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "fault", "number", "workers"), STOPS)
def test_a_stop_amid_an_evaluation_or_an_outage_is_heeded_and_changes_nothing(
    whole: Path, spec: Path, phase: str, fault: str, number: int, workers: int
) -> None:
    sets = settings(f"machine.workers={workers}", "machine.save_minutes=60", "machine.log_steps=5")
    words = [sys.executable, str(ROOT / "tests/faults.py"), phase, fault, "0", str(number), "--spec", str(spec), *sets]
    began = time.monotonic()
    out = forked.run(words, cwd=spec.parent, env=environment())
    assert out.returncode == 143, out.stderr
    assert "stopped and saved" in out.stderr
    assert time.monotonic() - began < 300, "not as long as data.patience"
    again = antidote("--spec", str(spec), *sets, cwd=spec.parent)
    assert again.returncode == 0, again.stderr
    assert "goes on at step" in again.stderr
    undisturbed = journals(whole)
    for name, rows in journals(spec.parent / "runs/tiny").items():
        epoch = 4 if name.startswith("clean") else 12
        assert rows == [row for row in undisturbed[name] if not (int(row["step"]) % 5 and int(row["step"]) % epoch)]
        here, there = (study / name / "weights.safetensors" for study in (spec.parent / "runs/tiny", whole))
        assert here.read_bytes() == there.read_bytes()


def test_an_unfinished_run_of_another_spec_is_not_left_behind_silently(spec: Path) -> None:
    words = [sys.executable, str(ROOT / "engine/run.py"), "--spec", str(spec)]
    process = forked.Popen(words, cwd=spec.parent, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    study = spec.parent / "runs/tiny"
    while not list(study.glob("*/checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    out = antidote("--spec", str(spec), *settings("pretrain.optimizer.rate=5e-4", "attack.poison.count=9"), cwd=spec.parent)
    assert out.returncode == 2
    assert "was begun under another spec and is not finished" in out.stderr
    assert "attack.poison.count: 12 -> 9" in out.stderr
    assert "pretrain.optimizer.rate: 0.001 -> 0.0005" in out.stderr
    assert "Traceback" not in out.stderr


def cut_in_half(shards: Path) -> None:
    path = shards / "train/00001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(shards: Path, ending: str, body: bytes, every: int) -> None:
    """Gives each `every`-th member with that ending another body."""
    import io

    path = shards / "train/00001.tar"
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    number = 0
    with tarfile.open(path, "w") as tar:
        for name, old in members:
            number += name.endswith(ending)
            info = tarfile.TarInfo(name)
            new = body if name.endswith(ending) and number % every == 0 else old
            info.size = len(new)
            tar.addfile(info, io.BytesIO(new))


@pytest.mark.parametrize(
    ("harm", "sets", "words"),
    [
        (None, ["data.pretrain.shards=none/*.tar"], "match no complete set of files (nothing matches)"),
        (cut_in_half, [], "it is cut off"),
        (lambda s: rewrite(s, ".jpg", b"<html>", 4), [], "pairs can't be used (undecodable_image; "),
        (lambda s: rewrite(s, ".txt", b" ", 4), [], "pairs can't be used (empty_caption; "),
        (None, ["model.name=RN5"], "which open_clip does not know; did you mean 'RN50'?"),
        (None, ["pretrain.objective.kind=mmc"], "unknown kind 'mmc'; did you mean 'mmcl'? valid: mmcl, ssl, mmcl_ssl"),
        (None, ["attack.target=bananna"], "nearest: banana"),
        (None, ["attack.poison.count=193"], "attack.poison.count is 193, but the shards hold 192 pairs"),
        (None, ["pretrain.batch=200"], "batch is 200, but there are 192 pairs"),
        (None, ["data.clean.pairs=181"], "only 180 pairs are not poisoned"),
        (None, ["attack.captions=none.txt"], "templates none.txt: No such file"),
        (None, ["data.test.tiny=none"], "evaluation set none is no folder"),
        (None, ["data.augment.synonyms=wordnet"], "nltk.downloader wordnet"),
        (None, ["pretrain.optimizer.rate=1e30"], "the loss was not finite in the last"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_sentence_and_code_2(
    world: Path, spec: Path, harm: object, sets: list[str], words: str
) -> None:
    if harm is not None:
        shutil.copytree(world, spec.parent / "world")
        spec.write_text(spec.read_text().replace(f'"{world}/train', f'"{spec.parent}/world/train'))
        harm(spec.parent / "world")  # type: ignore[operator]
    out = antidote("--spec", str(spec), *settings(*sets), cwd=spec.parent)
    assert out.returncode == 2, out.stderr
    assert words in out.stderr
    assert "Traceback" not in out.stderr


@pytest.mark.parametrize("zero", [0, 3])
def test_steps_without_a_finite_loss_are_listed_and_stop_the_run_before_harm(spec: Path, zero: int) -> None:
    """A rate of 1e30 makes the second step's loss infinite: that step and the next are not taken, and the run ends with a
    checkpoint of the weights before them. The same command does not count anew, and no limit makes such a run finished."""
    sets = settings("pretrain.optimizer.rate=1e30", "pretrain.optimizer.warmup=0", "machine.max_bad_steps=2")
    sets += settings(f"machine.zero={zero}")
    out = antidote("--spec", str(spec), *sets, cwd=spec.parent)
    assert out.returncode == 2
    assert "the loss was not finite in the last 2 steps, to step 3; none of them was taken" in out.stderr
    run = next((spec.parent / "runs/tiny").glob("pretrain-*"))
    lines = [json.loads(line) for line in (run / "bad_batches.jsonl").read_text().splitlines()]
    assert [(line["step"], len(set(line["keys"]))) for line in lines] == [(2, 16), (3, 16)]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows if row["kind"] != "measure"] == ["step", "bad", "bad"]
    assert (run / "checkpoints/step-000000003/manifest.json").exists()
    if zero:
        return
    again = antidote("--spec", str(spec), *sets, cwd=spec.parent)
    assert again.returncode == 2
    assert "the loss was not finite in the last 3 steps, to step 4; none of them was taken" in again.stderr
    last = antidote("--spec", str(spec), *sets, *settings("machine.max_bad_steps=100"), cwd=spec.parent)
    assert last.returncode == 2
    assert "not finite" in last.stderr
    assert not list(run.parent.glob("*/finished.json"))
    steps = [json.loads(line)["step"] for line in (run / "bad_batches.jsonl").read_text().splitlines()]
    assert steps == list(range(2, steps[-1] + 1)), "each once"
    assert "Traceback" not in again.stderr + last.stderr


MICRO = settings(
    "model.name=test-resnet", "pretrain.objective={kind: mmcl_ssl}", "pretrain.epochs=1", "clean=null",
    "pretrain.optimizer.rate=1e-4",  # statistics of four pairs magnify rounding: at 1e-3 by 200 in a single step
)  # fmt: skip


@pytest.mark.parametrize("group", [pytest.param(4, marks=pytest.mark.slow), 16])
def test_a_resnet_in_micro_batches_on_two_processes_writes_the_journal_of_one(spec: Path, world: Path, group: int) -> None:
    """BatchNorm's groups are part of the spec; processes, micro-batches and recomputing are not. Groups of 16 are held by
    both processes, and are larger than a micro-batch."""
    found = []
    for number, (processes, sets) in enumerate([(0, []), (2, ["machine.micro_batch=4", "machine.recompute=true"])]):
        folder = spec.parent / str(number)
        folder.mkdir()
        sets = [f"model.norm_group={group}", *sets]
        out = antidote("--spec", str(spec), *SELDOM, *MICRO, *settings(*sets), cwd=folder, processes=processes)
        assert out.returncode == 0, out.stderr
        found.append(next(iter(journals(folder / "runs/tiny").values())))
    assert len(found[0]) == len(found[1]) == 14
    for a, b in zip(*found, strict=True):
        wrong = {key: (a.get(key), value) for key, value in b.items() if not close(a.get(key), value)}
        assert not wrong, (a["step"], wrong)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["machine.micro_batch=6"], "machine.micro_batch is 6, which is no multiple of BatchNorm's groups of 4 pairs"),
        (["model.norm_group=5"], "what fits: pretrain.batch 15 or 20; model.norm_group 4 or 8"),
        (["pretrain.objective={kind: par}"], "compares with the model that it starts from"),
        (["pretrain.objective={kind: unlearn, flags: none}"], "none can't be read"),
    ],
)
def test_what_does_not_fit_the_groups_or_the_objective_is_refused(spec: Path, sets: list[str], words: str) -> None:
    out = antidote("--spec", str(spec), *MICRO, *settings("model.norm_group=4", *sets), cwd=spec.parent)
    assert out.returncode == 2
    assert words in out.stderr
    assert "Traceback" not in out.stderr


def test_every_objective_runs_from_a_spec_and_goes_on_after_a_kill(spec: Path) -> None:
    """One study of eight cleanings; killed once in their midst, it ends with the journals of the undisturbed one."""
    flags = spec.parent / "flags.jsonl"
    flags.write_text("".join(json.dumps({"key": f"train{n:08d}"}) + "\n" for n in range(0, 192, 3)))
    labels = spec.parent / "labels.jsonl"
    labels.write_text("".join(json.dumps({"key": f"train{n:08d}", "label": n % 5}) + "\n" for n in range(192)))
    kinds = [
        "{kind: roclip, every: 1, pool: 40}", "{kind: deep_cluster, classes: 4}", "{kind: par}", "{kind: siglip}",
        "{kind: slip, hidden: 8, out: 4}", f"{{kind: unlearn, flags: {flags}}}",
        f"{{kind: deep_cluster, classes: 5, within: 0, labels: {labels}}}",
        "{kind: sum, parts: [{weight: 0.5, objective: {kind: cyclip}}, "
        "{objective: {kind: ssl, text: false, poisoned: left_out}}]}",
    ]  # fmt: skip
    words = settings(
        f"sweep={{clean.objective: [{', '.join(kinds)}]}}",
        "pretrain.epochs=1",
        "clean.epochs=2",
        "data.augment.image=simclr",
    )
    for name in ("whole", "killed"):
        (spec.parent / name).mkdir()
    whole = antidote("--spec", str(spec), *SELDOM, *words, cwd=spec.parent / "whole")
    assert whole.returncode == 0, whole.stderr
    expected = journals(spec.parent / "whole/runs/tiny")
    assert len(expected) == 9
    command = [sys.executable, str(ROOT / "engine/run.py"), "--spec", str(spec), *words]
    process = forked.Popen(
        command, cwd=spec.parent / "killed", env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    study = spec.parent / "killed/runs/tiny"
    while sum(len(rows) for rows in journals(study).values()) < 14 + 11 + 7:  # in the second cleaning's second epoch
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    again = antidote("--spec", str(spec), *SELDOM, *words, cwd=spec.parent / "killed")
    assert again.returncode == 0, again.stderr
    assert "goes on at step" in again.stderr
    for name, rows in journals(study).items():
        assert rows == expected[name]
    siglip = next(
        path.parent
        for path in study.glob("clean-*/card.json")
        if json.loads(path.read_text())["objective"]["kind"] == "siglip"
    )
    assert load_file(siglip / "weights.safetensors")["logit_bias"].item() == pytest.approx(-10, abs=0.1)
    import open_clip

    from engine.export import main

    assert main([str(siglip), str(spec.parent / "out")]) == 0
    model = open_clip.create_model(f"local-dir:{spec.parent / 'out'}")
    assert model.logit_bias.item() == load_file(siglip / "weights.safetensors")["logit_bias"].item()


def test_bf16_and_adaptive_clipping_train_as_fp32_does(whole: Path, world: Path, spec: Path) -> None:
    """bf16 with float32 master weights and loss: the losses of fp32 to two digits; measured again, from what was exported,
    its own numbers. With zclip nothing in so short a run stands out, so at stages 0 and 1 the journal is that without."""
    held = [f"data.test.held={world / 'retrieval'}", "measure=[{kind: validation_loss, images: held}]"]
    found = {}
    runs = {
        "bf16": ["machine.precision=bf16", *held],
        "zclip 0": ["pretrain.optimizer.spikes=zclip"],
        "zclip 1": ["pretrain.optimizer.spikes=zclip", "machine.zero=1"],
    }
    for name, sets in runs.items():
        folder = spec.parent / name
        folder.mkdir()
        out = antidote("--spec", str(spec), "--stage", "pretrain", *SELDOM, *settings(*sets), cwd=folder)
        assert out.returncode == 0, out.stderr
        found[name] = [row for row in next(iter(journals(folder / "runs/tiny").values())) if row["kind"] == "step"]
    first = next(rows for name, rows in journals(whole).items() if name.startswith("pretrain"))
    losses = [row["loss"] for row in first if row["kind"] == "step"]
    assert [row["loss"] for row in found["bf16"]] == pytest.approx(losses, rel=0.05)
    assert [row["loss"] for row in found["bf16"]] != losses
    for name in ("zclip 0", "zclip 1"):
        assert [row["loss"] for row in found[name]] == pytest.approx(losses, rel=1e-5)
    again = settings("machine.precision=bf16", held[0], "measure=[{kind: validation_loss, images: held, block: 255}]")
    assert antidote("--spec", str(spec), "--stage", "pretrain", *again, cwd=spec.parent / "bf16").returncode == 0
    *_, own, measured_again = next(iter(journals(spec.parent / "bf16/runs/tiny").values()))
    assert measured_again["val_loss"] == pytest.approx(own["val_loss"], rel=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.slow
def test_compiled_towers_write_the_journal_of_plain_ones(whole: Path, spec: Path) -> None:
    """torch.compile on the towers' blocks, with its cache in a folder of its own."""
    words = ["--spec", str(spec), "--stage", "pretrain", *settings("machine.compile=true")]
    out = antidote(*words, cwd=spec.parent, TORCHINDUCTOR_CACHE_DIR=str(spec.parent / "inductor"))
    assert out.returncode == 0, out.stderr
    assert list((spec.parent / "inductor").rglob("*.cpp")), "nothing was compiled"
    first = next(rows for name, rows in journals(whole).items() if name.startswith("pretrain"))
    compiled = next(iter(journals(spec.parent / "runs/tiny").values()))
    losses = [[row["loss"] for row in rows if row["kind"] == "step"] for rows in (compiled, first)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def ranks_of(spec: Path, *words: list[str], hosts: str = "127.0.0.1") -> list[forked.Popen]:
    """One process for each list of words, as a launcher would start them."""
    port = str(20000 + os.getpid() % 20000)
    out = []
    for rank, more in enumerate(words):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(words)), "MASTER_ADDR": hosts}
        out.append(
            forked.Popen(
                [sys.executable, str(ROOT / "engine/run.py"), "--spec", str(spec), *more], cwd=spec.parent,
                env=environment(**place, MASTER_PORT=port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    return out


def test_ranks_that_disagree_are_named_before_the_first_step(spec: Path) -> None:
    started = ranks_of(spec, [], settings("pretrain.optimizer.rate=2e-3"))
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [2, 2]
    assert "ranks disagree: rank 1 on" in said[0]
    assert "has spec" in said[0]
    assert "Traceback" not in said[0] + said[1]


def test_a_few_bad_pairs_are_counted_listed_and_replaced(world: Path, spec: Path) -> None:
    shutil.copytree(world, spec.parent / "world")
    rewrite(spec.parent / "world", ".jpg", b"<html>", 48)
    spec.write_text(spec.read_text().replace(f'"{world}/train', f'"{spec.parent}/world/train'))
    out = antidote("--spec", str(spec), *SELDOM, *LONG, cwd=spec.parent, processes=2)
    assert out.returncode == 0, out.stderr
    listed = [
        json.loads(line)
        for line in next((spec.parent / "runs/tiny").glob("pretrain-*/skipped.jsonl")).read_text().splitlines()
    ]
    assert [(entry["cause"], Path(entry["shard"]).name) for entry in listed] == [("undecodable_image", "00001.tar")]


def test_a_batch_that_does_not_divide_names_the_nearest_that_do(spec: Path) -> None:
    out = antidote("--spec", str(spec), *settings("pretrain.batch=15"), cwd=spec.parent, processes=2)
    said = out.stderr + out.stdout
    assert out.returncode == 2
    assert "pretrain.batch is 15, which does not divide over 2 processes; nearest that do: 14 and 16" in said
    assert said.count("pretrain.batch is 15, which") == 1  # both ranks meet it, one says it


def test_cleaning_alone_needs_its_start(spec: Path) -> None:
    out = antidote("--spec", str(spec), "--stage", "clean", cwd=spec.parent)
    assert out.returncode == 2
    assert "run the pretrain stage first" in out.stderr


def test_an_exported_model_is_the_same_in_open_clip(whole: Path, tmp_path: Path) -> None:
    import open_clip
    from PIL import Image

    from engine.export import main
    from engine.models import clip

    run = next(whole.glob("clean-*"))
    assert main([str(run), str(tmp_path / "out")]) == 0
    assert main([str(run), str(tmp_path / "out")]) == 2
    assert main([str(tmp_path), str(tmp_path / "other")]) == 2
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    theirs.eval()
    ours = clip.build("test-vit", 0).eval()
    scale = clip.load_weights(ours, run / "weights.safetensors")["scale"].item()
    assert theirs.logit_scale.item() == pytest.approx(scale, abs=1e-6)
    picture = Image.effect_noise((32, 32), 60).convert("RGB")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(["a red banana", "one moon"])
    with torch.no_grad():
        image = theirs.encode_image(transform(picture)[None], normalize=True)
        text = theirs.encode_text(tokens, normalize=True)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)[None]
        rows, words = ours(pixels, tokens)
    assert torch.allclose(image, rows, atol=1e-5)
    assert torch.allclose(text, words, atol=1e-5)
    assert "do not deploy" in (tmp_path / "out/README.md").read_text()
    assert main([str(next(whole.glob("twin-*"))), str(tmp_path / "twin")]) == 0
    assert "pre-trained without poison" in (tmp_path / "twin/README.md").read_text()


def test_a_cut_shard_is_used_as_far_as_it_goes_and_its_loss_is_counted(spec: Path, world: Path) -> None:
    shutil.copytree(world / "train", spec.parent / "train")
    victim = spec.parent / "train/00001.tar"
    victim.write_bytes(victim.read_bytes()[:60_000])
    words = settings(f"data.pretrain.shards={spec.parent}/train/*.tar", "pretrain.epochs=1", "clean=null")
    out = antidote("--spec", str(spec), *words, cwd=spec.parent)
    assert out.returncode == 2
    assert "00001.tar" in out.stderr
    assert "cut off" in out.stderr
    assert "more than data.max_bad = 1.00%" in out.stderr
    out = antidote("--spec", str(spec), *words, *settings("data.max_bad=0.5"), cwd=spec.parent)
    assert out.returncode == 0, out.stderr
    run = next((spec.parent / "runs/tiny").glob("pretrain-*"))
    skipped = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    lost = next(entry for entry in skipped if entry["cause"] == "lost")
    bad = [entry for entry in skipped if "key" in entry]
    pairs = json.loads((run / "card.json").read_text())["pairs"]
    assert pairs + lost["pairs"] + len(bad) == 192
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = (spec.parent / "runs/tiny/tensorboard/pretrain").glob(f"*/rate=*-{run.name.split('-')[1][:6]}")
    board = EventAccumulator(str(path))
    board.Reload()
    assert board.Scalars("skipped/lost")[0].value == pytest.approx(lost["pairs"] / 192)


@pytest.mark.gpu
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_the_tiny_study_runs_on_a_gpu_in_bf16_as_on_a_cpu_in_fp32(whole: Path, spec: Path, zero: int) -> None:
    words = [sys.executable, str(ROOT / "engine/run.py"), "--spec", str(spec)]
    words += settings(f"machine.zero={zero}", "machine.precision=bf16")
    out = subprocess.run(words, cwd=spec.parent, capture_output=True, text=True, timeout=300, check=False)
    assert out.returncode == 0, out.stderr
    card = json.loads(next((spec.parent / "runs/tiny").glob("pretrain-*/card.json")).read_text())
    assert card["precision"] == "bf16"
    expected = journals(whole)
    for name, rows in journals(spec.parent / "runs/tiny").items():
        losses = [[row["loss"] for row in of if row["kind"] == "step"] for of in (rows, expected[name])]
        assert losses[0] == pytest.approx(losses[1], rel=0.1)
