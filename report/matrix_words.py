"""The rows and cells of the open matrix in words, made from what a spec decides: plain values that other people wrote."""

from collections.abc import Sequence
from typing import Any

from records.spec_json import attacks_in
from report.load import flat
from report.points import percent, rate_text

FEW = 3  # values that are listed; more are told by their ends


def attack_words(attack: Any, at: int) -> str:
    """An attack of a model, the first being 0: "patch 48, 400 poisoned pairs, target banana"."""
    first = attack if isinstance(attack, dict) else {}
    aims = attacks_in(first)
    aim = aims[at] if at < len(aims) else {}
    trigger, poison = (_section(aim.get(name) or first.get(name)) for name in ("trigger", "poison"))
    mark = " ".join(str(trigger[name]) for name in ("kind", "size") if trigger.get(name) is not None)
    dose = f"{poison.get('count')} poisoned pairs"
    if isinstance(fraction := poison.get("fraction"), int | float):
        dose = f"{percent(fraction)} of pairs poisoned"
    words = f"{mark or 'an unnamed trigger'}, {dose}, target {aim.get('target')}"
    return f"{words}, beside {len(aims) - 1} other attacks" if len(aims) > 1 else words


def data_words(facts: dict[str, Any]) -> str:
    """Where the pairs lie, how many the clean set has, and what top-1 and ASR are measured on."""
    data, clean = _section(facts.get("data")), _section(facts.get("clean set"))
    source = _section(data.get("pretrain"))
    shards = source.get("shards") or ", ".join(map(str, _section(source.get("sources"))))
    pairs = f"{clean['pairs']} clean pairs, " if clean.get("pairs") is not None else f"clean pairs {clean.get('shards')}, "
    images = ", ".join(dict.fromkeys(map(str, _section(facts.get("images")).get("images", []))))
    return f"{shards}, {pairs if clean else ''}measured on {images}"


def differing(facts: dict[str, Any], every: Sequence[dict[str, Any]]) -> str:
    """What of the facts others, which are described alike, have otherwise; empty if nothing differs."""
    own, others = dict(flat(facts)), [dict(flat(other)) for other in every]
    names = [name for name in own if any(other.get(name) != own[name] for other in others)]
    gone = [name for name in dict.fromkeys(key for other in others for key in other) if name not in own]
    return ", ".join([*(f"{name}={own[name]}" for name in names), *(f"no {name}" for name in gone)])


def search_words(sections: Sequence[dict[str, Any]], beside: Sequence[Sequence[dict[str, Any]]]) -> str:
    """What a cell's cleaning runs tried: rates, epochs, each other setting of several values, and what tells the cell apart
    from those in the same place."""
    own, others = _values(sections), [_values(other) for other in beside]
    words = []
    for name, values in own.items():
        apart = any(other.get(name) != values for other in others)
        if len(values) > 1 or apart or name in ("epochs", "optimizer.rate"):
            words.append(f"{name.removeprefix('optimizer.')} {_listed(values)}")
    return "; ".join(words)


def _values(sections: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The different values of each setting, numbers in their order."""
    found: dict[str, dict[str, Any]] = {}
    for section in sections:
        for name, text in flat(section):
            found.setdefault(name, {})[text] = None
    return {
        name: sorted(texts, key=lambda text: (_number(text) is None, _number(text) or 0, text))
        for name, texts in found.items()
    }


def _listed(texts: list[str]) -> str:
    shown = [text if (number := _number(text)) is None else rate_text(number) or text for text in texts]
    if len(shown) <= FEW:
        return ", ".join(shown)
    return f"{shown[0]} to {shown[-1]} ({len(shown)} values)"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _section(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
