"""The labelled pictures that a cleaning learns from: whether they go with its objective, and reading them."""

from functools import lru_cache

from configs.plan import Run
from data.labelled import Labelled, read_labelled
from data.labelled_pairs import LabelledPairs
from data.pipeline import Reading
from data.refusal import UserError
from engine.models.clip import imagenet
from engine.models.tokenizer import Tokenizer
from objectives.sum import objectives_of
from objectives.supervised import Supervised


def supervised_sections(run: Run) -> list[Supervised]:
    """The parts of the run's objective that learn from labelled pictures."""
    return [section for section in objectives_of(run.settings.objective) if isinstance(section, Supervised)]


def check_labels(run: Run) -> None:
    """UserError if the run's objective needs labelled pictures and there are none, or the other way round."""
    objective, folder = run.settings.objective, run.spec.data.clean.labelled
    if run.stage != "clean":
        if supervised_sections(run):
            raise UserError(
                "pretrain.objective is supervised, which learns from labelled pictures, but pre-training reads pairs; use "
                "it in clean, with data.clean.labelled"
            )
        return
    if folder is None and supervised_sections(run):
        raise UserError(
            "clean.objective is supervised, but data.clean.labelled is not given; name a folder of labelled pictures there, "
            "laid out as data.test's"
        )
    if folder is not None and objective.views[1]:
        raise UserError(
            f"data.clean.labelled is {folder}, whose pictures have no captions, but clean.objective is {objective.kind}, "
            "which reads captions; use supervised, or leave data.clean.labelled out"
        )


def labelled_pairs(run: Run, folder: str, reading: Reading, tokenize: Tokenizer) -> LabelledPairs:
    """The pictures of a cleaning; UserError if the folder is not as it should be, or has other classes than the
    objective."""
    labelled = read(folder)
    for section in supervised_sections(run):
        if section.classes != len(labelled.classes):
            raise UserError(
                f"clean.objective.classes is {section.classes:,}, but data.clean.labelled = {folder} has "
                f"{len(labelled.classes):,} classes; set classes to {len(labelled.classes)}"
            )
    return LabelledPairs(folder, labelled, run.spec.data, reading, tokenize)


@lru_cache(maxsize=1)
def read(folder: str) -> Labelled:
    """What the folder holds, read once for runs in turn that learn from it. Labels are the right ones whatever data.labels
    says, which is about what is measured and no part of a fingerprint."""
    return read_labelled(folder, imagenet(), what="data.clean.labelled", named=False)
