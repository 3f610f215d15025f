"""Figures that compare ways of pre-training: their numbers by hand, their sentences, and what a study must have for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
from scipy.stats import spearmanr

from measures.correlation import spearman
from report.ablation import Ablation, Reached
from report.figures import figures
from report.load import read_study
from report.plots.phase import phase
from report.plots.pretrainings import pretrainings
from report.plots.strength import strength
from report.points import panels
from report.pretrainings import by_share, by_way, correlation_text, ends_text, extremes_text, share_text, strengths
from report.verdict import make_report

WAYS = ("mmcl", "siglip", "mmcl_ssl")


def study(folder: Path, **probes: float | None) -> Path:
    """Of each way two seeds, top-1 0.8 and ASR 1, of 1,000 pairs; each cleaned on 10 and on 40 pairs. On 10 only MMCL's
    first seed comes to ASR 0.05, at top-1 0.6; on 40 all but MMCL+SSL's, at 0.72 and 0.64 (MMCL) and 0.4 (SigLIP)."""
    reached: dict[str, dict[int, tuple[float | None, float | None]]] = {
        "mmcl": {10: (0.6, None), 40: (0.72, 0.64)},
        "siglip": {40: (0.4, 0.4)},
        "mmcl_ssl": {},
    }
    runs: list[dict[str, Any]] = []

    def write(run: dict[str, Any], pairs: int, rows: list[dict[str, Any]]) -> None:
        home = folder / run["run"]
        home.mkdir(parents=True)
        whole = [{"kind": "measure", "epoch": at, "step": at, "images": "demo", **row} for at, row in enumerate(rows)]
        (home / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
        card = samples.card(run=run["run"], stage=run["stage"], start=run.get("start"), pairs=pairs)
        (home / "card.json").write_text(json.dumps(card))
        samples.end(home)
        runs.append(run)

    begun = {"top1": 0.8, "asr": 1.0}
    for way in WAYS:
        for seed in (0, 1):
            start = {"run": f"pretrain-{way}-{seed}", "stage": "pretrain", "pretrain_objective": way, "seed": seed}
            probe = probes.get(way)
            write(start, 1000, [begun if probe is None else begun | {"probe_top1": probe + 0.01 * seed}])
            for pairs in (10, 40):
                found = reached[way].get(pairs, (None, None))[seed]
                swept = {"clean.batch": pairs}  # no name of the clean set: its size is what cards count
                facts = {"start": start["run"], "clean_objective": "cleanclip", "swept": swept, "cleaning": list(swept)}
                run = {**start, **facts, "run": f"clean-{way}-{seed}-{pairs}", "stage": "clean", "rate": 1e-3}
                write(run, pairs, [begun, {"top1": found or 0.7, "asr": 0.05 if found else 0.5}])
    (folder / "study.json").write_text(json.dumps({"name": "s", "runs": runs}))
    return folder


def test_what_cleaning_leaves_by_hand(tmp_path: Path) -> None:
    read = read_study(study(tmp_path / "s", mmcl=0.7, siglip=0.8, mmcl_ssl=0.9))
    seen = panels(read)
    none = Reached(None, None)
    shares = by_share(seen, read)
    assert shares["MMCL"] == {0.01: [Reached(0.6, None), none], 0.04: [Reached(0.72, None), Reached(0.64, None)]}
    assert shares["MMCL+SSL"] == {0.01: [none, none], 0.04: [none, none]}
    assert by_way(seen)["CleanCLIP"]["SigLIP"] == [Reached(0.4, None)] * 2
    assert strengths(seen, read) == {
        "MMCL": [pytest.approx((0.7, 0.9)), pytest.approx((0.71, 0.8))],
        "SigLIP": [pytest.approx((0.8, 0.5)), pytest.approx((0.81, 0.5))],
        "MMCL+SSL": [(0.9, 0.0), (0.91, 0.0)],
    }
    assert ends_text(shares, "a clean set of", share_text) == (
        "Best top-1 at ASR ≤ 5 % at a clean set of 1 %: MMCL 60.0 % (1 of 2 seeds), SigLIP none, MMCL+SSL none; at a clean "
        "set of 4 %: MMCL 68.0 % [64.0, 72.0], SigLIP 40.0 % [40.0, 40.0], MMCL+SSL none."
    )
    assert extremes_text(by_way(seen)) == (
        "Best top-1 at ASR ≤ 5 %: from SigLIP cleaned by CleanCLIP, 40.0 % [40.0, 40.0], to MMCL cleaned by CleanCLIP, "
        "68.0 % [64.0, 72.0]; in 1 of 3 no seed has one."
    )
    told = correlation_text(strengths(seen, read))
    assert told.startswith("Spearman's rank correlation is -0.97 [-")
    assert "over 6 models of 3 ways of pre-training. 2 of them, without a point at ASR ≤ 5 %, count as 0." in told


def test_a_study_has_these_figures_where_it_has_their_numbers(tmp_path: Path) -> None:
    """All of them answer a question, so that a page of several studies shows them, and each says its numbers."""
    whole = study(tmp_path / "whole", mmcl=0.7, siglip=0.8, mmcl_ssl=0.9)
    made = {figure.name: figure for figure in figures(make_report(read_study(whole)))}
    for name, words in {
        "phase": "at a clean set of 4 %: MMCL 68.0",
        "pretrainings": "to MMCL",
        "strength": "is -0.97",
    }.items():
        assert made[name].answers
        assert words in made[name].caption
        assert all(made[name].draw(narrow).axes for narrow in (False, True))
    for card in whole.glob("clean-*/card.json"):
        card.unlink()  # of how many pairs?
    for seed in "01":  # two ways with a probe are no correlation
        path = whole / f"pretrain-mmcl_ssl-{seed}/metrics.jsonl"
        path.write_text(path.read_text().replace("probe_top1", "probe_asr"))
        samples.end(path.parent)
    left = {figure.name for figure in figures(make_report(read_study(whole)))}
    assert left & {"phase", "pretrainings", "strength"} == {"pretrainings"}


def test_a_caption_names_no_control_as_a_cleaning() -> None:
    ways = {
        "CleanCLIP": {"A": [Reached(0.5, None)], "B": [Reached(0.6, None)], "C": [Reached(0.7, None)]},
        "scratch": {"A": [Reached(0.08, None)], "B": [Reached(None, None)], "C": [Reached(0.75, None)]},
    }
    assert "from A cleaned by scratch" in extremes_text(ways)
    told = extremes_text(ways, {"scratch"})
    assert told == "Best top-1 at ASR ≤ 5 %: from A cleaned by CleanCLIP, 50.0 %, to C cleaned by CleanCLIP, 70.0 %."


def test_cleaners_that_were_tried_at_one_size_alone_are_not_compared_by_size(tmp_path: Path) -> None:
    path = study(tmp_path / "s") / "study.json"
    plan = json.loads(path.read_text())
    for run in plan["runs"]:
        run["cleaner"] = run["run"].rsplit("-", 1)[1] if run["stage"] == "clean" else None
    path.write_text(json.dumps(plan))
    read = read_study(tmp_path / "s")
    assert by_share(panels(read), read) == {}


def test_the_drawings_show_every_number_and_say_where_there_is_none() -> None:
    none = Reached(None, None)
    cells: Ablation = {"a": {0.0025: [none, none], 0.08: [Reached(0.9, 0.1), none]}, "b": {0.08: [Reached(0.75, 0.1)]}}
    for narrow in (False, True):
        ax = phase(cells, narrow).axes[0]
        assert [text.get_text() for text in ax.texts] == ["none", "90.0\n1 of 2", "75.0"]
        assert ax.get_xscale() == "log"
        (mesh,) = ax.collections
        assert np.ma.filled(np.ma.asarray(mesh.get_array()), np.nan).reshape(2, 2) == pytest.approx(
            np.array([[np.nan, 90], [np.nan, 75]]), nan_ok=True
        )
    ways: Ablation = {"x": {"a": [Reached(0.6, 0.2), Reached(0.8, None)], "b": [none, none]}}
    for columns in (1, 2):
        best, low = pretrainings(ways, columns).axes
        assert [np.asarray(line.get_xdata()).tolist() for line in best.lines][:2] == [[60, 80], [70]]
        assert [text.get_text() for text in best.texts] == ["2"]
        assert [text.get_text() for text in low.texts] == ["1", "2"]
    ax = strength({"a": [(0.5, 0.9), (0.7, 0.7)]}).axes[0]
    assert [np.asarray(line.get_xydata()).T.tolist() for line in ax.lines] == [[[50, 70], [90, 70]], [[60], [80]]]


def test_a_rank_correlation_is_scipys_and_its_interval_is_of_groups() -> None:
    draw = np.random.default_rng(0)
    groups = [[(float(x), float(round(y, 1))) for x, y in draw.normal(size=(5, 2)) + [at, -at]] for at in range(6)]
    found = spearman(groups)
    assert found.rho == pytest.approx(spearmanr(*zip(*sum(groups, []), strict=True)).statistic, abs=1e-12)
    assert found.interval is not None
    assert -1 <= found.interval.low < found.rho < found.interval.high <= 1
    alone = spearman([[pair] for pair in sum(groups, [])]).interval
    assert alone is not None
    assert alone.high - alone.low < found.interval.high - found.interval.low  # pairs of a group are no independent ones
    assert spearman([sum(groups, [])]).interval is None
    for wrong in ([[(0.0, 1.0), (1.0, 0.0)]], [[(0.0, 1.0)] * 3], [[(0.0, 1.0), (1.0, float("nan")), (2.0, 0.0)]], []):
        with pytest.raises(ValueError, match="no correlation"):
            spearman(wrong)
