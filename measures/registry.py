"""The registry of measures: one file and one entry each. Imports neither data, objectives, configs nor engine."""

from typing import Annotated

from pydantic import Field

from measures.attack_success import AttackSuccess
from measures.bdet import Bdet
from measures.class_success import ClassSuccess
from measures.concept_success import ConceptSuccess
from measures.geometry import Geometry
from measures.heads import Heads
from measures.linear_probe import LinearProbe
from measures.lorex import Lorex
from measures.neighbours import Neighbours
from measures.prototypes import Prototypes
from measures.proxy_success import ProxySuccess
from measures.reference_knn import ReferenceKnn
from measures.retrieval import Retrieval
from measures.subspace import Subspace
from measures.validation_loss import ValidationLoss
from measures.zero_shot import ZeroShot

AnyMeasure = Annotated[
    ZeroShot
    | AttackSuccess
    | ProxySuccess
    | ClassSuccess
    | ConceptSuccess
    | Neighbours
    | Prototypes
    | LinearProbe
    | Geometry
    | Retrieval
    | ValidationLoss
    | Lorex
    | Bdet
    | Subspace
    | ReferenceKnn
    | Heads,
    Field(discriminator="kind"),
]
