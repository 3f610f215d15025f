"""Files of a run as the engine writes them, for tests that read them."""

import json
from pathlib import Path
from typing import Any

GPU = {"name": "NVIDIA H100 80GB HBM3", "gpu": True, "threads": 8}
CPU = {"name": "x86_64 CPU", "gpu": False, "threads": 3}


def card(**changes: Any) -> dict[str, Any]:
    """A card.json."""
    adamw = {"implementation": "torch", "rate": 1e-3, "warmup": 4, "decay": 0.1}
    return {
        "run": "pretrain-a", "stage": "pretrain", "title": "pretrain mmcl", "model": "test-vit", "parameters": 1000,
        "objective": {"kind": "mmcl"}, "pairs": 200, "poisoned_pairs": 2, "epochs": 2, "steps": 20, "epoch_steps": 10,
        "batch": 20, "process_batch": 20, "optimizer": adamw, "trims_captions": True, "precision": "fp32",
        "loss_core": "torch", "zero": 0, "processes": 1, "device": CPU, "data_digest": "0",
        "versions": {"torch": "1"}, **changes,
    }  # fmt: skip


def finished(**changes: Any) -> dict[str, Any]:
    """A finished.json."""
    return {"seconds": 10.0, "steps": 20, "journal": 100, "weights": "0", "measured": {}, **changes}


def end(folder: Path, **changes: Any) -> None:
    """Writes the finished.json of the run in a folder, whose journal is there."""
    length = (folder / "metrics.jsonl").stat().st_size
    (folder / "finished.json").write_text(json.dumps(finished(journal=length, **changes)))


def pruned(**changes: Any) -> dict[str, Any]:
    """A stopped.json."""
    return {"seconds": 10.0, "step": 10, "why": "below the median", **changes}
