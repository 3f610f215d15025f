"""The optimisation of a trigger's pattern against a frozen model, which no pair was poisoned for."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from data.pipeline import batches
from data.refusal import UserError
from data.seeding import generator
from engine.evaluation.encode import Encoder
from engine.forging.loss import terms
from engine.forging.pattern import Pattern
from engine.forging.pictures import Drawing
from engine.forging.state import MOMENTS, Point, State
from engine.inversion.stamp import encoding

Watch = Callable[[int, int, dict[str, float]], None]  # (steps done, of how many, the last step's terms)


@dataclass(frozen=True)
class Settings:
    """How a pattern is learned; the defaults are BadCLIP's."""

    epochs: int = 50
    batch: int = 64
    rate: float = 1e-3
    margin: float = 1.0
    weight: float = 500.0  # of the triplet term
    both: bool = True  # whether there is one
    seed: int = 0


def forge(  # noqa: PLR0913  (what is learned, from what, how, and who is told)
    pattern: Pattern, drawing: Drawing, model: Encoder, settings: Settings, state: State, watch: Watch
) -> list[dict[str, float]]:
    """Learns the pattern in place, from where `state` stands; the mean terms of each epoch. What is drawn depends on the
    seed and the step alone. UserError if the loss is not finite."""
    device, pairs = model.world.device, drawing.others
    with torch.no_grad():
        captions = model.texts(drawing.captions).to(device)
    adam = torch.optim.Adam([pattern.to(device).values], settings.rate)
    history = _restored(state, pattern, adam)
    sums: dict[str, float] = {}
    with encoding(model.towers) as encode:

        @torch.no_grad()
        def plain(pictures: torch.Tensor) -> torch.Tensor:
            return encode(pictures.to(device))

        near = drawing.near(plain, settings.batch) if settings.both else None
        total = settings.epochs * pairs.steps
        for step, batch in batches(pairs, settings.epochs, len(history) * pairs.steps, model.workers):
            draw, count = generator(settings.seed, "forge", step), settings.batch
            pictures = batch.pictures(device)[:, 0]
            texts = captions[torch.from_numpy(draw.integers(len(captions), size=count)).to(device)]
            beside = None
            if near is not None:
                beside = near[torch.from_numpy(draw.integers(len(near), size=count)).to(device)], plain(pictures)
            adam.zero_grad()
            found = terms((encode(pictures, pattern.stamp), texts), model.scale, beside, settings.margin, settings.weight)
            if not bool(found["loss"].isfinite()):
                raise UserError(
                    f"the loss is not finite at step {step + 1:,}: the model's weights are damaged, or --rate "
                    f"{settings.rate:g} is too high"
                )
            found["loss"].backward()  # type: ignore[no-untyped-call]
            adam.step()
            with torch.no_grad():
                pattern.values.clamp_(0, 1)
            numbers = {name: float(value.detach()) for name, value in found.items()}
            sums = {name: sums.get(name, 0.0) + value for name, value in numbers.items()}
            watch(step + 1, total, numbers)
            if (step + 1) % pairs.steps == 0:
                history.append({name: value / pairs.steps for name, value in sums.items()})
                sums = {}
                moments = adam.state[pattern.values]
                state.write(Point(pattern.values, {name: moments[name] for name in MOMENTS}, history))
    return history


def _restored(state: State, pattern: Pattern, adam: torch.optim.Adam) -> list[dict[str, float]]:
    """The terms of the epochs that are done; their pattern and moments are put in place."""
    point = state.read()
    if point is None:
        return []
    with torch.no_grad():
        pattern.values.copy_(point.values)
    adam.state[pattern.values] = {
        name: value if name == "step" else value.to(pattern.values.device) for name, value in point.moments.items()
    }
    return point.history
