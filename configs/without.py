"""What a pre-training leaves out, settled when a spec is read: a file counts by its keys, not by where it lies."""

import os
from functools import lru_cache
from pathlib import Path

from data.annotations import keys_digest, read_keys
from data.refusal import Missing, UserError
from data.sources import Data
from data.without import Without
from records.ending import verify_files
from records.json_file import damaged
from records.lines import read_lines


def settled(data: Data) -> Data:
    """The data with the digest of the keys that it leaves out, and None for what leaves out no pair. UserError for a file
    that can't be read or holds other keys than the spec promises; one that is missing is refused by what needs it."""
    without = data.pretrain.left_out
    if without is None:
        return data
    if without.file is not None:
        without = _identified(without, without.file)
    if without is not None and without.is_none:
        without = None
    return data.model_copy(update={"pretrain": data.pretrain.model_copy(update={"without": without})})


def _identified(without: Without, file: str) -> Without | None:
    try:
        stat = os.stat(file)
        digest = _digest(file, stat.st_size, stat.st_mtime_ns)
    except (Missing, FileNotFoundError):
        return without
    except OSError as error:
        raise UserError(f"data.pretrain.without: {file}: {error.strerror}; expected a file that can be read") from None
    if without.digest is not None and not (len(without.digest) >= 12 and (digest or "").startswith(without.digest)):
        raise UserError(
            f"data.pretrain.without.digest is {without.digest}, but the keys in {file} have "
            f"{digest or 'none, as there are none'}; name the right file, or leave the digest out"
        )
    return without.model_copy(update={"digest": digest}) if digest else None


@lru_cache(maxsize=64)
def _digest(file: str, size: int, changed: int) -> str | None:
    """The digest of a file's keys, None of no keys; read once as long as the file stays as it is."""
    path = Path(file)
    verify_files(path.parent, path.name)  # it may be a finished run's plan
    if numbers := read_lines(path).damaged:  # or what a detector flagged
        raise damaged(path, f"line {numbers[0]:,} is not as it was written", "put a copy of it back, or detect again")
    keys = read_keys(file)
    return keys_digest(keys) if keys else None
