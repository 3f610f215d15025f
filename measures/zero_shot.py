"""Zero-shot accuracy: share of pictures whose class is among the k class vectors nearest to them (Radford et al. 2021,
section 3.1)."""

from functools import partial
from typing import Literal

from measures.classifier import depths, ranks
from measures.contract import Encoded, Measure, MeasureSection


class ZeroShot(MeasureSection):
    """Accuracy without training, top-1, 5 and 10: template ensemble, normalised mean."""

    kind: Literal["zero_shot"]

    def build(self) -> Measure:
        """The function Encoded -> {"top1", "top5", "top10"}."""
        return partial(zero_shot)


def zero_shot(encoded: Encoded) -> dict[str, float]:
    """`top1`, `top5`, `top10`: fractions of all M pictures, for each k below the number of classes, `classes`. `pictures` is
    M."""
    places = ranks(encoded.images, encoded.classes, encoded.labels)
    rates = {f"top{k}": (places < k).sum().item() / len(places) for k in depths(len(encoded.classes))}
    return rates | {"pictures": len(places), "classes": len(encoded.classes)}
