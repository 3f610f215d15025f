"""The stamp of an objective is known by its digest, so that a fingerprint tells which one was meant."""

from pathlib import Path

from data.refusal import UserError
from objectives import AnyObjective
from objectives.inverted import Inverted
from objectives.sum import Sum
from records.digests import file_digest


def identified_stamp(objective: AnyObjective) -> AnyObjective:
    """The objective, or the sum, with the whole SHA-256 of its stamp, if that is there; UserError if another is promised."""
    if isinstance(objective, Sum):
        parts = [part.model_copy(update={"objective": identified_stamp(part.objective)}) for part in objective.parts]
        return objective.model_copy(update={"parts": tuple(parts)})
    if not isinstance(objective, Inverted) or not Path(objective.stamp).is_file():
        return objective
    try:
        digest = file_digest(Path(objective.stamp))
    except OSError as error:
        raise UserError(f"objective.stamp {objective.stamp}: {error.strerror}; expected a file that can be read") from None
    if objective.digest is not None and not (len(objective.digest) >= 12 and digest.startswith(objective.digest)):
        raise UserError(
            f"objective.digest is {objective.digest}, but {objective.stamp} has {digest[:16]}...; name the right file"
        )
    return objective.model_copy(update={"digest": digest})
