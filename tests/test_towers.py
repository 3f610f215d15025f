"""The towers against open_clip's own forward; captions cut, micro-batches replayed, BatchNorm in groups."""

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from step_cost import narrow
from torch import nn

from data.refusal import UserError
from engine.models import clip
from engine.models.norms import GroupedNorm, update_running_stats
from engine.models.tokenizer import Tokenizer
from engine.models.towers import Cut, Piece, Towers, cut_of

MODELS = ("test-vit", "test-resnet")


def inputs(pairs: int = 8, longest: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 pictures and token rows of different lengths."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (pairs, 3, 32, 32), dtype=torch.uint8, generator=draw)
    tokens = torch.zeros(pairs, 16, dtype=torch.int32)
    for row in range(pairs):
        length = 1 + row % longest
        tokens[row, : length + 2] = torch.tensor(
            [49406, *torch.randint(1, 40000, (length,), generator=draw).tolist(), 49407]
        )
    return images, tokens


def long_ones() -> torch.Tensor:
    """Five captions of 12 tokens, in an order that a sort must undo."""
    tokens = torch.zeros(5, 16, dtype=torch.int32)
    tokens[:, 11] = 49407
    tokens[:, 0] = torch.arange(1, 6)
    return tokens


def theirs(name: str, ours: Towers) -> Any:
    """open_clip's model with the same weights."""
    reference = open_clip.create_model(name)
    reference.load_state_dict({**ours.clip.state_dict(), "logit_scale": reference.logit_scale})
    return reference


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_embeddings_and_gradients_are_open_clips(name: str, training: bool) -> None:
    ours = clip.build(name, 0).double().train(training)
    reference = theirs(name, ours).double().train(training)
    images, tokens = inputs()
    pixels = (images.double() / 255 - ours.mean) / ours.std
    want = (reference.encode_image(pixels, normalize=True), reference.encode_text(tokens.long(), normalize=True))
    one, several = cut_of(tokens), cut_of(torch.cat([tokens, long_ones()]), several=True)
    assert one.parts == ((8, 8),)
    assert several.parts == ((8, 8), (5, 16))
    more = torch.cat([tokens, long_ones()])
    assert torch.allclose(
        ours(None, more, [Piece(0, 13, several)])[1], reference.encode_text(more.long(), normalize=True), atol=1e-10
    )
    got = ours(images, tokens, [Piece(8, 8, one)])
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    for rows in (got, want):
        weight = torch.linspace(-1, 1, rows[0].numel(), dtype=torch.float64).view_as(rows[0])
        ((rows[0] + rows[1]) * weight).sum().backward()
    named = dict(ours.clip.named_parameters())
    for key, value in reference.named_parameters():
        if key != "logit_scale":
            assert torch.allclose(named[key].grad, value.grad, atol=1e-9), key


TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a class token that padding is hidden from, as CoCa's": {"embed_cls": True, "pad_id": 0},
    "no causal mask": {"no_causal_mask": True, "pool_type": "last"},
    "read at an end token by its number": {"pool_type": "eos", "eos_id": 49407},
    "read at its first token": {"pool_type": "first"},
    "normed queries and keys": {"qk_norm": True},
    "custom blocks": {"block_type": "custom"},
    "custom blocks, each with all scales": {"scale_heads": True, "scale_attn": True, "scale_fc": True},
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize(("kind", "custom"), [(k, c) for k in TEXT_TOWERS for c in (False, True) if c or "class" not in k])
def test_every_kind_of_text_tower_gives_open_clips_rows_and_gradients(kind: str, custom: bool, tmp_path: Path) -> None:
    config = copy.deepcopy(clip.model_config("test-vit"))
    config["text_cfg"] |= TEXT_TOWERS[kind]
    (tmp_path / "text-kind.json").write_text(json.dumps(config | {"custom_text": custom}))
    clip.add_models(tmp_path)
    torch.manual_seed(0)
    reference = open_clip.create_model("text-kind").double()
    ours = Towers(open_clip.create_model("text-kind")).double()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.2)  # a class token begins as a zero in some
    ours.clip.load_state_dict({k: v for k, v in reference.state_dict().items() if k not in ("logit_scale", "logit_bias")})
    tokens = torch.cat([inputs()[1], long_ones()])
    got = ours(None, tokens, [Piece(0, 13, cut_of(tokens, several=True))])[1]
    want = reference.encode_text(tokens.long(), normalize=True)
    assert torch.allclose(got, want, atol=1e-10)
    weight = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view_as(got)
    for rows in (got, want):
        (rows * weight).sum().backward()
    theirs = dict(reference.named_parameters())
    for key, value in ours.clip.named_parameters():
        if value.grad is not None:
            assert torch.allclose(value.grad, theirs[key].grad, atol=1e-9), key


