"""Our tokens are open_clip's, byte for byte."""

import pickle

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.refusal import UserError
from engine.models.tokenizer import Tokenizer

OURS = Tokenizer("ViT-B-32")
THEIRS = open_clip.get_tokenizer("ViT-B-32")
ODD = st.sampled_from(
    ["", " ", "&amp; &lt;b&gt;", "it's", "don't  stop", "naïve café", "3.5% of 100", "a" * 90, "\t\n", "<start_of_text>"]
    + ["<end_of_text> x", "日本語 の 文", "👍🏽 ok", "“quotes”—dash…", "&amp;amp;", "e\u0301", "ﬁne"]
    + ["I\u0307", "x\u00a0y", "\x00 a\x7f"]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.text(max_size=40), ODD, st.text("abcdefg '&;<>|.,-0123", max_size=200)), min_size=1, max_size=4)
)
def test_tokens_are_open_clips(captions: list[str]) -> None:
    ours = OURS(captions)
    assert ours.dtype == torch.int32
    assert torch.equal(ours.long(), THEIRS(captions))


def test_long_captions_are_cut_as_open_clip_cuts_them() -> None:
    captions = ["word " * n for n in (74, 75, 76, 77, 200)]
    assert torch.equal(OURS(captions).long(), THEIRS(captions))
    assert torch.equal(pickle.loads(pickle.dumps(OURS))(captions), OURS(captions))


def test_the_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.models.tokenizer.MEMO", 10)
    mine = Tokenizer("ViT-B-32")
    for i in range(5):
        assert torch.equal(mine([f"{i}{j} x" for j in range(8)]).long(), THEIRS([f"{i}{j} x" for j in range(8)]))
    assert len(mine.memo) <= 20


def test_a_tokenizer_from_a_hub_is_refused() -> None:
    with pytest.raises(UserError, match="needs a tokenizer from a hub"):
        Tokenizer("ViT-B-16-SigLIP")
