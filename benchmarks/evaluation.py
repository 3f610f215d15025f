"""Accuracy and ASR of one set: python benchmarks/evaluation.py [demo RN50 feed | ViT-B-32] [--device cuda].

Ours (engine.evaluation on a CLIP_benchmark set) and the paper's own evaluator (its get_zeroshot_metrics twice, on
its get_eval_test_dataloader without and with its apply_trigger, as its `evaluate` calls them) on the same pictures, prompts
and weights, in a fresh process with two threads, batches of each side's default (256 and 128). `_first` is an evaluation
with everything before it but loading code and weights, the other each further one: a cleaning run evaluates after every
epoch, and theirs does all of it again.

On a CPU the towers take most of the time on either side, so what is compared is what each adds to them: CPU seconds less
those inside the two towers, ours of a further evaluation. `whole` and `towers` say what both took in all and
inside the towers. Threads that have nothing to do wait without spinning. On a GPU it is the whole,
in seconds of the clock, our pictures decoded by as many workers as a run would take there.

demo            960 pictures of 64 x 64, 32 classes x 8 prompts, demo-resnet
RN50, ViT-B-32  25 JPEG of 500 x 375, 10 classes x 4 of CLIP's prompts: as many prompts to a picture as ImageNet has
                (50,000 pictures, 80,000 prompts)
feed            200 of those JPEG and 40 prompts, the towers replaced on both sides by means of pixels and sums of tokens,
                which are left out as the towers are (ours with the normalisation, which is the device's; theirs is the
                loader's): what is left to the CPU where a GPU has the towers; no evaluation by itself

Weights are random, so accuracies are near chance; that both sides compute the same is told by the largest
differences of the rows of 16 pictures and of the classes' vectors, beside the distance between different pictures.

The trigger is the published one (squeezed to 224, fresh noise): most of our first evaluation is Pillow's squeezing, the same
call as theirs. `first_by_default` is what a first evaluation with our default patch adds. Changed in theirs to
run on a CPU and our models: wandb is an empty module; two worker processes instead of eight, whose CPU time counts (without
any, their trigger's small operations run on two threads, which spin: three to four times the CPU time for the demo's set);
weights come from a state dict instead of a download; for the demo's model its activation, numbers of heads and context
length.
"""

import argparse
import io
import json
import os
import resource
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks.data import PAPER, make, old_packages
from benchmarks.side_by_side import child, repository, write

FILES = (
    *("src/__init__.py", "src/evaluate.py", "src/data.py", "src/scheduler.py", "backdoor/utils.py"),
    *("utils/__init__.py", "utils/augment_text.py", "utils/augment_image.py", "utils/eda.py", "utils/config.py"),
    *("pkgs/__init__.py", "pkgs/openai/__init__.py", "pkgs/openai/clip.py", "pkgs/openai/model.py"),
    *("pkgs/openai/tokenizer.py", "pkgs/openai/bpe_simple_vocab_16e6.txt.gz"),
)
MODELS = {"demo": "demo-resnet", "RN50": "RN50-quickgelu", "ViT-B-32": "ViT-B-32-quickgelu", "feed": "RN50-quickgelu"}
PATCH = {"demo": 32, "RN50": 16, "ViT-B-32": 16, "feed": 16}
PICTURES = {"RN50": 25, "ViT-B-32": 25, "feed": 200}
THREADS = 2