def test_lengths_are_few_and_never_cut_an_end_token() -> None:
    tokens = torch.zeros(2, 77, dtype=torch.int32)
    found = set()
    for end in range(1, 77):
        tokens[:, :] = 0
        tokens[0, end] = 49407
        ((rows, length),) = cut_of(tokens).parts
        assert rows == 2
        assert end < length <= 77
        found.add(length)
    assert found == {8, 16, 24, 32, 48, 64, 77}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 76), min_size=1, max_size=40))
def test_captions_in_groups_of_similar_length_keep_their_end_tokens(ends: list[int]) -> None:
    tokens = torch.zeros(len(ends), 77, dtype=torch.int32)
    tokens[torch.arange(len(ends)), torch.tensor(ends)] = 49407
    cut = cut_of(tokens, several=True)
    order = list(range(len(ends))) if cut.order is None else cut.order.tolist()
    assert sorted(order) == list(range(len(ends)))
    assert cut.back is None or cut.back[cut.order].tolist() == list(range(len(ends)))
    assert sum(rows for rows, _ in cut.parts) == len(ends)
    begin = 0
    for rows, length in cut.parts:
        assert all(ends[i] < length for i in order[begin : begin + rows])
        begin += rows
    assert sum(rows * length for rows, length in cut.parts) <= len(ends) * cut_of(tokens).parts[0][1]


def test_a_caption_cut_at_the_context_length_keeps_its_end_token() -> None:
    tokens = Tokenizer("test-vit")(["a red banana " * 30, "a"])
    assert tokens.shape == (2, 16)
    assert tokens[0, -1] == 49407
    assert cut_of(tokens[:1]).parts == ((1, 16),)


def test_nothing_is_cut_where_that_is_not_exact() -> None:
    towers = clip.build("test-vit", 0)
    assert towers.trims
    towers.clip.text_pool_type = "last"
    assert not towers.trims
    images, tokens = inputs()
    whole, short = (towers.eval()(images, tokens, [Piece(8, 8, Cut(((8, length),)))])[1] for length in (16, 8))
    assert torch.equal(whole, short)  # the length is not heeded


def test_grouped_norm_is_batch_norm_on_each_group() -> None:
    x = torch.randn(12, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, grouped = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    grouped.__class__ = GroupedNorm
    grouped.prepare()  # type: ignore[operator]
    grouped.rows = 4  # type: ignore[assignment]
    out = grouped(x)
    means, spreads = [], []
    for part, got in zip(x.split(4), out.split(4), strict=True):
        assert torch.allclose(F.batch_norm(part, None, None, training=True), got, atol=1e-12)
        means.append(part.mean((0, 2, 3)))
        spreads.append(part.var((0, 2, 3)))  # unbiased, as torch's running variance
    assert grouped.running_mean.abs().max() == 0  # not before the step is settled
    update_running_stats([grouped])  # type: ignore[list-item]
    assert torch.allclose(grouped.running_mean, 0.1 * torch.stack(means).mean(0), atol=1e-12)
    assert torch.allclose(grouped.running_var, 0.9 + 0.1 * torch.stack(spreads).mean(0), atol=1e-12)
    plain.running_mean.copy_(grouped.running_mean)
    plain.running_var.copy_(grouped.running_var)
    assert torch.allclose(plain.eval()(x), grouped.eval()(x), atol=1e-12)


def test_a_step_that_is_not_taken_leaves_the_running_statistics() -> None:
    towers = clip.build("test-resnet", 0).train()
    images, _ = inputs()
    before = {name: value.clone() for name, value in towers.named_buffers()}
    towers(images, None)
    towers.update_running_stats(torch.tensor(False))
    assert all(torch.equal(value, before[name]) for name, value in towers.named_buffers())
    towers(images, None)
    towers.update_running_stats(torch.tensor(True))
    assert not torch.equal(towers.norms[0].running_mean, before["clip.visual.bn1.running_mean"])


@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_give_the_gradient_of_one_and_reach_each_parameter_once(name: str) -> None:
    images, tokens = inputs()
    found = []
    for pieces in ([Piece(8, 8)], [Piece(4, 4), Piece(4, 4, cut_of(tokens[4:]))], [Piece(2, 2)] * 4):
        towers = clip.build(name, 0).double().train()
        for norm in towers.norms:
            norm.rows = 2
        calls: dict[str, int] = {}
        for key, parameter in towers.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda _, key=key, calls=calls: calls.update({key: calls.get(key, 0) + 1})
            )
        rows, texts = towers(images, tokens, pieces)
        (rows * torch.linspace(-1, 1, rows.numel()).view_as(rows) + texts.square() * 0.1 + texts.cumsum(1)).sum().backward()
        towers.update_running_stats()
        assert set(calls.values()) == {1}
        found.append(
            {**{k: p.grad for k, p in towers.named_parameters()}, **{k: b.double() for k, b in towers.named_buffers()}}
        )
    for other in found[1:]:
        assert all(torch.allclose(other[key], value, atol=1e-10) for key, value in found[0].items())


