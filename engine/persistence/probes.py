"""The runs that probe a cleaned model: ordinary trainings, most of them of no step, that start from its weights or its
twin's.

A run is known by what decides its result, as any other, and by the digest of the weights that it starts from. So a study
goes on amid its probes, and what one study has probed another takes over.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from configs.after import After
from configs.plan import Run
from configs.stage import Stage
from configs.start import AnyTransform, Line, Rounded, Start, weights_of
from data.refusal import UserError
from data.sources import CleanSource, of_all_pairs
from engine.models import clip
from engine.training.pairs import StudyPairs
from objectives.mmcl import Mmcl
from records.ending import FinishedJson
from records.study_json import Probe


def probes(cleaned: Run, cleaned_twin: Run | None, study: Path) -> list[Run]:
    """The runs that probe a cleaned model, each once, beside the twin after the same cleaning; both are finished."""
    section = cleaned.spec.after
    assert section is not None
    own, poisoned = _start(cleaned, study), _poisoned_start(cleaned, study)
    twin = _start(cleaned_twin, study) if cleaned_twin is not None else None
    out: dict[str, Run] = {}
    for probe, stage, pairs in _stages(cleaned, section, own, twin, poisoned):
        run = _run(cleaned, probe, stage, pairs)
        out.setdefault(run.folder, run)
    return list(out.values())


def _stages(
    cleaned: Run, section: After, own: Start, twin: Start | None, poisoned: Start | None
) -> Iterator[tuple[Probe, Stage, CleanSource]]:
    """(what a probe asks, its training, its pairs) of each."""
    for start in (own, twin):
        for number in section.retune if start is not None else ():
            probe = Probe(of=cleaned.folder, kind="retune", amount=number, twin=start is twin)
            yield probe, _stage(cleaned, section, start, section.epochs), _pairs(cleaned, section, number)
    shares = [step / (section.line - 1) for step in range(section.line)]
    changes: list[tuple[Probe, AnyTransform]] = []
    if poisoned is not None:
        changes += [
            (Probe(of=cleaned.folder, kind="line", amount=share), Line(kind="line", to=poisoned, share=share))
            for share in shares
        ]
    changes += [(Probe(of=cleaned.folder, kind=kind), Rounded(kind="rounded", format=kind)) for kind in section.formats]
    if section.average and twin is not None:
        changes.append((Probe(of=cleaned.folder, kind="average"), Line(kind="line", to=twin, share=0.5)))
    pairs = _pairs(cleaned, section, 0)
    for probe, transform in changes:
        yield probe, _stage(cleaned, section, own, 0, transform), pairs
    for start in (own, twin) if section.perturb is not None else ():
        if start is not None:
            probe = Probe(of=cleaned.folder, kind="perturb", twin=start is twin)
            yield probe, _stage(cleaned, section, start, 0), pairs
    if section.norms and clip.on_meta(cleaned.spec.model.name).norms:
        stage = _stage(cleaned, section, own, 1).model_copy(update={"norms": "estimated"})
        yield Probe(of=cleaned.folder, kind="norms"), stage, pairs


def _stage(cleaned: Run, section: After, start: Start | None, epochs: int, transform: AnyTransform | None = None) -> Stage:
    batch = section.batch or cleaned.settings.batch
    return Stage(
        objective=Mmcl(kind="mmcl"),
        epochs=epochs,
        batch=batch,
        optimizer=section.optimizer,
        start=start,
        transform=transform,
    )


def _pairs(cleaned: Run, section: After, poisoned: int) -> CleanSource:
    """Pairs of the pre-training's shards, so many of them poisoned, whatever the cleaning was given or the pre-training left
    out."""
    clean = cleaned.spec.data.clean
    return CleanSource(pairs=section.pairs or clean.pairs, leftover=poisoned or None, augment=clean.augment)


def _run(cleaned: Run, probe: Probe, stage: Stage, pairs: CleanSource) -> Run:
    spec = cleaned.spec
    data = of_all_pairs(spec.data).model_copy(update={"clean": pairs})
    changed = spec.model_copy(update={"clean": stage, "data": data})
    return Run("clean", changed, cleaned.swept, None, cleaned.cleaning, cleaned.places, after=probe, cleaned=cleaned)


def _start(run: Run, study: Path) -> Start:
    """The weights that a finished run has ended with, by their digest; they are verified where they are read."""
    end = FinishedJson.read(study / run.folder)
    assert end is not None, "only finished runs are probed"
    return Start(path=str(study / run.folder), digest=end.weights)


def _poisoned_start(cleaned: Run, study: Path) -> Start | None:
    """What the cleaning began with; None of weights that no .safetensors file holds: a line to them can't be drawn."""
    if cleaned.start is not None:
        return _start(cleaned.start, study)
    start = cleaned.settings.start
    file = weights_of(start) if start is not None and start.path is not None else None
    return start if file is not None and file.suffix == ".safetensors" else None


def twin_of(cleaned: Run, runs: Iterable[Run]) -> Run | None:
    """The same cleaning of the twin; None if the study has none."""
    decides = {**cleaned.decides, "start": "twin"}
    decides["data"]["pretrain"].pop("without", None)  # a twin leaves nothing out
    return next((run for run in runs if run.of_twin and run.decides == decides), None)


def prospects(cleaned: Run) -> list[Run]:
    """The tunings of a cleaning as they can be looked at before it has ended: without their weights."""
    section = cleaned.spec.after
    if section is None or not section.retune or cleaned.stage != "clean" or cleaned.after or cleaned.control:
        return []
    probe = Probe(of=cleaned.folder, kind="retune", amount=section.retune[-1])
    return [
        _run(cleaned, probe, _stage(cleaned, section, None, section.epochs), _pairs(cleaned, section, section.retune[-1]))
    ]


def check_poisoned(tuning: Run, pairs: StudyPairs) -> None:
    """UserError if a tuning asks for more poisoned pairs than the attack has."""
    try:
        index, chosen = pairs.pretraining(tuning.spec)
        plan = pairs.plan(tuning.spec, index, chosen)
    except UserError:  # which is said of any run on these pairs
        return
    there, wanted = len(plan) if plan else 0, tuning.spec.data.clean.leftover or 0
    if wanted > there:
        raise UserError(
            f"after.retune asks for {wanted:,} poisoned pairs, but the attack poisons {there:,}; leave larger numbers out "
            "of it, or poison more"
        )
