"""The pairs of a finished pre-training scored by its own model, and what that says.

runs/NAME/RUN/detect/
    scores.jsonl flagged.jsonl detection.json
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.detect import Detect, scoring
from configs.plan import Run
from data.disk import writing
from data.loader import Workers
from data.pipeline import Pairs
from data.refusal import UserError
from data.seeding import ranks
from engine.detection.encode import EMBEDDINGS, encoded
from engine.detection.foreign import read_foreign
from engine.detection.judge import against_twin, attacks_of, flags_of, result_of
from engine.detection.share import RankShare
from engine.distributed import collectives
from engine.distributed.world import World
from engine.models import clip
from engine.training import zero
from engine.training.pair_losses import read_losses
from measures.detectors.budget import Flagged
from measures.detectors.contract import CannotScore, Embedded
from measures.detectors.registry import AnyDetector, score_each
from records.detection import FOLDER, DetectionJson
from records.digests import file_digest
from records.ending import FinishedJson, verify_files
from records.folder import WEIGHTS, finished
from records.scores import FLAGGED, SCORES, ScoreWriter

TOGETHER = 4096  # pairs whose scores are written at once
Scores = dict[str, np.ndarray]  # by the detector's title: float64 [N], NaN where a pair has none


@dataclass(frozen=True)
class Detection:
    """A finished pre-training, its pairs as it was trained on them, and what is asked of them."""

    run: Run
    home: Path  # the run's folder
    pairs: Pairs
    asked: Detect
    world: World
    workers: Workers

    @property
    def out(self) -> Path:
        """Where the scores go."""
        return self.home / FOLDER


def detect(detection: Detection) -> DetectionJson:
    """Scores every pair, writes what that says, and gives it; all ranks call it. UserError if the run is not finished, was
    changed, or can't be scored."""
    run, home, world, asked = detection.run, detection.home, detection.world, detection.asked
    check_finished(home)
    asked.check(len(detection.pairs))
    collectives.on_rank_0(lambda: verify_files(home, WEIGHTS))
    samples = np.array([detection.pairs.sample(row) for row in range(len(detection.pairs))], np.int64)
    order = ranks(run.spec.seed, "detect", detection.pairs.index.hashes[samples])
    foreign, foreign_files = collectives.on_rank_0(lambda: _foreign(detection, samples))
    began = time.monotonic()
    towers = _towers(run, home, world)
    asks = frozenset().union(*(section.asks for section in asked.detectors))
    losses = read_losses(home, detection.pairs.index, samples) if "losses" in asks else None
    folder, how = detection.out / ".encoded", (world, detection.workers, run.spec.machine.eval_batch)
    with encoded(towers, detection.pairs, asks, folder, how) as found:
        encoding = time.monotonic() - began
        drawn = torch.from_numpy((order >> np.uint64(1)).astype(np.int64))
        images, texts, raw_images, raw_texts = (found.rows.get(name) for name in EMBEDDINGS)
        embedded = Embedded(drawn, images, texts, raw_images, raw_texts, losses)
        scores, seconds = _scores(asked.detectors, embedded, found.replaced, world)
        replaced = int(found.replaced.sum())
    facts = {
        "run": run.folder, "asked": asked.asked, "pairs": len(samples), "replaced": replaced,
        "encoding": round(encoding, 3), "processes": world.size, "foreign": foreign_files,
    }  # fmt: skip
    said = {section.title: _said(section, embedded, seconds) for section in asked.detectors}
    return collectives.on_rank_0(lambda: _written(detection, (samples, order), scores | foreign, said, facts))


def check_finished(home: Path) -> None:
    """UserError if the run in a folder is not finished; all ranks call it."""
    if not collectives.on_rank_0(lambda: finished(home)):
        raise UserError(f"{home} is not finished; carry out its study first, or give another run")


def _towers(run: Run, home: Path, world: World) -> Any:
    towers = clip.build(run.spec.model.name, run.spec.seed)
    clip.load_weights(towers, home / WEIGHTS)
    if zero.precision(run.spec.machine, world.device) == "bf16":
        towers.compute_in(torch.bfloat16)
    towers.unit = False
    return towers.to(world.device).eval()


