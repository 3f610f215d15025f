"""The report's page: what it costs, what it shows, and how it is in a real browser, where there is one."""

import html
import importlib.util
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
from found import audit, homes, rejected, scored
from PIL import Image
from submissions import submission
from test_figures import sheet
from test_report import study

from report.__main__ import main
from report.costs import amount, cost, costs
from report.figures import figures
from report.load import read_study
from report.verdict import make_report
from report.write import write_report

CPU, GPU = samples.card(), samples.card(device=samples.GPU, processes=2)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FOUND = next((path for name in BROWSERS if (path := shutil.which(name))), None)


BEYOND = """() => [...document.querySelectorAll("body *")]
    .filter((one) => !one.closest(".wide") && one.getBoundingClientRect().right > innerWidth + 1)
    .map((one) => one.outerHTML.slice(0, 200))"""


def journal(folder: Path, run: str, rows: list[dict[str, Any]], card: dict[str, Any], end: dict[str, Any] | None) -> None:
    """Puts the run's files in place of those that the study has."""
    here = folder / run
    for name in ("finished.json", "card.json", "stopped.json"):
        (here / name).unlink(missing_ok=True)
    (here / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "card.json").write_text(json.dumps(card))
    if end is not None:
        end = {**end, "journal": (here / "metrics.jsonl").stat().st_size} if "journal" in end else end
        (here / ("stopped.json" if "why" in end else "finished.json")).write_text(json.dumps(end))


def step(at: int, pairs_per_s: float, seconds: float, kind: str = "step") -> dict[str, Any]:
    bad = {"bad_steps": 1} if kind == "bad" else {"loss": 1.0}
    return {"kind": kind, "epoch": 1, "step": at, **bad, "pairs_per_s": pairs_per_s, "seconds": seconds}


def measure(at: int, seconds: float | None, images: str = "demo") -> dict[str, Any]:
    timing = {} if seconds is None else {"seconds": seconds}
    return {"kind": "measure", "epoch": at / 10, "step": at, "images": images, "top1": 0.5, "asr": 0.9, **timing}


def costly(folder: Path) -> Path:
    """Two runs on two GPUs, one of them interrupted; one on a CPU, given up; one that tells nothing; one not begun."""
    study(folder)
    # 100 pairs/s for 30 s, 50 for 60 s: 6,000 pairs in 90 s; measuring two sets took 5 s in all, then one 7 s
    rows = [measure(0, 4.5), measure(0, 5.0, "held"), step(5, 100.0, 30.0), step(10, 50.0, 60.0), measure(10, 7.0)]
    journal(folder, "pretrain-a", rows, GPU, samples.finished(seconds=360.0, joules=7.2e6))
    # its last part took 20 s, but its journal has 80 s
    rows = [step(5, 10.0, 60.0), step(10, 30.0, 20.0, "bad")]
    journal(folder, "pretrain-b", rows, GPU, samples.finished(seconds=20.0))
    journal(folder, "clean-a", [step(5, 8.0, 100.0)], CPU, samples.pruned(seconds=180))
    journal(folder, "clean-b", [measure(0, None)], {}, {})
    journal(folder, "clean-c", [], {}, None)
    return folder


def text_of(page: str) -> str:
    """The words of a page, its script, style and pictures left out."""
    bare = re.sub(r"(?s)<(script|style).*?</\1>", " ", page)
    words = html.unescape(re.sub(r"<[^>]*>", " ", bare))
    return " ".join(words.replace("\N{NO-BREAK SPACE}", " ").replace("\N{WORD JOINER}", "").split())


def test_what_a_run_took_is_as_by_hand(tmp_path: Path) -> None:
    read = read_study(costly(tmp_path / "s"))
    first, second, given_up, silent, none = (cost(record) for record in read.records)
    assert (first.training, first.measuring, first.wall, first.pairs) == (90.0, 12.0, 360.0, 6000.0)
    assert (first.gpu, first.cpu, first.joules, first.device) == (720.0, None, 7.2e6, "NVIDIA H100 80GB HBM3")
    assert first.pairs_per_s == pytest.approx(6000 / 90)
    assert (second.wall, second.gpu, second.pairs, second.joules) == (80.0, 160.0, 1200.0, None)
    assert (given_up.wall, given_up.cpu, given_up.gpu) == (180.0, 540.0, None)
    assert (silent.wall, silent.pairs_per_s, none.wall) == (None, None, None)


