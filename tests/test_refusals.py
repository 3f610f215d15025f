"""One check for --dry-run and the run: what one refuses the other refuses in the same words, before anything is written."""

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import antidote, settings
from safetensors.torch import load_file, save_file

from configs.plan import Run, runs
from configs.spec import load
from data.refusal import UserError
from engine.estimate.cost import Cost, cost, number
from engine.estimate.dry_run import dry_run, pairs_drawn
from engine.estimate.gpus import Assumed, Gpu
from engine.evaluation.sets import eval_set
from engine.models import clip
from engine.run import main
from engine.study.check import refusals as study_refusals
from engine.study.scheduler import Scheduler
from engine.training.check import at_hand, refusals
from engine.training.inputs import StudyInputs
from measures.detectors import approximate, neighbourhood

NORMS = "model.name=test-resnet"
START = "clean.start={{path: {folder}/start.safetensors}}"
SUPERVISED = "clean.objective={{kind: supervised, classes: 10}}"
BROKEN = {  # what is wrong: (settings, processes, words of the sentence)
    "batch": (["pretrain.batch=18"], 4, "pretrain.batch is 18, which does not divide over 4 processes"),
    "groups": ([NORMS, "model.norm_group=6"], 1, "model.norm_group is 6"),
    "micro-batch": ([NORMS, "model.norm_group=4", "machine.micro_batch=6"], 1, "no multiple of BatchNorm's groups"),
    "model": (["model.name=demo-vitt"], 1, "model.name is 'demo-vitt', which open_clip does not know"),
    "tokenizer": (["model.name=ViT-B-16-SigLIP"], 1, "needs a tokenizer from a hub"),
    "trimming": (["model.name=coca_ViT-B-32", "machine.trim_text=always"], 1, "machine.trim_text is always"),
    "no BatchNorm": (["clean.norms=frozen"], 1, "clean.norms is frozen, but test-vit has no BatchNorm"),
    "optimizer": (["machine.adam=deepspeed_fused"], 1, "machine.adam is 'deepspeed_fused', which does not work here"),
    "a path": (["clean.optimizer.path={{rho: 0.5}}", "machine.zero=3"], 1, "clean.optimizer.path moves weights that"),
    "a line": (["clean.transform={{kind: line, to: {{path: {folder}/none}}}}"], 1, "transform.to.path is {folder}/none"),
    "target": (["attack.target=bananna"], 1, "attack.target is 'bananna', which is none of the 32 class names"),
    "evaluation folder": (["data.test={{tiny: {folder}/none}}"], 1, "evaluation set {folder}/none is no folder"),
    "evaluation without pictures": (["data.test={{tiny: {folder}/empty}}"], 1, "evaluation set {folder}/empty has"),
    "templates": (["attack.captions={folder}/none.txt"], 1, "{folder}/none.txt: No such file"),
    "trigger": (["attack.trigger={{kind: tensor, file: {folder}/none.png}}"], 1, "attack.trigger.file {folder}/none.png"),
    "poison": (["attack.poison.count=500"], 1, "attack.poison.count is 500, but the shards hold 192 pairs"),
    "clean set": (["data.clean.pairs=190"], 1, "data.clean.pairs is 190, but only 180 pairs are not poisoned"),
    "large batch": (["clean.batch=100"], 1, "batch is 100, but there are 64 pairs"),
    "clusters": (["clean.objective={{kind: deep_cluster, classes: 100}}"], 1, "objective.classes is 100, but there are 64"),
    "detectors": (["detect={{detectors: [{{kind: dao, references: 9}}]}}"], 1, "detector dao: k is 16, but there are 9"),
    "labels": (["clean.objective={{kind: deep_cluster, labels: {folder}/none}}"], 1, "{folder}/none: No such file"),
    "start": (["clean.start={{path: {folder}/none}}"], 1, "start.path is {folder}/none, which holds no weights"),
    "other architecture": ([START, NORMS], 1, "holds another architecture than test-resnet"),
    "no moments": ([START, "clean.optimizer.state=inherited"], 1, "optimizer.state needs AdamW's moments"),
    "nothing to inherit": (["pretrain.epochs=0", "clean.optimizer.state=inherited"], 1, "pretrain.epochs is 0"),
    "a tag": (["clean.start={{pretrained: opena}}"], 1, "start.pretrained is 'opena', which open_clip does not know"),
    "no shards": (["data.pretrain.shards=none/*.tar"], 1, "shards 'none/*.tar' match no complete set of files"),
    "no clean shards": (["data.clean.shards=none/*.tar"], 1, "shards 'none/*.tar' match no complete set of files"),
    "a pipe": (["data.pretrain.shards=pipe:cat x"], 1, "name the scheme 'pipe'"),
    "endless braces": (["data.pretrain.shards=x/{{0..999999999999}}.tar"], 1, "more than 1,000,000"),
    "a compressed shard": (["data.pretrain.shards={folder}/start.tar.gz"], 1, "but the shards hold 0 pairs"),
    "a hub's model": (["model.name=hf-hub:a/b"], 1, "model.name is 'hf-hub:a/b', which open_clip does not know"),
    "a hub's text tower": (["model.name=roberta-ViT-B-32"], 1, "needs a tokenizer from a hub"),
    "retrieval on labels": (["measure=[{{kind: retrieval, images: tiny}}]"], 1, "has a picture or captions but not both"),
    "another target": (["attack.also=[{{target: x, poison: {{count: 1}}}}]"], 1, "attack.target is 'x', which is none of"),
    "a proxy's target": (["attack.proxy={{target: x, trigger: {{kind: patch}}}}"], 1, "attack.proxy.target is 'x'"),
    "a pair's key": (["attack.poison={{count: 5, picture: one, key: zz}}"], 1, "attack.poison.key is 'zz'"),
    "a word": (["attack.poison={{count: 5, who: {{names: zzz}}}}"], 1, "only 0 pairs qualify"),
    "held out": (["data.clean={{pairs: 192, held_out: true}}"], 1, "held out of 192 pairs; none would be left"),
    "leftover": (["data.clean={{pairs: 100, leftover: 50}}"], 1, "data.clean.leftover is 50, but 12 pairs are poisoned"),
    "labelled": (["data.clean={{labelled: none}}", SUPERVISED], 1, "data.clean.labelled none is no folder"),
    "no labels": ([SUPERVISED], 1, "clean.objective is supervised, but data.clean.labelled is not given"),
    "flags": (["clean.objective={{kind: unlearn, flags: none}}"], 1, "none: No such file or directory"),
    "weights": (["clean.start={{path: {folder}/tiny.yaml}}"], 1, "and is not opened"),
    "half weights": (["clean.start={{path: {folder}/half.safetensors}}"], 1, "is no whole safetensors file"),
    "a long path": (["data.test={{tiny: " + "x" * 300 + "}}"], 1, "File name too long"),
    "words": (["data.augment={{synonyms: wordnet, wordnet: none}}"], 1, "WordNet is not in none"),
    "scheme": (["data.pretrain.shards=ftp://host/a.tar"], 1, "name the scheme 'ftp'"),
    "workers' batch": (["sweep={{executor: local, processes: 3}}"], 1, "which does not divide over 3 processes"),
    "stage": (["--stage", "clean"], 1, "is not finished; run the pretrain stage first"),
}  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of test-vit, as a run leaves them."""
    from engine.models import clip

    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_file(clip.weights(clip.build("test-vit", 0), {"scale": torch.ones(1)}), path)
    return path


@pytest.mark.parametrize("fault", BROKEN)
def test_the_dry_run_refuses_what_the_run_refuses_in_the_same_words(spec: Path, start: Path, fault: str) -> None:
    sets, processes, words = BROKEN[fault]
    folder = spec.parent
    shutil.copy(start, folder)
    (folder / "empty").mkdir()
    (folder / "start.tar.gz").write_bytes(b"x")
    (folder / "half.safetensors").write_bytes(start.read_bytes()[:100])
    before = sorted(path.name for path in folder.iterdir())
    given = [one.format(folder=folder) for one in sets]
    command = ["--spec", spec.name, *(given if given[0] == "--stage" else settings(*given))]
    dry = antidote(*command, "--dry-run", *(["--processes", str(processes)] if processes > 1 else []), cwd=folder)
    assert dry.returncode == 2, dry.stdout + dry.stderr
    assert dry.stdout == ""
    assert words.format(folder=folder) in dry.stderr
    assert ";" in dry.stderr or "valid:" in dry.stderr, "it says what to do"
    assert sorted(path.name for path in folder.iterdir()) == before, "nothing was written"
    run = antidote(*command, cwd=folder, processes=processes)
    said = [out.stderr[out.stderr.index("error:") :] for out in (dry, run)]  # a slow machine shows progress before it
    assert (run.returncode, said[1]) == (2, said[0]), "the same command would not help"
    assert not (folder / "runs/tiny").exists(), "nothing was begun"


def test_a_fault_of_a_later_run_is_refused_before_the_first_and_every_fault_is_told(spec: Path) -> None:
    sweep = "sweep={seed: [1, 2], clean.batch: [16, 24, 100]}"
    out = antidote("--spec", spec.name, *settings(sweep, "attack.target=x"), cwd=spec.parent)
    assert out.returncode == 2
    assert "batch is 100, but there are 64 pairs" in out.stderr
    assert out.stderr.count("attack.target is 'x'") == 1
    assert not (spec.parent / "runs/tiny").exists()


def faults(spec: Path, sets: list[str], scratch: Path, processes: int = 1, gpu: Any = None) -> tuple[list[str], list[str]]:
    """(what is refused, what is only missing) of a spec's runs by a dry run."""
    scratch.mkdir(exist_ok=True)
    shared = StudyInputs(spec.parent / "runs/tiny", Assumed(processes, gpu).world, scratch)
    refused, missing = at_hand(
        refusals([(run, processes) for run in runs(load(spec, sets).points)], shared),
        load(spec, sets).spec.data.pretrain.expect is not None,
    )
    return [str(error) for error in refused], [str(error) for error in missing]


