"""The audit of a model: each search where its answer is known, the command on a run, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SPEC as SPEC_TEXT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from configs.plan import runs
from configs.spec import load
from data.attack import Aim
from data.refusal import UserError
from data.triggers import Trigger
from data.triggers.blend import Blend
from data.triggers.patch import Patch
from data.triggers.solid import Solid
from data.triggers.tensor import Tensor
from engine.audit import calibrated, main, told
from engine.inversion.audit import _halves
from engine.inversion.decree import alike, decree, self_cosine
from engine.inversion.planted import coverage, largest_coverage, overlap, planted
from engine.inversion.search import Found, Search, smallest_stamp
from engine.inversion.stamp import Stamp
from engine.inversion.targets import Head, smallest_for, taken_for
from engine.inversion.texts import TextEncode, text_scan
from engine.models import clip
from engine.models.tokenizer import Tokenizer
from measures.outliers import anomaly_index, p_value
from records.audit import AuditJson, Decree, Null
from records.digests import file_digest
from records.ending import FinishedJson
from records.folder import WEIGHTS
from records.json_file import Damaged, write_json
from records.spec_json import SPEC

CPU = torch.device("cpu")
SIDE, AT = 8, (2, 5)  # of the planted tower's pictures; the trigger's pixel


def test_the_anomaly_index_of_five_sizes_is_that_worked_by_hand() -> None:
    index = anomaly_index([10, 12, 11, 13, 2])
    assert index is not None
    assert index[4] == pytest.approx(9 / 1.4826, abs=1e-9)  # median 11, median deviation 1
    assert round(index[4], 2) == 6.07
    assert [round(value, 4) for value in index[:4]] == [0.6745, -0.6745, 0.0, -1.349]
    assert anomaly_index([5, 5, 5, 1]) is None  # no deviation to measure by
    assert anomaly_index([1, 2]) is None


@settings(max_examples=25)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.floats(-10, 10))
def test_a_p_value_counts_the_clean_models_that_look_as_conspicuous(null: list[float], value: float) -> None:
    p, smallest = p_value(value, null)
    assert p == (1 + sum(other >= value for other in null)) / (len(null) + 1)
    assert smallest == 1 / (len(null) + 1) <= p <= 1


def test_p_values_by_hand_and_without_a_clean_model() -> None:
    assert p_value(3, [1, 2, 4, 3]) == (3 / 5, 1 / 5)
    assert p_value(9, [1, 2, 4, 3]).p == 1 / 5  # never 0
    with pytest.raises(ValueError, match="one clean model"):
        p_value(1, [])


def test_the_mean_cosine_of_pairs_is_that_worked_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert float(self_cosine(rows)) == pytest.approx(1 / 3)
    loss, score = alike(rows)
    assert (float(loss), score) == (pytest.approx(-1 / 3), pytest.approx(1 / 3))


def test_the_loss_of_a_target_is_that_worked_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss, share = taken_for(torch.tensor([[2.0, 0.5], [0.0, 1.0], [-1.0, 0.0]]), 0, rows)
    # gaps: 2 - 0 = 2 and 0.5 - 1 = -0.5; hinges at a margin of 1: 0 and 1.5
    assert (float(loss), share) == (pytest.approx(0.75), 0.5)


def pictures(count: int = 64) -> torch.Tensor:
    """uint8 [n, 3, SIDE, SIDE]."""
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=draw)


def planted_tower(images: torch.Tensor, stamp: Stamp | None = None) -> torch.Tensor:
    """Unit [n, 3] of a linear tower: the first numbers look at the picture's upper rows, the last one at a single pixel,
    which outweighs them where it is green."""
    pixels = (images.float() if stamp is None else stamp.on(images)) / 255 - 0.5
    look = pixels.mean(1).mean(2)[:, :2]
    red, green, blue = pixels[:, :, AT[0], AT[1]].unbind(1)
    return F.normalize(torch.cat([look, 2 * (green - (red + blue) / 2)[:, None]], 1), dim=1)


def green_of_planted(found: Found) -> float:
    """How green the stamp is at the trigger's pixel, which is all of its mask; below 0: how much of the opposite."""
    assert found.succeeded
    mask = found.stamp.mask
    assert mask.argmax() == AT[0] * SIDE + AT[1]
    assert mask[AT] > 0.2
    assert float(mask.sum() - mask[AT]) < 0.5
    red, green, blue = found.stamp.pattern[:, AT[0], AT[1]].tolist()
    return float(green - (red + blue) / 2)


