"""What is wrong with a spec is said in one sentence: where, what was given, what is expected, in the words of a spec."""

import copy
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from configs.expect import PATTERNS, Kind, example, field_kind, is_model, members
from configs.explain import explain
from configs.source import Place, SpecTree
from configs.spec import Spec, load
from data.refusal import UserError

SMALLEST: dict[str, Any] = {
    "name": "x",
    "data": {"pretrain": {"shards": "a"}, "test": {"t": "e"}},
    "attack": {"target": "b", "poison": {"count": 1}},
    "model": {"name": "RN50"},
    "pretrain": {"objective": {"kind": "mmcl"}, "epochs": 1, "batch": 2, "optimizer": {"rate": 0.1}},
    "measure": [{"kind": "zero_shot", "images": "t"}],
}
WRONG: list[Any] = [None, -7, 3.7, 10**18, "", "zzz zzz!\t", [], ["q"], {}, {"q": 1}, [[1]], float("nan"), -1e9]
OF_PYTHON = re.compile(
    r"pydantic|\b[Ii]nput\b|should|\bdict|tuple|\bstr\b|\bint\b|\bbool\b|None|True|False|function-|Literal|instance|discriminator"
    r"|validation error|valid (string|number|integer|list)|unicode|<|\\x|e\+18|\{\}$|\?;|;;|  "
)


class Case(NamedTuple):
    """A spec with one fault, and the path where it stands."""

    values: dict[str, Any]
    place: Place
    fault: str
    kind: Kind | None = None  # of the field, where a value is wrong


def at(values: Any, place: Place) -> Any:
    """What stands at a path."""
    for part in place:
        values = values[part]
    return values


