"""Where the time of a finished study went: python benchmarks/where_time_goes.py runs/demo [--write NAME].

Reads the journals: seconds of each run, of its evaluations and its steps, and pairs per second (median row).
--write puts the table into benchmarks/results/NAME.json with this machine's name.
"""

import argparse
import json
import os
import platform
import sys
from datetime import date
from pathlib import Path
from statistics import median


def measure(study: Path) -> list[dict[str, object]]:
    """One row for each finished run."""
    out: list[dict[str, object]] = []
    for run in json.loads((study / "study.json").read_text())["runs"]:
        folder = study / run["run"]
        if not (folder / "finished.json").exists():
            continue
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if row["kind"] == "step"]
        total = json.loads((folder / "finished.json").read_text())["seconds"]
        evaluation = sum(row["seconds"] for row in rows if row["kind"] == "measure")
        stepping = sum(row["seconds"] for row in steps)
        out.append(
            {
                "run": run["title"],
                "seconds": total,
                "steps": round(stepping, 1),
                "evaluations": round(evaluation, 1),
                "rest": round(total - stepping - evaluation, 1),
                "pairs_per_s": round(median(row["pairs_per_s"] for row in steps)),
            }
        )
    return out


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--write", metavar="NAME")
    options = parser.parse_args()
    rows = measure(options.study)
    for row in rows:
        print("  ".join(f"{value!s:>8}" if name != "run" else f"{value!s:42}" for name, value in row.items()))
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{sum(float(str(row['seconds'])) for row in rows):.0f} s in runs on {machine}")
    if options.write:
        result = {"name": options.write, "machine": machine, "date": str(date.today()), "rows": rows}
        path = Path(__file__).parent / "results" / f"{options.write}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
