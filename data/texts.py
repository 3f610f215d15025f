"""Text files that users write: UTF-8, with or without a byte-order mark; lines end with a line feed, a carriage return or
both, and with nothing else that some programs take for an end.

What can't be read as it was meant is refused by file and line.
"""

import codecs
import re
import unicodedata
from pathlib import Path

from data.refusal import Missing, UserError

WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
INVISIBLE = "\ufeff\u200b\ufffd"  # a mark inside a text, a blank without width, what stands for lost letters
ENDS = re.compile(r"\r\n|\n|\r")


def file_bytes(path: str | Path, what: str, wants: str) -> bytes:
    """What a file holds; Missing if it is not there, UserError if it can't be read, saying what it is and what to give."""
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
            raise UserError(f"{what} {path}: is no file; {wants}")
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise Missing(f"{what} {path}: {error.strerror}; {wants}") from None
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}; {wants}") from None


def decoded(body: bytes, name: str) -> str:
    """The text of a file's bytes, without its byte-order mark; UserError naming the file and the line that is no UTF-8."""
    for mark, encoding in WIDE.items():
        if body.startswith(mark):
            raise UserError(f"{name} is {encoding}; save it as UTF-8")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(ENDS.split(body[: error.start].decode("latin-1")))
        raise UserError(f"{name}:{line} is not UTF-8 (byte 0x{body[error.start]:02x}); save the file as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{name} holds zero bytes, as UTF-16 does; save it as UTF-8")
    return text


def split_lines(text: str) -> list[str]:
    """The lines of a text; what follows its last end of a line is none if it is empty."""
    lines = ENDS.split(text)
    return lines if lines[-1] else lines[:-1]


def read_lines(path: str | Path, what: str, wants: str) -> list[str]:
    """The lines of a file, without blanks around them; blank ones at its end are left out. UserError naming file and line of
    what is no text."""
    lines = [line.strip() for line in split_lines(decoded(file_bytes(path, what, wants), f"{what} {path}"))]
    while lines and not lines[-1]:
        del lines[-1]
    if not lines:
        raise UserError(f"{what} {path}: the file is empty; {wants}")
    for number, line in enumerate(lines, 1):
        for letter in line:
            if letter in INVISIBLE or unicodedata.category(letter) in ("Cc", "Zl", "Zp"):
                seen = "a tab" if letter == "\t" else unicodedata.name(letter, "a control character").lower()
                raise UserError(f"{what} {path}:{number} holds {seen} (U+{ord(letter):04X}); {wants}")
    return lines
