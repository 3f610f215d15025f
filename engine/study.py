"""A study is a folder of runs: its list of them, its run cards on the terminal, its end."""

import json
import sys
from pathlib import Path
from typing import Any

from configs.plan import Run, differences
from configs.spec import Spec
from data.refusal import Refusal
from engine.checkpoint import committed
from engine.job import finished, write_json
from engine.journal import show_figure


def begin(folder: Path, spec: Spec, runs: list[Run], command: str) -> None:
    """Writes study.json; Refusal if a run was begun under other settings and is not finished."""
    for old in sorted(folder.glob("*/spec.json")):
        if (
            finished(old.parent)
            or old.parent.name in {run.folder for run in runs}
            or not committed(old.parent / "checkpoints")
        ):
            continue
        begun = json.loads(old.read_text())
        rivals = [differences(begun, run.decides) for run in runs if run.stage == old.parent.name.split("-")[0]]
        rivals.sort(key=len)
        changes = "; ".join(rivals[0]) if rivals else "its stage is gone from the spec"
        raise Refusal(
            f"{old.parent} was begun under another spec and is not finished ({changes}); "
            "put the spec back to go on with it, give the changed spec another name, or delete that folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": spec.name,
        "command": command,
        "question": spec.question,
        "target": spec.attack.target,
        "spec": spec.model_dump(mode="json"),
        "runs": [run.card() for run in runs],
    }
    write_json(folder / "study.json", content)


def say(number: int, total: int, card: dict[str, Any]) -> None:
    """Prints a run card."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in card.items():
        if value is not None and name not in ("run", "title"):
            words = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            table.add_row(name, words)
    console = Console(stderr=True, markup=False, width=None if sys.stderr.isatty() else 120)
    console.print(Panel(table, title=f"run {number} of {total}: {card['title']} ({card['run']})", title_align="left"))


def conclude(folder: Path) -> None:
    """Writes the report, shows its figure in TensorBoard, and names it."""
    from engine import report

    page = report.write_report(folder)
    show_figure(folder / "tensorboard" / "report", "frontier", folder / "report" / "frontier.png")
    print(f"report: {page}\ntensorboard --logdir {folder / 'tensorboard'}", flush=True)
