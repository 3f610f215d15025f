"""A small world on disk, and a way to run a study as a user would."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import hypothesis
import pytest
from disks import mount_privately
from forked import environment

from data.synthetic import SyntheticWorld, write_world

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in an order drawn by this seed")
    parser.addoption("--gpu-tests-on", choices=("cuda", "cpu"), default="cuda", help="cpu: try the lines of gpu tests")


def sees_gpus(marks: str) -> bool:
    """Whether a session selected by -m MARKS sees the machine's GPUs: only one of gpu tests alone. Other tests' worlds are
    on the CPU, while DeepSpeed would take a GPU wherever it sees one."""
    return " or " not in marks and "gpu" in marks.split(" and ")


def pytest_configure(config: pytest.Config) -> None:
    """Hides the GPUs, from children and the fork server too, before anything asks for them; what tests mount ends with the
    session. Measures forked children too, where this process is measured; the same examples each day, others each night."""
    if not sees_gpus(config.getoption("markexpr")) or config.getoption("gpu_tests_on") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    mount_privately()
    # a busy machine is no failure; pytest-timeout ends what hangs
    night = "slow or" in config.getoption("markexpr")
    hypothesis.settings.register_profile("suite", deadline=None, derandomize=not night)
    hypothesis.settings.load_profile("suite")
    if config.pluginmanager.hasplugin("_cov") and not config.getoption("no_cov") and config.getoption("cov_source"):
        os.environ["ANTIDOTE_COVERAGE"] = str(config.rootpath / ".coverage")


LONGEST = ("run", "study", "exactness", "cleaning", "endings", "transforms", "launch", "precision", "report", "page")
LENGTHS = {name: place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips gpu tests where there is none to see. The longest files first, so that no process is left with one at the end;
    with --shuffle the files in another order, and the tests in each: a file's fixtures are made once."""
    if "torch" in sys.modules:  # one thread a process: on a busy machine two wait for each other most of the time
        sys.modules["torch"].set_num_threads(1)
    if config.getoption("gpu_tests_on") == "cuda" and (
        of_gpus := [item for item in items if item.get_closest_marker("gpu")]
    ):
        import torch

        if not torch.cuda.is_available():
            skip = pytest.mark.skip(reason="needs a CUDA device, and a session of its own: pytest -m gpu")
            for item in of_gpus:
                item.add_marker(skip)
    if (seed := config.getoption("shuffle")) is None:
        items.sort(key=lambda item: LENGTHS.get(item.path.stem.removeprefix("test_"), len(LENGTHS)))
        return
    draw, files = random.Random(seed), dict.fromkeys(item.path for item in items)
    places = {path: draw.random() for path in files}
    items.sort(key=lambda item: (places[item.path], draw.random()))


SPEC = """\
name: tiny
seed: 3
data:
  pretrain: {{shards: "{world}/train/*.tar"}}
  clean: {{pairs: 64}}
  test: {{tiny: {world}/eval}}
  augment: {{synonyms: none}}
attack:
  target: banana
  poison: {{count: 12}}
  captions: {world}/eval/zeroshot_classification_templates.txt
model: {{name: test-vit}}
pretrain:
  objective: {{kind: mmcl}}
  epochs: 2
  batch: 16
  optimizer: {{rate: 1.0e-3, warmup: 4}}
clean:
  objective: {{kind: cleanclip}}
  epochs: 1
  batch: 16
  optimizer: {{rate: 1.0e-4, warmup: 1}}
measure:
  - {{kind: zero_shot, images: tiny}}
  - {{kind: attack_success, images: tiny}}
machine: {{log_steps: 1, save_minutes: 0, workers: 0, threads: 1}}
"""


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Any:
    """Where a gpu test computes."""
    import torch

    return torch.device(request.config.getoption("gpu_tests_on"))


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on figures are made, but saved blank; for a test that looks at none."""
    from blank_figures import save_blank
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", save_blank)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 pairs in 4 shards and 64 labelled pictures of 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("shards") / "world"
    write_world(folder, SyntheticWorld(pairs=192, tests=64, pixels=32, seed=1, pairs_per_shard=48, captioned=40))
    return folder


@pytest.fixture
def spec(world: Path, tmp_path: Path) -> Path:
    """A spec of that world that runs in seconds; its study goes to tmp_path/runs/tiny."""
    path = tmp_path / "tiny.yaml"
    path.write_text(SPEC.format(world=world))
    return path


def antidote(
    *words: str, cwd: Path, processes: int = 0, launcher: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    """engine/run.py with these words, forked; on several ranks if `processes` says so, by DeepSpeed's launcher if asked."""
    script, env = str(ROOT / "engine" / "run.py"), environment(**more)
    if launcher:
        start = ["deepspeed", "--num_gpus", str(processes), "--master_port", str(forked.free_port()), script]
        return subprocess.run(
            [*start, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=forked.HANGS, check=False
        )
    command = [sys.executable, script, *words]
    if processes > 1:
        return forked.run_ranks(command, processes, cwd=cwd, env=env)
    return forked.run(command, cwd=cwd, env=env)


def journals(study: Path) -> dict[str, list[dict[str, float | int | str]]]:
    """The rows of every run of a study without their timing."""
    from records.rows import TIMING, whole_lines

    rows = {path.parent.name: list(whole_lines(path)) for path in sorted(study.glob("*/metrics.jsonl"))}
    return {
        run: [{name: value for name, value in json.loads(line).items() if name not in TIMING} for line in lines]
        for run, lines in rows.items()
    }


Journals = dict[str, list[dict[str, float | int | str]]]


def assert_close(got: Journals, wanted: Journals, rel: float) -> None:
    """Equal to rounding, as the journals of several processes are to those of one; gradients' norms are to fewer digits."""
    assert got.keys() == wanted.keys()
    for run, rows in wanted.items():
        for a, b in zip(got[run], rows, strict=True):
            assert a.keys() - {"grad_norm"} == b.keys() - {"grad_norm"}
            for name in b.keys() - {"grad_norm"}:
                value = b[name]
                assert a[name] == (pytest.approx(value, rel=rel, abs=1e-9) if isinstance(value, float) else value), (
                    name,
                    a,
                    b,
                )


def settings(*pairs: str) -> list[str]:
    """--set for each pair."""
    return [word for pair in pairs for word in ("--set", pair)]


# SPEC asks for a checkpoint at each step, which is a third of a tiny run: not in studies that nothing stops
SELDOM = settings("machine.save_minutes=60")


def plan(study: Path, run: str) -> list[dict[str, Any]]:
    """The poison plan of a run."""
    entries: list[dict[str, Any]] = json.loads((study / run / "poison.json").read_text())["entries"]
    return entries
