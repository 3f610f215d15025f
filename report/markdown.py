"""Several studies on one Markdown page, with the figures beside it: what is committed of results.

    python -m report runs/mini-* --markdown docs/mini-results.md

writes docs/mini-results.md and docs/mini-results/NAME-FIGURE.png. Of the study that comes first on the page all figures are
shown, of the others those that answer their question. Of an earlier page the sections of other studies are kept, so that it
can be made in parts and on several machines, and so is what stands above the first section: it is for people to write.
"""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from data.refusal import UserError
from measures.frontier import CAP, FLOOR, FrontierPoint
from records.study_json import NAME
from report.ablation import settings
from report.audits import HEADS as AUDIT_HEADS
from report.audits import audit_rows
from report.controls import HEADS, control_rows
from report.differences import RULE_HEADS, rule_rows
from report.figures import figures
from report.left_out import HEADS as LEFT_OUT
from report.left_out import Row
from report.load import Study
from report.persistence import HEADS as PERSISTENCE_HEADS
from report.persistence import persistence_rows, sentences
from report.plots.style import render, short
from report.points import Origin, Panel, PointInfo, percent
from report.scores import BEST, HEADLINES, LOWEST, RULES, Group, Mean, Score, chosen_by, counted, scores
from report.seeds import at_chance_in, of_seeds
from report.submission import open_study
from report.suspects import HEADS as SUSPECT_HEADS
from report.suspects import scored_rows
from report.test_time import HEADS as TEST_TIME_HEADS
from report.test_time import detection_rows
from report.verdict import Judgement, Report, make_report
from report.write import write_files

SEED = (
    "pre-trained with",
    "cleaned by",
    "seed",
    "start: top-1 at ASR",
    BEST.label,
    f"lowest ASR at {100 * FLOOR:g} % of the start's top-1",
)
WILSON = "Each seed; in brackets Wilson's 95 % interval for the number of pictures."
HEAD = "# Results\n\nEach section is a study: its question, what the numbers say, and how to run it again.\n"


def write_markdown(folders: Sequence[Path], out: Path) -> int:
    """Writes the page and the figures of these studies; returns how many figures. Raises UserError.

    A section that the page has is written anew in its place; another comes behind that of the study given before it, or at
    the end."""
    if out.suffix != ".md":
        raise UserError(f"--markdown is {out}, expected a Markdown file; give one that ends in .md")
    files: dict[str, bytes] = {}
    head, sections = _earlier(out)
    before, named = None, dict[str, Path]()
    for folder in folders:
        report = make_report(open_study(folder))
        study, heading = report.study, plain(report.study.plan.name)
        if not re.fullmatch(NAME, study.plan.name):
            raise UserError(
                f"{folder} holds a study named {study.plan.name[:40]!r}, by which its figures are named; expected letters, "
                "digits, '.', '_' and '-', a letter or digit first; give it another name"
            )
        if heading in named:
            raise UserError(
                f"{named[heading]} and {folder} hold studies of one name, {study.plan.name}, which is a section's heading; "
                "give one of them, or give one another name"
            )
        named[heading] = folder
        first = next(iter(sections), heading) == heading
        shown = []
        for figure in figures(report):
            if first or figure.answers:
                name = f"{out.stem}/{study.plan.name}-{figure.name}.png"
                files[name] = render(figure.draw(False), "png", study.again)
                shown.append((figure.heading, figure.caption, name))
        sections = _placed(sections, heading, section(report, shown), before)
        before = heading
    files[out.name] = "\n".join([head, "", *sections.values()]).encode()
    (out.parent / out.stem).mkdir(parents=True, exist_ok=True)
    write_files(out.parent, files)
    return len(files) - 1