@pytest.mark.parametrize("gpu", [None, Gpu("H100-80GB", 81_559 << 20)])
def test_an_objective_that_no_memory_holds_is_refused_before_it_is_made(spec: Path, tmp_path: Path, gpu: Any) -> None:
    for objective, words in (
        ("{kind: roclip, pool: 1000000000000}", "238,419 GiB beside the model, above all for roclip.pool"),
        ("{kind: slip, hidden: 1000000000}", "above all for slip.1.weight (1,000,000,000 x 1,000,000,000), more than"),
        ("{kind: slip, hidden: 1000000000000000000}", "asks for more numbers than can be counted; lower what"),
        ("{kind: sum, parts: [{objective: {kind: mmcl}}, {objective: {kind: roclip, pool: 1000000000000}}]}", "roclip.pool"),
    ):
        sets = [f"pretrain.objective={objective}", "clean=null", "data.augment={synonyms: none}"]
        (refused,), _ = faults(spec, sets, tmp_path / "scratch", gpu=gpu)
        assert refused.startswith("pretrain.objective "), refused
        assert words in refused


def test_pairs_that_no_detector_can_compare_are_refused_before_they_are_trained_on(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbourhood, "EXACT", 191)
    monkeypatch.setattr(approximate, "find_spec", lambda name: None)
    told = "the pairs can't be scored: detector slof: 192 rows are too many to compare all with all, and faiss is not"
    for section, words in (
        ("detectors: [{kind: slof}]", told),
        ("detectors: [{kind: slof, among: pairs}]", told.replace("192", "384")),
        ("detectors: [{kind: slof, references: 99}, {kind: slof, form: published, name: x}, {kind: clip_score}]", ""),
        ("detectors: [{kind: slof, form: published, batch: 17}]", "a batch of the published form has 17 pairs; lower k"),
    ):
        refused, _ = faults(spec, [f"detect={{{section}}}"], tmp_path / "scratch")
        assert len(refused) == bool(words)
        assert words in "".join(refused)


