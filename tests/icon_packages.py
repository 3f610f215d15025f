"""Icon sets as npm has them: packages in Iconify's format, made here."""

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from data.icons.fetch import Pin

SHAPES = {  # of a box of 24 x 24
    "banana": "M4 4C5 14 12 19 20 18L20 21C9 23 2 14 2 5Z",
    "house": "M2 12L12 2L22 12V22H2Z",
    "star": "M12 1L15 9H23L17 14L19 22L12 17L5 22L7 14L1 9H9Z",
    "key": "M2 9H10V11H22V16H18V14H10V16H2Z",
}
STYLES = {  # one of each set
    "one": '<path fill="currentColor" d="{d}"/>',
    "two": '<path fill="none" stroke="currentColor" stroke-width="2" d="{d}"/>',
    "three": '<g transform="rotate(9 12 12)"><path fill="currentColor" d="{d}"/></g>',
    "four": '<linearGradient id="a"><stop stop-color="#f60"/><stop offset="1" stop-color="#06f"/></linearGradient>'
    '<path fill="url(#a)" d="{d}"/>',
    "five": '<g opacity=".9"><path fill="#c22" d="{d}"/></g>',
    "test": '<path fill="#228" stroke="#000" d="{d}"/>',
}


def icons(style: str, **further: Any) -> dict[str, Any]:
    """icons.json of a set of the four shapes in a style."""
    drawn = {name: {"body": STYLES[style].format(d=d)} for name, d in SHAPES.items()}
    return {"prefix": style, "lastModified": 1, "width": 24, "height": 24, "icons": drawn} | further


def package(folder: Path, name: str, content: dict[str, Any] | None, members: dict[str, bytes] | None = None) -> Pin:
    """Writes a package as npm pack would, and gives its pin; `members` are put in beside or in place of the usual files."""
    files = {
        "package.json": json.dumps({"name": f"@iconify-json/{name}", "version": "1.0.0"}).encode(),
        "info.json": json.dumps(
            {"prefix": name, "name": name.title(), "author": {"name": f"{name}'s author"}, "license": {"spdx": "CC-BY-4.0"}}
        ).encode(),
    }
    if content is not None:
        files["icons.json"] = json.dumps(content).encode()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for place, body in {**files, **(members or {})}.items():
            entry = tarfile.TarInfo(f"package/{place}")
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    pin = Pin(name, "1.0.0", "sha512-" + base64.b64encode(hashlib.sha512(file.getvalue()).digest()).decode())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / pin.file).write_bytes(file.getvalue())
    return pin


def pinned(path: Path, pins: list[Pin]) -> Path:
    """A list of sets such as sets.json."""
    path.write_text(json.dumps([pin._asdict() for pin in pins]))
    return path