def _foreign(detection: Detection, samples: np.ndarray) -> tuple[Scores, dict[str, str]]:
    """(the scores of other programs, their files' SHA-256 by address); UserError where two, or one and a detector, have the
    same name."""
    out, files = Scores(), dict[str, str]()
    taken = {section.title for section in detection.asked.detectors}
    for path in detection.asked.scores:
        for kind, scores in read_foreign(Path(path), detection.pairs.index, samples).items():
            if kind in out or kind in taken:
                raise UserError(f"{path}: scores of kind '{kind}' are there already; give them another kind")
            out[kind] = scores
        files[path] = file_digest(Path(path))
    return out, files


def _scores(
    sections: Sequence[AnyDetector], embedded: Embedded, replaced: np.ndarray, world: World
) -> tuple[Scores, dict[str, float]]:
    """(the scores, the seconds of each detector: those of neighbourhoods that several look at go to all of them alike)."""
    out, seconds = Scores(), dict[str, float]()
    began = time.monotonic()
    with scoring():
        for found in score_each(sections, embedded, RankShare.of(world)):
            each = round((time.monotonic() - began) / len(found), 3)
            for title, scores in found.items():
                values = scores.numpy().copy()
                values[replaced] = np.nan
                if np.isinf(values).any():
                    raise CannotScore(f"detector {title}: a score is not finite; the embeddings are damaged")
                out[title], seconds[title] = values, each
            began = time.monotonic()
    return out, seconds


def _said(section: AnyDetector, embedded: Embedded, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What is known of a detector beside its scores."""
    settings = section.model_dump(mode="json", exclude={"name", "kind"})
    title = section.title
    return {"settings": settings, "notes": embedded.notes.get(title, {}), "seconds": seconds[title]}


def _written(
    detection: Detection, pairs: tuple[np.ndarray, np.ndarray], scores: Scores, said: dict[str, Any], facts: dict[str, Any]
) -> DetectionJson:
    """Writes the scores, what is flagged, and the record, on the first rank; `pairs`: the samples, their random numbers."""
    (samples, order), keys = pairs, detection.pairs.index.keys
    attacks = attacks_of(detection.pairs.plan, samples)
    taken = flags_of(scores, order, detection.asked.budget)
    kinds = {section.title: section.kind for section in detection.asked.detectors}
    results = [
        result_of(title, kinds.get(title, "foreign"), values, attacks, taken[title], said.get(title, {}))
        for title, values in scores.items()
    ]
    out, end = detection.out, FinishedJson.read(detection.home)
    assert end is not None, "only finished runs are scored"
    with writing(detection.home, "the scores of the training pairs"):
        out.mkdir(exist_ok=True)
        (detection.home / DetectionJson.FILE).unlink(missing_ok=True)
        _write_scores(out / SCORES, scores, lambda row: keys[int(samples[row])])
        _write_flagged(out / FLAGGED, scores, taken, lambda row: keys[int(samples[row])])
        files = {name: file_digest(out / name) for name in (SCORES, FLAGGED)}
        poisoned = int((attacks >= 0).sum())
        result = DetectionJson(**facts, weights=end.weights, poisoned=poisoned, files=files, detectors=results)
        result.write(detection.home)
    return result


def _write_scores(path: Path, scores: Scores, key: Any) -> None:
    """A line for each pair and detector, pair by pair."""
    count = len(next(iter(scores.values())))
    with ScoreWriter(path) as file:
        for begin in range(0, count, TOGETHER):
            columns = {title: values[begin : begin + TOGETHER].tolist() for title, values in scores.items()}
            rows = range(begin, min(begin + TOGETHER, count))
            file.add(
                (key(row), title, values[row - begin])
                for row in rows for title, values in columns.items() if values[row - begin] == values[row - begin]
            )  # fmt: skip


def _write_flagged(path: Path, scores: Scores, taken: Mapping[str, Flagged], key: Any) -> None:
    """A line for each flagged pair, detector by detector, the most suspicious first."""
    with ScoreWriter(path) as file:
        for title, flags in taken.items():
            file.add((key(row), title, float(scores[title][row])) for row in flags.pairs)


def with_twin(home: Path, twin: Path, asked: Detect) -> DetectionJson:
    """Adds to a run's record what its detectors flag of the twin's pairs; on the first rank."""
    result = DetectionJson.read(home)
    if result is None:
        raise UserError(f"{home} has no scores of its pairs; detect there first")
    whole = against_twin(result, asked.budget, twin)
    whole.write(home)
    return whole
