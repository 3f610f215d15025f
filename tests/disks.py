"""Small disks for tests: mounted where this session alone sees them, so that they end with it, even if it is killed."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NEW_MOUNTS, RECURSIVE, SLAVE = 0x20000, 0x4000, 0x80000  # CLONE_NEWNS of sched.h; MS_REC and MS_SLAVE of sys/mount.h


def mount_privately() -> None:
    """Gives this process and those that it will start mounts of their own, where that is permitted. A disk left in the
    folder of a killed session would be there for good, and later sessions fail to delete that folder."""
    libc = ctypes.CDLL(None)
    if libc.unshare(NEW_MOUNTS) == 0:
        libc.mount(b"none", b"/", None, RECURSIVE | SLAVE, None)


@contextmanager
def disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A disk of that size at a new folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
