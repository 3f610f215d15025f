"""What a command imports before it answers: a spec with an error needs no torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment, settings

from engine import SPINS, command, deferred

ASK = """
import atexit, os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
atexit.register(lambda: print("imported:", *sorted(sys.modules)))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def imported(*words: str, cwd: Path) -> tuple[int, set[str], str]:
    """(exit code, modules that are in memory when a fresh interpreter has carried the command out, its errors)."""
    command = [sys.executable, "-c", ASK, str(ROOT / "engine/run.py"), *words]
    out = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    return out.returncode, set(out.stdout.splitlines()[-1].split()[1:]), out.stderr


def test_a_spec_with_an_error_is_refused_without_torch(spec: Path) -> None:
    spec.write_text(spec.read_text().replace("epochs: 2", "epoch: 2"))
    code, modules, errors = imported("--spec", spec.name, cwd=spec.parent)
    assert code == 2
    assert "did you mean 'epochs'?" in errors
    assert not modules & {"torch._C", "scipy", "sklearn", "open_clip", "deepspeed", "rich", "matplotlib", "nltk"}


def test_a_dry_run_loads_no_trainer_and_no_compiler(spec: Path) -> None:
    code, modules, errors = imported("--spec", spec.name, "--dry-run", cwd=spec.parent)
    assert code == 0, errors
    unwanted = (
        "deepspeed",
        "tensorboard",
        "webdataset",
        "nltk",
        "matplotlib",
        "submitit",
        "optuna",
        "sklearn",
        "scipy.stats",
    )
    assert not modules & {*unwanted, "torch._inductor", "torch._dynamo.symbolic_convert", "torch.utils.tensorboard"}
    assert "torch._C" in modules


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 3])
def test_a_fresh_process_trains_at_deepspeeds_stages(spec: Path, zero: int) -> None:
    """Forks have more in memory than it: torch's compiler, which these stages ask for."""
    sets = settings("pretrain.epochs=1", "clean.epochs=0", f"machine.zero={zero}")
    code, _, errors = imported("--spec", spec.name, *sets, cwd=spec.parent)
    assert code == 0, errors


def test_a_compiler_that_stood_aside_is_there_when_it_is_asked_for() -> None:
    words = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from engine import deferred; deferred.without_compiler(); "
    words += "import torch; f = torch.compiler.disable(abs); assert f is abs; from torch._dynamo.utils import "
    words += "is_compile_supported; assert not is_compile_supported('cpu'); import torch._dynamo; torch._dynamo.reset(); "
    words += "print(type(sys.modules['torch._dynamo']).__name__, torch._dynamo.config.recompile_limit > 0)"
    out = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)
    assert out.stdout == "module True\n", out.stderr


def test_a_deferred_package_is_loaded_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/__init__.py").write_text("from slow.part import VALUE\nload = 'its own'\n")
    (tmp_path / "slow/part.py").write_text("VALUE = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("slow", "slow.part"):
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    deferred.defer("slow")
    import slow  # type: ignore[import-not-found]

    assert "slow.part" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        import slow.part  # type: ignore[import-not-found]  # a part before the whole would be loaded twice
    assert slow.load == "its own"
    import slow.part as part

    assert part.VALUE is slow.VALUE
    deferred.load("slow")
    assert part.VALUE is slow.VALUE


def test_the_command_that_goes_on_is_the_one_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its launcher, its options and whatever stood before it; like it where the launcher is on another machine."""
    script = ROOT / "engine/run.py"
    (tmp_path / "run.py").symlink_to(script)
    child = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from engine.command import *; "
    child += f"print(given_command(Path({str(script)!r}), ['--spec', 'x y.yaml', '--local_rank=0']))"
    launcher = tmp_path / "torchrun"
    launcher.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}], check=True)\n")
    given = ["env", "A=1", sys.executable, str(launcher), "--nproc-per-node", "2", "run.py", "--spec", "x y.yaml"]
    for words, said in (
        (given[2:], "torchrun --nproc-per-node 2 run.py --spec 'x y.yaml'"),
        ([sys.executable, "-c", child], f"python {os.path.relpath(script, tmp_path)} --spec 'x y.yaml'"),
    ):
        out = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
        assert out.stdout.strip() == said
    words = ["--spec", "x.yaml"]
    monkeypatch.setattr(command, "started_by", lambda script: "")
    monkeypatch.chdir(ROOT)
    for variables, said in (
        ({"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "RANK": "0"}, "deepspeed --num_gpus 2"),
        ({"WORLD_SIZE": "16", "LOCAL_SIZE": "8", "RANK": "0"}, "deepspeed --hostfile HOSTFILE"),
        (
            {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "x"},
            "torchrun --nnodes 2 --nproc-per-node 8",
        ),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "WORLD_SIZE": "4"}, "srun --ntasks 4 python"),
        ({}, "python"),
    ):
        with monkeypatch.context() as patch:
            for name in ("WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "RANK", "CROSS_RANK", "TORCHELASTIC_RUN_ID"):
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            assert command.given_command(script, words) == f"{said} engine/run.py --spec x.yaml"
            patch.setenv(command.GIVEN, "sbatch it")
            assert command.given_command(script, words) == "sbatch it"


@pytest.mark.parametrize(
    ("given", "told"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
    ids=["the engine's", "the user's count", "the user's policy"],
)
def test_threads_of_an_operation_wait_as_the_engine_says_or_the_user(given: dict[str, str], told: str) -> None:
    """libgomp tells its settings when it is loaded, with torch, if it is asked to."""
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    words = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from engine import deferred; import torch; torch.zeros(9).sum()"
    done = subprocess.run(
        [sys.executable, "-c", words], env={**own, "OMP_DISPLAY_ENV": "verbose", **given}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this torch comes with another OpenMP than GNU's")
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)[0] == told
