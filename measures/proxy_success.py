"""The success of an attack of the defender's own: what somebody can look at who does not know the real trigger.

The defender stamps a trigger of their choice and counts how often the answer is their choice of target. It was never
trained, so it says how easily the model is led astray, not how the real attack fares: whether it is a useful guide is what
the report's selection rules measure.
"""

from functools import partial
from typing import ClassVar, Literal

from measures.attack_success import success
from measures.classifier import predict
from measures.contract import PROXY, Encoded, Measure, MeasureSection, marked


class ProxySuccess(MeasureSection):
    """ASR of attack.proxy, a trigger and a target that the attack does not use."""

    kind: Literal["proxy_success"]
    triggered: ClassVar[bool] = True

    @property
    def attack_kind(self) -> str:
        """Under which attack it looks at the pictures."""
        return PROXY

    def build(self) -> Measure:
        """The function Encoded -> {"proxy_asr"}."""
        return partial(proxy_success)


def proxy_success(encoded: Encoded) -> dict[str, float]:
    """`proxy_asr`, a fraction of the pictures of every class but the proxy's target."""
    return {"proxy_asr": success(predict(marked(encoded, "proxy_success"), encoded.attacked_classes), encoded)}
