"""Which towers: a name that open_clip knows, or a JSON file of ours in configs/models/."""

from pydantic import Field

from configs.section import Section


class Model(Section):
    """open_clip's own configuration names, for example RN50 or ViT-B-32, and demo-resnet, demo-vit."""

    name: str = Field(min_length=1)
