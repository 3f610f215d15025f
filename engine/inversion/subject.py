"""The model that is audited: a run's folder, weights of others in a file or a folder, or a tag of open_clip's."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from pathlib import Path

import torch

from configs.explain import suggestion
from configs.start import Start
from data.attack import Aim, Attack
from data.refusal import UserError
from engine.evaluation.encode import SCALE
from engine.models import clip
from engine.models.tokenizer import Tokenizer
from engine.models.towers import Towers
from engine.training.finite import refuse_not_finite
from engine.training.init_weights import path_of, read, refuse_another_model, start_normalization, weights_in
from records.digests import file_digest
from records.folder import WEIGHTS, finished
from records.spec_json import SPEC, control_of, left_in, read_decides

PICTURES = "visual."  # what the names of a picture tower's weights begin with


@dataclass(frozen=True)
class Subject:
    """Towers in evaluation mode on the device, and what is known of them."""

    given: str
    digest: str
    model: str
    towers: Towers
    scale: float  # what the model multiplies cosines with
    has_texts: bool  # whether its text tower came with its weights
    run: Path | None
    seed: int  # of the run
    aims: tuple[Aim, ...] | None  # what it was poisoned for; () for a clean run, None where that is unknown

    @property
    def name(self) -> str:
        """For people: the run's folder, or what was given, without the folders above."""
        return Path(self.given).name

    @property
    def tokenize(self) -> Callable[[list[str]], torch.Tensor]:
        """Its tokenizer."""
        return Tokenizer(self.model)


def load_subject(given: str, model: str | None, device: torch.device) -> Subject:
    """The model in a run's folder, in a file or folder of others, which need `model`, or under a tag of open_clip's for it;
    UserError if there is none, if it is of another architecture, or holds numbers that are not finite."""
    path = Path(given)
    run = path if (path / SPEC).is_file() else None
    decides = None if run is None else read_decides(run)
    if run is not None and decides is not None:
        model = _model_of_run(run, decides, model)
    if model is None:
        there = path.exists()
        example = f"{given} --model RN50-quickgelu"
        raise UserError(
            f"{given} is {'no run of ours' if there else 'no file or folder'}; give a finished run's folder, or weights "
            f"with the name of their model, such as {example if there else 'openai --model RN50-quickgelu'}"
        )
    clip.model_config(model)
    start = Start(path=given) if path.exists() else _tag(given, model)
    file = path_of(start, model)
    towers = clip.build(model, 0)
    towers.normalize(start_normalization(start, file, model))
    state = weights_in(read(file))
    refuse_not_finite(state, file, "an audit of damaged weights says nothing; copy them again")
    has_texts = not all(name.startswith(PICTURES) for name in state)
    if not has_texts:
        own = towers.clip.state_dict()
        state = {**{name: value for name, value in own.items() if not name.startswith(PICTURES)}, **state}
    try:
        scalars = clip.put_weights(towers, state, str(file), model)
    except UserError as error:
        raise UserError(f"{error.fault}; give --model the name of what it holds") from None
    if start.pretrained is None:
        refuse_another_model(file, model)
    scale = exp(float(scalars["scale"])) if "scale" in scalars else SCALE
    seed, aims = (0, None) if decides is None else (int(decides.get("seed", 0)), _aims(decides))
    return Subject(given, file_digest(file), model, towers.to(device).eval(), scale, has_texts, run, seed, aims)


def _model_of_run(run: Path, decides: dict[str, object], model: str | None) -> str:
    """The name of a run's model; UserError if the run is not finished or another name is given."""
    if not finished(run):
        raise UserError(f"{run} is no finished run: it lacks finished.json or {WEIGHTS}; let it come to its end")
    section = decides.get("model")
    own = section.get("name") if isinstance(section, dict) else None
    if not isinstance(own, str):
        raise UserError(f"{run}/{SPEC} names no model; give a whole run's folder")
    if model not in (None, own):
        raise UserError(f"{run} holds a {own}, but --model is {model}; leave --model out")
    return own


def _tag(given: str, model: str) -> Start:
    """A tag of open_clip's; UserError naming close ones if it has none of that name for the model."""
    tags = clip.open_clip_module().list_pretrained_tags_by_model(model)
    if given not in tags:
        known = suggestion(given, tags) if tags else f"; open_clip has none for {model}, so give a file"
        raise UserError(f"{given} is no file or folder, and no tag under which open_clip knows weights of {model}{known}")
    return Start(pretrained=given)


def _aims(decides: dict[str, object]) -> tuple[Aim, ...] | None:
    """What a run, or the pre-training that it starts from, was poisoned for; None where its start is not ours: nobody
    knows."""
    poisoned = left_in(decides)
    if not decides.get("attack") or control_of(decides) is not None and not poisoned:
        return ()
    if not poisoned and ("pretrain" not in decides or (decides["pretrain"] or {}).get("start")):  # type: ignore[attr-defined]
        return None
    attack = Attack.model_validate(decides["attack"])
    return tuple(aim for aim in attack.aims if aim.poison.count or aim.poison.fraction)
