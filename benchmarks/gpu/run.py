"""Figures of one GPU in nine minutes: make gpu, or python benchmarks/gpu/run.py [--sizes tiny] [--out FOLDER].

Each part is a process of its own with a time-out, ended with all its children; what it finds is in FOLDER when it ends, and
part_NAME.json says: passed, failed, timed out, no time, or, of one that only spares others time, cut off. The parts of a
group run at once, as only what is not timed shares the GPU; groups run in turn. A table is printed after each group. Exit
code 1 if a part did not pass, 2 if a package is missing.

No network: what the machine lacks comes from --wheels FOLDER (make wheels). `--sizes tiny` tries every part on whatever
machine, a CPU too, in a minute and a half; its figures mean nothing.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from benchmarks.gpu.parts import Part, groups
from benchmarks.side_by_side import commit, machine

NEEDED = (
    "torch", "torchvision", "deepspeed", "open_clip_torch", "webdataset", "tensorboard", "pydantic", "ruamel.yaml",
    "rich", "matplotlib", "Jinja2", "safetensors", "braceexpand", "nltk", "scikit-learn", "scipy", "simplejpeg", "fsspec",
    "submitit", "optuna", "psutil", "nvidia-ml-py", "pytest", "pytest-timeout", "pytest-xdist", "hypothesis",
)  # fmt: skip
RESERVE = 5.0  # seconds at the end, for the last table
GRACE = 5.0  # seconds between asking a part to end and killing it


class Running:
    """A part that was started."""

    def __init__(self, part: Part, seconds: float, out: Path, env: dict[str, str], sizes: str) -> None:
        self.part, self.began, self.seconds, self.out = part, time.monotonic(), seconds, out
        self.log = out / "logs" / f"{part.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        words = [word.replace("SECONDS", str(int(seconds))) for word in getattr(part, sizes)]
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.status = ""

    def look(self) -> bool:
        """Whether it has ended; ends it if its time is over."""
        late = time.monotonic() - self.began - self.seconds
        code = self.process.poll()
        if code is None and late < 0:
            return False
        if code is None:
            self.status = "cut off" if self.part.spare else "timed out"
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
        self._signal(signal.SIGKILL)  # also children that outlived it
        self.process.wait()
        self.status = self.status or ("passed" if code == 0 else "failed")
        return True

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def record(self) -> dict[str, Any]:
        """What part_NAME.json says."""
        lines = self.log.read_text(errors="replace").splitlines()
        seconds = round(time.monotonic() - self.began, 1)
        return {"status": self.status, "code": self.process.returncode, "seconds": seconds, "output": lines[-40:]}


def run_group(parts: list[Part], sizes: str, out: Path, env: dict[str, str], deadline: float) -> list[dict[str, Any]]:
    """Carries out some parts at once; their records, each written as soon as it ends."""
    records, running = [], []
    for part in parts:
        left = deadline - RESERVE - time.monotonic()
        if left < part.least(sizes):
            records.append(write(out, part, {"status": "no time", "code": None, "seconds": 0.0, "output": []}))
        else:
            running.append(Running(part, min(part.limit(sizes), left), out, env, sizes))
    try:
        while running:
            for one in [one for one in running if one.look()]:
                running.remove(one)
                records.append(write(out, one.part, one.record()))
            time.sleep(0.1)
    finally:
        for one in running:  # an interrupt
            one.seconds = 0.0
            one.look()
    return records


def write(out: Path, part: Part, record: dict[str, Any]) -> dict[str, Any]:
    """The record as kept in part_NAME.json."""
    whole = {"name": f"part_{part.name}", "part": part.name, **record, "commit": commit()}
    whole["machine"] = f"{gpu_name()}, {machine()}"
    (out / f"part_{part.name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    return whole


def table(out: Path, records: list[dict[str, Any]]) -> str:
    """Every part so far and every result so far, a line each."""
    lines = [f"{one['part']:22} {one['status']:10} {one['seconds']:6.1f} s" for one in records]
    for path in sorted(out.glob("*.json")):
        found = json.loads(path.read_text())
        if "ratio" not in found:
            continue
        aim = (
            "" if found["target"] == 1 else "reached" if found["ratio"] >= found["target"] else f"missed {found['target']:g}"
        )
        ours, theirs = f"{found['ours']:g} {found['unit']}", f"{found['theirs']:g}"
        lines.append(f"  {found['name']:44} ours {ours:18} theirs {theirs:10} ratio {found['ratio']:<8g} {aim}")
    for one in records:
        if one["status"] in ("failed", "timed out"):
            lines += [f"--- {one['part']} {one['status']}; its last lines:", *one["output"][-6:]]
    return "\n".join(lines)


def prepared(wheels: Path | None, site: Path) -> dict[str, str]:
    """The environment of the parts, with the wheels of a folder installed into `site`; exit code 2 where packages are
    missing."""
    if wheels is not None:
        files = sorted(str(path) for path in wheels.glob("*.whl"))
        if not files:
            print(f"error: {wheels} holds no wheels; make wheels, on a machine with a network, fills it", file=sys.stderr)
            raise SystemExit(2)
        words = ["install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(site), *files]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)
        sys.path.insert(1, str(site))
    lacks = [name for name in NEEDED if not _there(name)]
    if lacks:
        print(f"error: {sys.executable} lacks {', '.join(lacks)}; name a folder with their wheels: WHEELS=FOLDER "
              "(make wheels, on a machine with a network, fills one)", file=sys.stderr)  # fmt: skip
        raise SystemExit(2)
    path = os.pathsep.join(filter(None, [str(ROOT), str(site), os.environ.get("PYTHONPATH", "")]))
    binaries = os.pathsep.join([str(Path(sys.executable).parent), str(site / "bin"), os.environ.get("PATH", "")])
    return {**os.environ, "PYTHONPATH": path, "PATH": binaries, "PYTHONUNBUFFERED": "1"}


def gpu_name() -> str:
    """The first GPU's name, as a part of a path; `none` where the driver tells of none."""
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        lines = []
    return re.sub(r"[^A-Za-z0-9]+", "-", lines[0]).strip("-") if lines else "none"


