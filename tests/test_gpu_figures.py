"""make gpu: every part at tiny size; time-outs, what failed and what had no time are told."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, environment

from benchmarks import table
from benchmarks.gpu import run
from benchmarks.gpu.parts import GPU_TESTS, GROUPS, Part, groups

SLEEPS = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); time.sleep(99)"
)


def part(name: str, code: str, seconds: float = 30.0, spare: bool = False) -> Part:
    return Part(name, ("-c", code), ("-c", code), seconds, spare)


def test_a_part_that_fails_or_takes_too_long_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all its children ended: they hold the log open."""
    monkeypatch.setattr(run, "GRACE", 0.5)
    parts = [part("good", "print('fine')"), part("bad", "raise SystemExit('broken')"), part("slow", SLEEPS, 1.5)]
    parts.append(part("ahead", SLEEPS, 1.0, spare=True))
    env, deadline = dict(os.environ), time.monotonic() + 60
    records = run.run_group(parts, "full", tmp_path, env, deadline)
    records += run.run_group([part("late", "print('never')")], "full", tmp_path, env, time.monotonic() + 6)
    status = {one["part"]: one["status"] for one in records}
    assert status == {"good": "passed", "bad": "failed", "slow": "timed out", "ahead": "cut off", "late": "no time"}
    for name, told in status.items():
        kept = json.loads((tmp_path / f"part_{name}.json").read_text())
        assert kept["status"] == told
        assert "output" in kept
    said = run.table(tmp_path, records)
    assert "broken" in said
    holders = [pid for pid in Path("/proc").glob("[0-9]*") if str(tmp_path / "logs/slow.log") in links(pid)]
    assert not holders


def links(process: Path) -> set[str]:
    """What a process has open."""
    try:
        return {os.readlink(link) for link in (process / "fd").iterdir()}
    except OSError:
        return set()


def test_a_missing_package_ends_it_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "NEEDED", ("torch", "no_such_package_at_all"))
    with pytest.raises(SystemExit) as ended:
        run.prepared(None, tmp_path)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "lacks no_such_package_at_all; name a folder with their wheels: WHEELS=FOLDER" in said
    with pytest.raises(SystemExit) as ended:
        run.prepared(tmp_path, tmp_path / "site")
    assert ended.value.code == 2
    assert "holds no wheels" in capsys.readouterr().err


def test_what_is_needed_is_what_the_project_needs_or_an_extra_of_tests() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {word.split(">")[0].split("[")[0] for word in project["dependencies"]}
    assert names - set(run.NEEDED) <= {"numpy", "pillow"}  # torchvision's own
    wheels = {line for line in (ROOT / "benchmarks/gpu/wheels.txt").read_text().splitlines() if not line.startswith("#")}
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {name.lower() for name in wheels} <= pinned


def test_nine_minutes_hold_every_part_and_each_has_a_script() -> None:
    longest = sum(max(one.seconds for one in group) for group in GROUPS)
    assert longest <= 720  # most end well before their time-outs; what is left over goes to the last one
    for group in GROUPS:
        for one in group:
            for words in (one.full, one.tiny):
                assert all((ROOT / word).exists() for word in words if word.endswith(".py"))
    assert {one.name for group in groups("tiny") for one in group} >= {"tests", "curves", "loss", "loader", "miniature"}


def test_the_files_of_gpu_tests_are_named() -> None:
    marked = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu\n" in path.read_text()}
    assert marked == set(GPU_TESTS)


def test_the_papers_loss_written_plainly_is_our_objective() -> None:
    from benchmarks.gpu.steps import papers_loss
    from objectives.contract import Features
    from objectives.exchange import SINGLE_RANK, Exchange
    from objectives.mmcl_ssl import MmclSsl

    draw = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(9, 5, generator=draw, dtype=torch.float64), dim=-1) for _ in range(4)]
    learned = {"scale": torch.tensor([2.0], dtype=torch.float64)}
    features = Features((rows[0], rows[1]), (rows[2], rows[3]), learned)
    ours = MmclSsl(kind="mmcl_ssl").build()(features, Exchange(SINGLE_RANK))["loss"]
    assert papers_loss(rows[:2], rows[2:], learned["scale"].exp()).item() == pytest.approx(ours.item(), rel=1e-9)


def test_the_table_tells_of_gpus_that_were_measured_alone(tmp_path: Path) -> None:
    assert table.gpu_section(tmp_path) == ""
    folder = tmp_path / "gpu-Test-9000"
    folder.mkdir()
    one = {"name": "gpu_step_RN50_mmcl", "peer": "open_clip amp_bf16 compiled", "peer_commit": "release 3.3.0", "ours": 10.0,
           "theirs": 15.0, "unit": "ms a step", "ratio": 1.5, "spread": [1.4, 1.6], "target": 1.3, "machine": "Test 9000",
           "date": "2026-11-27", "commit": "abc"}  # fmt: skip
    (folder / "gpu_step_RN50_mmcl.json").write_text(json.dumps(one))
    (folder / "part_loss.json").write_text(json.dumps({"name": "part_loss", "part": "loss", "status": "timed out"}))
    said = table.gpu_section(tmp_path)
    assert (
        "| step RN50 mmcl | open_clip amp_bf16 compiled, release 3.3.0 | 10 ms a step | 15 | 1.5 (1.4-1.6) | 1.3 | reached |"
        in said
    )
    assert "Measured on: Test 9000" in said
    assert "loss timed out" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_part_runs_at_tiny_size(tmp_path: Path) -> None:
    """On a CPU, as `make gpu SIZES=tiny`: each writes its record, none fails."""
    words = [sys.executable, "benchmarks/gpu/run.py", "--sizes", "tiny", "--out", str(tmp_path / "out")]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    names = {one.name for group in groups("tiny") for one in group}
    kept = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert {kept[f"part_{name}.json"]["status"] for name in names} == {"passed"}
    for name in ("gpu_curves", "gpu_miniature", "cpu_step_test-vit_mmcl", "cpu_step_test-vit_mmcl_ssl", "cpu_loader",
                 "cpu_end_to_end", "cpu_evaluation", "cpu_mfu_test-vit_mmcl"):  # fmt: skip
        assert kept[f"{name}.json"]["machine"]
        assert kept[f"{name}.json"]["commit"]
    assert kept["gpu_miniature.json"]["verdict"]
    assert kept["gpu_curves.json"]["largest_difference"].keys() == {"0", "1", "2", "3"}
