"""Checkpoints that are committed, not merely written.

DeepSpeed's own pointer can name a checkpoint that not every rank has finished, and nothing notices a flipped bit. So:
every rank writes into a hidden staging folder, flushes and digests its files; when all have, rank 0 writes the
manifest last, renames the folder and flushes its parent. Only then are older ones removed, never below two. At start
rank 0 takes the newest folder whose files match its manifest and tells the others; folders that do not match are set
aside. Random states are kept as tensors and integers, so nothing needs a pickle.
"""

import errno
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.refusal import UserError
from engine.distributed import collectives
from engine.distributed.world import World


class DiskFull(UserError):
    """There is no space left; whatever a study tries next would fail too."""


MANIFEST = "manifest.json"
KEEP = 2


def save(
    folder: Path,
    step: int,
    facts: dict[str, Any],
    state: dict[str, torch.Tensor],
    world: World,
    write: Callable[[str], None],
) -> Path:
    """Commits the checkpoint of a step and returns its folder.

    `write(tag)` lets DeepSpeed write under folder/tag on every rank; `state` is this rank's own tensors; `facts`
    (plain values) go into the manifest. UserError if the disk is full: what was there before is still there.
    """
    final, staging = folder / f"step-{step:09d}", folder / f".staging-{step:09d}"
    collectives.on_rank_0(lambda: _make_room(folder, staging))
    trouble: str | None = None
    digests: dict[str, tuple[int, str]] = {}
    try:
        with disk(folder):
            write(staging.name)
            torch.save({**state, **random_state()}, staging / f"own_rank_{world.rank}.pt")
            digests = {path.name: _flushed_digest(path) for path in _own(staging, world.rank)}
    except DiskFull as full:
        trouble = str(full)
    outcomes = collectives.gather_objects((trouble, digests))
    troubles = [text for text, _ in outcomes if text]
    if troubles:
        collectives.on_rank_0(lambda: shutil.rmtree(staging, ignore_errors=True))
        raise DiskFull(troubles[0])
    files = {name: entry for _, part in outcomes for name, entry in part.items()}
    collectives.on_rank_0(
        lambda: _commit(folder, staging, final, {**facts, "step": step, "world": world.size, "files": files})
    )
    return final


def _own(staging: Path, rank: int) -> list[Path]:
    """The files in staging that this rank wrote: DeepSpeed puts the rank into the name, rank 0 writes what is shared."""
    mine = []
    for path in sorted(staging.iterdir()):
        match = re.search(r"(?:pp|own)_rank_(\d+)", path.name)
        if int(match.group(1)) == rank if match else rank == 0:
            mine.append(path)
    return mine


def _make_room(folder: Path, staging: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".staging-*"):
        shutil.rmtree(stale)
    done = committed(folder)
    needed = sum(path.stat().st_size for path in done[-1].iterdir()) if done else 0
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(_full(folder, f"{needed:,} bytes are needed and {free:,} are free"))
    staging.mkdir()


def _full(folder: Path, why: str) -> str:
    left = "the checkpoints before it are intact" if committed(folder) else "there is none before it"
    return f"disk full while saving a checkpoint in {folder}: {why}; {left}; free some space and run the same command again"


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Says 'disk full' where torch speaks of file positions."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or shutil.disk_usage(folder).free < 1 << 20 or "PytorchStreamWriter failed" in str(error):
            raise DiskFull(_full(folder, str(error).splitlines()[0])) from error
        raise