def test_costs_are_summed_and_what_is_not_known_is_said(tmp_path: Path) -> None:
    section = costs(read_study(costly(tmp_path / "s")))
    assert section.sentence == (
        "3 runs have taken 10.3 min, added up (14.7 GPU-minutes, 9.00 core-minutes), 2.00 kWh "
        "on NVIDIA H100 80GB HBM3, x86_64 CPU, training at 29.6 pairs/s on average."
        # (6,000 + 1,200 + 800) pairs / (90 + 80 + 100) s
    )
    groups = {kind: (runs, dict(zip(section.heads, cells, strict=True))) for (kind, runs), cells in section.groups}
    runs, whole = groups["all runs"]
    assert runs == "3 of 5"
    assert whole["time (min)"].value == pytest.approx((360 + 80 + 180) / 60)
    assert whole["GPU time (min)"].value == pytest.approx((720 + 160) / 60)
    assert whole["core time (min)"].remark == ""  # runs on GPUs lack none
    assert (whole["energy (kWh)"].text, whole["energy (kWh)"].remark) == ("2.00", "without 2 of 3 runs")
    assert groups["cleaning, CleanCLIP"][1]["energy (kWh)"].text == "not recorded"
    assert groups["cleaning, ours"] == ("0 of 1", {head: (None, "", "") for head in section.heads})
    assert [names[0] for names, _ in section.runs] == ["pretrain-a", "pretrain-b", "clean-a"]


def taken_from(name: str, seconds: float = 600.0, **changes: Any) -> dict[str, Any]:
    """The finished.json of a run that took so many seconds in another study."""
    return samples.finished(**{"seconds": seconds, "taken_over": {"study": name, "seconds": seconds}, **changes})


OWN = samples.finished(seconds=360.0)
HERE = "have taken 12.0 min, added up (36.0 core-minutes) on x86_64 CPU, training at 10.0 pairs/s on average"
ALONE = "1 run has taken 6.00 min (18.0 core-minutes) on x86_64 CPU, training at 10.0 pairs/s on average"
AGAIN = taken_from("main", seconds=660.0, taken_over={"study": "main", "seconds": 600.0})  # measured again for 60 s


@pytest.mark.parametrize(
    ("ends", "sentence", "begun"),
    [
        ((OWN, OWN), f"2 runs {HERE}.", "2"),
        ((OWN, taken_from("main")), f"{ALONE}; 1 run was taken over from main, where it took 10.0 min.", "1 + 1 taken over"),
        ((taken_from("main"), taken_from("main")), "2 runs were taken over from main, where they took 20.0 min.",
         "0 + 2 taken over"),
        ((taken_from("main"), taken_from("other")), "2 runs were taken over from other studies, where they took 20.0 min.",
         "0 + 2 taken over"),
        ((taken_from("main"), None),
         "No run has recorded its time yet; 1 run was taken over from main, where it took 10.0 min.",
         "0 of 1 + 1 taken over"),
        ((taken_from("main"), AGAIN), "1 run has taken 1.00 min; 2 runs were taken over from main, where they took 20.0 min "
         "(1 measured again here).", "1 + 1 taken over"),
    ],
)  # fmt: skip
def test_a_run_that_was_taken_over_took_its_time_elsewhere(
    tmp_path: Path, ends: tuple[dict[str, Any] | None, ...], sentence: str, begun: str
) -> None:
    folder = study(tmp_path / "s")
    plan = json.loads((folder / "study.json").read_text())
    names = ("pretrain-a", "pretrain-b")
    plan["runs"] = [entry for entry in plan["runs"] if entry["run"] in names]
    (folder / "study.json").write_text(json.dumps(plan))
    for name, end in zip(names, ends, strict=True):
        journal(folder, name, [] if end is None else [step(5, 10.0, 60.0)], CPU, end)
    section, read = costs(read_study(folder)), read_study(folder).records
    assert section.sentence == sentence
    assert section.groups[-1][0] == ("all runs" if len(section.groups) > 1 else section.groups[0][0][0], begun)
    for record, end in zip(read, ends, strict=True):
        mark = (end or {}).get("taken_over")
        assert record.state == ("not started" if end is None else f"finished, taken over from {mark['study']}" if mark
                                else "finished")  # fmt: skip
    told = [names[0] for names, _ in section.runs]
    assert told == [record.run.run for record, end in zip(read, ends, strict=True) if end is not None]
    assert all(len(cells) == len(section.heads) for _, cells in section.runs)


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [
        ([], None),
        ([measure(0, None)], None),
        ([measure(0, 4.5), measure(0, 5.0, "held")], 5.0),
        ([measure(0, 5.0), measure(10, 5.5)], 10.5),
        ([measure(10, 7.0), measure(10, 8.0)], 15.0),  # measured again
        ([measure(10, 7.0), measure(10, 7.0, "held"), measure(10, 2.0, "new")], 9.0),
    ],
)
def test_each_evaluation_counts_once(tmp_path: Path, rows: list[dict[str, Any]], seconds: float | None) -> None:
    folder = study(tmp_path / "s")
    journal(folder, "pretrain-a", rows, CPU, OWN)
    assert cost(read_study(folder).records[0]).measuring == seconds