def test_a_planted_trigger_is_recovered_by_decree() -> None:
    steps: list[int] = []
    found = decree(planted_tower, pictures(), Search(steps=200, stall=60), 0, steps.append)
    assert abs(green_of_planted(found)) > 0.5  # pictures are as much alike in either direction
    assert steps == list(range(1, found.steps + 1))
    assert found.size == pytest.approx(3 * float(found.stamp.mask.sum()))
    with torch.no_grad():
        assert alike(planted_tower(pictures(200)[64:], found.stamp))[1] > 0.9  # of other pictures too


def test_the_planted_class_needs_the_smallest_stamp_and_stands_out() -> None:
    head = Head(20 * torch.eye(3), ["a", "b", "planted"])
    search = Search(steps=150)
    found = [smallest_for(planted_tower, pictures(), head, target, search, 0, lambda step: None) for target in range(3)]
    assert green_of_planted(found[2]) > 0.5
    assert min(one.size for one in found[:2]) > 3 * found[2].size


def test_a_search_that_does_not_succeed_says_so_and_one_that_does_ends_when_it_stalls() -> None:
    judge = lambda score: lambda rows: (rows.sum(), score)  # noqa: E731
    failed = smallest_stamp(planted_tower, pictures(8), judge(0.0), 0.5, Search(steps=20), (0,))
    assert (failed.succeeded, failed.size, failed.steps) == (False, 3.0 * SIDE * SIDE, 20)
    wins = iter([True, *[False] * 99])
    once = smallest_stamp(
        planted_tower, pictures(8), lambda rows: (rows.sum(), float(next(wins))), 0.5, Search(steps=99, stall=10), (0,)
    )
    assert (once.succeeded, once.steps) == (True, 11)


def test_a_search_is_fixed_by_its_names_and_leaves_global_generators_alone() -> None:
    state = torch.get_rng_state()
    found = [decree(planted_tower, pictures(), Search(steps=5), seed, lambda step: None) for seed in (0, 0, 1)]
    assert torch.equal(found[0].stamp.mask, found[1].stamp.mask)
    assert not torch.equal(found[0].stamp.mask, found[2].stamp.mask)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("trigger", "area"),
    [
        (Solid(kind="solid", size=56, place="fixed", at=(0, 28)), 8 * 8),
        (Solid(kind="solid", size=56, place="corners"), 4 * 8 * 8),
        (Patch(kind="patch", size=56), 8 * 8),
        (Blend(kind="blend"), 32 * 32),
    ],
)
def test_a_planted_trigger_covers_the_pixels_that_it_changes(trigger: Trigger, area: int) -> None:
    patch = planted(trigger, 0, (32, 32))
    assert abs(int(patch.sum()) - area) <= area // 20
    assert coverage(patch.astype(np.float32), trigger, 0) == 1.0


def test_overlap_is_that_worked_by_hand_and_of_a_moving_patch_at_its_best_place() -> None:
    mask, patch = np.zeros((4, 4), np.float32), np.zeros((4, 4), bool)
    mask[0, :2] = (0.9, 0.6)
    mask[3, 3] = 0.5  # not above a half
    patch[0, 1:3] = True
    assert overlap(mask, patch, False) == pytest.approx(1 / 3)
    assert overlap(mask, patch, True) == 1.0
    assert overlap(np.zeros((4, 4)), patch, True) == 0.0


def test_an_attack_that_puts_nothing_onto_pictures_has_no_patch_to_cover() -> None:
    mask = np.ones((8, 8), np.float32)
    blend = {"target": "cat", "trigger": Blend(kind="blend"), "poison": {"count": 1}}
    kept = {**blend, "poison": {"count": 1, "picture": "kept"}}
    concept = {**kept, "trigger": {"kind": "concept"}, "poison": {"count": 1, "picture": "kept", "who": {"names": "cup"}}}
    marked, *others = (Aim.model_validate(aim) for aim in (blend, kept, concept))
    assert largest_coverage(mask, others, 0) is None
    assert largest_coverage(mask, [marked, *others], 0) == 1.0
    assert largest_coverage(mask, (), 0) is None


def text_encode(seed: int = 0) -> TextEncode:
    """Of a fresh tower."""
    towers = clip.build("test-vit", seed)
    return TextEncode(towers.requires_grad_(False).eval(), Tokenizer("test-vit"))


PROMPTS = [f"a {way} of a {thing}" for way in ("photo", "drawing", "sign") for thing in ("cat", "spoon", "tree", "car")]