def make_set(folder: Path, which: str) -> None:
    """The set in CLIP_benchmark's layout under folder/set, and as the paper's code wants it under folder/theirs."""
    from engine.models.clip import imagenet

    known, test = imagenet(), folder / "set/test"
    (folder / "theirs").mkdir(parents=True)
    if which == "demo":
        from data.synthetic import SyntheticWorld, write_world

        write_world(folder / "world", SyntheticWorld(pairs=8, pairs_per_shard=8))
        (folder / "world/eval").rename(folder / "set")
    else:
        make(folder / "drawn", 1, (500, 375), PICTURES[which])
        classes, templates = ["banana", *known.classes[::110]][:10], known.templates[::20]
        test.mkdir(parents=True)
        with tarfile.open(test / "0.tar", "w") as tar:
            for i, path in enumerate(sorted((folder / "drawn/files").iterdir())):
                for name, body in ((f"{i:06d}.jpg", path.read_bytes()), (f"{i:06d}.cls", str(i % 10).encode())):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(body)
                    tar.addfile(entry, io.BytesIO(body))
        for name, lines in (("classnames", classes), ("zeroshot_classification_templates", templates)):
            (folder / f"set/{name}.txt").write_text("\n".join(lines) + "\n")
        (test / "nshards.txt").write_text("1\n")
    from data.labelled import read_labelled

    found = read_labelled(str(folder / "set"), known)
    rows = ["image,label"]
    for i, (path, _, offset, size) in enumerate(found.where):
        with open(path, "rb") as file:
            file.seek(offset)
            (folder / f"theirs/{i:06d}.jpg").write_bytes(file.read(size))
        rows.append(f"{i:06d}.jpg,{found.labels[i]}")
    (folder / "theirs/labels.csv").write_text("\n".join(rows) + "\n")
    lines = ", ".join(f"lambda c: {t!r}.replace('{{c}}', c)" for t in found.templates)
    (folder / "theirs/classes.py").write_text(f'{{"classes": {found.classes!r}, "templates": [{lines}]}}\n')


def spec_of(folder: Path, which: str, published: bool = True) -> Any:
    """A spec that asks for accuracy and attack success on that set."""
    from configs.spec import load

    path = folder / "spec.yaml"
    path.write_text(
        f"name: x\ndata: {{pretrain: {{shards: 'x/*.tar'}}, test: {{set: {folder}/set}}}}\n"
        f"attack: {{target: banana, trigger: {{kind: patch, published: {str(published).lower()}, size: {PATCH[which]}}},\n"
        "  poison: {count: 1}}\n"
        f"model: {{name: {MODELS[which]}}}\n"
        "pretrain: {objective: {kind: mmcl}, epochs: 1, batch: 64, optimizer: {rate: 1.0e-4}}\n"
        "measure: [{kind: zero_shot, images: set}, {kind: attack_success, images: set}]\n"
    )
    return load(path).spec


def make_weights(folder: Path, which: str) -> None:
    """folder/weights.safetensors: random, all of a ResNet's branches open."""
    import torch
    from safetensors.torch import save_file

    from engine.models import clip

    towers = clip.build(MODELS[which], 0)
    for name, parameter in towers.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.ones_(parameter)
    save_file(clip.weights(towers, {"scale": torch.tensor([2.6])}), folder / "weights.safetensors")


class Means:
    """What stands for the towers of either side where only the rest is measured: rows [n, 192] of pictures, means of 8 x 8
    fields, and [m, 192] of tokens, their sums over a table of numbers."""

    training = False

    def __init__(self, mean: Any = 0.0, std: Any = 1.0) -> None:
        import torch

        self.mean, self.std = mean, std
        self.table = torch.randn(49408, 192, generator=torch.Generator().manual_seed(0))

    def eval(self) -> "Means":
        return self

    def train(self, mode: bool) -> None:
        assert not mode

    def to(self, device: Any) -> "Means":
        self.mean, self.std = (of.to(device) if hasattr(of, "to") else of for of in (self.mean, self.std))
        self.table = self.table.to(device)
        return self

    def get_image_features(self, pixels: Any) -> Any:
        import torch

        return torch.nn.functional.adaptive_avg_pool2d(pixels, 8).flatten(1)

    def get_text_features(self, input_ids: Any, attention_mask: Any = None) -> Any:
        return self.table[input_ids].sum(1)

    def __call__(self, images: Any, tokens: Any, pieces: Any = None) -> tuple[Any, Any]:
        return self.forward(images, tokens)

    def forward(self, images: Any, tokens: Any) -> tuple[Any, Any]:
        import torch

        norm = torch.nn.functional.normalize
        rows = texts = None
        if images is not None:
            rows = norm(self.get_image_features((images.float() / 255 - self.mean) / self.std), dim=-1)
        if tokens is not None:
            texts = norm(self.get_text_features(tokens.long()), dim=-1)
        return rows, texts


