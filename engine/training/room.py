"""What an objective keeps beside the model, and whether this machine has room for it: known from the spec alone."""

import math

import torch

from configs.plan import Run
from data.refusal import UserError
from engine.distributed.world import World
from engine.evaluation.kept import machine_memory
from engine.models import clip
from objectives.contract import ObjectiveSection

LEARNED, REMEMBERED = 16, 8  # bytes of a number: itself, gradient, two moments; before and after a step
NO_GPU = 1 << 40  # bytes; none has so much
Shapes = dict[str, tuple[tuple[int, ...], int]]  # by name: the shape, bytes of a number


def objective_shapes(objective: ObjectiveSection, width: int) -> Shapes:
    """What an objective learns and remembers for embeddings of a width, nothing of it made; RuntimeError if torch can't
    count so far."""
    with torch.device("meta"):
        learned = objective.learned(width, torch.Generator())
        memory = objective.memory(width)
    return {
        **{name: (tuple(one.initial.shape), LEARNED) for name, one in learned.items()},
        **{name: (tuple(tensor.shape), REMEMBERED) for name, tensor in memory.items()},
    }


def objective_bytes(objective: ObjectiveSection, width: int) -> int:
    """Bytes of these."""
    return sum(math.prod(shape) * size for shape, size in objective_shapes(objective, width).values())


def check_room(run: Run, world: World) -> None:
    """UserError if an objective asks for more than this process's share of the machine's memory, or its GPU, has."""
    field = f"{run.stage if run.stage == 'clean' else 'pretrain'}.objective"
    width = clip.model_config(run.spec.model.name)["embed_dim"]
    try:
        shapes = objective_shapes(run.settings.objective, width)
    except RuntimeError:
        raise UserError(f"{field} asks for more numbers than can be counted; lower what it learns or remembers") from None
    sizes = {name: math.prod(shape) * size for name, (shape, size) in shapes.items()}
    room, where = _room(world)
    needed = sum(sizes.values())
    if needed > room:
        largest = max(sizes, key=lambda name: sizes[name])
        shape = " x ".join(f"{side:,}" for side in shapes[largest][0])
        raise UserError(
            f"{field} needs {needed / 2**30:,.0f} GiB beside the model, above all for {largest} ({shape}), more "
            f"than {where} {room / 2**30:,.0f} GiB; lower it"
        )


def _room(world: World) -> tuple[int, str]:
    """(bytes, whose they are) of a process; of a GPU that is not here, more than any has."""
    if world.device.type == "cpu":
        return machine_memory() // world.local_size, "a process's share of this machine's memory,"
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(world.device).total_memory), "the memory of its GPU,"
    return NO_GPU, "any GPU's memory, below"
