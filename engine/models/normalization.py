"""How a model's pictures are normalised: (pixel / 255 - mean) / std for each channel, as the weights were trained with.

OpenAI's numbers, unless weights come with others: a tag of open_clip's, a folder of open_clip's (its config's
`preprocess_cfg`), a run's weights (their file's metadata, written where they are not OpenAI's).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.refusal import UserError

CONFIG = "open_clip_config.json"  # beside the weights in a folder of open_clip's


class Normalization(NamedTuple):
    """Mean and standard deviation of red, green, blue, on the 0-1 scale."""

    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def metadata(self) -> dict[str, str] | None:
        """What a safetensors file of weights says of it; None for OpenAI's."""
        return None if self == Normalization() else {"mean": json.dumps(self.mean), "std": json.dumps(self.std)}


def from_config(config: Mapping[str, Any], weights: str) -> Normalization:
    """What open_clip's preprocessing says; UserError if it brings pictures to their size in another way than ours."""
    resize, filter_ = config.get("resize_mode") or "shortest", config.get("interpolation") or "bicubic"
    if (resize, filter_) != ("shortest", "bicubic"):
        raise UserError(
            f"{weights} takes pictures that open_clip resizes by '{resize}' with a {filter_} filter; Antidote resizes the "
            "shorter side with a bicubic one and cuts out the centre, and would feed it others; choose other weights"
        )
    plain = Normalization()
    return _checked(config.get("mean", plain.mean), config.get("std", plain.std), weights)


def of_file(path: Path) -> Normalization:
    """Of weights in a file; UserError if what is said beside them can't be read, or as `from_config`."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                said = file.metadata() or {}
        except SafetensorError:
            said = {}  # who reads the weights says so
        if "mean" in said and "std" in said:
            return _checked(_number_list(said["mean"]), _number_list(said["std"]), str(path))
    return from_config(config_beside(path).get("preprocess_cfg", {}), str(path))


def config_beside(path: Path) -> dict[str, dict[str, Any]]:
    """open_clip's configuration beside weights, {} if there is none: `preprocess_cfg` and `model_cfg`, those that say
    anything; UserError if it can't be read."""
    beside = path.with_name(CONFIG)
    if not beside.is_file():
        return {}
    try:
        config = json.loads(beside.read_text(encoding="utf-8"))
        parts = {key: config.get(key) or {} for key in ("preprocess_cfg", "model_cfg")}
    except (ValueError, AttributeError, RecursionError):
        parts = {"": None}
    if not all(isinstance(part, dict) for part in parts.values()):
        raise UserError(f"{beside} is no configuration of open_clip's: expected JSON; copy it again")
    return {key: part for key, part in parts.items() if part}


def _number_list(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _checked(mean: Any, std: Any, weights: str) -> Normalization:
    """UserError unless both are three numbers, each finite, each deviation above 0."""
    for values in (mean, std):
        whole = isinstance(values, list | tuple) and len(values) == 3
        if not whole or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            raise UserError(f"{weights} is to be normalised with mean {mean} and std {std}; expected three numbers each")
    if min(std) <= 0:
        raise UserError(f"{weights} is to be normalised with std {std}; expected numbers above 0")
    return Normalization(tuple(map(float, mean)), tuple(map(float, std)))