@pytest.mark.usefixtures("blank_figures")
def test_costs_without_any_number_are_not_guessed(tmp_path: Path) -> None:
    folder = study(tmp_path / "s")
    for path in folder.glob("*/metrics.jsonl"):
        path.write_text(path.read_text().replace(', "seconds": 1.0', ""))
    for path in folder.glob("*/finished.json"):
        path.write_text("{}")
    section = costs(read_study(folder))
    assert (section.sentence, section.heads, section.runs) == ("No run has recorded its time yet.", [], [])
    assert "No run has recorded its time yet." in text_of(write_report(folder).page.read_text())
    journal(folder, "pretrain-a", [], {}, samples.finished(seconds=3600))
    text = text_of(write_report(folder).page.read_text())
    assert "1 run has taken 1.00 h." in text
    assert "Not recorded: training, measuring, pairs/s, energy, GPU or core time." in text


@pytest.mark.parametrize(
    "card",
    [{}, {"device": samples.GPU}, samples.card(device="a GPU"), samples.card(device=["x"]), samples.card(processes="two"),
     samples.card(device={**samples.CPU, "threads": -10**400})],
)  # fmt: skip
def test_hours_of_devices_that_no_card_tells_are_not_recorded(tmp_path: Path, card: dict[str, Any]) -> None:
    folder = study(tmp_path / "s")
    journal(folder, "pretrain-a", [step(5, 10.0, 60.0)], card, {"seconds": "long", "joules": None})
    run = cost(read_study(folder).records[0])
    assert (run.wall, run.gpu, run.cpu, run.joules) == (60.0, None, None, None)


def test_amounts_have_three_digits() -> None:
    shown = [amount(number) for number in (0.0, 0.000123456, 0.0628, 0.999, 1.0, 12.345, 99.96, 1234.5)]
    assert shown == ["0", "0.000123", "0.0628", "0.999", "1.00", "12.3", "100", "1,234"]


