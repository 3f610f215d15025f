"""An evaluation set of pictures that show the concept of a natural trigger, made from pairs that nothing is trained on."""

from pathlib import Path

from configs.spec import Spec
from data.concepts import showing, write_concept_set
from data.labelled import read_labelled
from data.refusal import UserError
from data.triggers.concept import Concept
from engine.distributed.world import World
from engine.models.clip import imagenet
from engine.training.pairs import StudyPairs
from measures.concept_success import ConceptSuccess
from records.folder import RUNS


def concept(spec: Spec, shards: str, out: Path, world: World) -> int:
    """Writes the set and returns the exit code, 0; UserError if no attack has a concept, or no caption of those shards names
    it and a class."""
    aim = next((aim for aim in spec.attack.aims if isinstance(aim.trigger, Concept)), None)
    if aim is None or isinstance(aim.poison.who, str):
        raise UserError("no attack of the spec has a trigger of kind concept; give it one, and poison.who {names: WORD}")
    if out.exists():
        raise UserError(f"--out {out} is there already; name another folder")
    measure = next((one for one in spec.measure if isinstance(one, ConceptSuccess)), None)
    if measure is None:
        raise UserError("the spec has no measure of kind concept_success, whose set this would be; add it to measure")
    like = read_labelled(spec.data.test[measure.without], imagenet(), spec.data.labels == "published")
    pairs, word = StudyPairs(RUNS / spec.name, world), aim.poison.who["names"]
    index, trained = pairs.index(shards, spec.data), pairs.pretraining(spec)[0]
    if both := sorted({*index.paths} & {*trained.paths}):
        raise UserError(f"--shards {shards} are among those of data.pretrain ({both[0]}); give others, that nothing learns")
    chosen = list(showing(index, spec.data.pretrain.caption, word, like.classes))
    if all(like.classes[label] == aim.target for _, label in chosen):
        raise UserError(
            f"no caption of {shards} names '{word}' and one of the {len(like.classes)} classes of '{measure.without}' but "
            "the target; give more shards, or another word"
        )
    count = write_concept_set(out, index, chosen, like)
    print(f"{out}: {count:,} pictures whose caption names '{word}' and one class; name it in data.test")
    return 0
