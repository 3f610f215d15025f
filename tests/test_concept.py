"""Natural triggers: nothing is put onto a picture; what it shows is taken for the target."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_poison import CAPTIONS, LINES, NAMED, reader

from configs.spec import load
from data.attack import Attack, Poison
from data.labelled import read_labelled
from data.poison_plan import make_plan
from data.refusal import UserError
from data.triggers.concept import Concept
from engine.distributed.world import World
from engine.evaluation.sets import eval_sets
from engine.models.clip import imagenet
from engine.poison import main
from measures.concept_success import ConceptSuccess, concept_success
from measures.contract import Encoded

CONCEPT = {"kind": "concept"}
WORLD = World(0, 1, 0, 1, torch.device("cpu"))


def attack(**more: Any) -> Attack:
    poison = {"count": 1, "who": {"names": "sheep"}, "picture": "kept", **more}
    return Attack(target="banana", trigger=Concept(kind="concept"), poison=Poison(**poison))


def test_pairs_of_the_concept_keep_their_picture_and_get_the_target() -> None:
    plan = make_plan(NAMED, attack(count=2), 0, LINES, reader(CAPTIONS))
    assert sorted(plan.entries) == [2, 5]
    assert {entry.trigger for entry in plan.entries.values()} == {None}
    assert all("banana" in plan.caption("a sheep", sample) for sample in plan.entries)
    with pytest.raises(UserError, match="only 0 pairs qualify .captions that name 'zebra'.; lower it"):
        make_plan(NAMED, attack(who={"names": "zebra"}), 0, LINES, reader(CAPTIONS))
    for wrong in ({"picture": "marked"}, {"who": "any"}):
        with pytest.raises(
            ValidationError, match="what the picture shows already: set poison.picture to kept, and poison.who"
        ):
            attack(**wrong)


def test_success_by_hand() -> None:
    """Three pictures with the concept, one of the target's class: of two others one is taken for it; without the concept
    one of four others."""
    target, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    classes = torch.stack([target, other])
    shown, labels = torch.stack([target, target, other]), torch.tensor([0, 1, 1])
    rest, of = torch.stack([target, other, other, other, target]), torch.tensor([1, 1, 1, 1, 0])
    encoded = Encoded(shown, shown, labels, classes, classes, torch.zeros(3, dtype=torch.int64), (rest, of))
    assert concept_success(encoded) == {"asr": 0.5, "asr_floor": 0.25, "others": 2}
    section = ConceptSuccess(kind="concept_success", images="a", without="b", attack=2)
    assert section.sets == ("a", "b")
    assert section.attack_kind == "concept2"


@pytest.fixture
def concept_spec(spec: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    text = spec.read_text()
    text = text.replace(
        "  poison: {count: 12}", "  trigger: {kind: concept}\n  poison: {count: 3, who: {names: red}, picture: kept}"
    )
    text = text.replace(f"test: {{tiny: {world}/eval}}", f"test: {{tiny: {world}/eval, red: red}}")
    text = text.replace("{kind: attack_success, images: tiny}", "{kind: concept_success, images: red, without: tiny}")
    spec.write_text(text)
    return spec


def test_a_set_that_shows_a_concept_is_made_from_captions_and_measured(
    concept_spec: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["concept", "--spec", str(concept_spec), "--shards", f"{world}/retrieval/test/*.tar", "--out", "red"]
    assert main(words) == 0
    made = read_labelled("red", imagenet())
    assert f"red: {len(made)} pictures whose caption names 'red' and one class" in capsys.readouterr().out
    whole = read_labelled(f"{world}/eval", imagenet())
    assert (made.classes, made.templates) == (whole.classes, whole.templates)
    spec = load(concept_spec).spec
    shown, others = eval_sets(spec, WORLD)
    assert [one.name for one in (shown, others)] == ["tiny", "red"] or [shown.name, others.name] == ["red", "tiny"]
    red = next(one for one in (shown, others) if one.name == "red")
    assert [view.kind for view in red.attacks] == ["concept"]
    clean, (same,) = red.pictures(red.rows)
    assert torch.equal(clean, same)
    assert main(words) == 2
    assert "--out red is there already" in capsys.readouterr().err


REFUSED = {
    "a word that no caption names": (["--set", "attack.poison.who={names: zzz}"], "names 'zzz' and one of"),
    "the shards of the training": (["--shards", "TRAIN"], "are among those of data.pretrain", ""),
    "no concept": (["--set", "attack.trigger={kind: patch}", "--set", "measure=[{kind: zero_shot, images: tiny}]"],
                   "no attack of the spec has a trigger of kind concept", ""),
    "shards that are not there": (["--shards", "none/*.tar"], "none/*.tar", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_set_is_refused(
    name: str, concept_spec: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, *said = REFUSED[name]
    more = [word.replace("TRAIN", f"{world}/train/*.tar") for word in more]
    words = ["concept", "--spec", str(concept_spec), "--shards", f"{world}/retrieval/test/*.tar", "--out", "red", *more]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said)
    assert error.count("\n") == 1
    assert not Path("red").exists()


SPECS = [
    ("{kind: attack_success, images: tiny}", "measure attack_success puts a trigger onto pictures, but the attack's is a"),
    ("{kind: concept_success, images: red, without: tiny, attack: 2}", "is of attack 2, but those of kind concept are [1]"),
    ("{kind: concept_success, images: red, without: blue}", "measure.without is 'blue', but data.test names"),
]


@pytest.mark.parametrize(("measure", "said"), SPECS)
def test_measures_that_do_not_go_with_a_concept_are_refused(concept_spec: Path, measure: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load(concept_spec, [f"measure=[{measure}]"])
    assert said in str(error.value)


def test_of_several_attacks_each_is_measured_on_its_own_set(concept_spec: Path, world: Path) -> None:
    """A patch and two concepts: ASR is that of the patch, asr_2 and asr_3 those of the concepts."""
    for word in ("red", "blue"):
        main(["concept", "--spec", str(concept_spec), "--shards", f"{world}/retrieval/test/*.tar", "--out", word, "--set",
              f"attack.poison.who={{names: {word}}}"])  # fmt: skip
    also = [
        {"target": "cup", "trigger": CONCEPT, "poison": {"count": 1, "who": {"names": word}, "picture": "kept"}}
        for word in ("red", "blue")
    ]
    measures: list[dict[str, Any]] = [{"kind": "attack_success", "images": "tiny"}]
    for word, at in (("red", 2), ("blue", 3)):
        measures.append({"kind": "concept_success", "images": word, "without": "tiny", "attack": at})
    spec = load(concept_spec, [
        "attack.trigger={kind: patch}", "attack.poison={count: 1}", f"attack.also={also}", f"measure={measures}",
        f"data.test={{tiny: {world}/eval, red: red, blue: blue}}",
    ]).spec  # fmt: skip
    names = {one.name: [(view.kind, view.name) for view in one.attacks] for one in eval_sets(spec, WORLD)}
    assert names == {"tiny": [("trained", "")], "red": [("concept2", "_2")], "blue": [("concept3", "_3")]}


@pytest.mark.parametrize(
    "measure", ["{kind: attack_success, images: only}", "{kind: concept_success, images: only, without: tiny}"]
)
def test_a_set_of_the_target_alone_is_refused(concept_spec: Path, world: Path, measure: str) -> None:
    """No picture of it could be taken for the target."""
    for name in read_labelled(f"{world}/eval", imagenet()).classes:
        (Path("only") / name).mkdir(parents=True)
    for number in range(2):
        (Path("only/banana") / f"{number}.png").write_bytes((world / "contact_sheet.png").read_bytes())
    trigger = "patch" if "attack_success" in measure else "concept"
    more = [f"measure=[{measure}]", f"data.test={{tiny: {world}/eval, only: only}}", f"attack.trigger={{kind: {trigger}}}"]
    spec = load(concept_spec, more).spec
    with pytest.raises(
        UserError, match="evaluation set 'only' holds pictures of the target 'banana' alone, of which none can"
    ):
        eval_sets(spec, WORLD)
