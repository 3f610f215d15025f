"""The same shards at another address are the same data.

A fingerprint must be known before any pair is read, so it tells the address of the shards. Where another run beside this
study was begun on the same pairs (by the digest of their names, sizes and bytes) at another address, a run keeps the
fingerprint that it has there: it goes on after the shards were moved, and what is finished is not done again.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.plan import Address, Run, address, runs
from configs.spec import Loaded
from data.refusal import Missing
from data.sources import Data
from engine.distributed import collectives
from engine.training.pairs import StudyPairs
from records.card import Card
from records.spec_json import SPEC, read_decides


def with_places(loaded: Loaded, pairs: StudyPairs, stage: str | None) -> Loaded:
    """The spec, with the addresses under which runs beside this study know the same pairs; all ranks call it. UserError if
    the shards can't be read, not if they are missing, which the study's check says."""
    every = runs(loaded.points, stage)
    wanted = {address(where): (where, run.spec.data) for run in every for where in _addresses(run)}

    def look() -> dict[str, str]:
        begun = all((pairs.study / run.folder).is_dir() for run in every)
        return {} if begun else _known(pairs.study.parent)

    known = collectives.on_rank_0(look)
    if not known.keys() - wanted.keys():
        return loaded
    places = {}
    for here, (where, data) in wanted.items():
        if here in known or (digest := _digest(pairs, where, data)) is None:
            continue
        if there := sorted(there for there, other in known.items() if other == digest):
            places[here] = json.loads(there[0])
            if pairs.world.first:
                loaded.say(f"{here} are the same pairs as {there[0]}: runs keep the names that they have with those")
    return replace(loaded, places=places)


def _addresses(run: Run) -> Iterator[Address]:
    yield run.spec.data.pretrain.patterns
    if run.spec.data.clean.shards is not None:
        yield run.spec.data.clean.shards


def _digest(pairs: StudyPairs, where: Address, data: Data) -> str | None:
    """The digest of the pairs at an address; None if they are missing."""
    try:
        return pairs.index(where, data).digest
    except Missing:
        return None


def _known(studies: Path) -> dict[str, str]:
    """The digest of the pairs at each address at which a run beside this study was begun."""
    out: dict[str, str] = {}
    for path in sorted(studies.glob(f"*/*/{SPEC}")):
        try:
            where = _address_of(json.loads(path.read_bytes()))
            if where is None or address(where) in out:
                continue  # most runs share it
            if read_decides(path.parent) is not None and (card := Card.read(path.parent)) is not None:
                out[address(where)] = card.data_digest
        except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError):
            continue  # damaged, or taken away at this moment
    return out


def _address_of(decides: dict[str, Any]) -> Address | None:
    """Where the pairs lie that a run was trained on."""
    clean = decides["data"].get("clean", {}) if "clean" in decides else {}
    if clean.get("labelled") is not None:
        return None
    pretrain = decides["data"]["pretrain"]
    own: Address | None = clean.get("shards") or pretrain["shards"]
    return own or {name: source["shards"] for name, source in pretrain["sources"].items()}
