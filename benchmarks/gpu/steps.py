"""Steps of whole models on a device, ours and open_clip's, eager and compiled, in turn in one process.

Both sides' pictures and tokens lie on the device: no loader, no copy. A step is forward, loss, backward and AdamW. Ours in
bf16 as a run takes it (float32 masters, the loss's fastest core). open_clip's for MMCL is its own train_one_epoch with its
AdamW at amp_bf16 and at pure_bf16, cuDNN's search and TF32 on as its `main` sets them; the better one of the two is compiled
whole, as its --torchcompile does. open_clip has no MMCL+SSL: there its model, precision and AdamW take the paper's loss,
written plainly, with the two views in turn. A round is STEPS steps of each side, between two events of the device.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.side_by_side import write
from configs.machine import Machine
from configs.stage import Optimizer, Stage
from data.pipeline import Batch
from engine.distributed.world import World
from engine.models import clip
from engine.training import zero
from engine.training.head import Head
from engine.training.learner import Learner
from engine.training.loss_core import loss_core
from engine.training.optimizer import Schedule
from engine.training.step_inputs import MicroBatches
from objectives.mmcl import Mmcl
from objectives.mmcl_ssl import MmclSsl

RATE, STEPS, WARM = 1e-4, 5, 3
OBJECTIVES: dict[str, Any] = {"mmcl": Mmcl(kind="mmcl"), "mmcl_ssl": MmclSsl(kind="mmcl_ssl")}
NOWHERE = Path("/nonexistent")  # no checkpoint of a run


@dataclass
class Side:
    """What takes steps, some at once, and how it is called."""

    name: str
    steps: Callable[[int], None]
    ours: bool

    def run(self, count: int) -> None:
        """Takes so many steps, under the settings that its trainer has."""
        torch.backends.cudnn.benchmark = not self.ours
        self.steps(count)


def pairs(name: str, rows: int, views: int, device: torch.device) -> Batch:
    """Noise on the device, and captions on the host as long as CC3M's are (mean 11.8 tokens, 95th percentile 20, at most
    28)."""
    draw, side = np.random.default_rng(0), clip.image_size(name)
    length = clip.model_config(name)["text_cfg"].get("context_length", 77)
    images = torch.from_numpy(draw.integers(0, 256, (rows, views, 3, side, side), np.uint8)).to(device)
    tokens = torch.zeros(rows, views, length, dtype=torch.int32)
    for row, words in enumerate(np.clip(draw.gamma(6.0, 9.8 / 6.0, rows).round().astype(int), 3, min(26, length - 2))):
        for view in range(views):
            tokens[row, view, : words + 2] = torch.tensor([49406, *draw.integers(1000, 40000, words), 49407])
    if device.type == "cuda":
        tokens = tokens.pin_memory()
    return Batch(images, tokens, torch.arange(rows), [str(i) for i in range(rows)], torch.zeros(rows).bool(), [])


def learner(name: str, batch: Batch, objective: str, machine: Machine, world: World) -> Learner:
    """Ours, as engine/training/build.py makes it."""
    rows, width = len(batch.keys), clip.model_config(name)["embed_dim"]
    stage = Stage(objective=OBJECTIVES[objective], epochs=1, batch=rows, optimizer=Optimizer(rate=RATE))
    towers = clip.build(name, 0).to(world.device)
    wrapped = zero.wrap(towers, stage.optimizer, machine, world, rows)
    core = loss_core(NOWHERE, world, zero.precision(machine, world.device), width)
    head, schedule = Head.build(stage, width, {}, 0, world.device), Schedule(stage.optimizer, 10**6, 10**6)
    by_length = not machine.compile
    return Learner(wrapped, head, stage, schedule, world, MicroBatches(None, by_length), core=core.core)


def ours(name: str, batch: Batch, objective: str, compiled: bool, world: World) -> Side:
    """Our step in bf16."""
    of = learner(name, batch, objective, Machine(precision="bf16", compile=compiled), world)

    def steps(count: int) -> None:
        for step in range(count):
            outcome = of.learn(batch, step)
        assert bool(outcome.taken)

    return Side("ours, " + ("compiled" if compiled else "eager"), steps, True)


def within(left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor, symmetric: bool) -> torch.Tensor:
    """InfoNCE of unit rows, as a formula: every similarity in memory."""
    logits, own = scale * left @ right.T, torch.arange(len(left), device=left.device)
    loss = F.cross_entropy(logits, own)
    return (loss + F.cross_entropy(logits.T, own)) / 2 if symmetric else loss


def papers_loss(images: list[torch.Tensor], texts: list[torch.Tensor], scale: torch.Tensor) -> torch.Tensor:
    """MMCL+SSL of two views' unit rows (arXiv 2311.14948, eq. 3): across modalities, and each view with its other."""
    own = [within(*views, scale, symmetric=False) for views in (images, texts)]
    return within(images[0], texts[0], scale, symmetric=True) + sum(own) / 2


