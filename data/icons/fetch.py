"""The packages of the icon sets, by npm, each verified by the digest in sets.json. Nothing of a package is ever run."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from data.refusal import UserError

PINS = Path(__file__).with_name("sets.json")
TOGETHER = 12  # packages a call of npm
SECONDS = 900  # for a call
SCOPE = "@iconify-json"


class Pin(NamedTuple):
    """A set as it is taken: a package's name within its scope, version and digest (npm's integrity)."""

    name: str
    version: str
    integrity: str
    title: str = ""
    author: str = ""
    licence: str = ""

    @property
    def package(self) -> str:
        return f"{SCOPE}/{self.name}@{self.version}"

    @property
    def file(self) -> str:
        """What npm pack calls it."""
        return f"{SCOPE[1:]}-{self.name}-{self.version}.tgz"


def pins(names: Collection[str] = ()) -> list[Pin]:
    """The sets of sets.json, all or those named; UserError for a name that is not there."""
    known = {row["name"]: Pin(**row) for row in json.loads(PINS.read_text())}
    if unknown := [name for name in names if name not in known]:
        from difflib import get_close_matches

        near = ", ".join(get_close_matches(unknown[0], known, 3) or list(known)[:5])
        raise UserError(f"'{unknown[0]}' is none of the {len(known)} icon sets; name some of {PINS} (nearest: {near})")
    return [pin for name, pin in known.items() if not names or name in names]


def fetch(wanted: list[Pin], folder: Path, progress: Callable[[int, int], None]) -> None:
    """Puts the packages that are not in the folder there; UserError if npm is missing, fails, or gives another package."""
    missing = [pin for pin in wanted if not (folder / pin.file).is_file()]
    npm = _npm() if missing else ""
    for first in range(0, len(missing), TOGETHER):
        progress(len(wanted) - len(missing) + first, len(wanted))
        _pack(npm, missing[first : first + TOGETHER], folder)
    for pin in wanted:
        verify(folder / pin.file, pin)


def verify(path: Path, pin: Pin) -> None:
    """UserError unless the file is the package of that digest."""
    kind, _, digest = pin.integrity.partition("-")
    try:
        found = base64.b64encode(hashlib.new(kind, path.read_bytes()).digest()).decode()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); check its rights, or delete it") from None
    if found != digest:
        raise UserError(
            f"{path} is not {pin.package}: its digest is {kind}-{found[:12]}..., expected {pin.integrity[:19]}...; delete "
            "it, and the same command fetches it again"
        )


def _npm() -> str:
    """npm's path: this environment's, or the machine's; UserError without one."""
    found = shutil.which("npm", path=str(Path(sys.executable).parent)) or shutil.which("npm")
    if found is None:
        raise UserError(
            "npm, which fetches the icon sets, is not on the PATH; install Node.js, or "
            "python -m pip install --constraint constraints.txt -e '.[icons]', which brings it"
        )
    return found


def _pack(npm: str, wanted: list[Pin], folder: Path) -> None:
    command = [npm, "pack", "--ignore-scripts", "--loglevel=error", "--pack-destination", str(folder.resolve())]
    command += [pin.package for pin in wanted]
    reason = ""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=SECONDS)
        if done.returncode:
            reason = _reason(done.stderr) or f"exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"no end after {SECONDS} s"
    except OSError as error:
        reason = str(error.strerror or error)
    absent = [pin for pin in wanted if not (folder / pin.file).is_file()]
    if reason or absent:
        raise UserError(
            f"npm could not fetch {(absent or wanted)[0].package} ({reason or 'it wrote no file'}); connect this machine "
            "to npm's registry (npm config get registry), or fetch on one that is, with --packages DIR, and bring DIR here",
            again=True,
        )


def _reason(stderr: str) -> str:
    """What npm says went wrong: its code and its first sentence."""
    lines = [line.removeprefix("npm ").removeprefix("ERR!").removeprefix("error").strip() for line in stderr.splitlines()]
    codes = [line for line in lines if line.startswith("code ")]
    sentences = [line for line in lines if len(line.split()) > 3]
    return ", ".join([*codes[:1], *sentences[:1]])[:300].replace(";", ",")
