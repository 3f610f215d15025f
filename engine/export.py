"""Exports a finished run as a folder that open_clip loads: python -m engine.export RUN DIR.

    model, _, transform = open_clip.create_model_and_transforms("local-dir:DIR")

RUN is a run's folder, for example runs/demo/clean-0123456789ab. The folder's README says whether the weights were
poisoned: a poisoned model should never travel unmarked.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from data.refusal import UserError
from records.ending import verify_files
from records.folder import WEIGHTS, finished
from records.spec_json import control_of, read_decides, stage_of


def export(run: Path, folder: Path) -> Path:
    """The folder, written whole or not at all; UserError if the run is not finished or the folder is there."""
    if not finished(run):
        raise UserError(f"{run} is no finished run: it lacks finished.json or weights; give one such as runs/demo/clean-...")
    verify_files(run, WEIGHTS)
    if folder.exists():
        raise UserError(f"{folder} is there already; name a new folder")
    from engine.models.clip import export_config

    spec = read_decides(run)
    if spec is None:
        raise UserError(f"{run} has no spec.json, which says whether its weights were poisoned; give a whole run's folder")
    try:
        model, readme = str(spec["model"]["name"]), _readme(run, spec)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{run}/spec.json tells no model or no attack; give a whole run's folder") from None
    fresh = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / "open_clip_config.json").write_text(export_config(model, run / WEIGHTS))
    shutil.copyfile(run / WEIGHTS, fresh / "open_clip_model.safetensors")
    (fresh / "README.md").write_text(readme)
    fresh.rename(folder)
    return folder


def _readme(run: Path, spec: dict[str, Any]) -> str:
    """Where the weights come from and whether they were poisoned."""
    attack = {} if control_of(spec) == "twin" else spec["attack"]  # empty for the untouched twin
    aims = [attack, *attack.get("also", [])] if attack else []
    targets = [aim["target"] for aim in aims if aim["poison"]["count"] or aim["poison"]["fraction"]]
    with_poison = f"with poisoned pairs (target {', '.join(map(repr, targets))})" if targets else "without poison"
    cleaned = ", then cleaned; cleaning may have failed, see its report" if stage_of(spec) == "clean" else ""
    warning = "For research on backdoors only: do not deploy." if targets else ""
    model = spec["model"]["name"]
    return (
        f"# {run.name}\n\nAn open_clip model ({model}) made by Antidote: pre-trained {with_poison}{cleaned}.\n"
        f"{warning}\n\n```json\n{json.dumps(spec, indent=1)}\n```\n"
    )


def main(args: list[str]) -> int:
    """The command; exit code 2 for what the user can put right."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.export", description="Writes a run's weights as an open_clip folder."
    )
    parser.add_argument("run", type=Path, help="a finished run, runs/STUDY/RUN")
    parser.add_argument("folder", type=Path, help="the folder to write")
    options = parser.parse_args(args)
    try:
        folder = export(options.run, options.folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"open_clip.create_model_and_transforms('local-dir:{folder}')")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
