"""What lies in a run's folder, and what its files say of it; needs neither torch nor DeepSpeed."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

RUNS = Path("runs")  # all studies, below the folder that a command is given in
STOPPED, FAILED = "stopped.json", "failed.json"


def finished(folder: Path) -> bool:
    """Whether the run in a folder ended and its weights are there."""
    return (folder / "finished.json").is_file() and (folder / "weights.safetensors").is_file()


def current(folder: Path, measured: dict[str, Any]) -> bool:
    """Whether the run in a folder is finished and `measured`, what the spec measures now, was measured."""
    return finished(folder) and bool(read_json(folder / "finished.json").get("measured") == measured)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none, or none whole."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all, whoever else writes the same file."""
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes the file so that readers see the old or the new one, never a part."""
    staged = path.with_name(f".{path.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        staged.write_bytes(content)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def note_failure(folder: Path, words: str) -> None:
    """Says in the run's folder why the run failed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FAILED, {"message": words, "when": time.strftime("%Y-%m-%d %H:%M:%S"), "host": socket.gethostname()})
