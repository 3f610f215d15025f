"""Feature traffic and loss memory over ranks: python benchmarks/ranks.py [traffic | memory].

W gloo processes compute one loss and its gradient. Bytes are what a ring moves to one rank: (W - 1) parts for a gather
and for a reduce-scatter, in our collectives as engine/distributed/world.py counts them, in open_clip's
ClipLoss(local_loss, gather_with_grad) by the same rule at torch.distributed's functions.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.side_by_side import Peak, write  # noqa: E402

D = 512


def played(side: str, ranks: int, rows: int) -> dict[str, float]:
    """What rank 0 of so many measures."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, str(Path(__file__)), side, str(rows), f"{folder}/out"]
        common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        port = str(20000 + os.getpid() % 20000)
        made = [
            subprocess.Popen(
                words,
                env={**common, "PYTHONWARNINGS": "ignore", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port},
            )
            for rank in range(ranks)
        ]
        assert [process.wait(500) for process in made] == [0] * ranks
        out: dict[str, float] = json.loads(Path(f"{folder}/out").read_text())
        return out


def one(side: str, rows: int, out: str) -> None:
    """One rank's part."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F

    from engine.distributed import collectives
    from engine.distributed.world import destroy_distributed, init_distributed

    world = init_distributed()
    draw = torch.Generator().manual_seed(world.rank)
    left, right = (F.normalize(torch.randn(rows, D, generator=draw), dim=-1).requires_grad_() for _ in range(2))
    scale = torch.tensor(14.3, requires_grad=True)
    moved = 0
    if side == "ours":
        from objectives.exchange import Exchange
        from objectives.infonce import infonce

        ranks = collectives.process_groups()
        warm = [part.detach()[:8].clone().requires_grad_() for part in (left, right)]
        sum(infonce(*warm, scale, Exchange(ranks))).backward()  # connections and pools
        collectives.received.bytes = 0
        dist.barrier()
        peak = Peak()
        sum(infonce(left, right, scale, Exchange(ranks))).backward()
        moved = collectives.received.bytes
    else:
        from open_clip.loss import ClipLoss

        def counted(name: str, each: Any) -> None:
            function = getattr(dist, name)

            def call(*given: Any, **named: Any) -> Any:
                nonlocal moved
                moved += each(*given)
                return function(*given, **named)

            setattr(dist, name, call)

        others = world.size - 1
        counted("all_gather", lambda into, part, *_: others * part.nbytes)
        counted("_all_gather_base", lambda into, part, *_: others * part.nbytes)
        counted("all_gather_into_tensor", lambda into, part, *_: others * part.nbytes)
        counted("all_to_all", lambda into, parts, *_: others * parts[0].nbytes)
        counted("reduce_scatter", lambda into, parts, *_: others * into.nbytes)
        counted("_reduce_scatter_base", lambda into, *_: others * into.nbytes)
        counted("scatter", lambda into, *_, **__: into.nbytes * others // world.size)
        counted("all_reduce", lambda value, *_: 2 * value.nbytes * others // world.size)
        peak = Peak()
        ClipLoss(local_loss=True, gather_with_grad=True, rank=world.rank, world_size=world.size)(
            left, right, scale
        ).backward()
    if world.first:
        Path(out).write_text(json.dumps({"bytes": moved, "mb": peak.rise(), "grad": left.grad.norm().item()}))  # type: ignore[union-attr]
    dist.barrier()
    destroy_distributed()


def traffic() -> None:
    """Bytes of a step that reach one rank."""
    release = f"release {version('open_clip_torch')}"
    for ranks, target in ((4, 2.8), (9, 3.8), (16, 4.7)):
        ours, theirs = played("ours", ranks, 32), played("theirs", ranks, 32)
        turns = [(ours["bytes"] / 1e6, theirs["bytes"] / 1e6)]
        peer = "open_clip local_loss + gather_with_grad"
        write(f"traffic_{ranks}", peer, release, turns, target, "MB a rank and step", rows_a_rank=32, width=D)


def memory() -> None:
    """MB of a rank: from 2 to 16 ranks at fixed rows a rank and at a fixed global batch, and beside open_clip's."""
    rounds = [(played("ours", 16, 1024)["mb"], played("ours", 2, 1024)["mb"]) for _ in range(3)]
    note = (
        "ours: 16 ranks, theirs: 2; target: at most 1.1 times the memory, which no exchange of the same traffic can reach: "
    )
    note += "the blocks that a rank receives are 2 (sqrt(W) - 1), and it needs them twice (objectives/exchange.py)"
    write(
        "loss_memory_2_to_16", "itself on 2 ranks", "this commit", rounds, 0.909, "MB", rows_a_rank=1024, width=D, note=note
    )
    many = median(ours for ours, _ in rounds)
    two = played("ours", 2, 8192)["mb"]
    note = "ours: 16 ranks, theirs: 2"
    write("loss_memory_batch_16k", "itself on 2 ranks", "this commit", [(many, two)], 1.0, "MB", width=D, note=note)
    theirs, release = played("theirs", 16, 1024)["mb"], f"release {version('open_clip_torch')}"
    peer = "open_clip local_loss + gather_with_grad"
    write("loss_memory_16", peer, release, [(many, theirs)], 1.0, "MB", rows_a_rank=1024, width=D)


def main() -> None:
    """All numbers of ranks."""
    traffic()
    memory()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        one(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        {"traffic": traffic, "memory": memory}.get("".join(sys.argv[1:]), main)()
