"""Checkpoints that are committed, not merely written.

Every rank writes its files into a hidden staging folder, flushes and digests them; when all have, rank 0 writes the
manifest last, renames the folder and flushes its parent. Only then are older ones removed, never below two. At start
rank 0 takes the newest folder whose files match its manifest and tells the others; folders that do not match are set
aside. What the files hold says engine/training/learner_state.py; none of it is pickled.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from data.disk import DiskFull, is_full
from data.refusal import UserError
from data.tensor_file import settle
from engine.distributed import collectives
from records.json_file import Damaged, read_json, sync_folder
from records.manifest import FORMAT, Manifest
from records.rows import FILE, read_rows

KEEP = 2


def save(folder: Path, manifest: Manifest, files: Mapping[str, dict[str, torch.Tensor]]) -> Path:
    """Commits the checkpoint of the manifest's step and returns its folder; every rank calls it with the tensors of its own
    files, by name and on the CPU. UserError if the disk is full: what was there before is still there."""
    final, staging = folder / name_of(manifest.step), folder / f".staging-{manifest.step:09d}"
    own = sum(tensor.nbytes for content in files.values() for tensor in content.values())
    needed = sum(collectives.gather_objects(own))
    collectives.on_rank_0(lambda: _make_room(folder, staging, needed))
    trouble: str | None = None
    digests: dict[str, tuple[int, str]] = {}
    try:
        with disk(folder):
            for name, content in files.items():
                write_file(staging / name, content)
            with ThreadPoolExecutor() as pool:
                digests = dict(zip(files, pool.map(lambda name: flushed_digest(staging / name), files), strict=True))
    except DiskFull as full:
        trouble = str(full)
    outcomes = collectives.gather_objects((trouble, digests))
    troubles = [text for text, _ in outcomes if text]
    if troubles:
        collectives.on_rank_0(lambda: shutil.rmtree(staging, ignore_errors=True))
        raise DiskFull(troubles[0])
    every = {name: entry for _, part in outcomes for name, entry in part.items()}
    collectives.on_rank_0(lambda: _commit(folder, staging, final, manifest.model_copy(update={"files": every})))
    return final


def name_of(step: int) -> str:
    """The name of the folder of a step's checkpoint."""
    return f"step-{step:09d}"


def write_file(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file of these tensors, which whoever may read its folder may read."""
    from safetensors.torch import save_file

    save_file(tensors, path, metadata)
    if metadata:
        with path.open("r+b") as file:
            settle(file)
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes it for its owner alone


def _make_room(folder: Path, staging: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".staging-*"):
        shutil.rmtree(stale)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(_full(folder, f"{needed:,} bytes are needed and {free:,} are free"))
    staging.mkdir()


def _full(folder: Path, why: str) -> str:
    left = "the checkpoints before it are intact" if committed(folder) else "there is none before it"
    return f"disk full while saving a checkpoint in {folder}: {why}; {left}; free some space and run the same command again"


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Says 'disk full' in our words, whoever writes."""
    try:
        yield
    except Exception as error:
        if is_full(error) or shutil.disk_usage(folder).free < 1 << 20:
            raise DiskFull(_full(folder, str(error).splitlines()[0])) from error
        raise


def flushed_digest(path: Path) -> tuple[int, str]:
    """(bytes, SHA-256) of a file, when it is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _commit(folder: Path, staging: Path, final: Path, manifest: Manifest) -> None:
    present = {path.name for path in staging.iterdir()}
    assert present == set(manifest.files), f"files without a digest or the other way round: {present ^ set(manifest.files)}"
    manifest.write(staging)
    if final.exists():
        shutil.rmtree(final)
    staging.rename(final)
    sync_folder(folder)
    for old in committed(folder)[:-KEEP]:
        trash = old.with_name(f".staging-old-{old.name}")
        old.rename(trash)
        shutil.rmtree(trash)


def committed(folder: Path) -> list[Path]:
    """The committed checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / Manifest.FILE).is_file())


def newest(folder: Path) -> tuple[Path, Manifest] | None:
    """(folder, manifest) of the newest checkpoint that verifies, with the journal before it, the same on every rank; None if
    there never was one.

    UserError if there are some and none verifies, or if the newest is of another version.
    """
    newest_whole = collectives.on_rank_0(lambda: _newest(folder))
    if newest_whole is None:
        return None
    name, manifest = newest_whole
    return folder / name, manifest


def _newest(folder: Path) -> tuple[str, Manifest] | None:
    aside = len(list(folder.glob("aside-*")))
    later: list[tuple[Path, Damaged]] = []  # whole ones, but the journal before them is damaged
    for path in reversed(sorted(folder.glob("step-*"))):
        fault, manifest = verify(path)
        if manifest is None:
            _set_aside(path, fault, aside)
            aside += 1
            continue
        try:
            read_rows(folder.parent / FILE, manifest.journal)
        except Damaged as damage:
            later.append((path, damage))
            continue
        for number, (other, damage_before) in enumerate(later, aside):
            _set_aside(other, damage_before.fault, number)
        return path.name, manifest
    if later:
        raise later[0][1]
    if aside:
        raise UserError(
            f"none of the checkpoints in {folder} verifies ({aside} set aside); delete {folder.parent} to begin anew"
        )
    return None


def _set_aside(path: Path, fault: str, number: int) -> None:
    print(f"checkpoint {path} does not verify ({fault}); set aside", flush=True)
    path.rename(path.with_name(f"aside-{path.name}-{number}"))


def assert_readable(path: Path) -> None:
    """UserError if another version of Antidote wrote the checkpoint, whose files this one does not read."""
    try:
        fields = read_json(path / Manifest.FILE, Manifest.REMEDY) or {}
    except Damaged:
        return  # it will be set aside
    written = fields.get("format", 1 if "files" in fields else FORMAT)
    if written != FORMAT:
        versions = fields.get("versions")
        packages = versions if isinstance(versions, dict) else {}
        by = ", ".join(f"{name} {packages[name]}" for name in ("torch", "deepspeed") if name in packages)
        raise UserError(
            f"{path} was written by {'an earlier' if written == 1 else 'another'} version of Antidote (checkpoint format "
            f"{written}{f', with {by}' if by else ''}; this version reads {FORMAT}); finish the run with that version, or "
            f"delete {path.parent.parent} to begin it anew"
        )


def verify(path: Path) -> tuple[str, Manifest | None]:
    """('', manifest) of a checkpoint whose every file is there with its size and SHA-256, or (what is wrong, None);
    UserError if another version wrote it."""
    assert_readable(path)
    try:
        manifest = Manifest.read(path)
    except Damaged as damage:
        return f"manifest: {damage.fault}", None
    if manifest is None:
        return "manifest: it is missing", None
    if path.name != name_of(manifest.step):
        return f"manifest: it is of step {manifest.step:,}", None
    for name, (size, _) in manifest.files.items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            return f"{name} is missing or of another size", None
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: digest(path / name), manifest.files)
        wrong = [name for name, found in zip(manifest.files, digests, strict=True) if found != manifest.files[name][1]]
    return (f"{wrong[0]} has another digest", None) if wrong else ("", manifest)


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
