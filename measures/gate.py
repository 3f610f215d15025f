"""Did the attack take? Of a start that the trigger fools on less than half of the pictures, little can be cleaned away.

What published attacks failed of when others ran them again is named: the rate, the count, how pictures were stored.
"""

from typing import NamedTuple

TOOK = 0.5
CAUSES = (
    "Three causes are usual: too small a share of poisoned pairs (attack.poison.fraction), too few of them in number "
    "(attack.poison.count), or lossy storage, as JPEG and resizing wear small or faint triggers away."
)


class Gate(NamedTuple):
    """Of how many starts the attack took, and what is said where it did not in all of them."""

    took: int
    of: int
    note: str = ""


def gate(rates: list[tuple[float, str]], where: str) -> Gate:
    """The gate of starts, each with its ASR and the same in words, which are runs of `where`."""
    weak = [words for asr, words in rates if not asr >= TOOK]
    if not weak:
        return Gate(len(rates), len(rates))
    seeds = f" in {len(weak)} of {len(rates)} runs" if len(rates) > 1 else ""
    first = " (the first of these)" if len(weak) > 1 else ""
    note = f"The attack on {where} took weakly{seeds}: ASR {weak[0]}{first} is under {100 * TOOK:g} % before any cleaning."
    return Gate(len(rates) - len(weak), len(rates), f"{note} {CAUSES}")
