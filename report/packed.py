"""A study in one file: the records and journals of its runs, without weights, checkpoints and pictures, as a tar in xz.

    python -m report --pack runs/demo demo.tar.xz

A journal's running digests follow from its lines, and the last one says that they are the right lines: the others are left
out, and put back where the file is read. The same study gives the same bytes.

Who reads such a file may have it from anybody: nothing in it is larger than bounds that stand here, its names are those of a
study's own files, and a tar that is not, byte for byte, what is written here of the same names and contents is refused: no
links, no other kinds, no name twice, nothing behind its end.
"""

import io
import lzma
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from data.refusal import UserError
from records.audit import FOLDER, AuditJson
from records.card import Card
from records.detection import DetectionJson
from records.ending import FinishedJson, PrunedJson
from records.lines import DIGEST, DIGITS, with_digests, without_digests
from records.perturbation import PerturbationJson
from records.rows import FILE
from records.spec_json import SPEC
from records.study_json import StudyJson

SUFFIX = ".tar.xz"
LARGEST_PACKED, LARGEST = 64 * 2**20, 256 * 2**20  # bytes, packed and unpacked
MOST = 200_000  # files
MEMORY = 160 * 2**20  # bytes that unpacking may take beside the content
SMALLEST_WINDOW, LARGEST_WINDOW = 2**20, 2**26  # bytes over which xz finds repetitions
BLOCK = 512  # bytes; a tar is made of such
RECORDS = (  # of a run, beside its spec.json and its journal
    *(kind.FILE for kind in (Card, FinishedJson, PrunedJson, PerturbationJson, DetectionJson)),
    f"{FOLDER}/{AuditJson.FILE}",
)
SHORT = f"{FILE}.short"  # a journal without its digests but the last
OF_RUN = (SPEC, *RECORDS, FILE, SHORT)
NAME = re.compile(rf"{re.escape(StudyJson.FILE)}|[a-z]{{1,20}}-[0-9a-f]{{12}}/(?:{'|'.join(map(re.escape, OF_RUN))})")


def pack(folder: Path, runs: list[str]) -> bytes:
    """The packed study in a folder; UserError if it is larger than one that is read. Files of one kind stand together, which
    packs them smaller."""
    paths = [folder / StudyJson.FILE, *(folder / run / name for name in OF_RUN for run in sorted(runs))]
    files = [(str(path.relative_to(folder)), path.read_bytes()) for path in paths if path.is_file()]
    raw = _tar([_shortened(name, content) for name, content in files])
    if len(raw) > LARGEST or sum(len(content) for _, content in files) > LARGEST or len(files) > MOST:
        raise _too_large(folder, f"{len(files):,} files of {len(raw) >> 20:,} MiB")
    window = min(max(SMALLEST_WINDOW, 1 << (len(raw) - 1).bit_length()), LARGEST_WINDOW)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window, "pb": 0}]
    packed = lzma.compress(raw, lzma.FORMAT_XZ, lzma.CHECK_CRC64, filters=filters)
    if len(packed) > LARGEST_PACKED:
        raise _too_large(folder, f"{len(packed) >> 20:,} MiB when packed")
    return packed


def _too_large(folder: Path, size: str) -> UserError:
    return UserError(
        f"{folder} is too large to pack ({size}); expected at most {MOST:,} files, {LARGEST >> 20} MiB and, packed, "
        f"{LARGEST_PACKED >> 20} MiB; divide the study, or give its folder"
    )


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary folder with the files of a packed study. Raises UserError for a file that `pack` did not write, and names
    the packed file in the folder's place where one is raised inside."""
    with TemporaryDirectory(prefix="antidote-") as folder:
        for name, content in _members(path):
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        try:
            yield Path(folder)
        except UserError as error:
            raise UserError(str(error).replace(folder, str(path))) from None


def _members(path: Path) -> list[tuple[str, bytes]]:
    """(Name, content) of each file of a packed study."""
    raw = _decompressed(path)
    files, at = dict[str, bytes](), 0
    while any(header := raw[at : at + BLOCK]):
        name, size = header[:100].rstrip(b"\0").decode("latin-1"), re.fullmatch(rb"([0-7]{11})\0", header[124:136])
        if size is None or not NAME.fullmatch(name):
            raise _refusal(path, f"it holds {name[:80]!r}, which is no file of a study")
        end = at + BLOCK + int(size[1], 8)
        if name in files or len(files) == MOST or end > len(raw):
            raise _refusal(path, f"it holds {name} twice, cut short, or behind {MOST:,} others")
        files[name] = raw[at + BLOCK : end]
        at = -(-end // BLOCK) * BLOCK
    if _tar(list(files.items())) != raw:
        raise _refusal(path, "its tar is not as --pack writes it")
    return list(_lengthened(path, files))


def _shortened(name: str, content: bytes) -> tuple[str, bytes]:
    """A journal whose every line has its digest in its short form; another file as it is."""
    short = without_digests(content) if name.endswith(f"/{FILE}") else None
    return (name, content) if short is None else (name.removesuffix(FILE) + SHORT, short)


def _lengthened(path: Path, files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """The files with the digests of short journals; refused if they are longer than a study may be, or there twice."""
    longer = len(f', "{DIGEST}": ""') + DIGITS  # than it is, a line without its digest becomes
    lines = sum(content.count(b"\n") - 1 for name, content in files.items() if name.endswith(SHORT))
    if sum(map(len, files.values())) + longer * lines > LARGEST:
        raise _refusal(path, f"unpacked it is larger than {LARGEST // 2**20} MiB")
    for name, content in files.items():
        whole = name.removesuffix(SHORT) + FILE if name.endswith(SHORT) else name
        if whole != name and whole in files:
            raise _refusal(path, f"it holds {whole} twice")
        try:
            yield whole, with_digests(content) if whole != name else content
        except ValueError as error:
            raise UserError(f"{path}/{whole} is damaged: {error}; take a whole copy of {path}") from None


def _decompressed(path: Path) -> bytes:
    """The tar of a packed study, no larger than LARGEST."""
    try:
        if path.stat().st_size > LARGEST_PACKED:
            raise _refusal(path, f"it is larger than {LARGEST_PACKED // 2**20} MiB")
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
        raw = decoder.decompress(path.read_bytes(), LARGEST + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a study's folder or a packed study") from None
    except lzma.LZMAError as error:
        raise _refusal(path, f"as xz: {error}") from None
    if len(raw) > LARGEST:
        raise _refusal(path, f"unpacked it is larger than {LARGEST // 2**20} MiB")
    if not decoder.eof or decoder.unused_data:
        raise _refusal(path, "it is cut short, or goes on behind its end")
    return raw


def _tar(files: list[tuple[str, bytes]]) -> bytes:
    """The files as a tar that says nothing of who made it and when."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _refusal(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is not a packed study ({why}); expected a file that python -m report --pack STUDY FILE{SUFFIX} wrote; "
        "take a whole copy of it"
    )
