"""Runs a spec: deepspeed engine/run.py --spec specs/demo.yaml, or python engine/run.py for one process.

Reads the command line and answers errors; what a study does is told in engine/study/study.py.
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
if Path(sys.path[0] or ".").resolve() == ROOT / "engine":
    sys.path[0] = str(ROOT)  # the script's own folder would shadow other packages and hide ours

from data.refusal import UserError  # noqa: E402  (after the path)
from engine import deferred  # noqa: E402
from engine.command import given_command  # noqa: E402
from engine.distributed.rank import rank_from_env  # noqa: E402
from records.folder import RUNS  # noqa: E402

if TYPE_CHECKING:
    from configs.spec import Loaded


def arguments(args: list[str]) -> argparse.Namespace:
    """The command line; its launcher may add --local_rank."""
    parser = argparse.ArgumentParser(
        prog="deepspeed engine/run.py", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "--spec", metavar="FILE", help="the experiment, a YAML file such as specs/demo.yaml; for --dry-run also a folder"
    )
    parser.add_argument(
        "--set", metavar="PATH=VALUE", action="append", default=[], help="override one field of the spec; repeatable"
    )
    parser.add_argument("--stage", choices=("pretrain", "clean"), help="only this stage")
    parser.add_argument("--dry-run", action="store_true", help="print the plan of every run and touch nothing")
    parser.add_argument("--processes", metavar="N", type=int, help="for --dry-run: how many; default: as the launcher says")
    parser.add_argument(
        "--gpu", metavar="NAME", help="for --dry-run: of each process, such as H100-80GB; default: the one here"
    )
    parser.add_argument("--dollars", metavar="RATE", type=float, help="for --dry-run: the price of one GPU-hour")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of a spec")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.words:
        parser.error(f"give the spec as --spec {options.words[0]}" if not options.spec else f"unknown: {options.words[0]}")
    if not options.schema and not options.spec:
        parser.error("give --spec FILE, for example --spec specs/demo.yaml")
    if options.dollars is not None and not (options.dry_run and 0 < options.dollars < float("inf")):
        parser.error("--dollars is the price of one GPU-hour, above 0, and goes with --dry-run")
    for name in ("processes", "gpu"):
        if getattr(options, name) is not None and not options.dry_run:
            parser.error(f"--{name} says what --dry-run assumes; a run takes what its launcher gives it")
    if options.processes is not None and options.processes < 1:
        parser.error("--processes is the number of processes, at least 1")
    return options


def main(args: list[str]) -> int:
    """The exit code: 0 done, 2 the user can put something right, 143 saved after SIGTERM, 130 after Ctrl-C."""
    options = arguments(args)
    rank, _, local_rank, _ = rank_from_env()
    try:
        if options.schema:
            return print_schema()
        if os.path.isdir(options.spec):
            deferred.load("torch")
            return print_folder_costs(options)
        from configs.spec import load

        loaded = load(options.spec, options.set, lambda note: None if rank else print(note, file=sys.stderr))
        deferred.load("torch")
        if options.dry_run:
            return print_plan(options, loaded)
        return study(options, loaded, given_command(Path(__file__), args))
    except UserError as error:
        if not local_rank or error.alone:  # the first of each machine, whose files may be its own
            print(f"error{f' on rank {rank}' if rank else ''}: {error}", file=sys.stderr, flush=True)
        return 2


def print_schema() -> int:
    """Prints the JSON schema of a spec."""
    from configs.spec import schema

    print(schema(), end="")
    return 0


def print_folder_costs(options: argparse.Namespace) -> int:
    """Prints what the specs in a folder would cost; 2 if some can't be loaded, which it lists."""
    if not options.dry_run:
        raise UserError(f"--spec is the folder {options.spec}; a study is one file: give one of it, or add --dry-run")
    deferred.without_compiler()
    from engine.estimate.dry_run_folder import dry_run_folder
    from engine.estimate.gpus import assumed

    load_notes: set[str] = set()
    machine = assumed(options.processes, options.gpu, options.dollars)
    text, broken = dry_run_folder(Path(options.spec), options.set, options.stage, machine, load_notes.add)
    print(text, end="", flush=True)
    for line in (*sorted(load_notes), *(f"error: {line}" for line in broken)):
        print(line, file=sys.stderr)
    return 2 if broken else 0


def print_plan(options: argparse.Namespace, loaded: "Loaded") -> int:
    """Prints what the study would do and cost; UserError for what it would refuse."""
    deferred.without_compiler()
    from engine.estimate.dry_run import dry_run
    from engine.estimate.gpus import assumed
    from engine.study.check import refusals, refuse_changed
    from engine.study.places import with_places
    from engine.study.scheduler import Scheduler
    from engine.training.check import at_hand, refuse
    from engine.training.inputs import StudyInputs

    machine = assumed(options.processes, options.gpu, options.dollars)
    with TemporaryDirectory() as scratch:
        shared = StudyInputs(RUNS / loaded.spec.name, machine.world, Path(scratch))
        loaded = with_places(loaded, shared.pairs, options.stage)
        scheduler = Scheduler.of(loaded, shared.study, options.stage)
        refused, missing = at_hand(refusals(scheduler, shared), loaded.spec.data.pretrain.expect is not None)
        refuse(refused)
        refuse_changed(scheduler)
        print(dry_run(loaded, scheduler.runs, shared, machine, missing), end="")
    return 0


def study(options: argparse.Namespace, loaded: "Loaded", again: str) -> int:
    """Carries out the study; where it is not done, says why, and how to go on with it where the same command helps."""
    from engine.study.study import run_study

    return run_study(loaded, options, again)


if __name__ == "__main__":
    deferred.defer("torch")
    sys.exit(main(sys.argv[1:]))
