"""Commands that are one process and no study: whatever ends them, one sentence and an exit code, no traceback."""

import errno
from importlib import import_module
from pathlib import Path

import pytest
from safetensors import SafetensorError

from data.refusal import UserError
from engine.study.ending import carried_out

FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
ENDS: list[tuple[BaseException, int, str]] = [
    (UserError("x is y; give z"), 2, "error: x is y; give z\n"),
    (OSError(errno.EROFS, "Read-only file system", "out"), 2, "error: Read-only file system: out; mount it to be written\n"),
    (FULL, 2, "error: disk full (No space left on device); free some space and run the same command again\n"),
    (KeyboardInterrupt(), 130, "stopped"),
]
COMMANDS = {  # its words, and what it begins with
    "audit": (["w"], "load_subject"),
    "captions": (["--spec", "x.yaml", "--out", "x.txt"], "load"),
    "forge": (["--spec", "x.yaml", "--out", "x.safetensors"], "load"),
    "poison": (["plan", "--spec", "x.yaml"], "load"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_ends_a_command_is_said_in_one_sentence(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module, (words, first) = import_module(f"engine.{command}"), COMMANDS[command]
    for error, code, said in ENDS:

        def fail(*given: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(module, first, fail)
        assert module.main(words) == code
        err = capsys.readouterr().err
        assert err.startswith(said)
        assert err.count("\n") == 1


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    def defect() -> int:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        carried_out(defect)
