"""From tar to batch: python benchmarks/data.py [loader | two_views | tar | tokens | triggers | millions | shards ...].

Each side runs in a fresh process, in turn with the other, on the same shards in the page cache: 2,000 drawn pictures of
340 x 256 pixels as JPEG, with captions. A loader's clock runs from its second batch to its last. Where the peer is
open_clip's pipeline, it has the webdataset that it pins, in a folder of its own.

loader     one view: ours (uint8, normalised on the device) against open_clip_train's get_wds_dataset (float32, normalised);
           the note gives ours with the normalisation, on the CPU
two_views  picture and AutoAugment's view, caption and its view, against the paper's dataset class, whose captions are ready
           in memory while ours are read, varied and tokenised
tar        members of tars without decoding, against webdataset's reader: our header walk, and reads by the index
tokens     captions whose words follow the frequencies of CLIP's vocabulary, against open_clip's tokenizer one by one
triggers   each kind on a decoded picture of 640 x 480, six times the pixels of the 224 x 224 to which CleanCLIP's
           apply_trigger squeezes it first (in its time), and on 224 x 224; the same bytes as the plain formulas
millions   6,000,000 pairs (600 links to one shard, tables made up): memory over a run without data, and time to a batch
           at 90 % of an epoch
shards     pairs a second and core of indexing, auditing and materialising, for docs/data.md
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks.side_by_side import HERE, RESULTS, child, in_turn, machine, repository, write

OLD = ("webdataset==0.2.86", "pandas==2.3.3", "pytz")
PAPER = "3d4bd7486ba6668522cbe2e4e867cbc1cf4cdb4e"  # vsahil/attack-cleanclip
CLEANCLIP = "d6e2f1dbf0ad952c05b816c6024d8205682a0674"  # nishadsinghi/CleanCLIP
SAMPLES, BATCH = 2000, 50
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def make(folder: Path, shards: int = 4, size: tuple[int, int] = (340, 256), samples: int = SAMPLES) -> None:
    """Shards of drawn pictures as webdataset writes them, and the same pictures as files."""
    import webdataset

    from data.scenes import describe, paint, scene
    from data.seeding import generator

    (folder / "files").mkdir(parents=True)
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar"), encoder=False) as tar:
            for i in range(shard * samples // shards, (shard + 1) * samples // shards):
                draw = generator(0, "benchmark", i)
                seen = scene(draw)
                picture, body = paint(seen, max(size), draw).crop((0, 0, *size)), io.BytesIO()
                picture.save(body, "JPEG", quality=90)
                (folder / f"files/{i:06d}.jpg").write_bytes(body.getvalue())
                text = describe(seen, draw)
                facts = json.dumps({"caption": text, "width": size[0], "height": size[1]})
                tar.write({"__key__": f"{i:06d}", "jpg": body.getvalue(), "txt": text.encode(), "json": facts.encode()})


def pairs_of(folder: str, way: str, views: int, index: Any = None, batch: int = BATCH) -> Any:
    """Our pairs of some shards."""
    from data.augmentation.augment import Augment
    from data.pipeline import Pairs, Reading
    from data.shards import read_index
    from data.sources import Data, Source
    from engine.models.tokenizer import Tokenizer

    index = index or read_index(f"{folder}/*.tar", Path(folder) / "cache")
    section = Augment(synonyms="none")
    data = Data(pretrain=Source(shards="x"), test={}, augment=section)
    reading = Reading(0, 0, 1, batch, (views, views), 224, section, "txt", way)  # type: ignore[arg-type]
    return Pairs(index, None, data, reading, Tokenizer("ViT-B-32"), None)


def ours_loads(folder: str, way: str, workers: str, views: str, normalised: str) -> dict[str, float]:
    """Seconds a sample of our loader."""
    import torch

    from data.loader import Workers
    from data.pipeline import batches

    torch.set_num_threads(1)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) * 255 for v in (MEAN, DEVIATION))
    began, count = 0.0, 0
    for _, batch in batches(pairs_of(folder, way, int(views)), 1, 0, Workers(int(workers))):
        images = batch.pictures(torch.device("cpu"))
        if normalised == "yes":
            images = (images - mean) / deviation
        began, count = began or time.perf_counter(), count + len(images)
    return {"seconds": (time.perf_counter() - began) / (count - BATCH)}


def theirs_loads(folder: str, workers: str) -> dict[str, float]:
    """Seconds a sample of open_clip's loader."""
    import torch
    from open_clip import get_tokenizer, image_transform
    from open_clip_train.data import get_wds_dataset

    torch.set_num_threads(1)
    asked = SimpleNamespace(
        train_data=f"{folder}/{{00000..00003}}.tar", train_num_samples=SAMPLES, dataset_resampled=False, seed=0,
        batch_size=BATCH, workers=int(workers), world_size=1, train_data_upsampling_factors=None,
    )  # fmt: skip
    info = get_wds_dataset(asked, image_transform(224, is_train=False), True, tokenizer=get_tokenizer("ViT-B-32"))
    began, count = 0.0, 0
    for images, _ in info.dataloader:
        began, count = began or time.perf_counter(), count + len(images)
    return {"seconds": (time.perf_counter() - began) / (count - BATCH)}


