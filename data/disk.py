"""Writing to a disk that may be full or read-only."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.refusal import UserError


class DiskFull(UserError):
    """There is no space left; whatever a study tries next would fail too."""

    def __init__(self, words: object) -> None:
        super().__init__(words, again=True)


def is_full(error: BaseException) -> bool:
    """Whether an exception says that there is no space left: an OSError, or one of safetensors and others in words."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


@contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """Says in one sentence why `what` can't be written into a folder: UserError, DiskFull if there is no space."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if is_full(error):
            words = f"disk full while {what} was written into {folder} ({reason})"
            raise DiskFull(f"{words}; free some space and run the same command again") from error
        raise UserError(f"{what} can't be written into {folder} ({reason}); check the folder and its rights") from error


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
