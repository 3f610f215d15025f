"""Where every random number comes from: a hash of names, never a global generator.

Triggers, augmentations, poison and order derive from (seed, purpose, key, epoch), so they are the same on every
machine, with any number of ranks and workers, and after any interruption.
"""

import hashlib

import numpy as np


def derive(*names: int | str) -> int:
    """A 63-bit integer that depends on all names and their order; equal on every machine."""
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*names: int | str) -> np.random.Generator:
    """A NumPy generator of its own, seeded from the names."""
    return np.random.Generator(np.random.PCG64(derive(*names)))


def ranks(seed: int, purpose: str, keys: list[str]) -> np.ndarray:
    """One uint64 per key; sorting by it is a random order that does not depend on where the keys are stored."""
    prefix = hashlib.blake2b(f"{seed}\x1f{purpose}\x1f".encode(), digest_size=8)
    out = np.empty(len(keys), np.uint64)
    for i, key in enumerate(keys):
        one = prefix.copy()
        one.update(key.encode())
        out[i] = int.from_bytes(one.digest(), "big")
    return out
