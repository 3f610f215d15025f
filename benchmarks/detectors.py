"""Scores of training pairs: python benchmarks/detectors.py [released|million|drawn].

`released`: the four scores of local density in the published form against the functions released with arXiv 2502.01385
(HanxunH/Detect-CLIP-Backdoor-Samples), on the same embeddings of one batch, pictures and captions; first that they are
equal, in float64. Ours finds neighbourhoods once for the four; CPU seconds, in turn in one process. `million`: 1,000,000
synthetic pairs of width 512, all compared with all by faiss; `drawn`: with 2,048 of them. Minutes and peak memory above
the embeddings.
"""

import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch  # noqa: E402

from benchmarks.side_by_side import Peak, in_turn, keep, repository, write  # noqa: E402
from measures.detectors.contract import Embedded  # noqa: E402
from measures.detectors.dao import Dao  # noqa: E402
from measures.detectors.k_dist import KDist  # noqa: E402
from measures.detectors.lid import Lid  # noqa: E402
from measures.detectors.registry import score_all  # noqa: E402
from measures.detectors.slof import Slof  # noqa: E402

PEER = "HanxunH/Detect-CLIP-Backdoor-Samples"
KINDS = {"k_dist": KDist, "slof": Slof, "lid": Lid, "dao": Dao}
K, BATCH, WIDTH = 16, 1024, 512


def sections(**settings: Any) -> list[Any]:
    """One of each score of local density."""
    return [kind(kind=name, **settings) for name, kind in KINDS.items()]


def released() -> None:
    """Against the released functions."""
    commit = "ff2399af42fc710b84d5425773f50a309dc4cf66"
    files = [f"backdoor_sample_detector/{name}.py" for name in ("dao", "k_distance", "lid_detection", "slof")]
    folder = repository(PEER, commit, *files)
    alone = ModuleType("misc")
    alone.get_rank, alone.gather = lambda: 0, lambda rows: [rows]  # type: ignore[attr-defined]
    sys.modules["misc"] = alone
    sys.path.insert(0, str(folder))
    import dao
    import k_distance
    import lid_detection
    import slof

    kinds = (k_distance.KDistanceDetector, slof.SLOFDetector, lid_detection.LIDDetector, dao.DAODetector)
    theirs = dict(zip(KINDS, (kind(k=K) for kind in kinds), strict=True))
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randn(BATCH, WIDTH, generator=draw, dtype=torch.float64) for _ in range(2)]
    apart = [
        apart_by(theirs[one.title], one, rows)
        for one in sections(k=K, form="published", raw=True, among="pairs", batch=BATCH)
    ]
    rows = [part.float() for part in rows]

    def their_seconds() -> float:
        began = time.process_time()
        for detector in theirs.values():
            detector(model_of(rows), None, rows[1])
        return time.process_time() - began

    def our_seconds() -> float:
        began = time.process_time()
        score_all(sections(k=K, form="published", raw=True, among="pairs", batch=BATCH), embedded_of(rows))
        return time.process_time() - began

    write(
        "detectors_released", f"{PEER}, its four classes", commit[:12], in_turn(our_seconds, their_seconds, 3), 10,
        "CPU s a batch of 1,024 pairs", largest_difference=max(apart),
    )  # fmt: skip


def model_of(rows: list[torch.Tensor]) -> Any:
    """What they take for a model: it gives these embeddings."""
    return SimpleNamespace(encode_image=lambda images: rows[0], encode_text=lambda texts: rows[1])


def embedded_of(rows: list[torch.Tensor]) -> Embedded:
    """The same for ours."""
    return Embedded(torch.arange(len(rows[0])), raw_images=rows[0], raw_texts=rows[1])


def apart_by(theirs: Any, section: Any, rows: list[torch.Tensor]) -> float:
    """The largest difference of scores."""
    ours = score_all([section], embedded_of(rows))[section.title]
    return float((ours - theirs(model_of(rows), None, rows[1])).abs().max())


def million(pairs: int, references: int | None) -> dict[str, Any]:
    """Pairs about 1,000 centres: seconds, memory above the embeddings, recall."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, WIDTH, generator=draw)
    images = torch.empty(pairs, WIDTH)
    for begin in range(0, pairs, 8192):
        block = images[begin : begin + 8192]
        block.copy_(torch.randn(block.shape, generator=draw)).add_(
            centres[torch.randint(1000, (len(block),), generator=draw)]
        )
        block /= block.norm(dim=1, keepdim=True)
    embedded = Embedded(torch.randint(1 << 62, (pairs,), generator=draw), images)
    peak, began, cpu = Peak(), time.monotonic(), time.process_time()
    lid = Lid(kind="lid", references=references)
    found = score_all([*sections(k=K, references=references)[:2], lid, Dao(kind="dao", references=references)], embedded)
    assert all(bool(scores.isfinite().all()) for scores in found.values())
    return {
        "pairs": pairs, "width": WIDTH, "references": references or pairs, "threads": torch.get_num_threads(),
        "wall_s": round(time.monotonic() - began, 1), "cpu_s": round(time.process_time() - cpu, 1),
        "mb_above_embeddings": round(peak.rise(), 1), "embeddings_mb": images.nbytes >> 20, **embedded.notes["lid"],
    }  # fmt: skip


def main(what: str) -> None:
    """One of them."""
    if what == "released":
        released()
    elif what in ("million", "drawn"):
        result = million(int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000, None if what == "million" else 2048)
        print(keep({"name": f"detectors_{what}", **result}))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "released")
