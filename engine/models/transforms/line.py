"""The straight line between two models of one architecture: at one end the start, at the other weights in a file."""

from pathlib import Path

import torch

from configs.start import Line, weights_of
from data.refusal import Missing, UserError
from engine.models import clip
from engine.models.towers import Towers
from engine.models.transforms.contract import Scalars, TransformInputs
from records.ending import verify_files


def file_of(section: Line) -> Path:
    """The file of the others' weights; UserError if it is not there."""
    path = weights_of(section.to)
    if path is None:
        raise Missing(f"transform.to.path is {section.to.path}, which holds no weights; expected a run's folder or a file")
    if path.suffix != ".safetensors":
        raise UserError(
            f"transform.to.path is {path}; expected a run's folder or a .safetensors file, such as export writes"
        )
    return path


def line(section: Line, towers: Towers, scalars: Scalars, inputs: TransformInputs) -> tuple[Scalars, None]:
    """(1 - share) w + share w'; UserError if the others are not there, not whole, or of another model."""
    path = file_of(section)
    verify_files(path.parent, path.name)
    other = clip.build(inputs.model, inputs.seed)
    try:
        theirs = clip.load_weights(other, path)
    except UserError:
        raise
    except Exception as error:  # safetensors' own, of a file that is cut or something else
        raise UserError(f"transform.to.path {path} is no whole safetensors file ({error}); copy it again") from None
    if other.normalization != towers.normalization:
        raise UserError(f"transform.to.path {path} takes pictures normalised in another way than the start; use others")
    there = other.clip.state_dict()
    with torch.no_grad():
        for name, own in towers.clip.state_dict().items():
            if own.is_floating_point():
                own.copy_(torch.lerp(own, there[name].to(own.device), section.share))
    between = {name: torch.lerp(own, theirs[name].to(own), section.share) for name, own in scalars.items() if name in theirs}
    return {**scalars, **between}, None