def _earlier(out: Path) -> tuple[str, dict[str, str]]:
    """What stands above the first section of the page as it is, and its sections by their headings."""
    head, *parts = re.split(r"^(?=## )", out.read_text(encoding="utf-8") if out.is_file() else HEAD, flags=re.MULTILINE)
    names = [part.partition("\n")[0][3:] for part in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{out} has two sections '## {twice[0]}'; expected one a study; delete one of them")
    return head.rstrip(), {name: f"{part.rstrip()}\n" for name, part in zip(names, parts, strict=True)}


def _placed(sections: dict[str, str], heading: str, text: str, before: str | None) -> dict[str, str]:
    """The sections with one written anew in its place, or, if there is none, behind another's, or at the end."""
    if heading in sections or before is None:
        return {**sections, heading: text}
    out = {}
    for name, earlier in sections.items():
        out[name] = earlier
        if name == before:
            out[heading] = text
    return out


def section(report: Report, pictures: Iterable[tuple[str, str, str]]) -> str:
    """A study in Markdown; `pictures` are headings, captions and files."""
    study, judged = report.study, report.judged
    several = any(mean.of > 1 for means in judged.means.values() for mean in means.values())
    parts = [f"## {plain(study.plan.name)}"]
    parts += [f"**{plain(study.plan.question)}**"] if study.plan.question else []
    parts += [_list(judged.sentences)]
    parts += [f"{WILSON}\n\n{_table(SEED, map(_seed, judged.scores))}"] if judged.scores else []
    parts += [_along(judged.panels, setting) for setting in settings(judged.panels)]
    parts += [_means(judged)] if several else []
    parts += [_left_out(rows)] if (rows := report.left_out) else []
    parts += [table] if (table := _controls(judged)) else []
    parts += [table] if (table := _persistence(report)) else []
    parts += [table] if (table := _rules(judged)) else []
    parts += [table] if (table := _rule_differences(judged)) else []
    parts += [table] if (table := _suspects(report)) else []
    parts += [table] if (table := _test_time(report)) else []
    parts += [table] if (table := _audits(report)) else []
    parts += [f"![{plain(heading)}]({name})\n\n*{plain(caption)}*" for heading, caption, name in pictures]
    remarks = [*report.notes, *judged.notes]
    parts += [_list(f"Note: {remark}" for remark in remarks)] if remarks else []
    parts += [f"Cost: {plain(report.costs.sentence)} {_versions(study)}"]
    return "\n\n".join([*parts, _code(filter(None, [study.plan.command, study.again]))]) + "\n"


def _code(lines: Iterable[str]) -> str:
    """A block of code, each line on one line, none of which is a heading, under a fence that none of them holds."""
    text = "\n".join(re.sub("^(?=#)", " ", " ".join(line.split())) for line in lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    whole = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell if cell == "---" else plain(cell) for cell in row) + " |" for row in whole)


def _remarked(intro: str, heads: Sequence[str], rows: Iterable[tuple[str | Group, Iterable[tuple[str, str]]]]) -> str:
    """A table whose rows are a name or two and then cells with a remark, under what it says; empty without rows."""
    whole = [
        [
            *([names] if isinstance(names, str) else names),
            *(f"{text} ({remark})" if remark else text for text, remark in cells),
        ]
        for names, cells in rows
    ]
    return f"{intro}\n\n{_table(heads, whole)}" if whole else ""


def _seed(score: Score) -> list[str]:
    """The cells of one seed under SEED, rates with Wilson's intervals."""
    best, low = score.numbers[BEST.name].at, score.numbers.get(LOWEST.name)
    known = next((number.at.label for number in score.numbers.values() if number.at), None)
    return [
        *score.group,
        "" if score.seed is None else str(score.seed),
        "not measured" if score.start is None else _pair(score.start, known),
        _pair(best, best.label) if best else "none",
        _pair(low.at, low.at.label) if low and low.at else "none",
    ]


def _along(panels: Sequence[Panel], setting: str) -> str:
    """The same at each value of a setting of the cleaning, over all its other settings."""
    listed = (point.label.swept.get(setting) for panel in panels for point in panel.points)
    values = sorted({value for value in listed if isinstance(value, int | float)})
    rows = []
    for value in values:
        there = [panel.only(partial(_has, setting, value)) for panel in panels]
        rows += [[short(value), *_seed(score)] for score in scores(there)]
    return f"At each value of {plain(setting)}, over all other settings.\n\n{_table([setting, *SEED], rows)}"


def _has(setting: str, value: float, info: PointInfo) -> bool:
    return bool(info.swept.get(setting) == value)


def _pair(point: FrontierPoint[PointInfo] | FrontierPoint[Origin], info: PointInfo | None) -> str:
    """top-1 and ASR of a point, each with its interval if it is known of how many pictures they are."""
    facts = info.facts if info else {}
    return f"{_rate(point.top1, facts.get('pictures'))} at ASR {_rate(point.asr, facts.get('others'))}"


def _rate(rate: float, of: float | None) -> str:
    between = counted(rate, of)
    return f"{percent(rate)} [{100 * between.low:.1f}, {100 * between.high:.1f}]" if between else percent(rate)


