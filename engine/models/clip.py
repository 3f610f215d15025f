"""open_clip's models by name, their weights and its lists. With the tokenizer the only door to open_clip.

The learned scale is not a parameter of the towers: ZeRO shards and flattens what it owns, and a single number that is
clamped after every step is better kept whole on each rank (engine/training/head.py). `weights` puts it back where open_clip
expects it.
"""

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.explain import suggestion
from data.labelled import Imagenet
from data.refusal import UserError
from data.seeding import derive_seed
from engine.models.normalization import Normalization, from_config, of_file
from engine.models.towers import Towers

OWN = Path(__file__).resolve().parents[2] / "configs" / "models"
CHECKSUMS = (  # of open_clip's ImageNet class names, timm's list of their folders, and open_clip's templates, as JSON
    "6ef5246539bb6543da0958381424e7f7b63b6758af04434f6e8f6da88e0cca70",
    "624954f06d059ddd477ab500dc059cf2628ac01e441d8a648d1dc6fbfe504c5a",
    "331000b1f1c75fbb1f096e3a4ce7820093d52408a8d472cfbdea70d206b9edaa",
)
NO_FUNCTION = {  # fields of open_clip's configurations that shapes tell, or that change training or loading alone
    "image_size",
    "patch_dropout",
    "output_tokens",
    "timm_model_pretrained",
    "timm_drop",
    "timm_drop_path",
    "hf_model_pretrained",
}
SCALARS = {"scale": "logit_scale", "bias": "logit_bias"}  # our names and open_clip's


@cache
def open_clip_module() -> Any:
    """open_clip, with our models added to those that it knows."""
    import open_clip  # imported when first needed: 2 s

    open_clip.add_model_config(OWN)
    return open_clip


