"""How BatchNorm's groups lie over the processes and micro-batches of a run."""

from itertools import count
from typing import NamedTuple

from configs.plan import Run
from configs.stage import Stage
from data.refusal import UserError
from engine.distributed import collectives
from engine.models import clip
from engine.models.towers import Towers


class NormGroups(NamedTuple):
    """BatchNorm's groups of a stage on some number of processes."""

    pairs: int  # of a group
    processes: int  # consecutive ones that hold a group together; 1: each holds whole groups
    whole_pictures: bool  # whether a micro-batch is less than a group: pictures go through whole, with recomputation


def norm_groups(run: Run, processes: int) -> NormGroups | None:
    """How the groups lie, None for a model without BatchNorm; UserError, saying what fits, if a process's share of the
    batch is neither whole groups nor an equal part of one, or a micro-batch ends inside a group that is smaller. Asks
    nothing but the spec: for runs and dry runs."""
    if not clip.has_norms(run.spec.model.name):
        return None
    batch, micro = run.settings.batch, run.spec.machine.micro_batch
    group = min(run.spec.model.norm_group, batch)
    if run.settings.norms == "frozen":  # no statistics are taken
        return NormGroups(group, 1, False)
    if not _fits(batch, group, processes):
        raise UserError(_misfit(run, processes))
    share = batch // processes
    if micro is None or micro >= share:
        return NormGroups(group, max(1, group // share), False)
    if group <= micro and micro % group:
        near = " and ".join(f"{n:,}" for n in (micro // group * group, micro // group * group + group))
        raise UserError(
            f"machine.micro_batch is {micro:,}, which is no multiple of BatchNorm's groups of {group:,} pairs "
            f"(model.norm_group); nearest that are: {near}"
        )
    return NormGroups(group, max(1, group // share), group > micro)


def set_norm_groups(towers: Towers, groups: NormGroups, stage: Stage) -> None:
    """Makes the towers take BatchNorm's statistics so. Every rank calls it at the same moment."""
    ranks = collectives.consecutive_ranks(groups.processes)
    for norm in towers.norms:
        norm.rows = groups.pairs // groups.processes * stage.objective.views[0]
        norm.ranks, norm.frozen = ranks, stage.norms == "frozen"
    towers.whole_pictures = groups.whole_pictures


def _fits(batch: int, group: int, processes: int) -> bool:
    """Whether each process holds whole groups, or an equal part of one."""
    group, share = min(group, batch), batch // processes
    return not (batch % processes or batch % group) and (share % group == 0 or group % share == 0)


def _misfit(run: Run, processes: int) -> str:
    """What does not fit, and the nearest that do."""
    batch, group = run.settings.batch, run.spec.model.norm_group
    section = "clean" if run.stage == "clean" else "pretrain"
    batches = [n for n in range(2, batch) if _fits(n, group, processes)][-1:]
    batches.append(next(n for n in count(batch) if _fits(n, group, processes)))
    sizes = [n for n in range(1, batch + 1) if _fits(batch, n, processes)]
    sizes = [n for n in sizes if n < group][-1:] + [n for n in sizes if n > group][:1]
    fits = [f"{section}.batch {_either(batches)}", f"model.norm_group {_either(sizes)}"]
    if fewer := [n for n in range(1, processes) if _fits(batch, group, n)][-1:]:
        fits.append(f"this stage on {_either(fewer)} process{'es' * (fewer[0] > 1)} (--stage {section})")
    return (
        f"model.norm_group is {group:,}, but with {section}.batch {batch:,} each of {processes} processes holds "
        f"{batch // processes:,} pairs, neither whole groups nor an equal part of one; what fits: {'; '.join(fits)}"
    )


def _either(numbers: list[int]) -> str:
    return " or ".join(f"{n:,}" for n in numbers)
