"""Rows of texts, each distinct text made once."""

from collections.abc import Callable

import torch


class TextRows:
    """What `make` gives for texts, a row each; the rows of texts that were asked for before are not made again."""

    def __init__(self, make: Callable[[list[str]], torch.Tensor]) -> None:
        self.make = make
        self.places: dict[str, int] = {}
        self.rows = torch.empty(0)

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """[n, ...] of n texts."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self.places]
        if fresh:
            made = self.make(fresh)
            self.rows = torch.cat([self.rows, made]) if self.places else made
            self.places.update(zip(fresh, range(len(self.places), len(self.rows)), strict=True))
        return self.rows[torch.tensor([self.places[text] for text in texts], dtype=torch.int64)]
