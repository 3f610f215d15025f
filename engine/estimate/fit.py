"""Whether a run fits a GPU's memory, and which settings of the machine would make it fit."""

from collections.abc import Iterator

from configs.plan import Run
from data.refusal import UserError
from engine.estimate.gpus import GIB, Assumed
from engine.estimate.memory import rank_memory
from engine.training.inputs import SETTINGS


def fit_notes(run: Run, machine: Assumed) -> Iterator[str]:
    """A sentence if the run does not fit the GPU that is assumed: what it needs, and what would make it fit."""
    if machine.gpu is None or (needed := rank_memory(run, machine.processes, machine.gpu)) <= machine.gpu.usable:
        return
    what, usable = f"{run.stage} with {run.settings.objective.kind}", machine.gpu.usable / GIB
    proposals = list(dict.fromkeys(_proposals(run, machine)))
    advice = f"set {'; or '.join(proposals)}" if proposals else "no micro-batch helps: take more processes or machine.zero"
    yield f"{what} needs {needed / GIB:.1f} GiB of {machine.gpu.name}, which has {usable:.1f} for it; {advice}"


def _proposals(run: Run, machine: Assumed) -> Iterator[str]:
    """Settings under which the run fits, first without recompute, then with it, each with its largest micro-batch."""
    for recompute in dict.fromkeys((run.spec.machine.recompute, True)):
        for micro in _micro_batches(run, machine):
            changed = _with(run, micro, recompute)
            memory = rank_memory(changed, machine.processes, machine.gpu)
            assert machine.gpu is not None
            if memory <= machine.gpu.usable:
                words = [f"machine.micro_batch={micro}"] if micro is not None else []
                words += ["machine.recompute=true"] if recompute and not run.spec.machine.recompute else []
                yield f"{' and '.join(words)} ({memory / GIB:.1f} GiB)"
                break


def _micro_batches(run: Run, machine: Assumed) -> Iterator[int | None]:
    """What a run accepts as micro-batch, from the largest: none, then the divisors of a process's share."""
    rows = run.settings.batch // machine.processes
    yield None
    for micro in range(rows // 2, 0, -1):
        if rows % micro == 0 and _accepted(_with(run, micro, run.spec.machine.recompute), machine):
            yield micro


def _accepted(run: Run, machine: Assumed) -> bool:
    try:
        for check in SETTINGS:
            check(run, machine.world)
    except UserError:
        return False
    return True


def _with(run: Run, micro: int | None, recompute: bool) -> Run:
    """The run with these settings of its machine, of which no other depends."""
    settings = run.spec.machine.model_copy(update={"micro_batch": micro, "recompute": recompute})
    return Run(run.stage, run.spec.model_copy(update={"machine": settings}), run.swept, run.start, run.cleaning)