class Peer:
    """open_clip's model with its optimizer; `precision` as it names it."""

    def __init__(self, name: str, batch: Batch, precision: str, device: torch.device) -> None:
        import open_clip
        from open_clip_train.precision import get_autocast

        self.precision, self.device = precision, device
        with clip.quiet():
            self.model: Any = open_clip.create_model(name, precision=precision, device=device, output_dict=True)
        self.autocast = get_autocast(precision, device_type=device.type)
        named = list(self.model.named_parameters())
        plain = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
        held = {id(p) for p in plain}
        rest = [p for _, p in named if id(p) not in held]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)
        pixels = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        mean, std = (torch.tensor(of, device=device).view(3, 1, 1) for of in pixels)
        kind = torch.bfloat16 if precision == "pure_bf16" else torch.float32
        views = range(batch.images.shape[1])
        self.pixels = [((batch.images[:, view].float() / 255 - mean) / std).to(kind) for view in views]
        self.tokens = [batch.tokens[:, view].long().to(device) for view in views]

    def compile(self) -> None:
        """As open_clip's --torchcompile."""
        self.model = torch.compile(self.model)

    def side(self, objective: str) -> Side:
        """Its steps."""
        kind = "compiled" if hasattr(self.model, "_orig_mod") else "eager"
        steps = self._own(self.model) if objective == "mmcl" else self._papers(self.model)
        return Side(f"open_clip {self.precision} {kind}", steps, False)

    def _own(self, model: Any) -> Callable[[int], None]:
        from open_clip.loss import ClipLoss
        from open_clip_train.train import train_one_epoch

        loss = ClipLoss(cache_labels=True)
        settings = SimpleNamespace(
            device=str(self.device), precision=self.precision, distill=False, accum_freq=1, skip_scheduler=True,
            horovod=False, grad_clip_norm=None, rank=0, local_rank=0, world_size=1, log_every_n_steps=10**6,
            batch_size=len(self.tokens[0]), wandb=False, log_local=False, distributed=False, use_bnb_linear=None,
        )  # fmt: skip

        class Loader(list):  # type: ignore[type-arg]
            num_samples = 1

            @property
            def num_batches(self) -> int:
                return len(self)

        def steps(count: int) -> None:
            loader = Loader([(self.pixels[0], self.tokens[0])] * count)
            data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
            train_one_epoch(model, data, loss, 0, self.optimizer, None, None, None, settings)

        return steps

    def _papers(self, model: Any) -> Callable[[int], None]:
        plain = getattr(model, "_orig_mod", model)

        def steps(count: int) -> None:
            model.train()
            for _ in range(count):
                self.optimizer.zero_grad()
                with self.autocast():
                    out = [model(*views) for views in zip(self.pixels, self.tokens, strict=True)]
                    images, texts = ([one[key] for one in out] for key in ("image_features", "text_features"))
                    loss = papers_loss(images, texts, out[0]["logit_scale"])
                loss.backward()
                self.optimizer.step()
                with torch.no_grad():
                    plain.logit_scale.clamp_(0, math.log(100))

        return steps


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of some work: between two events of a GPU, else of the clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - began)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def product_rate(side: int, device: torch.device) -> float:
    """Operations a second of a bf16 product of two matrices of that side, of random numbers: the median of ten."""
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    times = [clock(lambda: left @ right, device) for _ in range(13)][3:]
    return 2 * side**3 / (median(times) / 1e3)


def flops(side: Side) -> int:
    """Of a step, as it is computed: products, convolutions, attention, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        side.run(1)
    return int(counter.get_total_flops())


def fits(side: Side, device: torch.device) -> bool:
    """Takes the steps that do not count; False if the device's memory is too small."""
    try:
        side.run(WARM if device.type == "cuda" else 1)
    except torch.OutOfMemoryError:
        print(f"{side.name}: out of memory", flush=True)
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


