"""Fresh weights: the cleaner's own training on the clean data without the start, the control for every cleaner."""

from configs.start import Fresh
from data.seeding import derive_seed
from engine.models import clip
from engine.models.towers import Towers
from engine.models.transforms.contract import Scalars, TransformInputs


def fresh(section: Fresh, towers: Towers, scalars: Scalars, inputs: TransformInputs) -> tuple[Scalars, None]:
    """A freshly initialised network's parameters and running statistics, by a draw other than the pre-training's; of the
    start's scale and bias nothing, so that they begin as the objective has them. Pictures stay normalised as the start wants
    them."""
    towers.load_state_dict(clip.build(inputs.model, derive_seed(inputs.seed, "fresh")).state_dict())
    return {}, None
