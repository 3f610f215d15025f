"""How two sides are measured: in turn, ours then the peer's, and again; what is kept is the ratio and its spread.

Times are of the process's CPU, which other work on the machine disturbs least; memory is the rise of the resident set's
peak, which Linux keeps for us, in a fresh process for each measurement.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = Path(os.environ.get("ANTIDOTE_RESULTS") or HERE / "results")


def machine() -> str:
    """This machine in words, and what decides its speed: its GPU, where a process has asked for one."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
            break
    words = f"{len(os.sched_getaffinity(0))} cores of {name}, Python {platform.python_version()}, torch {version('torch')}"
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return words
    import pynvml

    pynvml.nvmlInit()
    return f"{torch.cuda.get_device_name()}, driver {pynvml.nvmlSystemGetDriverVersion()}, {words}"


def commit() -> str:
    """Of this checkout: ANTIDOTE_COMMIT where it was copied without git, else as git describes it."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    told = os.environ.get("ANTIDOTE_COMMIT")
    if told:
        return told
    try:
        return subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write(
    name: str, peer: str, commit: str, turns: list[tuple[float, float]], target: float, unit: str, **more: Any
) -> dict[str, Any]:
    """Keeps the result of some (ours, theirs) in results/NAME.json: medians, and the ratio theirs / ours with its spread."""
    ratios = sorted(theirs / ours for ours, theirs in turns)
    result = {
        "name": name,
        "peer": peer,
        "peer_commit": commit,
        "ours": round(median(ours for ours, _ in turns), 4),
        "theirs": round(median(theirs for _, theirs in turns), 4),
        "unit": unit,
        "ratio": round(median(ratios), 3),
        "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
        "target": target,
        "rounds": len(turns),
        **more,
    }
    result = keep(result)
    print(
        f"{name}: ours {result['ours']} {unit}, {peer} {result['theirs']}, ratio {result['ratio']} {result['spread']}",
        flush=True,
    )
    return result


def keep(result: dict[str, Any]) -> dict[str, Any]:
    """Writes results/NAME.json of what a benchmark found, with where and when."""
    whole = {**result, "machine": machine(), "commit": commit(), "date": str(date.today())}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{whole['name']}.json").write_text(json.dumps(whole, indent=1) + "\n")
    return whole


def in_turn(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> list[tuple[float, float]]:
    """(ours, theirs) of each round, after one round that does not count."""
    ours(), theirs()
    return [(ours(), theirs()) for _ in range(rounds)]


def child(script: str, *words: str, **more: str) -> dict[str, Any]:
    """What a fresh process prints as its last line, in JSON."""
    out = subprocess.run(
        [sys.executable, str(HERE / script), *words], env={**os.environ, **more}, capture_output=True, text=True, check=False
    )
    if out.returncode:
        raise SystemExit(f"{script} {' '.join(words)} failed:\n{out.stderr[-3000:]}")
    last: dict[str, Any] = json.loads(out.stdout.strip().splitlines()[-1])
    return last


class Peak:
    """The rise of this process's resident set to its peak, in MB, from where it was made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak before
        self.base = self._of("VmRSS")

    def _of(self, name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))

    def rise(self) -> float:
        """MB."""
        return self._of("VmHWM") - self.base


def repository(name: str, commit: str, *files: str, tree: tuple[str, ...] = (), part: str = "") -> Path:
    """A folder with some files of a GitHub repository at a commit, side by side, or with their folders those in `tree`: from
    ANTIDOTE_PEERS/OWNER+NAME/repo, or cloned. Benchmarks that take different files give different `part`s."""
    folder = Path(tempfile.gettempdir()) / "antidote-peers" / f"{name.replace('/', '+')}-{commit[:12]}{part}"
    copy = Path(os.environ.get("ANTIDOTE_PEERS", "/nowhere")) / name.replace("/", "+") / "repo"
    if not folder.exists():
        if not copy.exists():
            copy = folder.with_suffix(".git")
            subprocess.run(["git", "clone", "--quiet", "--bare", f"https://github.com/{name}", str(copy)], check=True)
        folder.mkdir(parents=True)
        for file in (*files, *tree):
            body = subprocess.run(
                ["git", "--git-dir", str(copy), "show", f"{commit}:{file}"], check=True, capture_output=True
            )
            target = folder / (file if file in tree else Path(file).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(body.stdout)
    return folder
