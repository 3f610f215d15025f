"""What is found of the runs of a made-up submission (tests/submissions.py), with numbers that are worked by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import submissions
from test_audit_report import found as stamp

from engine.detection.judge import against_twin, flags_of, result_of
from measures.detectors.budget import Budget
from measures.outliers import anomaly_index
from records.audit import AuditJson, ClassFound, Decree, StampFound, Targets
from records.detection import FOLDER, DetectionJson
from records.ending import FinishedJson
from records.json_file import DIGEST, write_json
from records.scores import SCORES, ScoreWriter
from report.findings import twin_of

SHARE = 0.01  # of 200 pairs: two are flagged
SECTION = {"kind": "k_dist", "name": None, "k": 16}
ASKED = {"detectors": [SECTION], "budget": {"share": SHARE, "count": None, "outlier": None}, "scores": []}
CLEAN, POISONED = 198, 2
PICTURE = 3072  # values of a picture


def homes(study: Path, stage: str) -> list[Path]:
    """The folders of a stage's runs, as the study lists them."""
    listed = json.loads((study / "study.json").read_text())["runs"]
    return [study / run["run"] for run in listed if run["stage"] == stage]


def weights_of(home: Path) -> str:
    """Of a finished run."""
    end = FinishedJson.read(home)
    assert end is not None
    return end.weights


def scored(study: Path, above: Sequence[int], keeps_order: bool = True, of_twin: bool = True) -> None:
    """Scores the pairs of each pre-training: the clean ones 0 to 197, one poisoned 1,000, the other below so many of the
    clean ones, `above` by pre-training; and the twins' pairs 0 to 199. So AUROC is (198 + 198 - above) / 396."""
    twins = homes(study, "twin")
    for home, first in [*((twin, None) for twin in twins), *zip(homes(study, "pretrain"), above, strict=True)]:
        values = np.arange(CLEAN + POISONED, dtype=float)
        owners = np.full(len(values), -1, np.int64)
        if first is not None:
            values[CLEAN:], owners[CLEAN:] = (1000.0, CLEAN - 0.5 - first), 0
        taken = flags_of({"k_dist": values}, np.arange(len(values)).astype(np.uint64), Budget(share=SHARE))["k_dist"]
        one = result_of("k_dist", "k_dist", values, owners, taken, {"settings": {"k": 16}, "seconds": 0.5})
        (home / FOLDER).mkdir()
        with ScoreWriter(home / FOLDER / SCORES) as file:
            file.add((str(row), "k_dist", float(value)) for row, value in enumerate(values))
        facts: dict[str, Any] = {
            "run": home.name, "asked": ASKED, "weights": weights_of(home), "pairs": len(values),
            "poisoned": int((owners >= 0).sum()), "replaced": 0, "encoding": 1.5, "processes": 1, "files": {},
        }  # fmt: skip
        record = DetectionJson(**facts, detectors=[one if keeps_order else one.model_copy(update={"order": ""})])
        if first is not None and of_twin and twins:
            record = against_twin(record, Budget(share=SHARE), home.with_name(str(twin_of(whole_spec(home)))))
        record.write(home)


def whole_spec(home: Path) -> dict[str, Any]:
    """A run's spec.json, without its digest."""
    return {name: value for name, value in json.loads((home / "spec.json").read_text()).items() if name != DIGEST}


def audit(home: Path, share: float, sizes: Sequence[float] = (), planted: Sequence[str] = (), **changes: Any) -> AuditJson:
    """Audits a run: DECREE finds a stamp of a share of a picture, the scan stamps of these sizes; returns the record."""
    index = anomaly_index(list(sizes))
    classes = [
        ClassFound(name=f"class {at}", size=size, succeeded=True, index=None if index is None else index[at])
        for at, size in enumerate(sizes)
    ]
    facts: dict[str, Any] = {
        "weights": str(home), "digest": weights_of(home), "model": "tiny", "run": home.name, "images": "i",
        "images_digest": "d", "pictures": 32, "held": 32, "settings": {"seed": 0}, "seconds": 9.0,
        "targets_planted": list(planted), "decree": Decree(**stamp(share), cosine=0.99, conspicuous=share < 0.1),
    }  # fmt: skip
    if classes:
        flagged = [one.name for one in classes if one.index is not None and one.index > 2]
        least = StampFound(**stamp(min(sizes) / PICTURE))
        facts["targets"] = Targets(classes=classes, index=max(index) if index else None, flagged=flagged, smallest=least)
    record = AuditJson(**{**facts, **changes})
    (home / "audit").mkdir(exist_ok=True)
    record.write(home / "audit")
    return record


def rejected(home: Path, asked: Mapping[str, Any] | None = None, **rates: Any) -> None:
    """Gives a run numbers of lorex at test time, 1 % of the pictures triggered, and the section that asked for them."""
    roc = [0.0] * 10 + [1.0]
    numbers = {"tpr_fpr1": 0.0, "tpr_fpr5": 0.0, "roc": roc, "asr": 0.5, "top1": 0.9, **rates}
    more = {f"lorex_{name}_at1": value for name, value in numbers.items()}
    end = FinishedJson.read(home)
    assert end is not None
    before = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    submissions.journal(home, [(row["top1"], row["asr"]) for row in before], **more)
    measured = {**end.measured, "measure": [{"kind": "lorex", "images": "demo", "level": 0.995, **(asked or {})}]}
    length = (home / "metrics.jsonl").stat().st_size
    end.model_copy(update={"journal": length, "measured": measured}).write(home)


def probed(study: Path, tuned: Sequence[Mapping[int, tuple[float, float]]]) -> None:
    """Tunes each cleaned model, and its cleaned twin, with poisoned pairs: of each what ASR (the model's, the twin's) is
    after so many. Both are the first cleanings of their seed."""
    plan = json.loads((study / "study.json").read_text())
    plan.pop(DIGEST)
    cleaned = [run for run in plan["runs"] if run["stage"] == "clean"]
    pairs_of = [[next(r for r in cleaned if (r["seed"], r["control"]) == (seed, control)) for control in (None, "twin")]
                for seed in dict.fromkeys(run["seed"] for run in cleaned)]  # fmt: skip
    for both, amounts in zip(pairs_of, tuned, strict=True):
        for amount, rates in amounts.items():
            for start, asr, twin in zip(both, rates, (False, True), strict=True):
                decides = json.loads((study / start["run"] / "spec.json").read_text())
                facts = {key: decides[key] for key in ("format", "seed", "attack", "model")}
                data = {**decides["data"], "clean": {**decides["data"]["clean"], "leftover": amount}}
                section = {**decides["clean"], "start": {"digest": weights_of(study / start["run"])}}
                entry = {name: start[name] for name in ("pretrain_objective", "clean_objective", "rate")}
                told = {
                    "start": start["run"],
                    "after": {"of": both[0]["run"], "kind": "retune", "amount": amount, "twin": twin},
                }
                listed = {"runs": plan["runs"], "facts": {**entry, **told}}
                submissions.run(study, "clean", {**facts, "data": data, "clean": section}, [(0.9, asr)], listed)
    write_json(study / "study.json", plan)
