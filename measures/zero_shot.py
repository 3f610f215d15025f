"""Zero-shot top-1 accuracy: share of pictures whose nearest class vector is that of their class."""

from functools import partial
from typing import Literal

from measures.classifier import predict
from measures.contract import Encoded, Measure, MeasureSection


class ZeroShot(MeasureSection):
    """Accuracy without training: template ensemble, normalised mean."""

    kind: Literal["zero_shot"]

    def build(self) -> Measure:
        """The function Encoded -> {"top1"}."""
        return partial(zero_shot)


def zero_shot(encoded: Encoded) -> dict[str, float]:
    """`top1`, a fraction of all M pictures."""
    hits = predict(encoded.images, encoded.classes) == encoded.labels
    return {"top1": hits.sum().item() / len(hits)}
