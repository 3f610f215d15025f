"""The figures of a study, in the order of its page: each has a name, a heading, words, and a function that draws it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from engine import figures
from engine.panels import curves, panels
from engine.records import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Plate(NamedTuple):
    """One figure: its files are `name`.png and `name`.pdf; `draw(True)` draws it for a narrow screen, one column wide."""

    name: str
    heading: str
    caption: str
    draw: "Callable[[bool], Figure]"


def plates(study: Study) -> list[Plate]:
    """All figures that the study has numbers for; the frontier and the dynamics always."""
    found, course = panels(study), curves(study)
    return [
        Plate(
            "frontier",
            "Accuracy against attack success",
            "Every epoch of every cleaning run is a point: up is more accurate, left is cleaner. Stars are the models "
            "before cleaning, the dashed line is their accuracy, hollow diamonds are twins trained without poison. The ring "
            "marks the best accuracy in the shaded band.",
            lambda narrow: figures.frontier(found, 1 if narrow else 3),
        ),
        Plate(
            "dynamics",
            "How the attack grew during pre-training",
            "Accuracy and attack success of each pre-training run after each epoch.",
            lambda narrow: figures.dynamics(course, 1 if narrow else 2),
        ),
    ]