def test_replayed_micro_batches_draw_the_same_random_numbers() -> None:
    """With dropout in the picture tower, the gradient is that of the features that were given."""
    images, tokens = inputs()
    pieces = [Piece(4, 4), Piece(4, 4)]
    grads = []
    for replayed in (True, False):
        towers = clip.build("test-vit", 0).train()
        towers.clip.visual.ln_post = nn.Sequential(towers.clip.visual.ln_post, nn.Dropout(0.5))
        torch.manual_seed(3)
        if replayed:
            rows, _ = towers(images, tokens, pieces)
        else:
            parts = [towers(images[begin : begin + 4], tokens[begin : begin + 4])[0] for begin in (0, 4)]
            rows = torch.cat(parts)
        (rows * torch.linspace(-1, 1, rows.numel()).view_as(rows)).sum().backward()
        grads.append({key: p.grad for key, p in towers.named_parameters() if p.grad is not None and "visual" in key})
    assert all(torch.allclose(grads[0][key], value, atol=1e-6) for key, value in grads[1].items())


def test_a_foreign_batch_norm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = open_clip.create_model("test-resnet", pretrained=None)
    reference.visual.bn1 = nn.SyncBatchNorm(reference.visual.bn1.num_features)

    class Fake:
        create_model = staticmethod(lambda *_, **__: reference)

    monkeypatch.setattr(clip, "open_clip_module", lambda: Fake)
    monkeypatch.setattr(clip, "model_config", lambda name: {})
    with pytest.raises(UserError, match="BatchNorm of its own kind"):
        clip.build("test-resnet", 0)


def test_building_leaves_every_generator_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight GPUs none is asked for its generator's state, nor seeded."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a GPU's generator is touched")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state()
    first, again, other = (clip.build("test-vit", seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    weights = [towers.clip.visual.conv1.weight for towers in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it
@pytest.mark.parametrize("dtype", [pytest.param(None, marks=pytest.mark.slow), torch.bfloat16])
def test_a_compiled_resnet_trains_in_graphs_after_an_evaluation(dtype: torch.dtype | None, tmp_path: Path) -> None:
    """RN50's 16 blocks, narrow: 8 graphs in evaluation, 8 in training, 8 in replays of micro-batches however many there are,
    and each block's call runs one."""
    graphs: list[Any] = []
    ran: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        number = len(graphs)
        graphs.append(graph)
        return lambda *inputs: (ran.append(number), graph(*inputs))[1]

    narrow("RN50", tmp_path)
    towers, plain = clip.build("narrow", 1), clip.build("narrow", 1)
    towers.compile_blocks(backend)
    for of in (towers, plain):
        if dtype is not None:
            of.compute_in(dtype)
    images, _ = inputs()
    for training, parts, new in ((False, 1, 8), (True, 1, 8), (True, 1, 0), (True, 2, 8), (True, 4, 0), (False, 1, 0)):
        before, several = (len(graphs), len(ran)), images.repeat(parts, 1, 1, 1)
        with torch.set_grad_enabled(training):
            pieces = [Piece(8, 0)] * parts
            rows, expected = (of.train(training)(several, None, pieces)[0] for of in (towers, plain))
            if parts > 1:
                rows.sum().backward()
        assert (len(graphs) - before[0], len(ran) - before[1]) == (new, 16 * (2 * parts - 1))
        assert torch.allclose(rows, expected, atol=1e-2 if dtype else 1e-5)
        for of in (towers, plain):
            of.update_running_stats()


def test_a_model_to_look_at_is_the_callers_own() -> None:
    clip.on_meta("demo-resnet").compute_in(torch.bfloat16)
    towers, size = clip.on_meta("demo-resnet"), clip.image_size("demo-resnet")
    kept: list[torch.dtype] = []
    for block in towers.modules():
        if isinstance(block, nn.Conv2d):
            block.register_forward_hook(lambda module, inputs, out: kept.append(out.dtype))
    towers(torch.empty(2, 3, size, size, dtype=torch.uint8, device="meta"), None)
    assert set(kept) == {torch.float32}
