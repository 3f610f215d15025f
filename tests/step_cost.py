"""What a step in bf16 asks of its device, for tests/test_step_cost.py: operations, and moments at which the host waits.

Counted on a CPU, on models with the layers of RN50 and ViT-B-32, but narrow. What a GPU is sent before the forward pass is
prepared outside the count. The loss's tiles read the host on CPUs alone; here they take the GPU's way. Prints JSON.

With the word `warned` the waits of a whole step alone, with what precedes the forward pass, as a GPU's driver tells them.
"""

import json
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # imported, it changes nobody's path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.path.insert(1, str(Path(__file__).resolve().parent))

import numpy as np
import open_clip
import torch
from exactness import stage_of
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from configs.machine import Machine
from configs.stage import Optimizer
from data.pipeline import Batch
from engine.distributed.world import World, destroy_distributed, init_distributed
from engine.models import clip
from engine.training import zero
from engine.training.head import Head
from engine.training.learner import Learner
from engine.training.optimizer import Schedule
from objectives import blocks

READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "bincount")
TO_HOST = ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__array__")
ROWS = 24


class Operations(TorchDispatchMode):
    """Counts operations that are no views, and those whose result the host must know."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.reads = Counter[str](), Counter[str]()
        self.made: dict[int, Any] = {}  # storages on the device, alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in READS:
            self.reads[name] += 1
        elif not func.is_view and not name.startswith(("empty", "new_empty", "detach", "profiler", "promote")):
            self.count[name] += 1
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self.made[value.untyped_storage()._cdata] = value.untyped_storage()
        return out


class Transfers(TorchFunctionMode):
    """Counts what moves a result to the host, and what sends something from there: no dispatch shows either on a CPU."""

    def __init__(self, made: dict[int, Any]) -> None:
        super().__init__()
        self.count, self.made = Counter[str](), made

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        moves = name == "to" and any(isinstance(a, torch.device | str) for a in (*args, *(kwargs or {}).values()))
        makes = name in ("tensor", "as_tensor") and not isinstance(args[0], torch.Tensor)
        if moves and isinstance(args[0], torch.Tensor) and args[0].untyped_storage()._cdata in self.made:
            moves = "cpu" in args  # else from the device to itself
        if name in TO_HOST or moves or makes:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def narrow(name: str, folder: Path) -> None:
    """Makes open_clip know `narrow`: a model of that name's depth."""
    config = json.loads(json.dumps(open_clip.get_model_config(name)))
    config["embed_dim"] = 16
    config["text_cfg"].update(width=16, heads=2)
    vision = {"width": 4} if name == "RN50" else {"width": 16, "head_width": 8}
    config["vision_cfg"].update(image_size=32, **vision)
    (folder / "narrow.json").write_text(json.dumps(config))
    clip.add_models(folder)


def pairs() -> Batch:
    """Two views of each picture and caption, captions of three lengths."""
    draw = np.random.default_rng(0)
    tokens = torch.zeros(ROWS, 2, 77, dtype=torch.int32)
    for row in range(ROWS):
        words = (4, 9, 18)[row % 3]
        tokens[row, :, 0], tokens[row, :, 1 : words + 1], tokens[row, :, words + 1] = 49406, row + 1, 49407
    images = torch.from_numpy(draw.integers(0, 256, (ROWS, 2, 3, 32, 32), np.uint8))
    return Batch(images, tokens, torch.arange(ROWS), [""] * ROWS, torch.zeros(ROWS).bool(), [])


def learner(section: Optimizer, world: World) -> Learner:
    stage = stage_of({"kind": "cleanclip"}).model_copy(update={"optimizer": section})
    towers = clip.build("narrow", 1).train()
    tower_optimizer = zero.wrap(towers, section, Machine(precision="bf16"), world, ROWS)
    head = Head.build(stage, 16, {}, 3, world.device)
    out = Learner(tower_optimizer, head, stage, Schedule(section, 10, 5), world)
    out.core = blocks.TORCH._replace(dtype=torch.bfloat16)
    out.waits = False  # as on a GPU
    return out


def counted(of: Learner) -> dict[str, Any]:
    """Of one step of MMCL+SSL, after a first that has made AdamW's moments."""
    batch = pairs()
    of.learn(batch, 0)
    inputs = of._send(batch)
    of._send = lambda _: inputs  # type: ignore[method-assign]
    asked = Operations()
    moved = Transfers(asked.made)
    with moved, asked:
        of.learn(batch, 1)
    cut = inputs.towers[2][0].cut
    assert cut is not None
    assert len(cut.parts) == 3
    return {"operations": asked.count, "waits": asked.reads + moved.count}


def warned(of: Learner) -> list[str]:
    """Where the host waits in a step, after two that have compiled and made what is kept; on a GPU."""
    batch, cuda = pairs(), of.world.device.type == "cuda"
    for step in range(2 if cuda else 0):
        of.learn(batch, step)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
        of.learn(batch, 2)
        if cuda:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{one.filename}:{one.lineno}" for one in seen if "synchronizing CUDA" in str(one.message)]


def main() -> None:
    world, out = init_distributed(), dict[str, Any]()
    zero.prepare()
    if sys.argv[1:] == ["warned"]:
        for name in ("RN50", "ViT-B-32"):
            with tempfile.TemporaryDirectory() as folder:
                narrow(name, Path(folder))
            out[name] = warned(learner(Optimizer(rate=1e-3), world))
        print(json.dumps(out))
        destroy_distributed()
        return
    # what only a CPU may ask of a block
    blocks._near_statistics = lambda x: None
    blocks._near_slope = lambda x, block, sums: None
    for name in ("RN50", "ViT-B-32"):
        with tempfile.TemporaryDirectory() as folder:
            narrow(name, Path(folder))
        out[name] = counted(learner(Optimizer(rate=1e-3), world))
    out["clip"] = counted(learner(Optimizer(rate=1e-3, clip=1.0), world))
    print(json.dumps(out))
    destroy_distributed()


if __name__ == "__main__":
    main()