def _flushed_digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _commit(folder: Path, staging: Path, final: Path, manifest: dict[str, Any]) -> None:
    present = {path.name for path in staging.iterdir()}
    assert present == set(manifest["files"]), (
        f"files without a digest or the other way round: {present ^ set(manifest['files'])}"
    )
    with (staging / MANIFEST).open("w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _flush_folder(staging)
    if final.exists():
        shutil.rmtree(final)
    staging.rename(final)
    _flush_folder(folder)
    for old in committed(folder)[:-KEEP]:
        trash = old.with_name(f".staging-old-{old.name}")
        old.rename(trash)
        shutil.rmtree(trash)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def committed(folder: Path) -> list[Path]:
    """The committed checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / MANIFEST).is_file())


def newest(folder: Path, world: World, zero: int) -> tuple[Path, dict[str, Any]] | None:
    """(folder, manifest) of the newest checkpoint that verifies, the same on every rank; None if there never was one.

    UserError if there are some and none verifies, or if it was written by another number of ranks under ZeRO.
    """
    newest_whole = collectives.on_rank_0(lambda: _newest(folder))
    if newest_whole is None:
        return None
    name, manifest = newest_whole
    if (zero, world.size) != (manifest["zero"], manifest["world"]) and (zero or manifest["zero"]):
        raise UserError(
            f"{folder / name} was written by {manifest['world']} processes at ZeRO stage {manifest['zero']}, but this is "
            f"{world.size} at stage {zero}; go on with the former, or delete {folder.parent} to begin anew"
        )
    return folder / name, manifest


def _newest(folder: Path) -> tuple[str, dict[str, Any]] | None:
    aside = len(list(folder.glob("aside-*")))
    for path in reversed(sorted(folder.glob("step-*"))):
        fault, manifest = verify(path)
        if not fault:
            return path.name, manifest
        print(f"checkpoint {path} does not verify ({fault}); set aside", flush=True)
        path.rename(path.with_name(f"aside-{path.name}-{aside}"))
        aside += 1
    if aside:
        raise UserError(
            f"none of the checkpoints in {folder} verifies ({aside} set aside); delete {folder.parent} to begin anew"
        )
    return None


def verify(path: Path) -> tuple[str, dict[str, Any]]:
    """('' or what is wrong, manifest) of a checkpoint: every file there, of the right size and SHA-256."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        files: dict[str, list[Any]] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest: {error}", {}
    for name, (size, _) in files.items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            return f"{name} is missing or of another size", manifest
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(files, pool.map(lambda name: digest(path / name), files), strict=True))
    wrong = [name for name, (_, promised) in files.items() if digests[name] != promised]
    return (f"{wrong[0]} has another digest" if wrong else ""), manifest


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def own_state(path: Path, rank: int) -> dict[str, torch.Tensor]:
    """The tensors that this rank saved, random states set back; from rank 0's where there is none of this rank's."""
    own = path / f"own_rank_{rank}.pt"
    state: dict[str, torch.Tensor] = torch.load(own if own.is_file() else path / "own_rank_0.pt", weights_only=True)
    set_random_state(state)
    return state


def random_state() -> dict[str, torch.Tensor]:
    """The states of Python's, NumPy's and torch's generators as tensors."""
    version, words, gauss = random.getstate()
    old: Any = np.random.get_state(legacy=False)  # noqa: NPY002  (whoever uses the old generator, its state is kept)
    assert version == 3
    assert old["bit_generator"] == "MT19937"
    state = {
        "random_python": torch.tensor(words, dtype=torch.int64),
        "random_python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "random_numpy": torch.tensor(
            [*old["state"]["key"].tolist(), old["state"]["pos"], old["has_gauss"]], dtype=torch.int64
        ),
        "random_numpy_gauss": torch.tensor(old["gauss"], dtype=torch.float64),
        "random_torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["random_cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Sets the generators back to what `random_state` gave."""
    gauss = state["random_python_gauss"].tolist()
    random.setstate((3, tuple(state["random_python"].tolist()), gauss[0] if gauss else None))
    *keys, place, has_gauss = state["random_numpy"].tolist()
    old = ("MT19937", np.array(keys, np.uint32), place, has_gauss, float(state["random_numpy_gauss"]))
    np.random.set_state(old)  # noqa: NPY002
    torch.set_rng_state(state["random_torch"])
    if "random_cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random_cuda"])
