"""What is shown of something that takes a while: nothing at first, then a line now and then, or a bar on a terminal."""

import pytest

from data.progress import Progress


def test_without_a_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr("data.progress.time.monotonic", lambda: clock[0])
    progress = Progress("indexing", "shards", start=2)
    for second, done in ((1, 3), (4, 4), (13, 5), (14, 6), (15, 2000)):
        clock[0] = 100.0 + second
        progress(done, 2000, now=done == 2000)
    progress.line("done")
    progress.end()
    assert capsys.readouterr().err.splitlines() == [
        "indexing: 4 of 2,000 shards, 0.5 a second, 3,992 s left",
        "indexing: 6 of 2,000 shards, 0.3 a second, 6,979 s left",
        "indexing: 2,000 of 2,000 shards, 133.2 a second, 0 s left",
        "indexing: done",
    ]


def test_on_a_terminal_a_bar_shows_the_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    progress = Progress("run [a]", "steps", quiet=0)
    progress(3, 12, "loss 1.5")
    progress.line("measuring [x] takes 1 s")
    progress.end()
    shown = capsys.readouterr().err
    assert "3/12 steps" in shown
    assert shown.splitlines()[-1].endswith("run [a]: 3 of 12 steps, loss 1.5, 0 s"), "what no edge cuts"
    assert "run [a]: measuring [x] takes 1 s" in shown
    assert "loss 1.5" in shown
