"""benchmarks/README.md from the committed results: python benchmarks/table.py."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.side_by_side import HERE, RESULTS

WHAT = {
    "loss_clip_16k_memory": "contrastive loss and gradient, B = 16,384, D = 512, fp32: memory",
    "loss_clip_16k_time": "the same: CPU time",
    "loss_siglip_8k_memory": "sigmoid loss, B = 8,192: memory",
    "loss_siglip_8k_time": "the same: CPU time",
    "loss_slip_8k_memory": "SimCLR term of SLIP, B = 8,192: memory",
    "loss_slip_8k_time": "the same: CPU time",
    "loss_cyclip_8k_memory": "cyclic terms of CyCLIP, B = 8,192: memory",
    "loss_cyclip_8k_time": "the same: CPU time",
    "step_ViT-B-32": "train step, compute only, ViT-B-32, 16 pairs, captions of natural length, fp32",
    "step_RN50": "the same, RN50",
    "cached_2048": "gradient caching in 8 micro-batches, small ViT, B = 2,048",
    "traffic_4": "feature bytes a rank and step, 4 ranks",
    "traffic_9": "the same, 9 ranks",
    "traffic_16": "the same, 16 ranks",
    "engine_overhead": "engine around 300 small tensors, default stage",
    "waiting_beside_0": "train step of two threads on two cores, lab-resnet, nothing else running",
    "waiting_beside_1": "the same, beside one other busy process",
    "waiting_beside_2": "the same, beside two",
    "time_to_first_step": "from the command to the first step, ViT-B-32",
    "loss_memory_2_to_16": "loss memory of a rank from 2 to 16 ranks, 1,024 rows a rank",
    "loss_memory_batch_16k": "the same, a global batch of 16,384",
    "loss_memory_16": "loss memory of a rank, 16 ranks, 1,024 rows a rank",
    "loader_exact": "tar to batch, 340 x 256 JPEG, one view, one process, exact",
    "loader_fast": "the same, fast",
    "loader_exact_2_workers": "the same, exact, two workers",
    "loader_two_views": "tar to batch, two views of picture and caption, one process",
    "tar_walk": "reading a tar without decoding: header walk",
    "tar_indexed": "the same: pairs by the index",
    "tokenizer": "captions to tokens",
    "trigger_patch": "trigger patch on 640 x 480 (target 3 since November 27, 10 before)",
    "trigger_patch_224": "the same, on the 224 x 224 that the loader marks",
    "trigger_solid": "trigger solid on 640 x 480",
    "trigger_solid_224": "the same, on 224 x 224",
    "trigger_blend": "trigger blend on 640 x 480 (target 3 since November 27, 10 before)",
    "trigger_blend_224": "the same, on 224 x 224",
    "trigger_sine": "trigger sine (SIG) on 640 x 480",
    "trigger_sine_224": "the same, on 224 x 224",
    "trigger_warp": "trigger warp on 640 x 480 (target 3 since November 27, 10 before)",
    "trigger_warp_224": "the same, on 224 x 224",
    "evaluation_demo": "accuracy and ASR, the demo's model and set, each further evaluation: what is added to the towers",
    "evaluation_demo_first": "the same, the first one, decoding included",
    "evaluation_RN50": "accuracy and ASR, RN50, 500 x 375 JPEG, prompts to pictures as ImageNet: added to the towers",
    "evaluation_RN50_first": "the same, the first one, decoding included",
    "evaluation_feed": "the same, 200 pictures, without the towers: what a GPU leaves to the CPU, each further evaluation",
    "evaluation_feed_first": "the same, the first one, decoding included",
    "checkpoint_save": "saving RN50 and AdamW's moments: CPU time without flushing and digesting",
    "checkpoint_load": "loading them",
    "checkpoint_bytes": "bytes on disk of them",
    "sweep_8_runs": "a sweep of eight short cleanings, one command",
    "report_1000": "report of 1,000 runs x 20 epochs from their journals: CPU time; the peer is the budget",
    "detectors_released": "k_dist, slof, lid, dao of training pairs, published form, among pictures and captions",
    "memory_6m": "memory of a rank and its 8 workers for 6,000,000 pairs",
    "resume_6m": "to the first batch at 90 % of an epoch of 6,000,000 pairs",
}
HEAD = """# Benchmarks

