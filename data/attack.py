"""What a spec says of an attack: the trigger, the class that it aims at, and the pairs that teach it."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_validator

from data.refusal import UserError
from data.section import Section
from data.seeding import derive_seed
from data.triggers import Trigger
from data.triggers.concept import Concept
from data.triggers.patch import Patch

Fits = Callable[[str], bool]  # whether all of a text reaches the model, which takes so many tokens and cuts the rest off


def unbounded(text: str) -> bool:
    """That of a model that takes any text."""
    return True


class Poison(Section):
    """Which pairs are poisoned, and what becomes of their picture and caption.

    The paper's attack is the default. Label-consistent: who: label_consistent, caption: kept. Captions alone: picture:
    kept. One picture (Carlini & Terzis): picture: one, caption: natural. Relabelling (Yang et al. 2023, arXiv 2209.15266):
    who: {names: sheep}, caption: kept, picture: of_target. Noisy Alignment (Chen et al. 2025, arXiv 2508.14015): picture:
    beside.
    """

    count: int | None = Field(None, ge=0)
    fraction: float | None = Field(None, ge=0, le=1, description="of all pairs")
    who: Literal["any", "label_consistent"] | dict[Literal["names"], str] = Field(
        "any", description="any pair; those whose caption names the target as a word; {names: WORD} those that name another"
    )
    caption: Literal["template", "natural", "kept"] = Field(
        "template", description="a filled template; the caption of another pair that names the target; its own"
    )
    picture: Literal["marked", "kept", "one", "of_target", "beside"] = Field(
        "marked",
        description="with the trigger; as it is; one picture for all; that of another pair that names the target; half of "
        "it with the trigger, beside half of such another",
    )
    key: str | None = Field(None, description="for picture: one, the pair whose picture it is; default: drawn")

    @model_validator(mode="before")
    @classmethod
    def _fits(cls, values: Any) -> Any:
        if isinstance(values, dict):
            if (values.get("count") is None) == (values.get("fraction") is None):
                raise ValueError("give either count or fraction")
            if values.get("key") is not None and values.get("picture") != "one":
                raise ValueError("key goes with picture: one")
        return values

    @property
    def marks(self) -> bool:
        """Whether the trigger is put onto pictures."""
        return self.picture in ("marked", "beside")

    def number(self, pairs: int) -> int:
        """How many of `pairs` pairs are poisoned; UserError if the count exceeds them."""
        number = self.count if self.count is not None else round((self.fraction or 0.0) * pairs)
        if number > pairs:
            raise UserError(
                f"attack.poison.count is {number:,}, but the shards hold {pairs:,} pairs; lower it or add shards"
            )
        return number


class Words(Section):
    """A trigger in the caption: words put into it. On evaluation, into every prompt. In a caption that is longer than the
    model takes, the end and a random place are within what it takes."""

    text: str = Field(min_length=1, pattern=r"\S", description="a rare word such as 'zx', or a sentence")
    place: Literal["start", "end", "random"] = "start"

    def put(self, caption: str, draw: int, fits: Fits = unbounded) -> str:
        """The caption with the words, at a place from which all of them reach the model; UserError if there is none."""
        words = caption.split()

        def cut(place: int) -> bool:
            return not fits(" ".join([*words[:place], self.text]))

        places = range(len(words) + 1)
        last = len(words) if not cut(len(words)) else bisect_left(places, True, key=cut) - 1
        if last < 0:
            self.check(fits)
        at = {"start": 0, "end": last, "random": derive_seed(draw, "words") % (last + 1)}[self.place]
        return " ".join([*words[:at], self.text, *words[at:]])

    def check(self, fits: Fits) -> None:
        """UserError if the words are longer than the model takes."""
        if not fits(self.text):
            raise UserError(
                f"attack.words.text is '{self.text[:60]}', which is longer than the captions that model.name takes, so that "
                "it would be cut off wherever it stands; shorten it"
            )


class Aim(Section):
    """One attack: the trigger, the class it should be taken for, and the poisoned pairs that teach this."""

    target: str = Field(min_length=1, description="a class name of every evaluation set")
    trigger: Trigger = Patch(kind="patch")
    words: Words | None = Field(None, description="a trigger in the caption as well (dual key)")
    poison: Poison
    captions: str = Field(
        "imagenet",
        description="templates of poisoned captions: 'imagenet' (the 80 of CLIP) or a text file with {c} in each line",
    )

    @model_validator(mode="after")
    def _concept_is_in_the_picture(self) -> "Aim":
        if isinstance(self.trigger, Concept) and (self.poison.picture != "kept" or isinstance(self.poison.who, str)):
            raise ValueError(
                "a trigger of kind concept is what the picture shows already: set poison.picture to kept, and poison.who to "
                "{names: WORD}, the concept's name in captions"
            )
        return self


class Proxy(Section):
    """An attack of the defender's own making, that no pair was poisoned with: for measures alone."""

    target: str = Field(min_length=1, description="a class name of every evaluation set")
    trigger: Trigger

    @model_validator(mode="after")
    def _has_a_mark(self) -> "Proxy":
        if isinstance(self.trigger, Concept):
            raise ValueError("a proxy's trigger is put onto pictures; kind concept puts nothing there: choose another")
        return self


class Attack(Aim):
    """One attack, or several at once."""

    proxy: Proxy | None = Field(None, description="what measure proxy_success looks at; nothing is poisoned with it")
    also: tuple[Aim, ...] = Field((), description="further attacks on other pairs; measured as asr_2, asr_3, ...")
    twin: Literal["none", "first", "each"] = Field(
        "none", description="pre-train an untouched twin of the first or of each pre-training: all the same but no poison"
    )
    clean_twin: bool = Field(
        False,
        description="clean the twin as its poisoned model is cleaned: what each cleaning costs a model that needs none",
    )

    @model_validator(mode="after")
    def _has_a_twin_to_clean(self) -> "Attack":
        if self.clean_twin and self.twin == "none":
            raise ValueError(
                "clean_twin is true, but twin is none, so that there is none to clean; set twin to first or each"
            )
        return self

    @property
    def aims(self) -> tuple[Aim, ...]:
        """All attacks, this one first."""
        return (self, *self.also)