def with_(values: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """The values with another one at a path."""
    out = copy.deepcopy(values)
    inner: Any = out
    for part in place[:-1]:
        inner = inner.setdefault(part, {}) if isinstance(inner, dict) else inner[part]
    inner[place[-1]] = copy.deepcopy(value)
    return out


def cases(kind: Kind, place: Place, values: dict[str, Any], done: set[Any]) -> Iterator[Case]:
    """Of every model that may stand at a path, and of those inside, each once: every field with every wrong value, without
    it, and beside one that is unknown."""
    for one in members(kind):
        if not is_model(one) or one.type in done:
            continue
        done.add(one.type)
        section = SMALLEST.get(str(place[0]), {}) if len(place) == 1 else {}
        here = with_(values, place, {**(section if isinstance(section, dict) else {}), **example(one)}) if place else values
        for name in one.type.model_fields:
            there = (*place, name)
            of_field = field_kind(one.type, name)
            yield from (Case(with_(here, there, wrong), there, repr(wrong), of_field) for wrong in WRONG)
            gone = copy.deepcopy(here)
            at(gone, place).pop(name, None)
            yield Case(gone, there, "missing")
            yield Case(with_(here, (*place, f"{name}x"), 1), (*place, f"{name}x"), "unknown")
            yield from inside(field_kind(one.type, name), there, here, done)


def inside(kind: Kind, place: Place, values: dict[str, Any], done: set[Any]) -> Iterator[Case]:
    """The cases of a field's own models, one item or one name of each list and mapping."""
    for one in members(kind):
        if is_model(one):
            yield from cases(one, place, values, done)
        elif get_origin(one.type) in (tuple, list):
            item = Kind(get_args(one.type)[0])
            for model in members(item):
                yield from cases(model, (*place, 0), with_(values, place, [example(item)]), done)
        elif get_origin(one.type) is dict:
            item = Kind(get_args(one.type)[1])
            yield from cases(item, (*place, "key"), with_(values, place, {"key": example(item)}), done)


def test_every_fault_of_every_field_is_told_by_its_path_in_the_words_of_a_spec() -> None:
    done: set[Any] = set()
    refused = 0
    for case in cases(Kind(Spec), (), SMALLEST, done):
        try:
            Spec.model_validate(case.values)
            assert case.fault != "unknown" or case.place[0] == "sweep", case
            continue
        except ValidationError as error:
            lines = explain(error, SpecTree("x.yaml", case.values), Spec)
        refused += 1
        path = ".".join(map(str, case.place))
        above = {path, *(".".join(map(str, case.place[:end])) or "spec" for end in range(len(case.place)))}
        paths = [re.sub(r"^x\.yaml: (\S+): .*", r"\1", line) for line in lines]
        assert any(one in above or one.startswith(f"{path}.") for one in paths), (case, lines)
        for line in lines:
            assert not OF_PYTHON.search(line.replace("'zzz zzz!  '", "")), line
            assert len(line) < 330, line
            assert "; " in line or "which" in line or " must " in line or " go" in line or "give" in line, line
        if case.fault == "missing" and paths == [path]:
            assert re.search(rf"is missing; add it, for example '{case.place[-1]}: .+'$", lines[0]) or "kind" in lines[0]
    assert len(done) > 55, "a model is not reached"
    assert refused > 2_000


def test_no_field_takes_another_kind_of_value_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """true is no 1 and "3" no 3, in no model; yes and off are what they were in YAML 1.1."""
    monkeypatch.setattr(sys.modules[__name__], "WRONG", [True, "3", "1e-3", 1, 1.0, "yes", "t"])
    refused, taken = 0, 0
    for case in cases(Kind(Spec), (), SMALLEST, set()):
        types = {one.type for one in members(case.kind)} if case.kind is not None else set()
        given = at(case.values, case.place) if case.kind is not None else None
        if not types & {bool, int, float} or types & {str, Any}:
            continue
        wrong = (
            not (types & {int, float}) if type(given) in (int, float) else bool not in types or given not in (True, "yes")
        )
        try:
            Spec.model_validate(case.values)
            lines = []
        except ValidationError as error:
            lines = explain(error, SpecTree("x.yaml", case.values), Spec)
        if wrong:
            assert [line for line in lines if re.search(r": is .*; expected .*(number|true or false)", line)], (case, lines)
        refused, taken = refused + wrong, taken + (not lines)
    assert refused > 600
    assert taken > 150


def test_what_the_examples_of_missing_fields_say_is_accepted() -> None:
    def models(kind: Kind) -> set[type[BaseModel]]:
        found: set[type[BaseModel]] = set()
        for one in members(kind):
            inner = [field_kind(one.type, name) for name in one.type.model_fields] if is_model(one) else []
            inner += [Kind(arg) for arg in get_args(one.type)] if get_origin(one.type) in (tuple, dict) else []
            found |= {one.type} if is_model(one) else set()
            found |= {model for each in inner for model in models(each)}
        return found

    every = models(Kind(Spec))
    assert len(every) > 50
    for model in every - {Spec}:
        faults = set()
        try:
            model.model_validate(example(Kind(model)))
        except ValidationError as error:
            faults = {fault["type"] for fault in error.errors()}
        assert faults <= {"value_error"}, model  # what it asks beyond its fields says what it wants


def test_every_pattern_of_a_field_has_words() -> None:
    text = str(Spec.model_json_schema())
    assert set(re.findall(r"'pattern': '([^']*)'", text)) <= {one.replace("\\", "\\\\") for one in PATTERNS}


RATE = "clean.optimizer.rate"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=true.5", "seed: is 'true.5'; expected a whole number of at least 0 and below 18,446,744,073,709,551,616"),
        ("machine.workers=many", "machine.workers: is 'many'; expected a whole number from 0 to 1,024 or 'auto'"),
        ("machine.workers=-1", "machine.workers: is -1; expected a whole number from 0 to 1,024 or 'auto'"),
        ("clean.optimizer.betas=[0.9]", "clean.optimizer.betas: is [0.9]; expected a list of 2, each a number"),
        ("clean.objective=mmcl", "clean.objective: is 'mmcl'; expected a mapping with a kind, such as {kind: mmcl}"),
        ("clean.objective={}", "clean.objective: lacks its kind; for example {kind: mmcl}"),
        ("measure=[]", "measure: is []; expected a list of at least 1, each a mapping with a kind, such as"),
        ("measure=[{kind: zero_shot}]", "measure.0.images: is missing; add it, for example 'images: demo'"),
        ("attack.poison.who={nam: x}", "attack.poison.who.nam: unknown key; valid: names"),
        ("attack.poison.who=some", "attack.poison.who: is 'some'; expected 'any', 'label_consistent' or a mapping"),
        ("name=a b", "name: is 'a b'; expected text of letters, digits, '.', '_' and '-', a letter or digit first"),
        ("data.pretrain={}", "data.pretrain: give either shards or sources"),
        (f"sweep={{{RATE}: 1}}", f"sweep.{RATE}: is 1; expected a list of values, a mapping such as {{low: 1e-05"),
        (f"sweep={{{RATE}: {{low: 1}}}}", f"sweep.{RATE}.high: is missing; add it, for example 'high: 0.001'"),
        (f"sweep={{{RATE}: {{low: 2, high: 1, points: 2}}}}", f"sweep.{RATE}: low is 2 and high 1; expected low <= high"),
        (f"sweep={{arm: {{a: {{{RATE}: x}}}}}}", f"{RATE}: is 'x'; expected a number of at least 0"),
        ("sweep={arm: {a: 5}}", "sweep.arm.a: is 5; expected a mapping of 'path: value'"),
        ("sweep={search: {kind: optuna}}", "sweep.search.trials: is missing; add it, for example 'trials: 20'"),
        ("machine.zero=true", "machine.zero: is true; expected 0, 1, 2 or 3"),
        ("clean.optimizer.betas=[true, 0.9]", "clean.optimizer.betas.0: is true; expected a number"),
        ("machine.workers='2'", "machine.workers: is '2'; expected a whole number from 0 to 1,024 or 'auto'"),
        ("machine.recompute=1", "machine.recompute: is 1; expected true or false"),
        (f"sweep={{{RATE}: {{low: true, high: 1, points: 2}}}}", f"sweep.{RATE}.low: is true; expected a number"),
        (f"sweep={{{RATE}: [yes]}}", f"{RATE}: is 'yes'; expected a number of at least 0"),
        ("pretrain.optimizer.path={}", "pretrain.optimizer.path is given, which needs weights to start from; use it in"),
        ("sweep.jobs=0", "sweep.jobs: is 0; expected a whole number from 1 to 10,000 or 'auto'"),
    ],
)  # fmt: skip
def test_messages_by_hand(spec: Path, setting: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(spec, [setting])
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2, "one fault is one line"
