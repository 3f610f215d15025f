"""What a command imports before it answers: a spec with an error needs no torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

from engine import deferred

ASK = """
import atexit, os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
atexit.register(lambda: print("imported:", *sorted(sys.modules)))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def imported(*words: str, cwd: Path) -> tuple[int, set[str], str]:
    """(exit code, modules that are in memory when a fresh interpreter has carried the command out, its errors)."""
    command = [sys.executable, "-c", ASK, str(ROOT / "engine/run.py"), *words]
    out = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=100, check=False)
    return out.returncode, set(out.stdout.splitlines()[-1].split()[1:]), out.stderr


def test_a_spec_with_an_error_is_refused_without_torch(spec: Path) -> None:
    spec.write_text(spec.read_text().replace("epochs: 2", "epoch: 2"))
    code, modules, errors = imported("--spec", spec.name, cwd=spec.parent)
    assert code == 2
    assert "did you mean 'epochs'?" in errors
    assert not modules & {"torch._C", "scipy", "sklearn", "open_clip", "deepspeed", "rich", "matplotlib", "nltk"}


def test_a_deferred_package_is_loaded_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/__init__.py").write_text("from slow.part import VALUE\nload = 'its own'\n")
    (tmp_path / "slow/part.py").write_text("VALUE = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("slow", "slow.part"):
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    deferred.defer("slow")
    import slow  # type: ignore[import-not-found]

    assert "slow.part" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        import slow.part  # type: ignore[import-not-found]  # a part before the whole would be loaded twice
    assert slow.load == "its own"
    import slow.part as part

    assert part.VALUE is slow.VALUE
    deferred.load("slow")
    assert part.VALUE is slow.VALUE
