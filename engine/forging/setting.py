"""Where an attack is prepared: the model that it is prepared on, and the set that it is judged on."""

from pathlib import Path

from configs.spec import Spec
from data.attack import Aim, Attack
from data.refusal import UserError
from data.triggers.patch import Patch
from data.triggers.tensor import Tensor
from engine.distributed.world import World
from engine.evaluation.sets import EvalSet, eval_set
from engine.inversion.subject import Subject, load_subject
from measures.attack_success import AttackSuccess
from records.spec_json import SPEC


def attacked_set(spec: Spec, trigger: Patch | Tensor, world: World) -> EvalSet:
    """The set that the spec measures ASR on, under its first attack with this trigger; UserError if it measures none, or if
    the target is none of its classes."""
    names = [measure.images for measure in spec.measure if measure.kind == "attack_success"]
    if not names:
        raise UserError("the spec has no measure of kind attack_success, by which a trigger is judged; add one to measure")
    aim = Aim(target=spec.attack.target, trigger=trigger, poison=spec.attack.poison)
    attack = Attack(**{name: getattr(aim, name) for name in Aim.model_fields})
    measure = (AttackSuccess(kind="attack_success", images=names[0]),)
    return eval_set(spec.model_copy(update={"attack": attack, "measure": measure}), names[0], world)


def subject_of(spec: Spec, weights: str | None, world: World) -> Subject:
    """The model that a trigger is forged on; UserError if there is none, or it is not of model.name."""
    start = None if spec.pretrain is None else spec.pretrain.start
    given = weights or (start.path or start.pretrained if start is not None else None)
    if given is None:
        raise UserError(
            "a trigger is forged on a trained model; give --weights a finished run (a twin, say), a file, or a tag of "
            "open_clip's for model.name"
        )
    subject = load_subject(given, None if (Path(given) / SPEC).is_file() else spec.model.name, world.device)
    if subject.model != spec.model.name:
        raise UserError(
            f"{given} is a {subject.model}, but model.name is {spec.model.name}; give one of it, or set the name"
        )
    return subject