`make bench` runs them all, one after the other, and writes this table from the committed results. Each measures ours and
the peer's in turn on the same tensors or shards; the ratio is theirs / ours, above 1 where we need less; its spread is the
smallest and largest round. What is measured and how stands at the head of each script. `where_time_goes.py` is a look
into a finished study.

Peers come from the package registry or, at the commit named, from their repository (cloned, or taken from
`ANTIDOTE_PEERS/OWNER+NAME/repo`); none of their code is part of Antidote.

"""
GPU = """
## On a GPU

`make gpu` measures these in nine minutes on one machine with a GPU (docs/clusters.md), into `results/gpu-NAME`. Where a
result says mfu, ours is a step and theirs what its operations would take at the rate of a measured product: the ratio is the
share of that rate.

"""
COLUMNS = ["| what | peer | ours | theirs | ratio (spread) | target | |", "|---|---|---|---|---|---|---|"]


def row(what: str, one: dict[str, Any]) -> str:
    """A result's line of the table."""
    low, high = one["spread"]
    peer = f"{one['peer']}, {one['peer_commit'][:12] if len(one['peer_commit']) == 40 else one['peer_commit']}"
    verdict = "reached" if one["ratio"] >= one["target"] else "**missed**"
    target = f"{one['target']:g}" if one["target"] != 1 else "none"
    return (
        f"| {what} | {peer} | {one['ours']:g} {one['unit']} | {one['theirs']:g} | {one['ratio']:g} ({low:g}-{high:g}) "
        f"| {target} | {verdict if target != 'none' else ''} |"
    )


def gpu_section(results: Path) -> str:
    """Every GPU that was measured, a table each; '' without one."""
    out = []
    for folder in sorted(results.glob("gpu-*/")):
        every = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        rows = [one for one in every if "ratio" in one and one["name"].startswith("gpu_")]
        if not rows:
            continue
        parts = {one["part"]: one["status"] for one in every if "part" in one}
        out += [*COLUMNS, *(row(one["name"].removeprefix("gpu_").replace("_", " "), one) for one in rows), ""]
        for one in every:
            if one["name"] == "gpu_curves":
                far = ", ".join(f"{stage}: {share:.2%}" for stage, share in one["largest_difference"].items())
                out += [f"Losses in bf16 from those of a CPU in fp32, the most by ZeRO stage: {far}.", ""]
            if one["name"] == "gpu_miniature":
                runs = f"{one['runs']} runs, {one['at_once']} at once, in {one['seconds']:.0f} s"
                out += [f"The miniature: {one['seeds']} seeds, {runs}; gpu_miniature.json has its verdict.", ""]
        unfinished = ", ".join(f"{name} {status}" for name, status in parts.items() if status not in ("passed", "cut off"))
        out += [f"Measured on: {rows[0]['machine']}, {rows[0]['date']}, commit {rows[0]['commit']}."]
        out += [f"Parts that did not pass: {unfinished}." if unfinished else "Every part passed.", ""]
    return GPU + "\n".join(out) if out else ""


def main() -> None:
    """Writes the table."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    lines = list(COLUMNS)
    machines = set()
    for name, what in WHAT.items():
        if name not in found:
            lines.append(f"| {what} | | | | not measured | | |")
            continue
        one = found[name]
        machines.add(f"{one['machine']}, {one['date']}")
        if "towers" in one:
            shares = [inside / whole for inside, whole in zip(one["towers"], one["whole"], strict=True)]
            what += f" (towers: {shares[0]:.0%} of our time, {shares[1]:.0%} of theirs)"  # noqa: PLW2901
        if "first_by_default" in one:
            what += f"; with our default trigger {one['theirs'] / one['first_by_default']:.1f} x"  # noqa: PLW2901
        lines.append(row(what, one))
    gpus = gpu_section(RESULTS)
    tail = "\n\nMeasured on: " + "; ".join(sorted(machines)) + "."
    tail += f"\n{gpus}" if gpus else " No GPU has been measured yet: `make gpu` (docs/clusters.md).\n"
    (HERE / "README.md").write_text(HEAD + "\n".join(lines) + tail)


if __name__ == "__main__":
    main()
