"""A study under Slurm: what is asked of it, what it refuses, how its queue is read; by night on a real one of two nodes
(tests/slurm.py): time limit, preemption, cancelling, arrays."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import slurm
from conftest import ROOT, SPEC, Journals, antidote, environment, journals, settings

from configs.sweep import Slurm, Sweep
from data.refusal import UserError
from data.slurm import Queue, refuse_unfit
from engine.study.slurm import slurm_settings

LONG = settings("pretrain.epochs=100", "clean=null", "machine.save_minutes=1")


def test_what_is_asked_of_slurm() -> None:
    sweep = Sweep(processes=4, slurm=Slurm(account="a", hours=0.5, cpus=6, setup=("module load cuda",)))
    assert slurm_settings(sweep, 7) == {
        "timeout_min": 30, "slurm_array_parallelism": 7, "slurm_signal_delay_s": 300, "slurm_setup": ["module load cuda"],
        "slurm_srun_args": ["--cpus-per-task=24"],
        "slurm_additional_parameters": {"cpus-per-task": 24, "gpus-per-node": 4, "account": "a"},
    }  # fmt: skip
    on_cpus = slurm_settings(Sweep(slurm=Slurm(gpus=False, memory_gb=4)), 1)
    assert on_cpus["slurm_additional_parameters"] == {"cpus-per-task": 8, "mem": "4G"}


def stand_ins(folder: Path, **scripts: str) -> str:
    """A PATH on which Slurm's commands do what these lines of shell say, and nothing by default."""
    for name in ("sbatch", "srun", "squeue", "sinfo", "scontrol"):
        (folder / name).write_text(f"#!/bin/sh\n{scripts.get(name, 'exit 0')}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


UNREACHABLE = "echo 'slurm_load_partitions: Unable to contact slurm controller (connect failure)' >&2; exit 1"
UNCONFIGURED = (
    "echo 'sinfo: error: resolve_ctls_from_dns_srv: res_nsearch error' >&2\n"
    "echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1"
)
NO_GPUS = "echo 'sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification' >&2; exit 1"


@pytest.mark.parametrize(
    ("scripts", "words"),
    [
        ({"sinfo": UNREACHABLE}, "can't be reached (slurm_load_partitions: Unable to contact slurm controller"),
        ({"sinfo": UNCONFIGURED}, "can't be reached (Could not establish a configuration source)"),
        ({"sbatch": NO_GPUS}, "Slurm refuses the job (Batch job submission failed: Invalid generic resource (gres)"),
        ({"sbatch": "exit 3"}, "Slurm refuses the job (exit code 3)"),
        (None, "no sbatch on the PATH"),
    ],
)
def test_a_slurm_that_cannot_carry_a_study_out_is_refused_in_words(
    scripts: dict[str, str] | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path) if scripts is None else stand_ins(tmp_path, **scripts))
    with pytest.raises(UserError) as caught:
        refuse_unfit(["--gpus-per-node=1"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_study_and_its_dry_run_refuse_a_slurm_that_does_not_answer(spec: Path, tmp_path: Path) -> None:
    path = f"{stand_ins(tmp_path, sinfo=UNREACHABLE)}:{Path(sys.executable).parent}"
    for more in ([], ["--dry-run"]):
        out = antidote("--spec", str(spec), *settings("sweep.executor=slurm"), *more, cwd=spec.parent, PATH=path)
        assert out.returncode == 2
        assert "Slurm is installed but can't be reached" in out.stderr
        assert "Traceback" not in out.stderr
        assert len(out.stderr.splitlines()) <= 2


def test_the_queue_is_read_without_accounting_and_its_silence_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs that wait, run, are suspended or go back into the queue will run; those that ended or are forgotten will not."""
    states = ["PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "PREEMPTED", "COMPLETED", "TIMEOUT", "NODE_FAIL"]
    lines = "\n".join(f"echo '7_{number}|{state}'" for number, state in enumerate(states))
    monkeypatch.setenv("PATH", stand_ins(tmp_path, squeue=lines))
    queue = Queue()
    names = [f"7_{number}" for number in range(len(states) + 1)]  # the last one is unknown to Slurm
    for name in names:
        queue.register_job(name)
    assert [queue.is_done(name, "force") for name in names] == [False] * 6 + [True] * 4
    stand_ins(tmp_path, squeue=UNREACHABLE.replace("slurm_load_partitions", "slurm_load_jobs"))
    assert [queue.is_done(name, "force") for name in names] == [False] * 6 + [True] * 4
    assert capsys.readouterr().err.count("Slurm does not answer (slurm_load_jobs: Unable to contact") == 1


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "configs/cluster").glob("*.sh")))
def test_launch_files_are_shell_and_ask_for_a_spec(script: str) -> None:
    path = ROOT / "configs/cluster" / script
    out = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert script == "requeue.sh" or "give a spec, for example specs/cc6m.yaml" in path.read_text()
    assert not any("gpu" in line for line in path.read_text().splitlines() if line.startswith("#SBATCH"))


@pytest.mark.parametrize(
    ("code", "left", "state", "requeued"),
    [
        (0, "1:00:00", "RUNNING", False),
        (2, "1:00:00", "RUNNING", False),
        (143, "1-00:00:00", "RUNNING", True),
        (143, "UNLIMITED", "COMPLETING", False),  # somebody cancelled the job
        (5, "0:30", "RUNNING", True),  # it still runs when its time is up
        (0, "", "", False),  # no answer
    ],
)
def test_what_goes_back_into_the_queue(code: int, left: str, state: str, requeued: bool, tmp_path: Path) -> None:
    whole_array = 'case "$*" in *"--jobs=7 "*) echo PENDING;; esac'
    squeue = f'{whole_array}\ncase "$*" in *%L*) echo "{left}";; *) echo "{state}";; esac'
    path = stand_ins(tmp_path, squeue=squeue, scontrol=f"echo $* >> {tmp_path}/asked")
    for place in ({}, {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}):
        step = f"sleep 0.3; exit {code}"
        done = subprocess.run(
            ["bash", "configs/cluster/requeue.sh", "sh", "-c", step], cwd=ROOT, check=False, capture_output=True,
            env={"PATH": path, "SLURM_JOB_ID": "9", **place},
        )  # fmt: skip
        assert done.returncode == code, "the code of the step"
    asked = (tmp_path / "asked").read_text().split("\n")[:-1] if (tmp_path / "asked").exists() else []
    assert asked == (["requeue 9", "requeue 7_2"] if requeued else [])


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


# by night, on a real Slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Slurm]:
    """Two nodes of two cores."""
    if why := slurm.missing():
        pytest.skip(why)
    started = slurm.Slurm(tmp_path_factory.mktemp("slurm") / "home")
    yield started
    started.end()


@pytest.fixture
def checkout(world: Path, tmp_path: Path) -> Path:
    """A folder that jobs are submitted from, with what the scripts look for there, and a spec."""
    for name in ("configs", "engine"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "tiny.yaml").write_text(SPEC.format(world=world))
    return tmp_path


def alone(checkout: Path, *words: str, processes: int = 1) -> Journals:
    """The journals of the same study, undisturbed in so many processes of this machine."""
    folder = checkout / "alone"
    folder.mkdir()
    out = antidote("--spec", "../tiny.yaml", *words, cwd=folder, processes=processes)
    assert out.returncode == 0, out.stderr
    return journals(folder / "runs/tiny")


def until(what: Callable[[], object], seconds: float = 200.0) -> None:
    """Waits for it."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


TWO = ("--nodes=2", "--ntasks-per-node=1", "--output=out.txt")


def submit(cluster: slurm.Slurm, checkout: Path, *words: str) -> str:
    """The number of a job."""
    return cluster.call("sbatch", "--parsable", *words, cwd=checkout)


def states(cluster: slurm.Slurm, job: str) -> list[str]:
    """Of each task of a job."""
    return cluster.call("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%T").split()


def restarts(cluster: slurm.Slurm, job: str) -> int:
    """How often Slurm has put a job back into the queue."""
    found = re.search(r"Restarts=(\d+)", cluster.call("scontrol", "show", "job", job))
    assert found is not None
    return int(found[1])


def steps_done(study: Path) -> int:
    """Rows of the journal with the most."""
    return max((len(path.read_text().splitlines()) for path in study.glob("*/metrics.jsonl")), default=0)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_nodes_go_on_after_their_time_limit_and_a_request_to_save(cluster: slurm.Slurm, checkout: Path) -> None:
    """slurm.sh, unchanged, on nodes without GPUs: asked by hand, then by its time limit; as two undisturbed processes."""
    study, out = checkout / "runs/tiny", checkout / "out.txt"
    limit = ("--time=2", "--signal=TERM@60")
    job = submit(cluster, checkout, *TWO, *limit, "configs/cluster/slurm.sh", "tiny.yaml", *LONG)
    until(lambda: steps_done(study) > 20)
    cluster.call("scancel", "--signal=TERM", job)
    until(lambda: restarts(cluster, job) == 1)
    until(lambda: restarts(cluster, job) == 2)  # by its time limit
    cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    until(lambda: states(cluster, job) == ["COMPLETED"], 900)
    said = out.read_text()
    assert said.count("stopped and saved") == said.count("goes back into the queue") == restarts(cluster, job)
    assert said.count("goes on at step") == restarts(cluster, job)
    assert "no GPUs were asked for" in said
    assert "Traceback" not in said
    assert journals(study) == alone(checkout, *LONG, processes=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_keeps_the_exit_code_and_a_cancelled_one_does_not_come_back(cluster: slurm.Slurm, checkout: Path) -> None:
    script = (*TWO, "configs/cluster/slurm.sh", "tiny.yaml")
    job = submit(cluster, checkout, *script, *settings("model.name=none-such"))
    until(lambda: states(cluster, job) == ["FAILED"])
    assert "ExitCode=2:0" in cluster.call("scontrol", "show", "job", job)
    job = submit(cluster, checkout, *script, *LONG)
    until(lambda: steps_done(checkout / "runs/tiny") > 20)
    cluster.call("scancel", job)
    until(lambda: states(cluster, job) == ["CANCELLED"])
    time.sleep(10)
    assert states(cluster, job) == ["CANCELLED"]


SWEEP = {"clean.optimizer.rate": [1e-4, 2e-4]}
CLEANINGS = settings("clean.epochs=60", "machine.save_minutes=1")


def preempt(cluster: slurm.Slurm, checkout: Path, job: str, urgent: str = "sleep 5") -> None:
    """Takes both nodes from a job, by one that is more urgent."""
    words = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", f"--wrap={urgent}")
    other = submit(cluster, checkout, *words)
    until(lambda: states(cluster, other) == ["COMPLETED"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_array_that_is_preempted_goes_on(cluster: slurm.Slurm, checkout: Path) -> None:
    """slurm_array.sh, unchanged but for its size, after the pre-training alone."""
    words = (*CLEANINGS, *settings(f"sweep={json.dumps(SWEEP)}"))
    study = checkout / "runs/tiny"
    first = antidote("--spec", "tiny.yaml", "--stage", "pretrain", *words, cwd=checkout)
    assert first.returncode == 0, first.stderr
    size = ("--array=0-1", "--cpus-per-task=2", "--output=out-%a.txt")
    job = submit(cluster, checkout, *size, "configs/cluster/slurm_array.sh", "tiny.yaml", *words)
    until(lambda: min((len(path.read_text().splitlines()) for path in study.glob("clean-*/metrics.jsonl")), default=0) > 20)
    preempt(cluster, checkout, job)
    until(lambda: set(states(cluster, job)) == {"COMPLETED"}, 600)
    said = "".join(path.read_text() for path in checkout.glob("out-*.txt"))
    assert said.count("stopped and saved") >= 2
    assert "goes on at step" in said
    assert journals(study) == alone(checkout, *words)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_that_submits_its_own_array_goes_on_when_it_is_preempted(cluster: slurm.Slurm, checkout: Path) -> None:
    """sweep.executor: slurm, without accounting: its tasks warned as before their time limit, and preempted."""
    asks = {"executor": "slurm", "jobs": 2, "slurm": {"gpus": False, "cpus": 1, "hours": 1, "memory_gb": 1}}
    words = (*CLEANINGS, *settings(f"sweep={json.dumps({**SWEEP, **asks})}"))
    study = checkout / "runs/tiny"
    process = subprocess.Popen(
        [sys.executable, "engine/run.py", "--spec", "tiny.yaml", *words], cwd=checkout, env=cluster.environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def rows() -> list[int]:
        return [len(path.read_text().splitlines()) for path in study.glob("clean-*/metrics.jsonl")]

    try:
        until(lambda: len(rows()) == 2 and min(rows()) > 20 or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        tasks = cluster.call("squeue", "--noheader", "--array", "--format=%i").split()
        cluster.call("scancel", "--signal=USR2", tasks[0])  # as five minutes before its time is up
        until(lambda: restarts(cluster, tasks[0]) == 1)
        preempt(cluster, checkout, tasks[1])
        out, said = process.communicate(timeout=600)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, said
    logs = "".join(path.read_text() for path in (study / ".jobs").glob("*_log.*"))
    assert logs.count("stopped and saved") >= 2
    assert len(list((study / ".jobs").glob("*_submission.sh"))) == 1, "the same two jobs all along"
    assert "sacct" not in said + out
    assert "Traceback" not in said
    assert journals(study) == alone(checkout, *words, *settings("sweep.executor=here"))


@pytest.mark.slow
def test_gpus_on_nodes_without_any_are_refused_in_a_sentence(cluster: slurm.Slurm, checkout: Path) -> None:
    words = ["--spec", "tiny.yaml", *settings("sweep.executor=slurm", "sweep.slurm.cpus=1")]
    kept = {name: cluster.environment[name] for name in ("PATH", "SLURM_CONF")}
    out = antidote(*words, cwd=checkout, **kept)
    assert out.returncode == 2
    assert "Slurm refuses the job (" in out.stderr
    assert "gpus: false on nodes without GPUs" in out.stderr
    assert "Traceback" not in out.stderr
    assert not (checkout / "runs/tiny/study.json").exists()


@pytest.mark.slow
def test_nothing_of_it_outlives_a_killed_session(tmp_path: Path) -> None:
    if why := slurm.missing():
        pytest.skip(why)
    home = tmp_path / "home"

    def daemons() -> list[int]:
        named = [(process.pid, " ".join(process.info["cmdline"] or [])) for process in psutil.process_iter(["cmdline"])]
        return [pid for pid, words in named if str(home) in words and "-c" not in words.split()[:2]]

    start = f"import pathlib, time, slurm; of = slurm.Slurm(pathlib.Path({str(home)!r}))"
    words = f"{start}; print('up', flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", words], cwd=ROOT / "tests", stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == "up\n"
        assert len(daemons()) >= 4
        session.kill()
    until(lambda: not daemons(), 20)
