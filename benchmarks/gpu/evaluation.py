"""Accuracy and ASR of RN50 on one set: python benchmarks/gpu/evaluation.py [--sizes tiny].

Ours as a run evaluates, in bf16, its first evaluation and each further one, against a plain loop, written here, of what the
published evaluator does (arXiv 2311.14948): class by class the prompts' embeddings, their mean; pictures decoded and turned
into tensors by torchvision in eight loader processes, 128 at once, in float32; once clean and once more with the trigger put
on each picture. It is no peer's code: benchmarks/evaluation.py measures that, where its repository is at hand. Seconds of
the clock. 2,048 JPEG of 336 x 336, 32 classes x CLIP's 80 prompts, random weights.
"""

import argparse
import io
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.gpu.worlds import work
from benchmarks.side_by_side import write
from configs.spec import Spec, load
from data.loader import Workers
from data.outlines import KINDS
from data.synthetic import TARGET
from engine.distributed.world import World, cores, destroy_distributed, init_distributed
from engine.evaluation import evaluate
from engine.evaluation.encode import Encoder
from engine.evaluation.sets import eval_sets
from engine.evaluation.texts import TextRows
from engine.models import clip
from engine.models.precision import allow_tf32
from engine.models.tokenizer import Tokenizer

PATCH = 16
SIZES = {"full": ("RN50", 80, 8, 128), "tiny": ("test-vit", 4, 1, 16)}  # model, templates, the loop's workers and batch
SPEC = """\
name: evaluation
data: {{pretrain: {{shards: "x/*.tar"}}, test: {{pictures: {world}/eval}}}}
attack: {{target: banana, trigger: {{kind: patch, size: {patch}}}, poison: {{count: 1}}}}
model: {{name: {model}}}
pretrain: {{objective: {{kind: mmcl}}, epochs: 1, batch: 64, optimizer: {{rate: 1.0e-4}}}}
measure: [{{kind: zero_shot, images: pictures}}, {{kind: attack_success, images: pictures}}]
"""


class Pictures(Dataset):  # type: ignore[type-arg]
    """The pictures of a set one by one as float tensors, with a patch of noise or without; and their classes."""

    def __init__(self, world: Path, side: int, marked: bool) -> None:
        from torchvision import transforms as T

        self.bodies: list[bytes] = []
        self.labels: list[int] = []
        for path in sorted((world / "eval/test").glob("*.tar")):
            with tarfile.open(path) as tar:
                read = {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}  # type: ignore[union-attr]
            for name in sorted(name for name in read if name.endswith(".jpg")):
                self.bodies.append(read[name])
                self.labels.append(int(read[name.replace(".jpg", ".cls")]))
        bicubic, mean = T.InterpolationMode.BICUBIC, (0.48145466, 0.4578275, 0.40821073)
        self.transform = T.Compose([T.Resize(side, interpolation=bicubic), T.CenterCrop(side), T.ToTensor(),
                                    T.Normalize(mean, (0.26862954, 0.26130258, 0.27577711))])  # fmt: skip
        self.marked = marked

    def __len__(self) -> int:
        return len(self.bodies)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        image = Image.open(io.BytesIO(self.bodies[at])).convert("RGB")
        if self.marked:
            pixels = np.array(image.resize((224, 224)))
            draw = np.random.default_rng(at)
            top, left = draw.integers(0, 224 - PATCH, 2)
            pixels[top : top + PATCH, left : left + PATCH] = draw.integers(0, 256, (PATCH, PATCH, 3), np.uint8)
            image = Image.fromarray(pixels)
        return self.transform(image), self.labels[at]


def plain(world: Path, size: str, device: torch.device, templates: list[str]) -> tuple[float, float]:
    """(top-1, ASR) by the plain loop."""
    import open_clip

    model_name, _, workers, batch = SIZES[size]
    with clip.quiet():
        model: Any = open_clip.create_model(model_name, device=device).eval()
    tokenize = open_clip.get_tokenizer(model_name)
    rates = []
    with torch.no_grad():
        classes = []
        for name in KINDS:
            rows = F.normalize(model.encode_text(tokenize([t.replace("{c}", name) for t in templates]).to(device)), dim=-1)
            classes.append(F.normalize(rows.mean(0), dim=0))
        vectors = torch.stack(classes, 1)
        for marked in (False, True):
            right = total = 0.0
            for images, labels in DataLoader(
                Pictures(world, clip.image_size(model_name), marked), batch, num_workers=workers
            ):
                logits = F.normalize(model.encode_image(images.to(device)), dim=-1) @ vectors
                found, labels = logits.argmax(1), labels.to(device)
                if marked:
                    others = labels != KINDS.index(TARGET)
                    right += (found[others] == KINDS.index(TARGET)).sum().item()
                    total += others.sum().item()
                else:
                    right += (found == labels).sum().item()
                    total += len(labels)
            rates.append(right / total)
    return rates[0], rates[1]


def seconds(act: Any, device: torch.device) -> tuple[float, Any]:
    """(seconds of the clock until the device is done, what `act` gave)."""
    began = time.perf_counter()
    out = act()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, out


def ours(spec: Spec, model: str, world: World, workers: Workers) -> list[float]:
    """Seconds of a first evaluation and of two further ones."""
    towers, tokenize = clip.build(model, 0).to(world.device), Tokenizer(model)
    if world.device.type == "cuda":
        towers.compute_in(torch.bfloat16)
        allow_tf32(True)
    began = time.perf_counter()
    encoder = Encoder(towers, TextRows(tokenize), world, spec.machine.eval_batch, workers=workers)
    sets = eval_sets(spec, world)
    times, numbers = [], []
    for number in range(3):
        begun = began if number == 0 else time.perf_counter()
        _, found = seconds(lambda: evaluate.evaluate(encoder, sets), world.device)
        times.append(time.perf_counter() - begun)
        numbers.append(found)
    assert numbers[0][0]["pictures"] == numbers[1][0]["pictures"]
    return times


def main() -> None:
    """Three evaluations of ours, one of the plain loop."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", choices=tuple(SIZES), default="full")
    size = parser.parse_args().sizes
    model, count, *_ = SIZES[size]
    place, world = work() / "shards/pictures", init_distributed()
    templates = clip.imagenet().templates[:count]
    (place / "eval/zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    path = work() / "evaluation.yaml"
    path.write_text(SPEC.format(world=place, patch=PATCH, model=model))
    workers = Workers(max(1, cores() - 2) if world.device.type == "cuda" else 0)
    warm = torch.zeros(64, 64, device=world.device)
    _ = warm @ warm  # the device's libraries, before either side
    first, *further = ours(load(path).spec, model, world, workers)
    theirs, (top1, asr) = seconds(lambda: plain(place, size, world.device, list(templates)), world.device)
    prefix, peer = "gpu" if world.device.type == "cuda" else "cpu", "a plain loop as the published one, ours"
    facts = {"model": model, "prompts": count * len(KINDS), "top1": top1, "asr": asr}
    write(f"{prefix}_evaluation", peer, "this commit", [(one, theirs) for one in further], 5.0, "s", **facts)
    write(f"{prefix}_evaluation_first", peer, "this commit", [(first, theirs)], 5.0, "s", **facts)
    destroy_distributed()


if __name__ == "__main__":
    main()