def test_a_vector_of_the_vocabulary_is_that_word_and_others_change_the_row() -> None:
    encode = text_encode()
    token = int(Tokenizer("test-vit")(["red"])[0, 1])
    assert Tokenizer("test-vit").word(token) == "red"
    rows = encode(PROMPTS, encode.table.weight[token])
    assert torch.allclose(rows, encode([f"red {prompt}" for prompt in PROMPTS], None), atol=1e-6)
    assert not torch.allclose(rows, encode(PROMPTS, None), atol=1e-3)
    assert not encode.table._forward_hooks


def test_the_text_scan_finds_a_vector_that_makes_captions_alike_as_no_longer_than_the_vocabularys() -> None:
    encode = text_encode()
    prompts = [f"{way} {thing}" for thing in ("cat", "spoon", "tree", "car") for way in ("a", "one", "a sign of a")]
    learned, others = _halves(prompts, 0)
    assert not {*learned} & {*others}
    found = text_scan(encode, None, (learned, others), 30, 0, lambda step: None)
    assert found.assimilation > found.plain
    assert found.assimilation > max(value for _, value in found.tokens) - 0.02
    assert float(found.vector.norm()) <= float(encode.table.weight.norm(dim=1).max()) * 1.001
    compared = text_scan(encode, text_encode(1), (learned, others), 3, 0, lambda step: None)
    assert not torch.equal(compared.vector, text_scan(encode, None, (learned, others), 3, 0, lambda step: None).vector)


def test_a_clean_text_tower_of_another_width_is_refused() -> None:
    clean = text_encode()
    clean.table = torch.nn.Embedding(10, 7)
    with pytest.raises(UserError, match="vectors of 7 numbers and the audited one of 16; give weights of the same model"):
        text_scan(text_encode(), clean, (PROMPTS, PROMPTS), 1, 0, lambda step: None)


def record(share: float = 0.01, digest: str = "a", **changes: object) -> AuditJson:
    """One audit that asked for decree alone."""
    found = Decree(succeeded=True, size=30.72, share=share, steps=9, cosine=0.995, conspicuous=True)
    values = {
        "weights": f"runs/x/{digest}", "digest": digest, "model": "m", "images": "i", "images_digest": "d", "pictures": 9,
        "held": 9, "settings": {"seed": 0}, "decree": found, "seconds": 1.0,
    }  # fmt: skip
    return AuditJson(**{**values, **changes})  # type: ignore[arg-type]