class Comparison:
    """A model and an objective: the sides that were measured so far."""

    def __init__(self, name: str, rows: int, objective: str, world: World, product: int) -> None:
        self.name, self.rows, self.objective, self.device = name, rows, objective, world.device
        self.rate = product_rate(product, world.device)
        self.product, self.counted = product, dict[str, int]()
        self.left_out: dict[str, str] = {}

    def measure(self, sides: list[Side], rounds: int) -> dict[str, list[float]]:
        """Milliseconds a step of each side and round, the sides in turn; kept as a result."""
        steps = STEPS if self.device.type == "cuda" else 1
        times: dict[str, list[float]] = {side.name: [] for side in sides}
        for _ in range(rounds):
            for side in sides:
                times[side.name].append(clock(lambda: side.run(steps), self.device) / steps)  # noqa: B023
        for side in sides:
            if "eager" in side.name and side.name not in self.counted:
                self.counted[side.name] = flops(side)
        self.keep(times)
        return times

    def keep(self, times: dict[str, list[float]]) -> None:
        """Two results: our better side beside theirs, and our share of the device's rate."""
        mine, peers = ({name: of for name, of in times.items() if name.startswith("ours") is own} for own in (True, False))
        middle = {name: round(median(of), 3) for name, of in times.items()}
        prefix = "gpu" if self.device.type == "cuda" else "cpu"
        more = {
            "pairs": self.rows, "sides": middle, "left_out": self.left_out, "flops": self.counted,
            "product": f"{self.product}^3 bf16 at {self.rate / 1e12:.4g} TFLOP/s",
        }  # fmt: skip
        best = min(mine, key=lambda name: median(mine[name]))
        if self.counted:
            needed = next(number for name, number in self.counted.items() if name.startswith("ours"))
            floor = 1e3 * needed / self.rate
            what = "its operations at the rate of a product"
            write(f"{prefix}_mfu_{self.name}_{self.objective}", what, more["product"], [(ms, floor) for ms in mine[best]],
                  0.4, "ms a step", best=best, **more)  # fmt: skip
        if peers:
            other = min(peers, key=lambda name: median(peers[name]))
            turns = list(zip(mine[best], peers[other], strict=True))
            write(f"{prefix}_step_{self.name}_{self.objective}", other, "release 3.3.0", turns, 1.3, "ms a step",
                  best=best, **more)  # fmt: skip


def compare(name: str, rows: int, objective: str, world: World, until: float, rounds: int = 5, product: int = 8192) -> None:
    """Eager sides first, whose result is kept; then the compiled ones beside them, as far as there is time."""
    of, device = Comparison(name, rows, objective, world, product), world.device
    batch = pairs(name, rows, OBJECTIVES[objective].views[0], device)
    sides, peers = [ours(name, batch, objective, False, world)], []
    for precision in ("amp_bf16", "pure_bf16"):
        peer = Peer(name, batch, precision, device)
        side = peer.side(objective)
        if fits(side, device):
            peers.append((side, peer))
        else:
            of.left_out[side.name] = "out of memory"
    sides = [side for side in sides if fits(side, device)] + [side for side, _ in peers]
    times = of.measure(sides, rounds)
    kept = [sides[0]] if sides and sides[0].ours else []
    if peers:
        side, best = min(peers, key=lambda pair: median(times[pair[0].name]))
        kept.append(side)
    else:
        best = None
    for made in (lambda: ours(name, batch, objective, True, world), lambda: compiled(best, objective)):
        if time.monotonic() > until:
            of.left_out["compiled"] = "no time"
            break
        side = made()  # type: ignore[no-untyped-call]
        if side is None:
            continue
        if fits(side, device):
            kept.append(side)
            of.measure(kept, rounds)
        else:
            of.left_out[side.name] = "out of memory"


def compiled(peer: Peer | None, objective: str) -> Side | None:
    """The steps of a peer after its compilation."""
    if peer is None:
        return None
    peer.compile()
    return peer.side(objective)


def compile_ahead(name: str, rows: int, objective: str, world: World) -> None:
    """One step of each compiled side, so that the compiler's files are there when time is measured."""
    batch = pairs(name, rows, OBJECTIVES[objective].views[0], world.device)
    for precision in ("amp_bf16", "pure_bf16"):
        peer = Peer(name, batch, precision, world.device)
        peer.compile()
        fits(peer.side(objective), world.device)
        del peer
    fits(ours(name, batch, objective, True, world), world.device)
