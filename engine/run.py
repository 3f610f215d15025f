"""Runs a spec: deepspeed engine/run.py --spec specs/demo.yaml, or python engine/run.py for one process.

Goes on from where the study stands: finished runs are recognised by their fingerprint, an unfinished one continues
from its newest checkpoint.
"""

import argparse
import os
import shlex
import signal
import sys
from functools import partial
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if Path(sys.path[0] or ".").resolve() == ROOT / "engine":
    sys.path[0] = str(ROOT)  # the script's own folder would shadow other packages and hide ours

from data.refusal import UserError  # noqa: E402  (after the path)
from records.folder import RUNS  # noqa: E402


def arguments(given: list[str]) -> argparse.Namespace:
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
    parser.add_argument("--dollars", metavar="RATE", type=float, help="for --dry-run: the price of one GPU-hour")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of a spec")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    out = parser.parse_args(given)
    if not out.schema and out.spec is None:
        parser.error("give --spec FILE, for example --spec specs/demo.yaml")
    if out.dollars is not None and not (out.dry_run and 0 < out.dollars < float("inf")):
        parser.error("--dollars is the price of one GPU-hour, above 0, and goes with --dry-run")
    return out


def command(given: list[str]) -> str:
    """The command that goes on with this study."""
    words = [word for word in given if not word.startswith("--local_rank")]
    size = int(os.environ.get("WORLD_SIZE", 1))
    launcher = f"deepspeed --num_gpus {size}" if size > 1 else "deepspeed" if "CROSS_RANK" in os.environ else "python"
    return f"{launcher} {shlex.join([os.path.relpath(__file__), *words])}"


def main(given: list[str]) -> int:
    """The exit code: 0 done, 2 the user can put something right, 143 saved after SIGTERM, 130 after Ctrl-C."""
    options = arguments(given)
    first, studying, code = int(os.environ.get("RANK", 0)) == 0, False, 1
    try:
        from configs.spec import load, schema

        if options.schema:
            print(schema(), end="")
            return 0
        if Path(options.spec).is_dir():
            return survey(options)
        loaded = load(options.spec, options.set, partial(print, file=sys.stderr) if first else lambda words: None)
        if options.dry_run:
            from engine.estimate.dry_run import dry_run
            from engine.study.scheduler import Scheduler

            folder = RUNS / loaded.spec.name
            print(dry_run(loaded, Scheduler.of(loaded, folder, options.stage).runs, folder, options.dollars), end="")
            return 0
        studying = True
        code = study(options, loaded, command(given))
    except UserError as refusal:
        code = 2
        if first or refusal.alone:
            print(f"error{'' if first else ' on rank ' + os.environ['RANK']}: {refusal}", file=sys.stderr, flush=True)
    finally:
        if studying and first and code:
            print(f"go on with: {command(given)}", file=sys.stderr, flush=True)
    return code


def survey(options: argparse.Namespace) -> int:
    """Prints what the specs in a folder would cost; 2 if some can't be loaded, which it lists."""
    if not options.dry_run:
        raise UserError(f"--spec is the folder {options.spec}; a study is one file: give one of it, or add --dry-run")
    from engine.estimate.dry_run_folder import dry_run_folder

    said: set[str] = set()
    text, broken = dry_run_folder(Path(options.spec), options.set, options.stage, options.dollars, said.add)
    print(text, end="", flush=True)
    for line in (*sorted(said), *(f"error: {line}" for line in broken)):
        print(line, file=sys.stderr)
    return 2 if broken else 0


def study(options: argparse.Namespace, loaded: Any, again: str) -> int:
    """Carries out every run of the study that is not finished, then writes the report."""
    from engine.distributed import collectives
    from engine.distributed.world import describe_lost_rank, destroy_distributed, init_distributed, is_rank_failure
    from engine.study.scheduler import Scheduler
    from engine.study.study import HELPS, begin, check, conclude, work
    from engine.training import zero

    asked = {"to stop": 0}

    def ask(sign: int, frame: object) -> None:
        if asked["to stop"]:
            os._exit(128 + sign)  # asked twice: at once
        asked["to stop"] = sign

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    spec = loaded.spec
    sweep, helps = spec.sweep, HELPS in os.environ  # started by another launch, which lists and reports
    world = init_distributed(60 * spec.machine.timeout_minutes, spec.machine.threads)
    try:
        collectives.assert_equal_on_ranks(
            {"spec": digest_of(spec), **{name: version(name) for name in ("torch", "deepspeed", "open_clip_torch")}}
        )
        agenda = mine = Scheduler.of(loaded, RUNS / spec.name, options.stage)
        if sweep.executor != "here" and world.size > 1:  # these processes pre-train together, then others clean
            mine = Scheduler.of(loaded, RUNS / spec.name, "pretrain")
            mine.runs = [run for run in mine.runs if run in agenda.runs]
        check(mine, world)
        if not helps:
            collectives.on_rank_0(lambda: begin(agenda, again))
        if sweep.executor == "here" or world.size > 1:
            zero.prepare()
            code = work(mine, world, lambda: asked["to stop"], again)
            collectives.barrier()
            if code or mine.runs == agenda.runs:
                return code or (conclude(agenda) if world.first and not helps else 0)
        destroy_distributed()
        if not world.first:
            return 0
        from engine.study.launch import coordinate

        return coordinate(agenda, options, lambda: asked["to stop"]) or conclude(agenda)
    except RuntimeError as error:
        if is_rank_failure(error):
            raise UserError(describe_lost_rank(error), alone=True) from error
        raise
    finally:
        destroy_distributed()


def digest_of(spec: Any) -> str:
    """12 hex digits of all that a spec says."""
    return blake2b(spec.model_dump_json().encode(), digest_size=6).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