def _there(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", choices=("full", "tiny"), default="full")
    parser.add_argument(
        "--out", type=Path, help="a folder for what is found; default: benchmarks/results/gpu-NAME, the GPU's"
    )
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that this Python lacks")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--only", nargs="*", metavar="PART", help="these parts alone")
    asked = parser.parse_args()
    began, out = time.monotonic(), (asked.out or ROOT / "benchmarks/results" / f"gpu-{gpu_name()}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob("*.json")) and not any(out.glob("part_*.json")):
        print(
            f"error: {out} holds JSON files that are not of a run of this script; give --out a folder of its own",
            file=sys.stderr,
        )
        return 2
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="antidote-gpu-") as scratch:
        env = prepared(asked.wheels, Path(scratch) / "site")
        for old in out.glob("*.json"):  # of a run before: not to be read as this one's
            old.unlink()
        env |= {"ANTIDOTE_RESULTS": str(out), "ANTIDOTE_WORK": scratch, "ANTIDOTE_COMMIT": commit()}
        env |= {"TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor", "TRITON_CACHE_DIR": f"{scratch}/triton"}
        if asked.sizes == "tiny":
            env |= {"TORCH_COMPILE_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        for group in groups(asked.sizes):
            parts = [part for part in group if asked.only is None or part.name in asked.only]
            if parts:
                records += run_group(parts, asked.sizes, out, env, began + 60 * asked.minutes)
                print(f"\n{time.monotonic() - began:.0f} s\n{table(out, records)}", flush=True)
    return int(any(one["status"] not in ("passed", "cut off") for one in records))


if __name__ == "__main__":
    sys.exit(main())
