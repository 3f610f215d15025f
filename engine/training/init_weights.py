"""The weights and AdamW's moments that a stage starts from: of a run of ours, of open_clip, of the paper's code.

Files are read by safetensors, or by torch with `weights_only`: one that holds anything but tensors and plain values is
refused, whatever it is.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from configs.stage import Optimizer
from configs.start import WEIGHTS, Start, weights_of
from data.refusal import Missing, UserError
from engine.models import clip
from engine.models.normalization import Normalization, config_beside, of_file
from engine.models.towers import Towers
from engine.training.optimizer import decays
from records.card import Card
from records.ending import verify_files

MOMENTS = ("exp_avg", "exp_avg_sq")  # as torch's and DeepSpeed's AdamW name them
STEP = "step"  # the same of one parameter's steps
STEPS = "steps"  # in a file of moments
BESIDE = "optimizer.safetensors"  # beside a run's weights: its moments
CACHED = 1 << 15  # numbers whose float64 copies stay in a core's cache, not fetched from memory once per operation
FACTS = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's files keep among the weights


def path_of(start: Start, name: str) -> Path:
    """The file of a start's weights; UserError if there is none. A name of open_clip's is fetched from its hub, or taken
    from its cache."""
    if start.pretrained is not None:
        return clip.pretrained(name, start.pretrained)
    path = weights_of(start)
    if path is None:
        raise Missing(
            f"start.path is {start.path}, which holds no weights; expected a run's folder, a folder of open_clip's, a "
            ".safetensors or a .pt file"
        )
    return path


def start_normalization(start: Start | None, path: Path, name: str) -> Normalization:
    """How the pictures of a start's weights, which lie in a file, are normalised."""
    return of_file(path) if start is None or start.pretrained is None else clip.tag_normalization(name, start.pretrained)


