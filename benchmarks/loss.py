"""Memory and time of a loss and its gradient: python benchmarks/loss.py [--device cuda | cpu] [--rows 16384,32768,65536].

Without words: against open_clip's ClipLoss (its release), its chunked SigLipLoss and SLIP's SimCLR loss (their
repositories), and CyCLIP's formula as printed. The same unit rows, float32, two threads, CPU seconds.

On a device: MMCL by each core that works there beside open_clip's ClipLoss, of bfloat16 and of float32 rows, in this
process: milliseconds between two events, the median after a warm-up, and the device's peak beyond what was there before. On
cuda the results are kept; --device cpu tries the same lines with plain torch, prints, and keeps nothing.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.side_by_side import Peak, child, repository, write  # noqa: E402

OPEN_CLIP = ("mlfoundations/open_clip", "89fb801f1e6087880e951fc8354b8a2077b79c6d")
SLIP = ("facebookresearch/SLIP", "c6faf5d03cbfa7d529d210779f859cd3dddec09a")
D = 512


def measure(kind: str, side: str, rows: int) -> dict[str, float]:
    """CPU seconds and MB of one loss and its gradient; its value, to see that both sides compute the same."""
    import torch
    import torch.nn.functional as F

    from objectives.cyclip import cyclic
    from objectives.exchange import SINGLE_RANK, Exchange
    from objectives.infonce import infonce
    from objectives.slip import simclr
    from objectives.tiles import sigmoid_sum

    torch.manual_seed(0)
    left = F.normalize(torch.randn(rows, D), dim=-1).requires_grad_()
    right = F.normalize(torch.randn(rows, D) + 6 * left.detach(), dim=-1).detach().requires_grad_()
    scale, bias = torch.tensor(14.3, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    exchange = Exchange(SINGLE_RANK)
    loss = None
    if side == "theirs" and kind == "clip":
        from open_clip.loss import ClipLoss

        loss = ClipLoss()
    elif side == "theirs" and kind == "siglip":
        sys.path.insert(0, str(repository(*OPEN_CLIP, "src/open_clip/loss.py")))
        from loss import SigLipLoss

        loss = SigLipLoss(chunk_size=256)
    elif side == "theirs" and kind == "slip":
        sys.path.insert(0, str(repository(*SLIP, "losses.py", "utils.py")))
        from losses import SIMCLRLoss

        loss = SIMCLRLoss(temperature=0.1)
    (left[:64] @ right[:64].T).sum().backward()  # the library's pools, before what is measured
    left.grad = right.grad = None
    peak, began = Peak(), time.process_time()
    if side == "ours":
        value = {
            "clip": lambda: sum(infonce(left, right, scale, exchange)) / 2,
            "siglip": lambda: (
                sigmoid_sum(left, right, scale, bias, exchange.core, exchange.places(rows, left.device)) / rows
            ),
            "slip": lambda: simclr(left, right, torch.tensor(10.0), exchange),
            "cyclip": lambda: sum(cyclic(left, right, exchange)),
        }[kind]()
    elif kind == "clip":
        value = loss(left, right, scale)
    elif kind == "siglip":
        value = loss(left, right, scale, bias)
    elif kind == "slip":
        value = loss({"aug1_embed": left, "aug2_embed": right})["loss"]
    else:
        value = (left @ left.T - right @ right.T).square().mean() * rows
        cross = left @ right.T
        value = value + (cross - cross.T).square().mean() * rows
    value.backward()
    return {"cpu_s": time.process_time() - began, "mb": peak.rise(), "value": value.item()}


CASES = {  # name: (kind, rows, peer, commit, target of memory)
    "loss_clip_16k": ("clip", 16384, "open_clip ClipLoss", f"release {version('open_clip_torch')}", 15.0),
    "loss_siglip_8k": ("siglip", 8192, "open_clip SigLipLoss(chunk_size=256)", OPEN_CLIP[1], 4.0),
    "loss_slip_8k": ("slip", 8192, "SLIP SIMCLRLoss", SLIP[1], 8.0),
    "loss_cyclip_8k": ("cyclip", 8192, "CyCLIP's formula", "as printed", 10.0),
}


def device_steps(left: Any, right: Any, scale: Any) -> dict[str, Callable[[], Any]]:
    """MMCL of these rows by ClipLoss and by each of our cores that works here; on a CPU plain torch alone."""
    from open_clip.loss import ClipLoss

    from objectives import choice
    from objectives.exchange import SINGLE_RANK, Exchange
    from objectives.infonce import infonce

    def ours(name: str) -> Callable[[], Any]:
        return lambda: sum(infonce(left, right, scale, Exchange(SINGLE_RANK, choice.core_of(name)))) / 2

    names = choice.NAMES if left.is_cuda else ("torch",)
    faults = {name: choice.fault(name, left.device, left.dtype, left.shape[1]) for name in names}
    for name, fault in faults.items():
        if fault:
            print(f"{name} does not work here: {fault}", flush=True)
    return {"theirs": lambda: ClipLoss()(left, right, scale)} | {n: ours(n) for n, fault in faults.items() if fault is None}


def device_cost(step: Callable[[], Any], leaves: list[Any], rounds: int) -> dict[str, float] | None:
    """Milliseconds and MB of a loss and its gradient, and its value; None if the device's memory is too small."""
    import torch

    cuda, times, value = leaves[0].is_cuda, [], 0.0
    if cuda:
        torch.cuda.empty_cache()  # of what ran out of memory before
    try:
        for number in range(rounds + 2):
            for leaf in leaves:
                leaf.grad = None
            if number == 2 and cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            peak = None if cuda else Peak()
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if cuda else (None, None)
            clock = time.perf_counter()
            if cuda:
                began.record()
            loss = step()
            loss.backward()
            if cuda:
                ended.record()
                torch.cuda.synchronize()
            times.append(began.elapsed_time(ended) if cuda else 1e3 * (time.perf_counter() - clock))
            value = loss.item()
            del loss
    except torch.OutOfMemoryError:
        return None
    mb = (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else peak.rise()
    return {"ms": median(times[2:]), "mb": mb, "value": value}


def device_main(device: str, rows: list[int], rounds: int) -> None:
    """Every number of rows, both types; on cuda one result for time and one for memory, ours by the fastest core."""
    import torch
    import torch.nn.functional as F

    for count in rows:
        for dtype in (torch.bfloat16, torch.float32):
            draw = torch.Generator().manual_seed(0)
            left, right = (F.normalize(torch.randn(count, D, generator=draw), dim=-1) for _ in range(2))
            right = F.normalize(right + left, dim=-1)
            leaves = [part.to(device, dtype).requires_grad_() for part in (left, right)]
            leaves.append(torch.tensor(14.3, device=device, requires_grad=True))
            costs = {name: device_cost(step, leaves, rounds) for name, step in device_steps(*leaves).items()}
            kind = f"{count // 1024}k_{str(dtype)[6:]}" if count >= 1024 else f"{count}_{str(dtype)[6:]}"
            print(f"loss_{kind}", json.dumps(costs), flush=True)
            theirs, mine = costs.pop("theirs"), {name: cost for name, cost in costs.items() if cost}
            close = 2e-2 if dtype == torch.bfloat16 else 2e-4  # ClipLoss rounds its logits
            for name, cost in mine.items():
                assert theirs is None or abs(cost["value"] - theirs["value"]) <= close * max(1.0, theirs["value"]), (
                    kind,
                    name,
                    costs,
                )
            if device == "cpu" or not mine:
                continue
            best = min(mine, key=lambda name: mine[name]["ms"])
            more: dict[str, Any] = {"rows": count, "width": D, "dtype": str(dtype), "core": best, "cores": mine}
            more["device"] = torch.cuda.get_device_name()
            for what, unit, target in (("ms", "ms", 2.0), ("mb", "MB", 100.0)):
                name = f"gpu_loss_{kind}_{'time' if what == 'ms' else 'memory'}"
                if theirs is None:  # nothing to divide by: what it would have needed is more than the device has
                    print(f"{name}: ours {mine[best][what]:.1f} {unit}, ClipLoss: out of memory", flush=True)
                    continue
                aim = target if count == 65536 else 1.0
                release = f"release {version('open_clip_torch')}"
                write(name, "open_clip ClipLoss", release, [(mine[best][what], theirs[what])], aim, unit, **more)


def main() -> None:
    """Measures all of them, each side in a fresh process in turn."""
    for name, (kind, rows, peer, commit, target) in CASES.items():
        turns = [[child("loss.py", kind, side, str(rows)) for side in ("ours", "theirs")] for _ in range(3)]
        for ours, theirs in turns:
            assert abs(ours["value"] - theirs["value"]) <= 2e-4 * abs(theirs["value"]), (name, ours, theirs)
        write(f"{name}_memory", peer, commit, [(a["mb"], b["mb"]) for a, b in turns], target, "MB", rows=rows, width=D)
        aim = 1.5 if kind == "clip" else 1.0
        write(f"{name}_time", peer, commit, [(a["cpu_s"], b["cpu_s"]) for a, b in turns], aim, "CPU s", rows=rows, width=D)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("-"):
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
        parser.add_argument("--rows", default="16384,32768,65536", help="numbers of rows, with commas between")
        parser.add_argument("--rounds", type=int, default=5)
        words = parser.parse_args()
        device_main(words.device, [int(count) for count in words.rows.split(",")], words.rounds)
    elif len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
    else:
        main()
