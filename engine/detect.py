"""Scores training pairs by a finished pre-training's own model: python -m engine.detect --run runs/NAME/pretrain-...

--run  one finished pre-training or twin; with --twin TWIN the share of the untouched twin's pairs that is flagged, too
--spec every finished pre-training and twin of a spec's study

Writes scores.jsonl, flagged.jsonl and detection.json into the run's folder, under detect/. What scores the pairs, and what
is flagged, says the spec's section `detect` or, without one, its defaults; the options below go first. Several processes,
started by a launcher as engine/run.py is, share the encoding and the scoring.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from configs.detect import Detect, check_one_model
from configs.plan import Run, runs
from configs.source import SpecTree
from configs.spec import Loaded, load, load_tree
from data.patience import PATIENCE
from data.refusal import UserError
from engine.command import given_command
from engine.detection.detect import Detection, check_finished, detect, with_twin
from engine.distributed import collectives
from engine.distributed.watchdog import speak_last
from engine.distributed.world import World, init_distributed
from engine.models.tokenizer import Tokenizer
from engine.study.ending import say_again, to_its_end
from engine.study.places import with_places
from engine.study.scoring import in_words
from engine.study.stop_signal import StopSignal
from engine.training.inputs import StudyInputs, read_pairs
from measures.detectors.budget import Budget
from measures.detectors.registry import AnyDetector
from records.detection import DetectionJson, scored_as
from records.folder import RUNS, finished
from records.spec_json import read_decides, stage_of
from records.study_json import StudyJson

KINDS = [str(get_args(kind.model_fields["kind"].annotation)[0]) for kind in get_args(get_args(AnyDetector)[0])]
DETECTOR: TypeAdapter[AnyDetector] = TypeAdapter(AnyDetector)


def arguments(args: list[str]) -> argparse.Namespace:
    """The command line; its launcher may add --local_rank."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.detect", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, metavar="RUN", help="a finished pre-training or twin, runs/NAME/pretrain-...")
    what.add_argument("--spec", metavar="FILE", help="every finished pre-training and twin of its study")
    parser.add_argument("--twin", type=Path, metavar="RUN", help="the untouched twin of --run; scored too if it is not")
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[], help="override one field of the spec")
    parser.add_argument("--detector", choices=KINDS, action="append", help="repeatable; default: as the spec says")
    parser.add_argument("--budget", metavar="NAME=VALUE", help="share=0.01, count=500 or outlier=3.5")
    parser.add_argument(
        "--scores", metavar="FILE", action="append", default=[], help="scores of another program; repeatable"
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.twin is not None and options.run is None:
        parser.error("--twin is the twin of --run; a study's twins are found by themselves")
    return options


def main(args: list[str]) -> int:
    """The command; exit code 2 for what the user can put right."""
    options, command = arguments(args), given_command(Path(__file__), args)
    return to_its_end(partial(_carry_out, options, command), command)


@dataclass
class Command:
    """What the command line asks for, with the study that it is asked of."""

    options: argparse.Namespace
    loaded: Loaded
    shared: StudyInputs
    budget: Budget | None  # None: the spec's

    @property
    def world(self) -> World:
        """The processes."""
        return self.shared.world

    def asked(self, run: Run) -> Detect:
        """What scores a run's pairs: the options, the spec's section, its defaults."""
        options, section = self.options, run.spec.detect or Detect()
        detectors = [DETECTOR.validate_python({"kind": kind}) for kind in options.detector or []]
        given = [next((one for one in section.detectors if one.kind == new.kind), new) for new in detectors]
        scores = (*section.scores, *options.scores)
        if run.stage == "twin":  # its own alone, where it is --run
            scores = tuple(options.scores) if options.run is not None and options.run.absolute().name == run.folder else ()
        changes = {"budget": self.budget or section.budget, "scores": scores}
        return section.model_copy(update=changes | ({"detectors": tuple(given)} if given else {}))

    def detect(self, run: Run, home: Path) -> DetectionJson:
        """Scores one run's pairs."""
        PATIENCE.seconds = run.spec.wait_seconds
        pairs, _, _ = read_pairs(run, self.shared, self.world, Tokenizer(run.spec.model.name))
        return detect(Detection(run, home, pairs, self.asked(run), self.world, self.shared.workers(run.spec)))


def budget_of(text: str) -> Budget:
    """The budget in 'share=0.01'; UserError if it is none."""
    name, _, value = text.partition("=")
    try:
        return Budget.model_validate({name.strip(): value.strip()})
    except ValidationError:
        raise UserError(
            f"--budget {text!r} is no budget; give share=0.01 (above 0, below 1), count=500 or outlier=3.5"
        ) from None


def _carry_out(options: argparse.Namespace, command: str, stop: StopSignal) -> int:
    budget = None if options.budget is None else budget_of(options.budget)
    loaded, study = study_of(options)
    spec = loaded.spec
    PATIENCE.seconds, PATIENCE.leave = spec.wait_seconds, stop
    world = init_distributed(60 * spec.machine.timeout_minutes, spec.machine.threads)
    speak_last(partial(say_again, command))
    shared = StudyInputs(study, world)
    loaded = with_places(loaded, shared.pairs, "pretrain")
    planned = {run.folder: run for run in runs(loaded.points, "pretrain", loaded.places)}
    asks = Command(options, loaded, shared, budget)
    if options.run is None:
        return _every(asks, [run for run in planned.values() if finished(study / run.folder)], study)
    run = _named(options.run, planned, study)
    twin = None if options.twin is None else twin_of(run, options.twin, planned, study)
    result = asks.detect(run, options.run)
    if twin is not None:
        asked, of_twin = asks.asked(run), asks.asked(twin)
        if not of_twin.detectors:
            raise UserError(
                "--twin was given without a detector: other programs' scores are of --run alone; name --detector"
            )
        if not collectives.on_rank_0(lambda: scored_as(options.twin, of_twin.asked)):
            asks.detect(twin, options.twin)
        result = collectives.on_rank_0(lambda: with_twin(options.run, options.twin, asked))
    _show(world, options.run, result)
    return 0


def study_of(options: argparse.Namespace) -> tuple[Loaded, Path]:
    """(the spec, its study's folder); UserError if there is none."""
    if options.spec is not None:
        loaded = load(options.spec, options.set)
        return loaded, RUNS / loaded.spec.name
    folder = options.run.absolute().parent
    decides = read_decides(options.run)
    if decides is None:
        raise UserError(f"{options.run} is no run's folder: it has no spec.json; give one such as runs/NAME/pretrain-...")
    if stage_of(decides) == "clean":
        raise UserError(f"{options.run} is a cleaning, whose pairs are clean; give the pre-training that it starts from")
    plan = StudyJson.read(folder)
    if plan is None:
        raise UserError(
            f"{options.run} is in no study: {folder} has no study.json; give a run where its study left it, or --spec"
        )
    return load_tree(SpecTree(str(folder / StudyJson.FILE), plan.spec), options.set), folder


def _named(folder: Path, planned: dict[str, Run], study: Path) -> Run:
    """The run of a folder; UserError if the study does not plan it."""
    run = planned.get(folder.absolute().name)
    if run is None or folder.absolute().parent != study.absolute():
        known = ", ".join(planned) or "none"
        raise UserError(
            f"{folder} is no pre-training of the study {study}, which has {known}; give one of them, or the spec"
        )
    return run


def twin_of(run: Run, folder: Path, planned: dict[str, Run], study: Path) -> Run:
    """The untouched twin of a run, which is finished in this folder; UserError if it is another run, or not finished."""
    twin, own = _named(folder, planned, study), run.untouched.folder
    if run.stage != "pretrain" or twin.folder != own:
        known = f", {own}" if run.stage == "pretrain" and own in planned else ""
        raise UserError(f"--twin is {folder}, --run {run.folder}; give a poisoned run, and its untouched twin{known}")
    check_finished(folder)
    return twin


def _every(asks: Command, ended: list[Run], study: Path) -> int:
    """Scores the pairs of every finished run, those of twins first."""
    if not ended:
        raise UserError(f"no pre-training in {study} is finished; carry out the study first, or give another spec")
    check_one_model({run.folder for run in ended if run.stage == "pretrain" and asks.asked(run).scores})
    ended = [run for run in ended if run.stage == "pretrain" or asks.asked(run).detectors]
    homes = {run.folder: study / run.folder for run in ended}
    for run in sorted(ended, key=lambda one: one.stage, reverse=True):
        result = asks.detect(run, homes[run.folder])
        twin = run.untouched.folder
        if run.stage == "pretrain" and twin in homes:
            home, of_twin, asked = homes[run.folder], homes[twin], asks.asked(run)
            result = collectives.on_rank_0(partial(with_twin, home, of_twin, asked))
        _show(asks.world, homes[run.folder], result)
    return 0


def _show(world: World, home: Path, result: DetectionJson) -> None:
    if world.first:
        print("\n".join(in_words(Path(os.path.relpath(home)), result)), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
