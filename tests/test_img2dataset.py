"""img2dataset's own command, as docs/data.md gives it, against a local server; then a run on what it wrote.

Slow (it makes an environment of its own): .venv/bin/python -m pytest -m slow
"""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from conftest import SPEC, antidote, settings

from data.scenes import describe, paint, scene
from data.seeding import generator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PACKAGE = "img2dataset==1.47.0"


class Quiet(SimpleHTTPRequestHandler):
    """Python's server without its log."""

    def log_message(self, *words: object) -> None:
        """Nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """120 pictures under an address."""
    folder = tmp_path / "www"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_img2datasets_shards_are_checked_and_trained_on(tmp_path: Path, world: Path, served: tuple[Path, str]) -> None:
    folder, address = served
    with (tmp_path / "list.tsv").open("w", newline="") as file:
        lines = csv.writer(file, delimiter="\t")
        lines.writerow(["caption", "url"])
        for i in range(120):
            draw = generator(0, "img2dataset", i)
            seen = scene(draw)
            paint(seen, 300, draw).save(folder / f"{i}.jpg", quality=90)
            name = f"{i}.jpg" if i % 12 else f"gone{i}.jpg"  # one address in twelve is dead
            lines.writerow([describe(seen, draw), f"{address}/{name}"])
    apart = tmp_path / "apart"
    subprocess.run([sys.executable, "-m", "venv", apart], check=True)
    subprocess.run([apart / "bin/pip", "install", "-q", PACKAGE], check=True)
    words = ["--input_format", "tsv", "--url_col", "url", "--caption_col", "caption", "--output_format", "webdataset"]
    words += ["--number_sample_per_shard", "40", "--image_size", "256", "--resize_mode", "keep_ratio"]
    words += ["--resize_only_if_bigger", "True", "--encode_quality", "95", "--processes_count", "1", "--thread_count", "8"]
    words += ["--retries", "1", "--incremental_mode", "incremental", "--disallowed_header_directives", "[]"]
    out = tmp_path / "shards"
    subprocess.run(
        [apart / "bin/img2dataset", "--url_list", tmp_path / "list.tsv", "--output_folder", out, *words], check=True
    )
    told = [json.loads(path.read_text()) for path in sorted(out.glob("*_stats.json"))]
    assert sum(one["successes"] for one in told) == 110
    check = subprocess.run(
        [sys.executable, "-m", "data.check", f"{out}/*.tar", "--jobs", "1"], cwd=Path(__file__).parent.parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert check.returncode == 0, check.stderr
    assert "3 shards: 110 pairs expected, 110 good (100.00%); none bad" in check.stdout
    (tmp_path / "tiny.yaml").write_text(SPEC.format(world=world))
    sets = settings(f"data.pretrain.shards={out}/*.tar", "data.clean.pairs=40", "data.pretrain.caption=json.caption")
    run = antidote("--spec", "tiny.yaml", *sets, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "report:" in run.stdout