def papers_two_views(folder: str, repo: str) -> dict[str, float]:
    """Seconds a sample of the paper's dataset class with in-modal views, in a loader without processes."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    sys.path.insert(0, repo)
    sys.modules["wandb"] = SimpleNamespace()  # type: ignore[assignment]
    os.chdir(repo)
    for name in [name for name in sys.modules if name.split(".")[0] == "data"]:
        del sys.modules[name]
    from src.data import ImageCaptionDataset  # type: ignore[import-not-found]
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    transform = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), Normalize(MEAN, DEVIATION)])
    theirs: Any = ImageCaptionDataset.__new__(ImageCaptionDataset)
    flags = dict.fromkeys(("deep_clustering_cheating_experiment", "deep_clustering_cheating_experiment_get_labels"), False)
    tokens = {"input_ids": torch.zeros(SAMPLES, 77, dtype=torch.long), "attention_mask": torch.zeros(SAMPLES)}
    theirs.__dict__.update(
        all_options=SimpleNamespace(**flags), root=f"{folder}/files", inmodal=True, defense=False, test_set=False,
        images=[f"{i:06d}.jpg" for i in range(SAMPLES)], captions=tokens, augment_captions=tokens,
        processor=SimpleNamespace(process_image=lambda image: transform(image.convert("RGB"))),
    )  # fmt: skip
    began, count = 0.0, 0
    for item in DataLoader(theirs, batch_size=BATCH, shuffle=True):
        began, count = began or time.perf_counter(), count + len(item["pixel_values"][0])
    return {"seconds": (time.perf_counter() - began) / (count - BATCH)}


def reads(folder: str, how: str) -> dict[str, float]:
    """CPU seconds a sample of reading without decoding."""
    from data.archive import contents
    from data.shards import read_index

    paths = sorted(str(path) for path in Path(folder).glob("*.tar"))
    if how == "indexed":
        pairs = pairs_of(folder, "exact", 1, read_index(f"{folder}/*.tar", Path(folder) / "cache"))
    elif how == "webdataset":
        import webdataset

        stream = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
    for turn in range(6):  # the first does not count
        if turn == 1:
            began, count = time.process_time(), 0
        if how == "walk":
            got = sum(len(contents(path).keys) for path in paths)
        elif how == "indexed":
            got = sum(len(pairs._bodies(list(range(begin, begin + 100)))) for begin in range(0, SAMPLES, 100))
        else:
            got = sum(1 for _ in stream)
        assert got == SAMPLES
        count = count + got if turn else 0
    return {"seconds": (time.process_time() - began) / count}


def captions(number: int) -> list[str]:
    """Captions of 5 to 15 words drawn as often as CLIP's vocabulary ranks them, half with a capital and a full stop, 3 % not
    in ASCII."""
    import numpy as np
    import open_clip

    words = [w[:-4] for w in open_clip.get_tokenizer("ViT-B-32").encoder if w.endswith("</w>")]
    words = [word for word in words if len(word) > 1 and word.isascii() and word.isalpha()]
    draw = np.random.default_rng(0)
    share = 1 / np.arange(2.0, len(words) + 2)
    drawn = draw.choice(len(words), (number, 15), p=share / share.sum())
    out = []
    for row, length in zip(drawn, draw.integers(5, 16, number), strict=True):
        text = " ".join(words[i] for i in row[:length])
        text = f"{text.capitalize()}." if draw.random() < 0.5 else text
        out.append(f"{text} café" if draw.random() < 0.03 else text)
    return out


def tokenises(how: str) -> dict[str, float]:
    """CPU seconds a caption, 20,000 of them after 60,000 others: an epoch has millions."""
    import open_clip

    from engine.models.tokenizer import Tokenizer

    texts = captions(80000)
    ours, theirs = Tokenizer("ViT-B-32"), open_clip.get_tokenizer("ViT-B-32")
    for part in (texts[:60000], texts[60000:]):
        began = time.process_time()
        if how == "ours":
            for begin in range(0, len(part), 256):
                ours(part[begin : begin + 256])
        else:
            for text in part:
                theirs([text])
        seconds = time.process_time() - began
    return {"seconds": seconds / 20000}


# ours, theirs, targets on 640 x 480 and on 224 x 224
KINDS: dict[str, tuple[dict[str, Any], tuple[str, str], tuple[float, float]]] = {
    "patch": ({"kind": "patch"}, ("random", "random"), (3, 10)),
    "solid": ({"kind": "solid"}, ("yellow", "random"), (10, 10)),
    "blend": ({"kind": "blend"}, ("blended", "blended"), (3, 10)),
    "sine": ({"kind": "sine"}, ("SIG", "blended"), (500, 500)),
    "warp": ({"kind": "warp"}, ("warped", "random"), (3, 10)),
}


def marks(kind: str, how: str, repo: str) -> dict[str, float]:
    """CPU seconds a picture."""
    import numpy as np
    import torch
    from PIL import Image
    from pydantic import TypeAdapter

    torch.set_num_threads(1)
    section, (type_, location), _ = KINDS[kind]
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    if how == "theirs":
        sys.modules["wandb"] = SimpleNamespace()  # type: ignore[assignment]
        sys.path.insert(0, repo)
        os.chdir(repo)
        from backdoor.utils import apply_trigger  # type: ignore[import-not-found]

        image = Image.fromarray(picture)
        times = 3 if kind == "sine" else 40

        def once() -> None:
            apply_trigger(image, patch_type=type_, patch_location=location)
    else:
        from data.triggers import Trigger

        mark = TypeAdapter(Trigger).validate_python(section).build(0)
        side = (480, 640) if how == "whole" else (224, 224)
        batch = np.ascontiguousarray(np.resize(picture.transpose(2, 0, 1), (1, 3, *side)))
        times = 60

        def once() -> None:
            mark(batch, [1])

    once()
    began = time.process_time()
    for _ in range(times):
        once()
    return {"seconds": (time.process_time() - began) / times}


def millions(folder: str, what: str) -> dict[str, float]:
    """Of 6,000,000 pairs, or of one shard of them: proportional memory with all workers in MB, seconds to a late batch."""
    import torch

    from data.attack import Attack, Poison
    from data.loader import Workers
    from data.pipeline import batches
    from data.poison_plan import make_plan
    from data.shards import read_index

    torch.set_num_threads(1)
    here = Path(folder)
    index = read_index(f"{here}/{'*' if what == 'all' else '00000'}.tar", here / "cache")
    attack = Attack(target="banana", poison=Poison(count=3000 if what == "all" else 5))
    pairs = pairs_of(folder, "exact", 1, index, 256)
    pairs.plan = make_plan(index, attack, 0, {"imagenet": ["a {c}"]}, lambda samples: ())
    at = int(pairs.steps * 0.9)
    began = time.perf_counter()
    late = batches(pairs_of(folder, "exact", 1, index, 256), 1, at, Workers(0))
    next(late)
    seconds = time.perf_counter() - began
    running = batches(pairs, 100, at, Workers(8))
    for _ in range(12):
        next(running)
    me = os.getpid()
    family = [me, *(int(p) for p in Path(f"/proc/{me}/task/{me}/children").read_text().split())]
    shares = [Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0] for pid in family]
    return {"seconds": seconds, "memory": sum(map(int, shares)) / 1024, "pairs": float(len(index)), "processes": len(family)}


def make_millions(folder: Path, shards: int = 600, each: int = 10_000) -> None:
    """600 links to one shard of 10,000 small pairs, with tables that give each link keys of its own."""
    from data.archive import Keys
    from data.seeding import number_of
    from data.store import stamp
    from data.table import FORMAT, keep, read_table

    make(folder / "one", 1, (64, 48), each)
    table = read_table(str(folder / "one/00000.tar"), folder / "cache")
    for shard in range(shards):
        path = folder / f"{shard:05d}.tar"
        path.symlink_to(folder / "one/00000.tar")
        keys = Keys.of(f"{shard:05d}{i:04d}" for i in range(each))
        size, mark = stamp(str(path))
        own = table._replace(keys=keys, hashes=number_of(keys))
        keep(Path(f"{path}.index.npz"), own, [str(FORMAT), str(size), mark])


def old_packages(folder: Path) -> Path:
    """A folder with open_clip_train's old webdataset, and pandas."""
    words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "old"), *OLD]
    subprocess.run(words, check=True)
    return folder / "old"


