"""Memory and CPU time of a loss and its gradient: python benchmarks/loss.py.

Against open_clip's ClipLoss (its release), its chunked SigLipLoss and SLIP's SimCLR loss (their repositories), and CyCLIP's
formula as printed. The same unit rows, float32, two threads.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

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
    exchange, ids = Exchange(SINGLE_RANK), torch.arange(rows)
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
            "siglip": lambda: sigmoid_sum(left, right, scale, bias, ids, ids) / rows,
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
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
    else:
        main()
