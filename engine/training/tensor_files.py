"""Tensors in several safetensors files: written in files of a bounded size, read as far as they are asked for."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.refusal import UserError

FILE_BYTES = 1 << 28  # digests are taken of several files at once


class Kind(NamedTuple):
    """What is said of a tensor without reading it."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def in_files(stem: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors by the file that takes them: STEM-00.safetensors and so on, each of at most FILE_BYTES or one tensor."""
    files: list[dict[str, torch.Tensor]] = []
    left = 0
    for name, tensor in tensors.items():
        if not files or tensor.nbytes > left:
            files.append({})
            left = FILE_BYTES
        files[-1][name] = tensor
        left -= tensor.nbytes
    return {f"{stem}-{number:02d}.safetensors": content for number, content in enumerate(files)}


class TensorFiles:
    """The tensors in some safetensors files, by name. UserError if one can't be read, or two hold the same name."""

    def __init__(self, paths: Iterable[Path]) -> None:
        from safetensors import SafetensorError, safe_open

        self._files: dict[str, Any] = {}
        for path in sorted(paths):
            try:
                file = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} is no whole safetensors file ({error}); delete its folder") from None
            names = file.keys()  # type: ignore[no-untyped-call]
            if twice := self._files.keys() & names:
                raise UserError(f"{path} holds {min(twice)}, which another file beside it holds too; delete their folder")
            self._files |= dict.fromkeys(names, file)

    def kinds(self) -> dict[str, Kind]:
        """Each tensor's dtype and shape."""
        out = {}
        for name, file in self._files.items():
            shape = tuple(file.get_slice(name).get_shape())
            none = file.get_slice(name)[:0] if shape else file.get_tensor(name)
            out[name] = Kind(none.dtype, shape)
        return out

    def whole(self, name: str) -> torch.Tensor:
        """The tensor."""
        return torch.as_tensor(self._files[name].get_tensor(name))

    def flat(self, name: str, own: slice) -> torch.Tensor:
        """A part of the flattened tensor; only the rows that hold it are read."""
        rows = self._files[name].get_slice(name)
        shape = rows.get_shape()
        if not shape or own.start >= own.stop or own == slice(0, math.prod(shape)):
            return self.whole(name).flatten()[own]  # mapped, where a slice is copied
        width = max(1, math.prod(shape[1:]))
        first = own.start // width
        part = torch.as_tensor(rows[first : -(-own.stop // width)]).flatten()
        return part[own.start - first * width : own.stop - first * width]
