"""Every objective with its forms, and features for it, for tests/test_objectives.py and tests/triton_parity.py."""

import math
from dataclasses import replace
from typing import Any, get_args

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter

from objectives import AnyObjective
from objectives.contract import Features, ObjectiveSection
from objectives.registry import Single

D, N = 8, 12
MORE: dict[str, list[dict[str, Any]]] = {
    "ssl": [
        {},
        {"direction": "symmetric", "temperature": "own"},
        {"text": False},
        {"image": False},
        {"pictures": 0.5, "captions": 2.0, "poisoned": "left_out"},
    ],
    "mmcl_ssl": [
        {"across": 0.5, "within": 3.0},
        {"average": True},
        {"pictures": 0.0, "poisoned": "left_out"},
        {"captions": 0.0, "direction": "symmetric"},
    ],
    "inverted": [{"stamp": "stamp.safetensors"}, {"stamp": "stamp.safetensors", "within": 0.5}],
    "siglip": [{}, {"form": "paper_code"}],
    "slip": [{"hidden": 6, "out": 5}],
    "deep_cluster": [{"classes": 4, "weight": 5.0}, {"classes": 4, "within": 0.0}],
    "par": [{}, {"tau": 0.5, "learn_scale": True}],
    "roclip": [{"every": 1, "pool": 7}, {"every": 2, "pool": 7}],
    "safeclip": [{"unimodal": 2, "pool": 7}, {"unimodal": 1, "pool": 7}, {"unimodal": 0, "pool": 7}],
    "supervised": [{"classes": 4}],
    "unlearn": [{"flags": "plan.jsonl", "target": 0.2}],
}
KINDS = [
    (kind, fields)
    for section in get_args(Single)
    for kind in get_args(section.model_fields["kind"].annotation)
    for fields in MORE.get(kind, [{}])
]
SUM = {"kind": "sum", "parts": [
    {"weight": 0.5, "objective": {"kind": "siglip"}}, {"weight": 2.0, "objective": {"kind": "ssl", "temperature": "own"}},
    {"objective": {"kind": "roclip", "every": 1, "pool": 7}}, {"objective": {"kind": "cyclip"}},
]}  # fmt: skip
SECTIONS = [*({"kind": kind, **fields} for kind, fields in KINDS), SUM]


def section(fields: dict[str, Any]) -> ObjectiveSection:
    out: ObjectiveSection = TypeAdapter(AnyObjective).validate_python(fields)
    return out


def features(of: ObjectiveSection, rows: int = N, seed: int = 0, scale: float = 10.0) -> Features:
    """Everything that the section needs, in float64, all of it asking for gradients."""
    draw = torch.Generator().manual_seed(seed)

    def unit(n: int) -> torch.Tensor:
        return F.normalize(torch.randn(n, D, dtype=torch.float64, generator=draw), dim=-1).requires_grad_()

    images, texts = of.views
    learned = {name: one.initial.double() for name, one in of.learned(D, draw).items()}
    learned["scale"] = torch.tensor([math.log(scale)], dtype=torch.float64)
    memory = {name: one.double() if one.is_floating_point() else one for name, one in of.memory(D).items()}
    for name, one in memory.items():
        one[:] = 5 if name.endswith(".seen") else torch.cat([unit(5).detach(), one[5:]])
    return Features(
        tuple(unit(rows) for _ in range(images)),
        tuple(unit(rows) for _ in range(texts)),
        {name: one.requires_grad_() for name, one in learned.items()},
        (unit(rows).detach(), unit(rows).detach()),
        torch.randint(-1, 4, (rows,), generator=draw),
        torch.rand(rows, generator=draw) < 0.3,
        torch.rand(rows, generator=draw) < 0.3,
        memory,
        epoch=2,
    )


def part(whole: Features, keep: Any) -> Features:
    """Some rows of it."""
    assert whole.start is not None
    assert whole.labels is not None
    assert whole.flags is not None
    assert whole.poisoned is not None
    return replace(
        whole,
        images=tuple(view[keep] for view in whole.images),
        texts=tuple(view[keep] for view in whole.texts),
        start=(whole.start[0][keep], whole.start[1][keep]),
        labels=whole.labels[keep],
        flags=whole.flags[keep],
        poisoned=whole.poisoned[keep],
    )


def asked(of: Features) -> list[torch.Tensor]:
    return [*of.images, *of.texts, *of.learned.values()]