def test_each_figure_has_its_pdf_and_the_command(tmp_path: Path) -> None:
    folder = study(tmp_path / "s")
    page = write_report(folder).page.read_text()
    drawn = figures(make_report(read_study(folder)))
    shown = re.findall(r"(?s)<figure>.*?</figure>", page)
    assert len(shown) == len(drawn) >= 2
    for figure, markup in zip(drawn, shown, strict=True):
        assert f'href="{figure.name}.pdf"' in markup
        assert (folder / "report" / f"{figure.name}.pdf").is_file()
        assert f"<code>python -m report {folder}</code>" in markup
        assert figure.caption in html.unescape(markup)
        assert markup.count("data:image/svg+xml;base64,") == 2


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = write_report(costly(tmp_path / "s")).page.read_text()
    drawn = re.sub(r"data:image/(?:png|svg\+xml);base64,[A-Za-z0-9+/=]+", "data:,", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", drawn)
    assert drawn.count("<script") == 1
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    links = set(re.findall(r'(?:src|srcset|href)="([^"#]+)"', drawn))
    assert {"data:,", "results.csv", "frontier.pdf"} <= links
    assert all((tmp_path / "s/report" / name).is_file() for name in links - {"data:,"})
    anchors = set(re.findall(r'href="#([^"]+)"', page))
    assert anchors >= {"results", "cost", "runs", "spec"}
    assert all(page.count(f'id="{name}"') == 1 for name in anchors)


@pytest.mark.usefixtures("blank_figures")
def test_what_all_cards_say_is_said_once_and_hardware_is_shown(tmp_path: Path) -> None:
    folder = study(tmp_path / "s")
    for at, path in enumerate(sorted(folder.glob("*/card.json"))):
        path.write_text(json.dumps(samples.card(precision="fp32 everywhere", pairs=700 + at, device=samples.GPU)))
    page = write_report(folder).page.read_text()
    assert page.count("fp32 everywhere") == 1
    assert all(page.count(f"<td>{700 + at}</td>") == 1 for at in range(5))
    machine = page[page.index('id="machine"') :]
    assert "5 of 5 runs" in machine
    assert "NVIDIA H100 80GB HBM3, 8 threads a process" in machine


@pytest.mark.usefixtures("blank_figures")
def test_only_some_grids_of_poisoned_pairs_travel_in_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("report.page.GRIDS", 1)
    folder = study(tmp_path / "s")
    for run in ("pretrain-a", "pretrain-b"):
        (folder / run / "poison.png").write_bytes(sheet(8 + len(run), ord(run[-1])))
    text = text_of(write_report(folder).page.read_text())
    assert "Poisoned pairs of pretrain-a." in text
    assert "Not shown here: pretrain-b/poison.png" in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window; skips where there is none, or no playwright to lead it."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("the page is not opened in a browser: no playwright, which `pip install -e .[browser]` brings")
    if FOUND is None:
        pytest.skip(f"the page is not opened in a browser: none of {', '.join(BROWSERS)} on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=FOUND)
        yield started
        started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study with long names and markup in them."""
    folder = costly(tmp_path_factory.mktemp("page") / "s")
    content = json.loads((folder / "study.json").read_text())
    content["runs"][2]["cleaner"] = "<img src=x onerror=alert(1)>" + "long" * 40
    content["name"] = "a_name_without_any_room_to_break_it_" * 4
    content["command"] = "python engine/run.py --spec " + "specs/" * 60
    (folder / "study.json").write_text(json.dumps(content))
    for path in folder.glob("*/metrics.jsonl"):
        if not path.read_text():
            path.write_text(json.dumps({**measure(0, 1.0), "asr": None}) + "\n")
    return write_report(folder).page


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A matrix and an import, with long names and markup in them."""
    folder, long = tmp_path_factory.mktemp("others"), "<img src=x onerror=alert(1)>" + "long" * 30
    cleaners = {f"{long}{at}": {"objective": {"kind": kind}} for at, kind in enumerate(("mmcl", "cleanclip", long))}
    study = submission(folder / "s", objectives=("mmcl", long), cleaners=cleaners, name=long, rates=(1e-3,))
    starts, twins = homes(study, "pretrain"), homes(study, "twin")
    scored(study, [33 * at for at in range(len(starts))])
    for home in starts:
        audit(home, 0.05, (), ["banana"])
        rejected(home, auroc=0.7, tpr=0.6, fpr=0.01)
    for home in twins:
        audit(home, 0.2)
        rejected(home, auroc=0.5, tpr=0.0, fpr=0.0)
    assert main(["--matrix", str(study), "--out", str(folder / "matrix")]) == 0
    (folder / "points.json").write_text(json.dumps({long: [[0.5, 0.01], [0.9, 0.8]], "b": [[0.1], [0.7]]}))
    assert main(["--import", str(folder / "points.json"), "--out", str(folder / "import")]) == 0
    return [folder / "matrix/index.html", folder / "import/index.html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_matrix_and_import_in_a_browser(browser: Any, others: list[Path], tmp_path: Path, width: int, scheme: str) -> None:
    """Opens them offline; no message, no request, nothing beyond the edge; each cell's link opens its numbers."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    messages = list[str]()
    for page in others:
        tab = context.new_page()
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.goto(page.as_uri())
        tab.screenshot(path=tmp_path / f"{page.parent.name}-{width}-{scheme}.png", full_page=True)
        for link in tab.query_selector_all('a[href^="#cell-"]'):
            link.click()
        assert all(tab.evaluate("[...document.querySelectorAll('details')].map((one) => one.open)"))
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate(BEYOND) == []
        red = int(re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
        assert red < 40 if scheme == "dark" else red > 240
        for frame in tab.query_selector_all("picture.figure"):
            drawn = np.asarray(Image.open(io.BytesIO(frame.screenshot())).convert("L"))
            assert np.median(drawn) < 60 if scheme == "dark" else np.median(drawn) > 200
    assert messages == []
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(browser: Any, page: Path, tmp_path: Path, width: int, scheme: str) -> None:
    """Opens it offline, sorts the table by mouse and by keyboard; no message, no request, nothing beyond the edge."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    messages, requests = list[str](), list[str]()
    tab = context.new_page()
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    context.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    tab.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
    for closed in tab.query_selector_all("details:not([open])"):
        closed.evaluate("(one) => { one.open = true; }")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate(BEYOND) == []
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", paper)[0])
    assert red < 40 if scheme == "dark" else red > 240
    frame = tab.locator("picture.figure").first
    drawn = np.asarray(Image.open(io.BytesIO(frame.screenshot())).convert("L"))
    assert np.median(drawn) < 60 if scheme == "dark" else np.median(drawn) > 200  # a figure is drawn on the page's paper
    assert all(tab.evaluate("[...document.images].map((one) => one.naturalWidth > 0)"))

    table = tab.locator("table.sortable").first
    head = table.locator("th", has_text="top-1")

    def column() -> list[str]:
        return [str(cell) for cell in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]

    before = column()
    numbers = sorted(float(cell) for cell in before if cell)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(cell) for cell in column() if cell] == numbers
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(cell) for cell in column() if cell] == numbers[::-1]
    assert sorted(column()) == sorted(before)
    run = table.locator("th", has_text="run").first
    run.locator("button").press("Space")
    assert head.get_attribute("aria-sort") is None
    names = [str(name) for name in table.locator("tbody tr td:nth-child(1)").all_inner_texts()]
    assert names == sorted(names)

    tab.get_by_role("link", name="Cost", exact=True).click()
    assert tab.evaluate("document.getElementById('cost').getBoundingClientRect().top") < 450
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    context.close()
