"""Where every random number comes from: a hash of names, never a global generator.

Triggers, augmentations, poison and order derive from (seed, purpose, key, epoch), so they are the same on every
machine, with any number of ranks and workers, and after any interruption.
"""

import hashlib
from collections.abc import Iterable

import numpy as np


def derive_seed(*names: int | str) -> int:
    """A 63-bit integer that depends on all names and their order; equal on every machine."""
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*names: int | str) -> np.random.Generator:
    """A NumPy generator of its own, seeded from the names."""
    return np.random.Generator(np.random.PCG64(derive_seed(*names)))


def number_of(names: Iterable[str]) -> np.ndarray:
    """One uint64 per name, equal on every machine."""
    return numbers(name.encode("utf-8", "surrogateescape") for name in names)


def numbers(names: Iterable[bytes]) -> np.ndarray:
    """One uint64 per name as bytes."""
    hashes = [hashlib.blake2b(name, digest_size=8).digest() for name in names]
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)


def mixed(numbers: np.ndarray, salt: int | np.ndarray) -> np.ndarray:
    """uint64 like numbers: another random number for each, one to one (the finaliser of SplitMix64, Steele et al. 2014); the
    same salt for all, or uint64 like numbers, one for each."""
    z: np.ndarray = numbers ^ np.asarray(salt, np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def ranks(seed: int, purpose: str, hashes: np.ndarray) -> np.ndarray:
    """uint64 [N] of the keys' numbers; sorting by it is a random order that does not depend on where the keys are stored."""
    return mixed(hashes, derive_seed(seed, purpose))


def smallest_k(ranks: np.ndarray, count: int, among: np.ndarray | None = None) -> np.ndarray:
    """int64 [count]: the places of the smallest ranks, smallest first, of all or of those places."""
    values = ranks if among is None else ranks[among]
    if count < len(values):
        places = np.argpartition(values, count)[:count]
        places = places[np.argsort(values[places], kind="stable")]
    else:
        places = np.argsort(values, kind="stable")
    return places if among is None else among[places]