def used(device: str) -> float:
    """CPU seconds of this process and of its children that have ended; with a GPU seconds of the clock, its work done."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Timed:
    """A function of the towers, and the CPU seconds of this process inside it."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seconds = inner, 0.0

    def __call__(self, *words: Any, **more: Any) -> Any:
        began = time.process_time()  # all threads'
        out = self.inner(*words, **more)
        self.seconds += time.process_time() - began
        return out


def timed(towers: Any, *names: str) -> list[Timed]:
    """Some functions of a module, timed from now on."""
    functions = {name: Timed(getattr(towers, name)) for name in names}
    vars(towers).update(functions)
    return list(functions.values())


def ours(where: str, which: str, device: str) -> dict[str, Any]:
    """Seconds of our first evaluation and of a further one, of the towers inside that, and what they tell."""
    import torch

    from data.loader import Workers
    from engine.distributed.world import World, cores
    from engine.evaluation import evaluate
    from engine.evaluation.encode import Encoder
    from engine.evaluation.sets import eval_sets
    from engine.evaluation.texts import TextRows
    from engine.models import clip
    from measures.classifier import class_vectors

    torch.set_num_threads(THREADS)
    folder, world = Path(where), World(0, 1, 0, 1, torch.device(device))
    spec = spec_of(folder, which)
    towers: Any = clip.build(MODELS[which], 0)
    from engine.models.tokenizer import Tokenizer

    tokenize = Tokenizer(MODELS[which])
    clip.load_weights(towers, folder / "weights.safetensors")
    if which == "feed":
        towers = Means(towers.mean, towers.std)
    towers.to(world.device)
    tokenize(["warm"])
    inner = timed(towers, "forward" if which == "feed" else "_encode_text")
    if which != "feed":
        inner += timed(towers.clip, "encode_image")
    began = used(device)
    workers = Workers(0 if device == "cpu" else max(1, cores() - 2))
    encoder = Encoder(towers, TextRows(tokenize), world, spec.machine.eval_batch, workers=workers)
    sets = eval_sets(spec, world)
    numbers = evaluate.evaluate(encoder, sets)[0]
    first, began, before = used(device) - began, used(device), sum(one.seconds for one in inner)
    assert evaluate.evaluate(encoder, sets)[0] == numbers
    again, inside = used(device) - began, sum(one.seconds for one in inner) - before
    other, began = eval_sets(spec_of(folder, which, published=False), world), used(device)
    evaluate.evaluate(encoder, other)
    default = used(device) - began
    with torch.no_grad():
        rows = towers.eval()(sets[0].pictures(list(range(16)))[0].to(device), None)[0].cpu()
        found = sets[0].image_set
        prompts = tokenize([t.replace("{c}", c) for c in found.classes for t in found.templates])
        texts = towers(None, prompts.to(device))[1].cpu()
    classes = class_vectors(texts.view(len(found.classes), len(found.templates), -1))
    torch.save((rows, classes), folder / "ours.pt")
    return {"first": first, "again": again, "towers": inside, "default": default, **numbers}