def measured(name: str, *words: object, **more: str) -> float:
    """What a fresh process of this script measures."""
    told = child("data.py", "--measure", name, *map(str, words), **more)
    return float(told["seconds"])


def bench_loader(folder: Path, rounds: int) -> None:
    """One view."""
    make(folder / "shards")
    old, shards = old_packages(folder), folder / "shards"
    for name, way, workers, target in (
        ("loader_exact", "exact", 0, 3.5),
        ("loader_fast", "fast", 0, 5.0),
        ("loader_exact_2_workers", "exact", 2, 3.0),
    ):
        turns = in_turn(
            lambda: 1e3 * measured("ours_loads", shards, way, workers, 1, "no"),  # noqa: B023
            lambda: 1e3 * measured("theirs_loads", shards, workers, PYTHONPATH=str(old)),  # noqa: B023
            rounds,
        )
        with_it = 1e3 * measured("ours_loads", shards, way, workers, 1, "yes")
        note = f"with the normalisation on the CPU: {with_it:.3f} ms a sample"
        write(name, "open_clip get_wds_dataset", f"release 3.3.0, {OLD[0]}", turns, target, "ms a sample", note=note)


def bench_two_views(folder: Path, rounds: int) -> None:
    """Two views of both."""
    make(folder / "shards")
    old, shards = old_packages(folder), folder / "shards"
    files = ("src/data.py", "src/__init__.py", "utils/__init__.py", "utils/augment_text.py", "utils/augment_image.py")
    tree = repository(
        "vsahil/attack-cleanclip", PAPER, tree=(*files, "utils/eda.py", "utils/config.py", "backdoor/utils.py")
    )
    turns = in_turn(
        lambda: 1e3 * measured("ours_loads", shards, "exact", 0, 2, "no"),
        lambda: 1e3 * measured("papers_two_views", shards, tree, PYTHONPATH=str(old)),
        rounds,
    )
    write("loader_two_views", "the paper's ImageCaptionDataset", PAPER, turns, 4.0, "ms a sample")


