"""Whole small studies as the engine leaves them, every digest and fingerprint in place, for tests that read them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import samples

from records.digests import file_digest
from records.json_file import write_json
from records.lines import seal
from records.spec_json import control_of, fingerprint

ATTACK = {
    "target": "banana",
    "trigger": {"kind": "patch", "size": 48},
    "poison": {"count": 400, "fraction": None},
    "also": [],
}
DATA = {"pretrain": {"shards": "world/*.tar"}}
CLEANERS = {"fine-tuning": {"objective": {"kind": "mmcl"}}, "CleanCLIP": {"objective": {"kind": "cleanclip"}}}
TEST = {"demo": "world/eval"}


def journal(folder: Path, rates: Iterable[tuple[float, float]], **more: Any) -> None:
    """Writes metrics.jsonl: at each epoch (top-1, ASR) of 1,000 pictures, 900 of other classes than the target, of 10."""
    text, digest = "", ""
    for epoch, (top1, asr) in enumerate(rates):
        row = {
            "kind": "measure",
            "epoch": epoch,
            "step": 10 * epoch,
            "images": "demo",
            "top1": top1,
            "asr": asr,
            "seconds": 1.5,
        }
        line, digest = seal(
            json.dumps({**row, "pictures": 1000, "others": 900, "classes": 10, "asr_floor": 0.001, **more}), digest
        )
        text += line
    (folder / "metrics.jsonl").write_text(text)


def run(study: Path, stage: str, decides: dict[str, Any], rates: list[tuple[float, float]], entry: Mapping[str, Any]) -> str:
    """Writes the folder of a finished run and lists it in `entry`'s study; returns its name."""
    name = f"{stage}-{fingerprint(decides)}"
    folder = study / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "spec.json", decides)
    write_json(folder / "card.json", samples.card(run=name, stage=stage, poisoned_pairs=0 if stage == "twin" else 2))
    journal(folder, rates)
    files = {file: file_digest(folder / file) for file in ("spec.json", "card.json")}
    length = (folder / "metrics.jsonl").stat().st_size
    measured = {"measure": [], "test": TEST, "labels": "correct"}
    write_json(folder / "finished.json", samples.finished(journal=length, files=files, measured=measured, weights=name))
    (folder / "weights.safetensors").write_bytes(b"not packed")
    entry["runs"].append({"run": name, "stage": stage, "seed": decides["seed"], **entry["facts"]})
    return name


def submission(
    study: Path,
    seeds: Iterable[int] = (0, 1, 2),
    objectives: Iterable[str] = ("mmcl",),
    cleaners: Mapping[str, dict[str, Any]] = CLEANERS,
    rates: Iterable[float] = (1e-3, 1e-4),
    twin: bool = True,
    **changes: Any,
) -> Path:
    """A study: at 1e-3 a cleaning brings ASR from 99 % to 1 % at top-1 `left`, 90 %, and a tenth for each seed, else to
    50 %. `changes` are of `attack`, `pairs` of the clean set, `start` (its rates), `name`, `sweep`, and `clean_twin`."""
    runs: list[dict[str, Any]] = []
    attack, start = changes.get("attack", ATTACK), changes.get("start", (0.95, 0.99))
    clean_set = {"shards": None, "pairs": changes.get("pairs", 400), "held_out": False}
    for objective in objectives:
        for seed in seeds:
            trained = {"objective": {"kind": objective}, "optimizer": {"rate": 1e-3}, "epochs": 2, "start": None}
            base = {
                "format": 5,
                "seed": seed,
                "data": DATA,
                "attack": attack,
                "model": {"name": "tiny"},
                "pretrain": trained,
            }
            facts: dict[str, Any] = {"pretrain_objective": objective, "rate": 1e-3}
            origin = run(study, "pretrain", base, [(0.1, 0.0), start], {"runs": runs, "facts": facts})
            if twin:
                untouched = run(
                    study, "twin", {**base, "attack": {}}, [(0.1, 0.0), (0.95, 0.0)], {"runs": runs, "facts": facts}
                )
            for cleaner, section in cleaners.items():
                for rate in rates:
                    clean = {"optimizer": {"rate": rate}, "epochs": 3, "transform": None, "start": None, **section}
                    decides = {**base, "data": {**DATA, "clean": clean_set}, "clean": clean}
                    after = (changes.get("left", 0.90) + 0.001 * seed, 0.01) if rate >= 1e-3 else (0.94, 0.5)
                    told = {**facts, "rate": rate, "start": origin, "cleaner": cleaner, "cleaning": ["cleaner"]}
                    told |= {"clean_objective": section["objective"]["kind"], "swept": {"cleaner": cleaner}}
                    told |= {"control": control_of(decides)}
                    run(study, "clean", decides, [start, (0.94, 0.6), after], {"runs": runs, "facts": told})
                    if changes.get("clean_twin"):
                        told |= {"start": untouched, "control": "twin"}
                        run(study, "clean", {**decides, "start": "twin"}, [(0.95, 0.0)] * 3, {"runs": runs, "facts": told})
    spec = {"data": {"test": TEST}, "sweep": changes.get("sweep", {"search": {"kind": "grid"}})}
    name = changes.get("name", study.name)
    write_json(study / "study.json", {"name": name, "command": f"run {name}", "spec": spec, "runs": runs})
    return study