def theirs(where: str, which: str, device: str, repo: str) -> dict[str, Any]:
    """Seconds of an evaluation by the paper's code and inside its towers, what it tells, how far its pictures' rows are from
    ours."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(THREADS)
    folder = Path(where)
    sys.path.insert(0, repo)
    os.chdir(repo)
    sys.modules["wandb"] = SimpleNamespace()  # type: ignore[assignment]
    from pkgs.openai import clip, model  # type: ignore[import-not-found]
    from src.data import get_eval_test_dataloader  # type: ignore[import-not-found]
    from src.evaluate import get_zeroshot_metrics  # type: ignore[import-not-found]

    state = load_file(folder / "weights.safetensors")
    towers = model.build(dict(state), pretrained=False)
    clip.convert_models_to_fp32(towers)
    towers.load_state_dict(state)
    processor = clip.Processor(towers)
    if which == "demo":
        processor.context_length, towers.visual.attnpool.num_heads = 20, 16
        for block in towers.transformer.resblocks:
            block.mlp.gelu, block.attn.num_heads, block.attn.head_dim = torch.nn.GELU(), 2, 32
    if which == "feed":
        towers = Means()
    towers.to(device)
    processor.process_text("warm")
    inner = timed(towers, "get_image_features", "get_text_features")
    options = SimpleNamespace(
        eval_test_data_dir=str(folder / "theirs"), eval_data_type="ImageNet1K", batch_size=128, num_workers=2,
        device=device, distributed=False, add_backdoor=False, patch_size=PATCH[which], patch_type="random",
        patch_location="random",
    )  # fmt: skip
    marked = SimpleNamespace(**{**vars(options), "add_backdoor": True})
    began = used(device)
    clean, triggered = (get_eval_test_dataloader(asked, processor) for asked in (options, marked))
    found, texts = get_zeroshot_metrics(towers, processor, clean, options, do_asr=False)
    accuracy = used(device) - began
    turned, _ = get_zeroshot_metrics(towers, processor, triggered, marked, do_asr=True, text_embeddings=texts)
    seconds, inside = used(device) - began, sum(one.seconds for one in inner)
    with torch.no_grad():
        pixels = torch.stack([clean.dataset[i][0] for i in range(16)]).to(device)
        rows = torch.nn.functional.normalize(towers.get_image_features(pixels), dim=-1).cpu()
    mine, classes = torch.load(folder / "ours.pt")
    apart = float((rows - mine).abs().max()), float((texts.T.cpu() - classes).abs().max())
    told = {"top1": found["zeroshot_top1"], "asr": turned["asr_top1"], "apart": apart}
    return {"seconds": seconds, "towers": inside, "clean": accuracy, **told, "between": float(torch.pdist(rows).mean())}


def bench(which: str, rounds: int, device: str) -> None:
    """One configuration: the first evaluation and each further one."""
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        old = old_packages(folder)
        repo = repository("vsahil/attack-cleanclip", PAPER, tree=FILES, part="evaluation")
        make_set(folder, which)
        make_weights(folder, which)
        mine, peers = [], []
        for _ in range(rounds):
            waiting = {"OMP_WAIT_POLICY": "passive"}
            mine.append(child("evaluation.py", "--measure", "ours", where, which, device, **waiting))
            words = ("--measure", "theirs", where, which, device, str(repo))
            peers.append(child("evaluation.py", *words, PYTHONPATH=str(old), **waiting))
            print(mine[-1], peers[-1], flush=True)
    told = {
        "top1": [mine[0]["top1"], peers[0]["top1"]],
        "asr": [mine[0]["asr"], *(one["asr"] for one in peers)],
        "largest_differences": peers[0]["apart"],
        "mean_distance_between_pictures": peers[0]["between"],
    }
    for when, added in (("again", 10.0), ("first", 4.0)):
        whole = [(a[when], b["seconds"]) for a, b in zip(mine, peers, strict=True)]
        name = f"evaluation_{which}" + ("_first" if when == "first" else "")
        if device != "cpu":
            write(f"{name}_{device}", "the paper's get_zeroshot_metrics", PAPER, whole, 5.0, "s", **told)
            continue
        towers = [(a["towers"], b["towers"]) for a, b in zip(mine, peers, strict=True)]
        turns = [(a - c, b - d) for (a, b), (c, d) in zip(whole, towers, strict=True)]
        seconds = {
            name: [round(median(side), 4) for side in zip(*turns_, strict=True)]
            for name, turns_ in (("whole", whole), ("towers", towers))
        }
        if when == "first":
            told["first_by_default"] = round(median(one["default"] - one["towers"] for one in mine), 4)
        write(name, "the paper's get_zeroshot_metrics", PAPER, turns, added, "CPU s added", **seconds, **told)


def main() -> None:
    """The configurations that are named, or the three of the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("which", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", action="store_true")
    asked = parser.parse_args()
    if asked.measure:
        name, *words = asked.which
        print(json.dumps({"ours": ours, "theirs": theirs}[name](*words)))
        return
    for which in asked.which or ("demo", "RN50", "feed"):
        bench(which, asked.rounds, asked.device)


if __name__ == "__main__":
    main()