def test_another_number_of_pairs_is_said(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for expect, words in (
        (192, ""),
        (1000, "data.pretrain.expect is 1,000, but the shards hold 192 pairs; what is there counts\n"),
    ):
        assert faults(spec, [f"data.pretrain.expect={expect}"], tmp_path / "scratch") == ([], [])
        assert capsys.readouterr().err == words


def test_where_the_pairs_are_not_at_hand_other_files_may_be_missing_too(spec: Path, tmp_path: Path) -> None:
    away = ["data.pretrain.shards=none/*.tar", "data.test={tiny: none}", "data.pretrain.expect=1000"]
    refused, missing = faults(spec, away, tmp_path / "scratch")
    assert refused == []
    assert [words.split(";")[0] for words in missing] == [
        "shards 'none/*.tar' match no complete set of files (nothing matches)",
        "evaluation set none is no folder",
    ]
    refused, _ = faults(spec, [away[0], away[2], "attack.target=x"], tmp_path / "scratch")
    assert len(refused) == 1, "what is at hand is looked at"
    out = antidote("--spec", spec.name, "--dry-run", *settings(*away), cwd=spec.parent)
    assert out.returncode == 0
    assert "evaluation set none is no folder: not looked at" in out.stdout
    assert antidote("--spec", spec.name, *settings(*away), cwd=spec.parent).returncode == 2


def test_a_gpu_that_is_assumed_may_do_what_this_cpu_may_not(spec: Path, tmp_path: Path) -> None:
    from engine.estimate.gpus import Gpu

    fused = ["machine.adam=deepspeed_fused"]
    assert len(faults(spec, fused, tmp_path / "scratch")[0]) == 1
    assert faults(spec, fused, tmp_path / "scratch", gpu=Gpu("H100-80GB", 80 << 30)) == ([], [])


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any socket is a failure."""

    def refused(*given: Any, **more: Any) -> Any:
        raise AssertionError("a dry run opens a socket")

    for name in ("socket", "getaddrinfo", "create_connection", "socketpair"):
        monkeypatch.setattr(socket, name, refused)


@pytest.mark.parametrize("shards", ["s3://bucket/{0..9}.tar", "https://huggingface.co/a/*.tar"])
@pytest.mark.parametrize("package", [True, False])
@pytest.mark.usefixtures("no_network")
def test_a_dry_run_asks_no_store(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: str, package: bool
) -> None:
    """Where its package is missing, the run here would end, which is refused unless the pairs are expected elsewhere."""

    def check(path: str) -> None:
        if not package:
            raise UserError(f"{path}: no package; install it")

    monkeypatch.setattr("engine.training.pairs.check_package", check)
    sets = [f"data.pretrain.shards={shards}", "model.name=RN50-quickgelu", "clean.start={pretrained: openai}"]
    told = f"shards '{shards}' are in a store, which is not asked" if package else f"{shards}: no package; install it"
    assert faults(spec, sets, tmp_path / "here") == (([], [told]) if package else ([told], []))
    sets += ["data.test={tiny: 's3://bucket/eval'}", "data.pretrain.expect=1000"]
    evaluation = "evaluation set s3://bucket/eval is no folder; check the path"
    assert faults(spec, sets, tmp_path / "elsewhere") == ([], [told, evaluation])


@pytest.mark.parametrize("model", ["hf-hub:a/b", "roberta-ViT-B-32", "ViT-B-16-SigLIP", "xlm-roberta-base-ViT-B-32"])
@pytest.mark.usefixtures("no_network")
def test_a_model_that_lies_on_a_hub_is_refused_without_asking_it(spec: Path, tmp_path: Path, model: str) -> None:
    refused, _ = faults(spec, [f"model.name={model}"], tmp_path / "scratch")
    assert len(refused) == 1
    assert model in refused[0]
    assert ";" in refused[0]


def test_pairs_that_can_not_be_counted_cost_a_question_mark_and_never_0(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("engine.training.pairs.check_package", lambda path: None)
    monkeypatch.setattr("engine.deferred.without_compiler", lambda: None)  # this process may need it
    away = settings("data.pretrain.shards=s3://bucket/{0..9}.tar")
    assert main(["--spec", str(spec), *away, "--dry-run", "--dollars", "2"]) == 0
    text = capsys.readouterr().out
    assert "in all ? GPU-hours, ? dollars" in text
    assert "are in a store, which is not asked: its pairs are unknown" in text
    assert main(["--spec", str(spec.parent), *away, "--dry-run", "--dollars", "2"]) == 0
    total = next(line for line in capsys.readouterr().out.splitlines() if " total " in line)
    assert [cell.strip() for cell in total.split("│")[2:-1]] == ["1", "1", "?", "?", "?", "?"]
    assert main(["--spec", str(spec), *away, *settings("data.pretrain.expect=1600"), "--dry-run"]) == 0
    assert "in all 0.0" in capsys.readouterr().out, "a small number, with its digits"


def test_start_weights_are_judged_by_their_header(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from configs.stage import Optimizer
    from engine.training.init_weights import check_start

    monkeypatch.setattr("engine.training.init_weights.read", lambda path: pytest.fail("the file is read whole"))
    check_start(start, "test-vit", Optimizer(rate=1))
    other = tmp_path / "other.safetensors"
    weights = load_file(start)
    weights["text_projection"] = weights["text_projection"][:-1].clone()
    save_file(weights, other)
    with pytest.raises(UserError, match=r"1 tensors differ, first text_projection \(\["):
        check_start(other, "test-vit", Optimizer(rate=1))
    other.write_bytes(start.read_bytes()[:100])
    with pytest.raises(UserError, match="is no whole safetensors file"):
        check_start(other, "test-vit", Optimizer(rate=1))


@pytest.mark.parametrize(("executor", "refused"), [("here", ["pretrain", "clean"]), ("local", ["pretrain"])])
def test_a_folder_of_specs_is_checked_for_the_processes_that_carry_each_stage_out(
    spec: Path, executor: str, refused: list[str]
) -> None:
    """Three processes pre-train together; where they start workers, each of those cleans by itself."""
    words = ["--spec", str(spec.parent), "--dry-run", "--processes", "3", *settings(f"sweep={{executor: {executor}}}")]
    out = antidote(*words, cwd=spec.parent)
    assert out.returncode == 2
    for stage in ("pretrain", "clean"):
        assert (f"{stage}.batch is " in out.stderr) == (stage in refused), out.stderr


def test_a_set_that_was_checked_is_not_read_again_for_the_run(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.evaluation import sets

    read, read_labelled = list[str](), sets.read_labelled
    monkeypatch.setattr(sets, "read_labelled", lambda folder, *rest: (read.append(folder), read_labelled(folder, *rest))[1])
    shared = StudyInputs(spec.parent / "runs/tiny", Assumed(1, None).world)
    every = [run for run in runs(load(spec, []).points)]
    assert refusals([(run, 1) for run in every], shared) == []
    first, again = (shared.eval_sets(run.spec) for run in every[:2])
    assert first is again
    assert len(read) == len(first) == 1
    assert shared.eval_sets(load(spec, ["seed=5"]).spec) is not first, "pictures are drawn by the seed"


@pytest.mark.parametrize("axis", ["seed", "clean.objective.within", "clean.optimizer.rate"])
def test_a_large_study_is_checked_and_planned_in_work_that_grows_with_its_runs(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: str
) -> None:
    """A study of 9,999 runs took minutes: runs were compared field by field with each other, each built towers anew."""
    calls = dict.fromkeys(("equal", "model", "set"), 0)

    def counted(name: str, function: Any) -> Any:
        def call(*given: Any) -> Any:
            calls[name] += 1
            return function(*given)

        return call

    monkeypatch.setattr("engine.estimate.dry_run.ROWS", 50)
    monkeypatch.setattr(Run, "__eq__", counted("equal", Run.__eq__))
    monkeypatch.setattr(clip, "on_meta", counted("model", clip.on_meta))
    monkeypatch.setattr("engine.training.inputs.eval_set", counted("set", eval_set))
    whole = "true" if axis == "seed" else "false"
    loaded = load(spec, [f"sweep={{{axis}: {{low: 1, high: 100, whole: {whole}, points: 100}}}}"])
    machine = Assumed(1, None)
    scheduler = Scheduler.of(loaded, spec.parent / "runs/tiny", None)
    shared = StudyInputs(scheduler.folder, machine.world, tmp_path)
    assert study_refusals(scheduler, shared) == []
    text = dry_run(loaded, scheduler.runs, shared, machine)
    count = len(scheduler.runs)
    assert count == (200 if axis == "seed" else 101)
    assert calls["equal"] <= 2 * count
    assert calls["model"] < 20
    assert calls["set"] == 1
    rows = [line for line in text.splitlines() if "│ clean-" in line or "│ pretrain-" in line]
    assert len(rows) == (2 if axis == "clean.optimizer.rate" else 50)
    assert ("further rows are not shown; the sum counts them" in text) == (len(rows) == 50)
    hours = number(
        sum((cost(run, pairs_drawn(run, shared.pairs, set()) or 0, set()) for run in scheduler.runs), Cost()).hours
    )
    assert f"in all {hours} GPU-hours" in text
