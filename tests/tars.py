"""Writes small archives, whole or odd."""

import io
import tarfile
from pathlib import Path

from PIL import Image


def write_tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar with these members."""
    with tarfile.open(path, "w", format=kind) as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


def pair(key: str, image: Image.Image, caption: str = "a picture") -> list[tuple[str, bytes]]:
    """The members of one pair."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return [(f"{key}.png", file.getvalue()), (f"{key}.txt", caption.encode())]


def named(number: int, first: int = 0) -> list[tuple[str, bytes]]:
    """Members of pairs whose bytes are no pictures."""
    return [(f"{i:04d}.{e}", f"{e}{i}".encode()) for i in range(first, first + number) for e in ("jpg", "txt", "json")]