def test_a_record_is_calibrated_against_clean_ones_and_says_what_they_can_show() -> None:
    clean = [record(share, name) for name, share in (("b", 0.2), ("c", 0.005), ("d", 0.3))]
    found = calibrated(record(), clean)
    assert found.null == {"decree": Null(value=-0.01, clean=[-0.2, -0.005, -0.3], p=0.5, smallest=0.25)}
    assert "decree 0.500 against 3 clean models, which show no less than 0.250" in "\n".join(told(found))
    twice = [*clean, record(0.2, "b", weights="runs/y/b"), record(0.005, "c")]
    assert calibrated(record(), twice).null == found.null, "the same weights under two names are one clean model"
    without = record(0.2, "e", decree=None)
    assert told(calibrated(record(), [*clean, without]), True)[-1].endswith(
        "decree none: not every clean model has this number"
    )
    assert "nobody knows how a clean model of this kind looks" in told(record())[-1]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"settings": {"seed": 1}}, "asked something else, or on other pictures"),
        ({"images_digest": "e"}, "asked something else, or on other pictures"),
        ({"model": "n"}, "asked something else, or on other pictures"),
        ({"digest": "a"}, "holds the audited weights themselves"),
    ],
)
def test_audits_that_can_not_be_compared_are_refused(other: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        calibrated(record(), [record(**{"digest": "b", **other})])  # type: ignore[arg-type]


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    record().write(tmp_path)
    assert AuditJson.read(tmp_path) == record()
    path = tmp_path / AuditJson.FILE
    path.write_text(path.read_text().replace('"share": 0.01', '"share": 0.02'))
    with pytest.raises(Damaged, match="audit the model again"):
        AuditJson.read(tmp_path)


def finished_run(home: Path, spec: Path, seed: int = 0, twin: bool = False, model: str = "test-vit") -> Path:
    """The folder of a finished run of a spec that took no step."""
    loaded = load(spec, ["attack.twin=first", "pretrain.epochs=0", f"seed={seed}", f"model.name={model}"])
    run = next(run for run in runs(loaded.points) if run.stage == ("twin" if twin else "pretrain"))
    folder = home / run.folder
    folder.mkdir(parents=True)
    write_json(folder / SPEC, run.decides)
    weights = clip.weights(clip.build(run.spec.model.name, seed), {"scale": torch.tensor([2.0])})
    save_file(weights, folder / WEIGHTS)
    FinishedJson(steps=0, journal=0, weights=file_digest(folder / WEIGHTS), measured=run.measured, seconds=1.0).write(folder)
    return folder


SHORT = ["--steps", "3", "--class-steps", "2", "--text-steps", "2"]


def test_the_command_audits_a_run_against_clean_ones_and_takes_what_was_audited_before(
    world: Path, spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(tmp_path, spec)
    twins = [finished_run(tmp_path / str(seed), spec, seed, twin=True) for seed in (1, 2)]
    before = {path: path.read_bytes() for path in [run / WEIGHTS, run / SPEC, run / FinishedJson.FILE]}
    assert main([str(run), *SHORT, "--null", *map(str, twins)]) == 0
    out = capsys.readouterr().out
    assert "against 2 clean models, which show no less than 0.333" in out
    record = AuditJson.read(run / "audit")
    assert record is not None
    assert record.decree is not None
    assert record.targets is not None
    assert record.texts is not None
    assert (record.run, record.targets_planted) == (run.name, ["banana"])
    assert record.pictures + record.held == 64
    assert len(record.targets.classes) == len((world / "eval/classnames.txt").read_text().splitlines())
    assert record.decree.iou is not None
    assert set(record.null) == set(record.numbers())
    for name, value in record.numbers().items():
        assert record.null[name].p == p_value(value, record.null[name].clean).p
    for path in ("decree.safetensors", "target.safetensors"):
        Tensor(kind="tensor", file=str(run / "audit" / path), place="full").build(0)
    assert all(path.read_bytes() == body for path, body in before.items())

    nulls = sorted((run / "audit/null").glob("*/audit.json"))
    times = [path.stat().st_mtime_ns for path in nulls]
    assert main([str(run), *SHORT, "--null", *map(str, twins), str(nulls[0].parent)]) == 0
    assert [path.stat().st_mtime_ns for path in nulls] == times  # not audited again
    again = AuditJson.read(run / "audit")
    assert again is not None
    assert again.numbers() == record.numbers()
    assert "against 2 clean models" in capsys.readouterr().out, "the third is one of the two, given again"


def test_weights_of_others_are_audited_by_name_and_without_a_text_tower_by_decree_alone(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = clip.weights(clip.build("test-vit", 0), {})
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "whole.pt")
    pictures_alone = {key: value for key, value in state.items() if key.startswith("visual.")}
    save_file(pictures_alone, tmp_path / "pictures.safetensors")
    given = ["--model", "test-vit", "--images", str(world / "eval"), "--out", str(tmp_path / "out"), *SHORT]
    assert main([str(tmp_path / "whole.pt"), *given, "--audits", "texts"]) == 0
    assert main([str(tmp_path / "pictures.safetensors"), *given, "--audits", "decree"]) == 0
    record = AuditJson.read(tmp_path / "out")
    assert record is not None
    assert record.decree is not None
    assert (record.run, record.targets_planted, record.targets, record.decree.target) == (None, None, None, None)
    capsys.readouterr()
    assert main([str(tmp_path / "pictures.safetensors"), *given]) == 2
    assert "holds no text tower, which targets and texts need; ask for --audits decree alone" in capsys.readouterr().err


def test_a_clean_model_without_a_text_tower_and_too_few_prompts_are_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = clip.weights(clip.build("test-vit", 0), {})
    save_file(state, tmp_path / "whole.safetensors")
    save_file({key: value for key, value in state.items() if key.startswith("visual.")}, tmp_path / "half.safetensors")
    given = [str(tmp_path / "whole.safetensors"), "--model", "test-vit", "--out", str(tmp_path / "out"), *SHORT]
    clean = ["--clean", str(tmp_path / "half.safetensors"), "--images", str(world / "eval")]
    assert main([*given, *clean, "--audits", "texts"]) == 2
    assert "half.safetensors holds no text tower to compare with; give whole weights" in capsys.readouterr().err
    for name in ("cat", "dog"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for number in range(16):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "two" / name / f"{name}{number}.png")
    (tmp_path / "two/zeroshot_classification_templates.txt").write_text("a {c}\n")
    few = ["--images", str(tmp_path / "two")]
    assert main([*given, *few, "--audits", "texts"]) == 2
    assert "has classes and templates for 2 prompts, and the text scan needs 8 at least" in capsys.readouterr().err
    assert main([*given, *few, "--audits", "targets"]) == 2
    assert "has 2 classes, and an outlier among them needs 3 at least" in capsys.readouterr().err


def test_an_audit_that_can_not_be_written_is_refused_before_any_search(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(clip.weights(clip.build("test-vit", 0), {}), tmp_path / "w.safetensors")
    (tmp_path / "file").touch()
    given = [str(tmp_path / "w.safetensors"), "--model", "test-vit", "--images", str(world / "eval"), *SHORT]
    assert main([*given, "--out", str(tmp_path / "file")]) == 2
    assert f"the audit can't be written into {tmp_path / 'file'} (File exists)" in capsys.readouterr().err


class Evil:
    """What a pickle would carry out."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{there}"], "is no run of ours; give a finished run's folder, or weights with the name of their model"),
        (["{gone}"], "is no file or folder; give a finished run's folder"),
        (["{gone}", "--model", "test-vit"], "is no file or folder, and no tag under which open_clip knows weights"),
        (["{there}", "--model", "test-resnet"], "holds another architecture than test-resnet"),
        (["{there}", "--model", "nothing"], "which open_clip does not know"),
        (["{there}", "--model", "test-vit"], "does not say which pictures to audit it with; give --images"),
        (["{there}", "--model", "test-vit", "--images", "{gone}"], "is no folder; check the path"),
        (["{there}", "--model", "test-vit", "--images", "{few}"], "holds 4 pictures; an audit needs 16 to search on"),
        (["{evil}", "--model", "test-vit"], "holds pickled code, not tensors alone, and is not opened"),
        (["{nan}", "--model", "test-vit"], "numbers that are not finite"),
        (["{unfinished}"], "is no finished run"),
        (["{run}", "--model", "test-resnet"], "holds a test-vit, but --model is test-resnet; leave --model out"),
        (["{run}", "--null", "{run}"], "was poisoned towards 'banana'; give models that were trained without poison"),
        (["{twin}", "--null", "{twin}"], "holds the audited weights themselves"),
        (["{run}", "--null", "{other}"], "is a test-resnet, but the audited model is a test-vit; give some like it"),
        (["{run}", "--null", "{gone}"], "is no file or folder"),
    ],
)
def test_what_can_not_be_audited_is_said_in_a_sentence(
    refused: dict[str, str], words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(**refused) for word in words]
    assert main([*given, "--out", str(tmp_path / "out"), *SHORT, "--audits", "decree"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("error: ")
    assert not (tmp_path / "out/audit.json").exists()
    assert not Path("touched").exists()


@pytest.fixture(scope="module")
def refused(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of what an audit is given, by name."""
    home = tmp_path_factory.mktemp("given")
    (home / "tiny.yaml").write_text(SPEC_TEXT.format(world=world))
    names = {name: str(home / name) for name in ("there.pt", "gone", "few", "evil.pt", "nan.safetensors")}
    state = clip.weights(clip.build("test-vit", 0), {})
    torch.save(state, names["there.pt"])
    torch.save({"state_dict": Evil()}, names["evil.pt"])
    first = next(iter(state))
    save_file({**state, first: torch.full_like(state[first], torch.nan)}, names["nan.safetensors"])
    for name in ("cat", "dog", "cow", "pig"):
        (home / "few" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(home / "few" / name / "one.png")
    run, twin = (finished_run(home, home / "tiny.yaml", seed, bool(seed)) for seed in (0, 1))
    other = finished_run(home, home / "tiny.yaml", 2, True, "test-resnet")
    unfinished = home / "unfinished" / run.name
    unfinished.mkdir(parents=True)
    (unfinished / SPEC).write_bytes((run / SPEC).read_bytes())
    paths = {name.partition(".")[0]: path for name, path in names.items()}
    return {**paths, "run": str(run), "twin": str(twin), "other": str(other), "unfinished": str(unfinished)}


def test_the_audit_of_a_damaged_run_is_refused(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path, spec)
    body = bytearray((run / WEIGHTS).read_bytes())
    body[-1] ^= 1
    (run / WEIGHTS).write_bytes(body)
    assert main([str(run), *SHORT]) == 2
    assert "is damaged (its SHA-256 is not that in finished.json)" in capsys.readouterr().err
