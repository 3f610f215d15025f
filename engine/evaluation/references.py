"""Whether a detector at test time can compare the pictures of one evaluation set with the clean ones of another."""

import os

from data.labelled import ImageSet
from data.refusal import UserError
from engine.models.clip import model_config
from engine.models.heads import check_heads
from measures.registry import AnyMeasure
from measures.rejection import PictureDetector


def check_references(measure: AnyMeasure, model: str, clean: ImageSet, judged: ImageSet) -> None:
    """UserError if these are too few references for the model, if pictures are in both sets, or if the measure reads what
    the model does not have."""
    assert isinstance(measure, PictureDetector)
    what = f"measure {measure.kind} compares pictures of '{measure.images}' with '{measure.references}'"
    least = measure.least(int(model_config(model)["embed_dim"]))
    if len(clean) < least:
        raise UserError(
            f"{what}, which has {len(clean):,} pictures; expected at least {least:,}; give a larger set of references"
        )
    if both := _places(clean) & _places(judged):
        raise UserError(
            f"{what}, but {len(both):,} pictures are in both; take references from other pictures than are judged"
        )
    if measure.reads_heads:
        check_heads(model, f"measure {measure.kind}")


def _places(images: ImageSet) -> set[tuple[str, int]]:
    """Where the pictures of a set lie."""
    real = {path: os.path.realpath(path) for path, *_ in images.where}
    return {(real[path], offset) for path, _, offset, _ in images.where}