def add_models(folder: Path) -> None:
    """Makes open_clip know the models whose configurations lie in a folder."""
    open_clip_module().add_model_config(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip warns on the root logger that a model has random weights; here that is what was asked for."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def model_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of a model; UserError naming close ones if there is none."""
    known = open_clip_module().list_models()
    if name not in known:
        hint = suggestion(name, known) if len(name) > 2 else ""
        hint = hint if "did you mean" in hint else ";"
        own = ", ".join(sorted(path.stem for path in OWN.glob("*.json")))
        raise UserError(
            f"model.name is '{name}', which open_clip does not know{hint} "
            f"valid: {own} of ours and open_clip's {', '.join(n for n in known if n not in own)}"
        )
    return dict(open_clip_module().get_model_config(name))


def refuse_other_function(name: str, config: Any, weights: str) -> None:
    """UserError if weights were trained as a model of this configuration (open_clip's `model_cfg`) and the one of that name
    computes another function of tensors of the same shapes: GELU for QuickGELU, other heads, another pooling."""
    there, here = _function(config, weights), _function(model_config(name), name)
    other = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if not other:
        return
    alike = [n for n in open_clip_module().list_models() if _function(model_config(n), n) == there]
    alike = sorted(alike, key=lambda n: (image_size(n) != image_size(name), not n.startswith(name)))
    what = ", ".join(f"{key} {json.dumps(there.get(key))} (of {name}: {json.dumps(here.get(key))})" for key in other[:3])
    raise UserError(
        f"{weights} was trained with {what}: {name} would compute other embeddings from it, even where its tensors fit; use "
        f"the model {alike[0] if alike else 'of that configuration, as configs/models/NAME.json'}"
    )


def _function(config: Any, whose: str) -> dict[str, Any]:
    """What a configuration of open_clip's sets of the function that a model computes, defaults included; UserError if it is
    none."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    out: dict[str, Any] = {}
    for section, plain in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        given = config.get(section, {}) if isinstance(config, dict) else None
        if not isinstance(given, dict):
            raise UserError(f"the configuration of {whose} is none of open_clip's: expected a {section}; copy it again")
        values = asdict(plain()) | given
        out |= {f"{section}.{key}": value for key, value in values.items() if key not in NO_FUNCTION}
    return out | {"quick_gelu": bool(config.get("quick_gelu"))}


def image_size(name: str) -> int:
    """Side of the square picture that the model takes, in pixels."""
    size = model_config(name)["vision_cfg"].get("image_size", 224)
    return int(size if isinstance(size, int) else size[0])


def has_norms(name: str) -> bool:
    """Whether the picture tower is one of CLIP's ResNets, whose BatchNorm has groups."""
    return isinstance(model_config(name)["vision_cfg"].get("layers"), list)


def build(name: str, seed: int) -> Towers:
    """Freshly initialised towers, the same for the same seed; global generators are left as they were."""
    model_config(name)
    with torch.random.fork_rng(devices=[]), quiet():  # on the CPU, so that no GPU's generator takes part
        torch.default_generator.manual_seed(derive_seed(seed, "init"))
        clip = open_clip_module().create_model(name)
    _refuse_strange_norms(name, clip)
    return Towers(clip)


def _refuse_strange_norms(name: str, clip: nn.Module) -> None:
    """UserError if the model has a BatchNorm of another class than torch's."""
    strange = [
        n
        for n, m in clip.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and type(m) is not nn.BatchNorm2d
    ]
    if strange:
        raise UserError(
            f"model.name '{name}' has a BatchNorm of its own kind ({strange[0]}), whose groups can't be fixed; use another"
        )


def on_meta(name: str) -> Towers:
    """The towers without storage, to count with and to look at, the caller's own; UserError if they can't be trained."""
    return copy.deepcopy(_built_on_meta(name))


@cache
def _built_on_meta(name: str) -> Towers:
    model_config(name)
    with torch.device("meta"), quiet():
        clip = open_clip_module().create_model(name, device="meta")
    _refuse_strange_norms(name, clip)
    return Towers(clip)


def weights(towers: Towers, learned: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's state dict: the towers, and the scale and the bias (if one is learned) as float32 scalars."""
    return {key: value.detach().cpu().contiguous() for key, value in towers.clip.state_dict().items()} | scalars(learned)


def scalars(learned: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The scale and the bias by open_clip's names, those that are learned, as float32 scalars."""
    return {theirs: learned[ours].detach().float().cpu().reshape(()) for ours, theirs in SCALARS.items() if ours in learned}


def load_weights(towers: Towers, path: Path) -> dict[str, torch.Tensor]:
    """Loads what `weights` gave from a safetensors file; returns the scale and the bias, [1] each. UserError naming
    mismatching tensors."""
    from safetensors.torch import load_file

    towers.normalize(of_file(path))
    return put_weights(towers, load_file(path), str(path), "the towers")


def put_weights(towers: Towers, state: dict[str, torch.Tensor], path: str, name: str) -> dict[str, torch.Tensor]:
    """Puts a state dict by open_clip's names into the towers of a model; the scale and the bias in it, [1] each. UserError
    naming the first tensors that don't fit."""
    towers.clip.load_state_dict(fitting(towers, state, path, name))
    return {ours: state[theirs].detach().float().reshape(1) for ours, theirs in SCALARS.items() if theirs in state}


def fitting(towers: Towers, state: dict[str, torch.Tensor], path: str, name: str) -> dict[str, torch.Tensor]:
    """A state dict by open_clip's names as the towers name it, without the scale and the bias; UserError naming the first
    tensors that don't fit the towers."""
    scalar = {key: value for key, value in state.items() if key in SCALARS.values()}
    state = {key: value for key, value in state.items() if key not in scalar}
    own = towers.clip.state_dict()
    if "text.token_embedding.weight" in own and "token_embedding.weight" in state:
        parts = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
        state = {f"text.{key}" if key.startswith(parts) else key: value for key, value in state.items()}
    for key in own:
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, own[key])  # a count that nothing reads
    wrong = [f"{key} ({list(value.shape)} there, [] in {name})" for key, value in scalar.items() if value.numel() != 1]
    for key in [*own, *(key for key in state if key not in own)]:
        shapes = [str(list(of[key].shape)) if key in of else "missing" for of in (state, own)]
        if shapes[0] != shapes[1]:
            wrong.append(f"{key} ({shapes[0]} there, {shapes[1]} in {name})")
    if wrong:
        raise UserError(
            f"{path} holds another architecture than {name}: {len(wrong)} tensors differ, first {', '.join(wrong[:3])}; set "
            "model.name to what it holds"
        )
    return state


def check_tag(name: str, tag: str) -> None:
    """UserError naming the valid tags if open_clip knows no weights under this one, or if they take other pictures or
    QuickGELU, which the model does not compute."""
    tags = open_clip_module().list_pretrained_tags_by_model(name)
    if tag not in tags:
        known = suggestion(tag, tags) if tags else "; it has none for this model, so give start.path"
        raise UserError(f"start.pretrained is '{tag}', which open_clip does not know for {name}{known}")
    tag_normalization(name, tag)
    if _tag_config(name, tag).get("quick_gelu"):
        refuse_other_function(name, {**model_config(name), "quick_gelu": True}, f"start.pretrained '{tag}'")


def tag_normalization(name: str, tag: str) -> Normalization:
    """How the weights under a tag want pictures normalised; UserError if they want them resized in another way than ours."""
    return from_config(_tag_config(name, tag), f"start.pretrained '{tag}'")


def _tag_config(name: str, tag: str) -> dict[str, Any]:
    """What open_clip knows of the weights under a tag; empty of a tag that it does not know."""
    from open_clip.pretrained import get_pretrained_cfg

    config: dict[str, Any] = get_pretrained_cfg(name, tag)
    return config


def pretrained(name: str, tag: str) -> Path:
    """The file of weights that open_clip knows under a tag, from its hub or its cache; UserError naming the valid tags, or
    saying that it can't be had."""
    check_tag(name, tag)
    from open_clip.pretrained import download_pretrained

    try:
        return Path(download_pretrained(_tag_config(name, tag), prefer_hf_hub=True))
    except Exception as error:  # each hub and each network has its own
        raise UserError(
            f"start.pretrained is '{tag}', whose weights can't be fetched ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0][:120]}); fetch them elsewhere and give start.path"
        ) from None


@cache
def imagenet() -> Imagenet:
    """ImageNet's class names and the 80 prompt templates of CLIP, with {c} for the class, as open_clip holds them, and
    WordNet's names of the classes from timm, which open_clip needs; a release in which they differ from those that the
    literature uses is refused."""
    timm = find_spec("timm")
    synsets = Path(timm.origin).parent / "data/_info/imagenet_synsets.txt" if timm and timm.origin else Path()
    lists = (
        list(open_clip_module().IMAGENET_CLASSNAMES),
        synsets.read_text().split() if synsets.is_file() else [],
        [line("{c}") for line in open_clip_module().OPENAI_IMAGENET_TEMPLATES],
    )
    for content, known in zip(lists, CHECKSUMS, strict=True):
        if sha256(json.dumps(content).encode()).hexdigest() != known:
            raise UserError(
                "this release of open_clip_torch or timm has other ImageNet classes or templates; install open_clip_torch "
                "3.3.0 and timm 1.0.31"
            )
    return Imagenet(*lists)


def export_config(name: str, weights: Path) -> str:
    """open_clip_config.json for these weights of this architecture."""
    from safetensors import safe_open

    config = model_config(name)
    with safe_open(weights, "pt") as file:
        if SCALARS["bias"] in file.keys():  # noqa: SIM118  (no mapping)
            config["init_logit_bias"] = -10.0
    return json.dumps({"model_cfg": config, "preprocess_cfg": of_file(weights)._asdict()}, indent=2) + "\n"