def _means(judged: Judgement) -> str:
    rows = []
    for group, means in judged.means.items():
        columns = [(means.get(metric.name), at_chance_in(judged.scores, metric, group)) for metric in HEADLINES]
        rows.append([*group, *(_mean(mean, lost) for mean, lost in columns)])
    heads = ["pre-trained with", "cleaned by", *(metric.label for metric in HEADLINES)]
    intro = "Means over the seeds that have such a point, with 95 % bootstrap intervals (too narrow where seeds are few)."
    return f"{intro}\n\n{_table(heads, rows)}"


def _mean(mean: Mean | None, lost: int) -> str:
    """A mean, of how many seeds it is, and how many of these are at chance; empty without one."""
    chance = f", {lost} at chance" if lost else ""
    return f"{mean.text} ({mean.known} of {mean.of}{chance})" if mean else ""


def _left_out(rows: Sequence[Row]) -> str:
    intro = "Pre-trained anew without some of the pairs, before any cleaning; means over seeds."
    return f"{intro}\n\n{_table(LEFT_OUT, (row.cells for row in rows))}"


def _controls(judged: Judgement) -> str:
    """Cleaners beside scratch and on the twin; empty without these controls."""
    intro = (
        "Controls. Scratch is the same training on the clean data from fresh weights; the twin goes through the run and to "
        "the epoch that are best on its poisoned model."
    )
    return _remarked(intro, ["pre-trained with", "cleaned by", *HEADS], control_rows(judged.controls))


def _persistence(report: Report) -> str:
    """What became of cleaned models under each probe; empty if none was probed."""
    rows = [[*group, *cells] for group, cells in persistence_rows(report.probed)]
    intro = " ".join(["After the cleaning (docs/persistence.md); means over seeds.", *map(plain, sentences(report.probed))])
    return f"{intro}\n\n{_table(['pre-trained with', 'cleaned by', *PERSISTENCE_HEADS], rows)}" if rows else ""


def _rule_differences(judged: Judgement) -> str:
    """Differences between ways of pre-training by what each rule chose; empty if there are none."""
    rows = rule_rows(judged.rules)
    intro = "Differences between what the rules chose; permutation tests over seeds."
    return f"{intro}\n\n{_table(RULE_HEADS, rows)}" if rows else ""


def _suspects(report: Report) -> str:
    """How well detectors tell poisoned training pairs; empty if none were scored."""
    intro = "Scores of training pairs. What is flagged is what the budget takes; of the twin's, none is poisoned."
    return _remarked(intro, ["pre-trained with", *SUSPECT_HEADS], scored_rows(report.scored))


def _test_time(report: Report) -> str:
    """What detectors say at test time; empty if none was measured."""
    intro = (
        "Detection at test time. TPR, FPR, precision and what is left after rejecting are of the threshold that is fixed on "
        "clean references."
    )
    return _remarked(intro, ["pre-trained with", *TEST_TIME_HEADS], detection_rows(report.test_time))


def _audits(report: Report) -> str:
    """What audits say of the study's models; empty if none was carried out."""
    intro = (
        "Audits: is the model backdoored? p is how often a clean model that was asked the same looks at least as "
        "conspicuous; so many clean models can show no less than the least p."
    )
    return _remarked(intro, ["run", *AUDIT_HEADS], audit_rows(report.audits))


def _rules(judged: Judgement) -> str:
    """What rules that see no ASR would have chosen, over seeds; empty if none could be followed."""
    rows = []
    for group, means in judged.means.items():
        for rule in RULES:
            choice = chosen_by(rule)
            if choice.top1.name in means:
                rows.append([*group, rule, *(of_seeds(means[metric.name]) for metric in choice)])
    heads = ["pre-trained with", "cleaned by", "rule", "top-1", "ASR", "top-1 below the oracle's"]
    heads.append(f"ASR above {100 * CAP:g} %")
    intro = (
        "What a defender would have chosen, who sees no ASR; means over seeds. The oracle is the best top-1 at ASR ≤ 5 %; "
        "of a model that is more accurate and keeps the backdoor the last column but one is negative."
    )
    return f"{intro}\n\n{_table(heads, rows)}" if rows else ""


def _versions(study: Study) -> str:
    """The versions that the runs' cards tell."""
    cards = [record.card.versions for record in study.records if record.card is not None]
    versions = list(dict.fromkeys(", ".join(map(" ".join, card.items())) for card in cards))
    return f"Versions: {plain('; or '.join(versions))}." if versions else ""


def plain(words: str) -> str:
    """The words on one line, so that Markdown prints them as they are."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(words.split()))