def bench_tar(folder: Path, rounds: int) -> None:
    """Reading alone."""
    from importlib.metadata import version

    make(folder / "shards")
    for how, target in (("walk", 10.0), ("indexed", 30.0)):
        turns = in_turn(
            lambda: 1e6 * measured("reads", folder / "shards", how),  # noqa: B023
            lambda: 1e6 * measured("reads", folder / "shards", "webdataset"),
            rounds,
        )
        release = f"release {version('webdataset')}"
        write(f"tar_{how}", "webdataset.WebDataset", release, turns, target, "CPU microseconds a sample")


def bench_tokens(folder: Path, rounds: int) -> None:
    """Captions."""
    turns = in_turn(lambda: 1e6 * measured("tokenises", "ours"), lambda: 1e6 * measured("tokenises", "theirs"), rounds)
    write("tokenizer", "open_clip's, one by one", "release 3.3.0", turns, 5.0, "CPU microseconds a caption")


def bench_triggers(folder: Path, rounds: int) -> None:
    """Each kind that CleanCLIP has."""
    old = old_packages(folder)
    files = ("backdoor/utils.py", "backdoor/noise_grid_k=224_s=1_inputheight=224_gridrescale=1.pt")
    repo = repository("nishadsinghi/CleanCLIP", CLEANCLIP, tree=files)
    for kind, (_, _, (whole, cut)) in KINDS.items():
        for how, name, target in (("whole", f"trigger_{kind}", whole), ("cut", f"trigger_{kind}_224", cut)):
            turns = in_turn(
                lambda: 1e3 * measured("marks", kind, how, repo),  # noqa: B023
                lambda: 1e3 * measured("marks", kind, "theirs", repo, PYTHONPATH=str(old)),  # noqa: B023
                rounds,
            )
            write(name, "CleanCLIP apply_trigger", CLEANCLIP, turns, target, "CPU ms a picture")


