"""Captions to tokens, by open_clip's tokenizers."""

from functools import cache
from typing import Any

import numpy as np
import torch

from data.refusal import UserError
from engine.models.clip import model_config, open_clip_module, quiet

MEMO = 500_000  # words whose tokens are kept


class Tokenizer:
    """Captions to tokens, int32 [n, L], the same as open_clip's own tokenizer gives; remembers words; picklable.

    CLIP's tokenizer never joins what stands on two sides of a blank, so the tokens of a caption are those of its words,
    one after the other; and on printable ASCII without '&' its cleaning only lowers letters and joins blanks.
    """

    def __init__(self, name: str) -> None:
        config = model_config(name)
        if "hf_tokenizer_name" in config.get("text_cfg", {}) or "hf_model_name" in config.get("text_cfg", {}):
            raise UserError(f"model.name '{name}' needs a tokenizer from a hub; choose a model with CLIP's own tokenizer")
        self.name, self.memo = name, dict[str, tuple[int, ...]]()

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "memo": {}}

    def __call__(self, captions: list[str]) -> torch.Tensor:
        theirs = _tokenizer(self.name)
        if not _is_plain(theirs):
            return torch.as_tensor(theirs(captions)).to(torch.int32)
        out = np.zeros((len(captions), theirs.context_length), np.int32)
        for row, text in zip(out, captions, strict=True):
            tokens = [theirs.sot_token_id, *self._tokens(theirs, text)]
            del tokens[len(row) - 1 :]
            tokens.append(theirs.eot_token_id)
            row[: len(tokens)] = tokens
        return torch.from_numpy(out)

    def fits(self, text: str) -> bool:
        """Whether all of a text reaches the model: a longer one is cut at its end."""
        theirs = _tokenizer(self.name)
        if _is_plain(theirs):
            most: int = theirs.context_length - 2
            return len(self._tokens(theirs, text)) <= most
        whole, longer = torch.as_tensor(theirs([text, f"{text} x"]))
        return bool((whole != longer).any())  # what follows it still counts

    def word(self, token: int) -> str:
        """The text of one token."""
        return str(_tokenizer(self.name).decode([token])).strip()

    def _tokens(self, theirs: Any, text: str) -> list[int]:
        """All tokens of a text, those of its ends apart."""
        plain, memo, tokens = text.isascii() and "&" not in text and text.isprintable(), self.memo, list[int]()
        if len(memo) > MEMO:
            memo.clear()
        for word in (text.lower() if plain else theirs.clean_fn(text)).split():
            if (known := memo.get(word)) is None:
                known = memo[word] = _word(theirs, word)
            tokens += known
        return tokens


def _is_plain(theirs: Any) -> bool:
    """Whether it is CLIP's own tokenizer, which cuts what is too long at its end."""
    kind = type(theirs).__name__ == "SimpleTokenizer"
    return kind and theirs.clean_fn is _lowered() and theirs.reduction_fn is None


def _word(theirs: Any, word: str) -> tuple[int, ...]:
    """The tokens of a clean word."""
    tokens: list[int] = []
    for piece in theirs.pat.findall(word):
        letters = "".join(theirs.byte_encoder[byte] for byte in piece.encode())
        tokens += (theirs.encoder[part] for part in theirs.bpe(letters).split(" "))
    return tuple(tokens)


@cache
def _lowered() -> Any:
    from open_clip.tokenizer import get_clean_fn

    return get_clean_fn("lower")


@cache
def _tokenizer(name: str) -> Any:
    with quiet():
        return open_clip_module().get_tokenizer(name)
