"""What a run would refuse, known before anything is written or trained: from the spec, the number of processes that carry
it out, and the files at hand.

A study asks for all its runs at its start, --dry-run for those that it shows: the same functions, so the same words. What
needs the training itself, such as a picture that does not decode, is refused when it is met.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from hashlib import blake2b

import numpy as np

from configs.detect import check_one_model
from configs.plan import Run
from configs.spec import Spec
from configs.start import Line
from configs.sweep import Sweep
from data.refusal import Missing, UserError
from data.store import InStore, NoShards
from engine.distributed import collectives
from engine.distributed.world import World
from engine.evaluation.sets import EvalSet, check_fits, set_names
from engine.models import clip
from engine.models.tokenizer import Tokenizer
from engine.models.transforms.line import file_of
from engine.training.init_weights import BESIDE, check_beside, check_start, path_of
from engine.training.inputs import SETTINGS, StudyInputs, check_words, read_pairs
from engine.training.labelled_inputs import check_labels
from engine.training.pairs import templates
from records.folder import finished


def carries_out(sweep: Sweep, run: Run, processes: int) -> bool:
    """Whether so many processes carry the run out themselves: any run, but where they start workers, which several do when
    they have pre-trained together, and one at once."""
    return sweep.executor == "here" or processes > 1 and run.stage != "clean"


Refusals = list[UserError]  # each with words of its own, in the order in which they were met


def refusals(runs: Iterable[tuple[Run, int]], shared: StudyInputs) -> Refusals:
    """What is refused of runs, each given with the number of processes that carry it out; the same on every process."""
    met: dict[str, UserError] = {}
    checked: set[bytes] = set()
    scored = set[str]()
    for run, ranks in runs:
        if run.stage == "pretrain" and run.detect is not None and run.detect.scores:
            scored.add(run.folder)
        world = replace(shared.world, rank=min(shared.world.rank, ranks - 1), size=ranks)
        for name, check in _checks(run, shared, world).items():
            if (short := blake2b(name.encode(), digest_size=16).digest()) in checked:
                continue
            checked.add(short)
            try:
                check()
            except UserError as error:
                if error.alone and shared.world.size > 1:
                    raise
                met.setdefault(str(error), error)
            except OSError as error:  # of any file that the spec names, and that no check of its own has asked about
                words = f"{error.filename}: {error.strerror}; check the path and its rights"
                met.setdefault(words, UserError(words))
    try:
        check_one_model(scored)
    except UserError as error:
        met.setdefault(str(error), error)
    return list({str(error): error for part in collectives.gather_objects(list(met.values())) for error in part}.values())


def refuse(errors: Refusals) -> None:
    """One UserError for all of them, if there are some."""
    if errors:
        raise UserError("\n".join(map(str, errors)))


def at_hand(errors: Refusals, expected: bool) -> tuple[Refusals, Refusals]:
    """(what is refused on any machine, what is only missing here): where the pairs themselves are not at hand, but
    `expected`, a spec is looked at on another machine than the one that carries it out, and nothing else need be there."""
    away = [error for error in errors if isinstance(error, NoShards)]
    if not away or not expected and not all(isinstance(error, InStore) for error in away):
        return errors, []
    missing: Refusals = [error for error in errors if isinstance(error, Missing)]
    return [error for error in errors if error not in missing], missing


def _checks(run: Run, shared: StudyInputs, world: World) -> dict[str, Callable[[], object]]:
    """The checks of a run, each under a name of all that it depends on: runs that agree in it are checked once."""
    spec, stage = run.spec, run.settings
    told = spec.model_dump(mode="json", exclude={"sweep", "name", "question"})
    rest = stage.model_dump(mode="json")
    rest["optimizer"]["rate"] = None
    start = run.start.folder if run.start is not None else None
    size = (run.stage, told["model"], told["machine"], rest, told["data"]["clean"], world.size)
    data = (size, told["data"], told["attack"], told.get("detect"), spec.seed, start)
    checks: dict[str, Callable[[], object]] = {f"labels {size!r}": partial(check_labels, run)}
    apart = (run.stage, told["model"], told["machine"], {**rest, "objective": None}, world.size)
    for number, check in enumerate(SETTINGS):
        checks[f"{number} {apart!r}"] = partial(check, run, world)
    checks[f"start {(start, rest, told['model'])!r}"] = partial(_check_start, run, shared)
    augments = told["data"]["augment"], told["data"]["clean"]["augment"]
    checks[f"words {(run.stage, augments, rest['objective'])!r}"] = partial(check_words, run)
    checks[f"attack {told['attack']!r}"] = partial(_check_attack, spec)
    checks[f"pairs {data!r}"] = partial(_check_pairs, run, shared, world)
    parts = [*(told["data"][name] for name in ("test", "labels", "decode")), told["measure"], told["attack"], told["model"]]
    sets: dict[str, EvalSet] = {}
    for name in set_names(spec):
        checks[f"set {name} {parts!r}"] = partial(_check_set, spec, name, shared, sets)
    checks[f"fits {parts!r}"] = partial(check_fits, spec, sets)
    if not shared.looks:
        checks[f"decoded {parts!r} {spec.seed}"] = partial(shared.eval_sets, spec)
    return checks


def _check_set(spec: Spec, name: str, shared: StudyInputs, sets: dict[str, EvalSet]) -> None:
    sets[name] = shared.eval_set(spec, name)


def _check_pairs(run: Run, shared: StudyInputs, world: World) -> None:
    pairs, *_ = read_pairs(run, shared, world, Tokenizer(run.spec.model.name), planned=True)
    if run.detect is not None:
        run.detect.check(len(pairs))
    if not shared.looks:  # the memory that loaders share is this machine's
        shared.workers(run.spec).ahead(pairs.batch_bytes)


def _check_attack(spec: Spec) -> None:
    """UserError if a file that an attack needs can't be used."""
    for aim in spec.attack.aims:
        templates(aim.captions)
    triggers = [aim.trigger for aim in spec.attack.aims]
    if spec.attack.proxy is not None:
        triggers.append(spec.attack.proxy.trigger)
    for trigger in triggers:
        trigger.build(spec.seed)(np.zeros((1, 3, 32, 32), np.uint8), [0])


def _check_start(run: Run, shared: StudyInputs) -> None:
    """UserError if the weights that the run starts from don't fit its model, or lack what it inherits; those of a run of
    this study fit, and have moments if it takes a step."""
    section, start = run.settings.optimizer, run.settings.start
    if isinstance(transform := run.settings.transform, Line):
        check_start(file_of(transform), run.spec.model.name, section.model_copy(update={"state": "fresh"}))
    if run.start is not None:
        folder = shared.study / run.start.folder
        if section.state == "fresh":
            return
        if finished(folder):
            check_beside(folder / "weights.safetensors")
        elif not run.start.settings.epochs:
            raise UserError(
                f"optimizer.state needs AdamW's moments, but pretrain.epochs is 0, so that it leaves no {BESIDE}; use "
                "optimizer.state: fresh"
            )
    elif start is not None:
        if start.pretrained is not None and shared.looks:
            clip.check_tag(run.spec.model.name, start.pretrained)
            return
        check_start(path_of(start, run.spec.model.name), run.spec.model.name, section)
