"""The section of a spec that says how the pairs of its pre-trainings are scored, once those are finished."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field, model_validator

from data.refusal import UserError
from data.section import Section
from measures.detectors.abl import Abl
from measures.detectors.budget import Budget
from measures.detectors.contract import CannotScore
from measures.detectors.registry import DEFAULT, AnyDetector, check


@contextmanager
def scoring() -> Iterator[None]:
    """What no detector can score, in here, is the user's to put right."""
    try:
        yield
    except CannotScore as error:
        raise UserError(f"the pairs can't be scored: {error}") from None


class Detect(Section):
    """Detectors of poisoned training pairs, and what is flagged; it changes no result of a training."""

    detectors: tuple[AnyDetector, ...] = Field(DEFAULT, description="what scores every pair")
    budget: Budget = Field(Budget(share=0.01), description="which pairs flagged.jsonl names, for each detector")
    scores: tuple[str, ...] = Field((), description="files of other programs' scores, judged beside the detectors'")

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> "Detect":
        if not self.detectors and not self.scores:
            raise ValueError("detectors and scores are both empty, which leaves nothing to score with; give one")
        titles = [section.title for section in self.detectors]
        double = next((title for title in titles if titles.count(title) > 1), None)
        if double is not None:
            raise ValueError(f"two detectors are called '{double}'; give one a name, such as {{name: {double}-2}}")
        return self

    def check(self, pairs: int) -> None:
        """UserError if a detector can't score so many pairs, whatever they are."""
        with scoring():
            check(self.detectors, pairs)

    @property
    def asked(self) -> dict[str, Any]:
        """The section as plain values; scores are made anew when it changes."""
        return self.model_dump(mode="json")

    @property
    def of_twin(self) -> "Detect | None":
        """The section for the untouched twin, without other programs' scores, which are of the poisoned pairs under the same
        keys; None where they are all that is asked for."""
        return self.model_copy(update={"scores": ()}) if self.detectors else None

    @property
    def loss_epochs(self) -> int:
        """Of how many first epochs the losses of pairs are noted while a model is pre-trained; 0: of none."""
        return max((section.epochs for section in self.detectors if isinstance(section, Abl)), default=0)


def check_one_model(folders: Collection[str]) -> None:
    """UserError if other programs' scores, which are of one model's pairs, would be given to several pre-trainings."""
    if len(folders) > 1:
        raise UserError(
            f"scores of another program are of one model's pairs, but {len(folders)} pre-trainings would be judged by them; "
            "give each its own: python -m engine.detect --run RUN --scores FILE"
        )
