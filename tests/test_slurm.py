"""A study as a Slurm array, on a stand-in for Slurm's commands (tests/slurm): submitted, preempted, put back, ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from conftest import ROOT, SPEC, antidote, environment, journals, settings

from configs.sweep import Slurm, Sweep
from engine.study.launch import slurm_settings

ONE = SPEC.replace("workers: 0}}", "workers: 0, threads: 1}}")


def slurm(folder: Path) -> dict[str, str]:
    """An environment that has the stand-in on its PATH."""
    home = folder / "slurm"
    home.mkdir()
    env = environment(FAKE_SLURM=str(home))
    return {**env, "PATH": f"{ROOT / 'tests/slurm'}:{env['PATH']}"}


@pytest.mark.slow
def test_an_array_takes_the_runs_of_a_study_and_a_preempted_task_goes_on(world: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(ONE.format(world=world))
    asks = {"executor": "slurm", "jobs": 2, "slurm": {"gpus": False, "partition": "p", "hours": 1.5, "memory_gb": 4}}
    sweep = {"clean.optimizer.rate": [1e-4, 2e-4], **asks}
    words = settings("clean.epochs=40", f"sweep={json.dumps(sweep)}")
    env = slurm(tmp_path)
    process = forked.Popen(
        [sys.executable, str(ROOT / "engine/run.py"), "--spec", "tiny.yaml", *words], cwd=tmp_path, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    study, home = tmp_path / "runs/tiny", tmp_path / "slurm"
    deadline = time.monotonic() + 120
    while (
        len({path.parents[2] for path in study.glob("clean-*/checkpoints/step-*/manifest.json")}) < 2
    ):  # both tasks at work
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(int((home / "pid-1000_0").read_text()), signal.SIGUSR2)  # as Slurm does before it ends a job
    out, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert (home / "requeued-1000_0").exists()
    asked = (home / "job-1000").read_text()
    for line in ("--array=0-1%2", "--partition=p", "--time=90", "--mem=4GB", "--signal=USR2@300", "--cpus-per-task=8"):
        assert f"#SBATCH {line}" in asked
    assert "goes on at step" in "".join(path.read_text() for path in (study / ".jobs").glob("*.out"))
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "tiny.yaml").write_text(ONE.format(world=world))
    calm = antidote("--spec", "tiny.yaml", *words, *settings("sweep.executor=here"), cwd=alone)
    assert calm.returncode == 0, calm.stderr
    assert journals(study) == journals(alone / "runs/tiny")


def test_what_is_asked_of_slurm() -> None:
    sweep = Sweep(processes=4, slurm=Slurm(account="a", hours=0.5, cpus=6, setup=("module load cuda",)))
    assert slurm_settings(sweep, 7) == {
        "timeout_min": 30, "cpus_per_task": 24, "slurm_array_parallelism": 7, "slurm_signal_delay_s": 300,
        "slurm_setup": ["module load cuda"], "gpus_per_node": 4, "slurm_account": "a",
    }  # fmt: skip


def test_slurm_where_there_is_none_is_refused(spec: Path) -> None:
    path = str(Path(sys.executable).parent)  # a login node, where these tests run too, has one
    out = antidote("--spec", str(spec), *settings("sweep.executor=slurm"), cwd=spec.parent, PATH=path)
    assert out.returncode == 2
    assert "run this on a machine that has Slurm's sbatch and srun" in out.stderr
    assert "Traceback" not in out.stderr


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "configs/cluster").glob("*.sh")))
def test_launch_files_are_shell_and_ask_for_a_spec(script: str) -> None:
    path = ROOT / "configs/cluster" / script
    out = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert "give a spec, for example specs/cc6m.yaml" in path.read_text()


def test_launch_files_start_what_they_say(tmp_path: Path) -> None:
    """With a stand-in for `deepspeed` that prints its words."""
    (tmp_path / "deepspeed").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "deepspeed").chmod(0o755)
    env = environment(NODE_RANK="1", MASTER_ADDR="node1")
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    said = {}
    for name in ("hostfile", "no_ssh"):
        words = ["bash", f"configs/cluster/{name}.sh", "specs/demo.yaml", "--stage", "clean"]
        said[name] = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout.strip()
    last = "engine/run.py --spec specs/demo.yaml --stage clean"
    assert said["hostfile"] == f"--hostfile configs/cluster/hostfile {last}"
    assert said["no_ssh"] == (
        f"--hostfile configs/cluster/hostfile --no_ssh --node_rank 1 --master_addr node1 --master_port 29500 {last}"
    )
