"""What a spec says of the further views of a pair.

Pictures: AutoAugment (data/augmentation/pictures.py), SimCLR's set or operations by name (data/augmentation/device.py).
Captions: easy data augmentation (data/augmentation/eda.py). Both as in CleanCLIP (arXiv 2303.03323), but drawn afresh each
epoch, where the published code draws the caption once (`frozen`).
"""

from typing import Literal

from pydantic import Field, model_validator

from data.section import Section

Op = Literal["crop", "flip", "jitter", "grey", "blur", "cutout", "noise"]
SIMCLR: tuple[Op, ...] = ("crop", "flip", "jitter", "grey", "blur")


class Augment(Section):
    """How the further views differ from the first."""

    image: Literal["autoaugment", "simclr", "none"] | tuple[Op | Literal["autoaugment"], ...] = "autoaugment"
    first: tuple[Op, ...] = Field((), description="operations on the first view; none in the paper")
    crop: tuple[float, float] = Field((0.08, 1.0), description="share of the area that a crop keeps, from and to")
    cutout: float = Field(0.5, ge=0, le=1, description="side of CutOut's square, as a share of the picture's")
    noise: float = Field(0.05, ge=0, description="standard deviation of Gaussian noise, on the 0-1 scale")
    text: Literal["eda", "none"] = "eda"
    frozen: bool = Field(False, description="draw the caption's view once for all epochs, as the paper's code does")
    rate: float = Field(0.1, gt=0, le=1, description="share of the words that EDA touches, at least one word")
    synonyms: Literal["auto", "wordnet", "none"] = Field(
        "auto",
        description="wordnet needs its files on disk; none leaves swap, deletion and insertion of own words; auto: wordnet "
        "where it is, else none, and says so",
    )
    wordnet: str | None = Field(
        None, description="folder with WordNet's files; default: NLTK's corpus, else Debian's wordnet-base"
    )

    @model_validator(mode="after")
    def _crop_is_a_range(self) -> "Augment":
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop is {list(self.crop)}; expected two shares, 0 < from <= to <= 1")
        return self

    @property
    def ops(self) -> tuple[str, ...]:
        """The operations on a further picture, by name."""
        if isinstance(self.image, tuple):
            return self.image
        return {"autoaugment": ("autoaugment",), "simclr": SIMCLR, "none": ()}[self.image]

    @property
    def by_pillow(self) -> bool:
        """Whether a further picture is made where it is read."""
        return "autoaugment" in self.ops

    def on_device(self, views: int) -> bool:
        """Whether the device makes views, V in number."""
        further = views > 1 and (not self.by_pillow or len(self.ops) > 1)
        return bool(self.first) or further
