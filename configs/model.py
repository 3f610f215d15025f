"""Which towers: a name that open_clip knows, or a JSON file of ours in configs/models/."""

from pydantic import Field

from data.section import Section


class Model(Section):
    """open_clip's own configuration names, for example RN50 or ViT-B-32, and demo-resnet, demo-vit, lab-resnet."""

    name: str = Field(min_length=1)
    norm_group: int = Field(
        256,
        ge=1,
        description="pairs, all their views included, that BatchNorm's statistics are over, on however many processes; at "
        "most the batch",
    )