def bench_millions(folder: Path, rounds: int) -> None:
    """Six million pairs."""
    make_millions(folder)
    began = time.perf_counter()
    child("data.py", "--measure", "millions", str(folder), "all")
    joined = time.perf_counter() - began
    every = [child("data.py", "--measure", "millions", str(folder), "all") for _ in range(rounds)]
    none = [child("data.py", "--measure", "millions", str(folder), "few") for _ in range(rounds)]
    rises = [(a["memory"] - b["memory"], 14800.0) for a, b in zip(every, none, strict=True)]
    note = f"a rank and 8 workers, over the same with 10,000 pairs ({none[0]['memory']:.0f} MB); target: at most 500 MB"
    write("memory_6m", "the paper's tokens alone", "14.8 GB by arithmetic", rises, 29.6, "MB", note=note)
    make(folder / "shards")
    rate = measured("reads", folder / "shards", "webdataset")
    replay = rate * 0.9 * 6e6
    turns = [(one["seconds"], replay) for one in every]
    note = f"target: under one second; the peer replays 5.4 M samples at its measured rate; first start: {joined:.0f} s"
    write("resume_6m", "webdataset, extrapolated", "release 1.0.2", turns, round(replay), "s", note=note)


def bench_shards(folder: Path, rounds: int) -> None:
    """Work over shards, one process."""
    make(folder / "shards")
    (folder / "spec.yaml").write_text(
        f"name: x\ndata: {{pretrain: {{shards: '{folder}/shards/*.tar'}}, test: {{}}}}\n"
        "attack: {target: banana, poison: {fraction: 0.005}}\nmodel: {name: ViT-B-32}\n"
        "pretrain: {objective: {kind: mmcl}, epochs: 1, batch: 64, optimizer: {rate: 1.0e-4}}\n"
        "measure: [{kind: zero_shot, images: none}]\n".replace("test: {}", "test: {none: none}")
    )
    rates = {}
    for name, words in (
        ("index", ["data.check", f"{folder}/shards/*.tar", "--quick", "--jobs", "1"]),
        ("audit", ["data.check", f"{folder}/shards/*.tar", "--jobs", "1"]),
        ("audit again", ["data.check", f"{folder}/shards/*.tar", "--jobs", "1"]),
        ("materialise", ["engine.poison", "materialise", "--spec", f"{folder}/spec.yaml", "--out", "out", "--jobs", "1"]),
        (
            "materialise again",
            ["engine.poison", "materialise", "--spec", f"{folder}/spec.yaml", "--out", "out", "--jobs", "1"],
        ),
    ):
        for file in (folder / "shards").glob("*.npz") if name == "index" else ():
            file.unlink()
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environ, check=True)
        rates[name] = time.perf_counter() - began
    table = {name: round(SAMPLES / (rates[name] - rates[f"{name} again"])) for name in ("audit", "materialise")}
    table["index"] = round(1 / measured("reads", folder / "shards", "walk"))
    result = {"name": "shards", "pairs_per_s_and_core": table, "machine": machine()}
    (RESULTS / "shards.json").write_text(json.dumps(result, indent=1) + "\n")
    print(result)


PARTS = {"loader": bench_loader, "two_views": bench_two_views, "tar": bench_tar, "tokens": bench_tokens,
         "triggers": bench_triggers, "millions": bench_millions, "shards": bench_shards}  # fmt: skip
MEASURES = {f.__name__: f for f in (ours_loads, theirs_loads, papers_two_views, reads, tokenises, marks, millions)}


def main() -> None:
    """The parts that are named, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", action="store_true")
    asked = parser.parse_args()
    if asked.measure:
        name, *words = asked.parts
        print(json.dumps(MEASURES[name](*words)))
        return
    assert HERE.is_dir()
    for name in asked.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder), asked.rounds)


if __name__ == "__main__":
    main()