def distance(parameters: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> float:
    """|| w - w0 || / || w0 || over parameters w and those of the same names w0 that they started from; in float64."""
    moved = whole = 0.0
    for name, old in start.items():
        new, begun = (weight.detach().cpu().flatten() for weight in (parameters[name], old))
        for part, was in zip(torch.split(new, CACHED), torch.split(begun, CACHED), strict=True):
            base = was.double()
            moved += float((part.double() - base).square_().sum())
            whole += float(base.square_().sum())
    return math.sqrt(moved / whole) if whole else 0.0


def load_start(towers: Towers, path: Path, name: str) -> dict[str, torch.Tensor]:
    """Loads a file's weights into the towers; the scale and the bias that it holds, [1] each. UserError naming the first
    tensors that don't fit."""
    return clip.put_weights(towers, weights_in(read(path)), str(path), name)


def read(path: Path) -> dict[str, Any]:
    """What a file of weights holds; UserError if that is not only tensors and plain values, or not what the finished run
    wrote whose folder it lies in."""
    verify_files(path.parent, path.name)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except Exception as error:  # safetensors' own, and torch's of kinds and sizes that it does not know
            raise _not_whole(path, error) from None
    import pickle  # noqa: TID251  (for the name of the exception alone)

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        raise UserError(
            f"{path} holds pickled code, not tensors alone, and is not opened{f' ({what.strip()[:160]})' if what else ''}; "
            "convert it to .safetensors where you trust it"
        ) from None
    except Exception as error:  # of a file that is cut, empty or something else, any
        why = [*str(error).strip().splitlines(), type(error).__name__][0][:160]
        raise UserError(f"{path} can't be read as weights ({why}); give a .pt file of tensors, or copy it again") from None
    for part in (content, _state(content)):
        if not isinstance(part, dict):
            raise UserError(f"{path} holds a {type(part).__name__}; expected a dict of tensors, or one with a state_dict")
    return dict(content)


def _state(content: Any) -> Any:
    """What a file's content holds of weights, whatever it is."""
    return content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else content


def weights_in(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict of a file's content by open_clip's names: without DDP's `module.`, without OpenAI's numbers."""
    state: dict[Any, Any] = _state(content)
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if tensors and all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return {key: value for key, value in tensors.items() if key not in FACTS}


def moments_of(path: Path) -> tuple[dict[str, torch.Tensor], float | None]:
    """(AdamW's moments as `NAME/exp_avg` and `NAME/exp_avg_sq` by the weights' names, and `steps`; the weight decay, if the
    file tells) of the training that ended with these weights; UserError if they are not there."""
    if path.suffix == ".safetensors":
        check_beside(path)
        return read(path.with_name(BESIDE)), None
    content = read(path)
    if not isinstance(content.get("optimizer"), dict):
        raise UserError(f"optimizer.state needs AdamW's moments, but {path} holds none; use optimizer.state: fresh")
    return _published(content, path)


def check_beside(weights: Path) -> None:
    """UserError if weights of a run lie there without AdamW's moments beside them."""
    if not weights.with_name(BESIDE).is_file():
        raise UserError(
            f"optimizer.state needs AdamW's moments, but {weights.parent} holds no {BESIDE}; use optimizer.state: fresh, or "
            "start from a run of this version"
        )


def published_decay(weights: Path, decay: float | None) -> float:
    """The weight decay of the training that ended with these weights: what their file says (None: it does not), or the
    card beside it; UserError if neither does."""
    if decay is None and (card := Card.read(weights.parent)) is not None:
        decay = card.optimizer.decay
    if decay is None:
        raise UserError(f"optimizer.state is published, but {weights.parent} does not say its weight decay; use inherited")
    return decay


def check_start(path: Path, name: str, section: Optimizer) -> None:
    """UserError if the weights in a file don't fit the model of that name, or lack the moments that the optimizer inherits.
    Of a safetensors file the header alone is read."""
    content = _header(path) if path.suffix == ".safetensors" else read(path)
    clip.fitting(clip.on_meta(name), weights_in(content), str(path), name)
    of_file(path)
    refuse_another_model(path, name)
    if section.state == "fresh":
        return
    if path.suffix == ".safetensors":
        check_beside(path)
    decay = None if path.suffix == ".safetensors" else moments_of(path)[1]
    if section.state == "published":
        published_decay(path, decay)


def refuse_another_model(path: Path, name: str) -> None:
    """UserError if the weights in a file are of a model that computes another function than the one of that name, as far as
    what lies beside them tells: a run's card, or open_clip's configuration."""
    config = config_beside(path).get("model_cfg")
    card = Card.read(path.parent) if path.name == WEIGHTS[0] else None
    if config is None and card is not None and card.model != name and card.model in clip.open_clip_module().list_models():
        config = clip.model_config(card.model)
    if config is not None:
        clip.refuse_other_function(name, config, str(path))


def _header(path: Path) -> dict[str, Any]:
    """What a safetensors file holds, without its values."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
    except Exception as error:  # as in `read`
        raise _not_whole(path, error) from None


def _not_whole(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is no whole safetensors file ({error}); copy it again")


def _published(content: dict[str, Any], path: Path) -> tuple[dict[str, torch.Tensor], float | None]:
    """The moments in a file of the paper's code: torch's AdamW over two groups, first what does not decay by name, then what
    does, each in the order of the weights."""
    try:
        fitting = _fitting_moments(content)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError):  # something else lies in their place
        fitting = None
    if fitting is None:
        raise UserError(f"the moments in {path} don't fit its weights in the published order; use optimizer.state: fresh")
    return fitting


def _fitting_moments(content: dict[str, Any]) -> tuple[dict[str, torch.Tensor], float] | None:
    weights = weights_in(content)
    named = [name for name in weights if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    groups, state = content["optimizer"]["param_groups"], content["optimizer"]["state"]
    order = [name for kind in (False, True) for name in named if decays(name, weights[name], "published") == kind]
    numbers = [number for group in groups for number in group["params"]]
    out: dict[str, torch.Tensor] = {}
    fits = len(order) == len(numbers)
    for name, number in zip(order, numbers, strict=False):
        moments = state.get(number, {})
        fits = fits and all(key in moments and moments[key].shape == weights[name].shape for key in MOMENTS)
        if fits:
            out |= {f"{name}/{key}": moments[key].float() for key in MOMENTS}
            out[STEPS] = torch.as_tensor(float(moments["step"]))
    if not fits:
        return None
    return out, max(float(group["weight_decay"]) for group in groups)
