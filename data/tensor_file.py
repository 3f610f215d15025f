"""Files of safetensors as the same bytes for the same content: it writes their metadata in an order drawn anew each time."""

import json
from typing import BinaryIO


def settle(file: BinaryIO) -> None:
    """Puts the metadata of a file, open to be read and written, into the order of their names; nothing else moves."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    metadata = header.get("__metadata__", {})
    if len(metadata) > 1:
        header["__metadata__"] = dict(sorted(metadata.items()))
        body = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(body) <= length
        file.seek(8)
        file.write(body.ljust(length))
