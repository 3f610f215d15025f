"""Shards of all that may stand in a tar, each with the ledger of what must be found in it; made without any code of ours."""

import io
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

BLOCK = 512


def header(name: bytes, size: int | bytes, kind: bytes = b"0", link: bytes = b"") -> bytes:
    """A ustar header; `size` as bytes is written as it is, 12 of them."""
    digits = size if isinstance(size, bytes) else b"%011o\0" % size
    parts = [name.ljust(100, b"\0"), b"0000644\0" + b"0000000\0" * 2, digits.ljust(12, b"\0"), b"00000000000\0", b" " * 8]
    out = b"".join([*parts, kind, link.ljust(100, b"\0"), b"ustar\00000"]).ljust(BLOCK, b"\0")
    return summed(out)


def summed(out: bytes) -> bytes:
    """A header with the checksum that it should have."""
    total = sum(out[:148]) + 8 * 32 + sum(out[156:])
    return out[:148] + b"%06o\0 " % total + out[156:]


def padded(body: bytes) -> bytes:
    """Whole blocks."""
    return body + bytes(-len(body) % BLOCK)


def member(name: bytes, body: bytes, kind: bytes = b"0") -> bytes:
    """A regular member, or what has a body as it has."""
    return header(name[:100], len(body), kind) + padded(body)


def record(keyword: bytes, value: bytes) -> bytes:
    """A pax record."""
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def pax(**records: bytes) -> bytes:
    """A pax header for the next member."""
    return member(b"PaxHeaders/x", b"".join(record(key.encode(), value) for key, value in records.items()), b"x")


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """GNU's header for the next member's name or link."""
    return member(b"././@LongLink", name + b"\0", kind)


def encoded(image: Image.Image, kind: str, **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def drawn(mode: str = "RGB", width: int = 24, height: int = 18) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@cache
def good_pictures() -> list[tuple[str, bytes]]:
    """(ending, bytes) of pictures that every reader shows."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    out = [("png", encoded(drawn(mode), "PNG")) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")]
    out += [("jpg", encoded(drawn(mode), "JPEG")) for mode in ("RGB", "L", "CMYK")]
    out += [("JPG", encoded(drawn(), "JPEG", progressive=True)), ("jpeg", encoded(drawn(), "JPEG", exif=exif))]
    out += [("webp", encoded(drawn(), "WEBP")), ("WebP", encoded(drawn("RGBA"), "WEBP", lossless=True))]
    out += [("png", encoded(drawn(width=499, height=1), "PNG")), ("png", encoded(drawn(width=1, height=1), "PNG"))]
    return out


def claiming(width: int, height: int, **more: object) -> bytes:
    """A small JPEG whose header claims other sides."""
    body = bytearray(encoded(drawn(), "JPEG", **more))
    at = next(body.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in body)
    body[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(body)


def many_scans(times: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    body = encoded(Image.new("L", (2000, 2000), 90), "JPEG", progressive=True)
    return body[:-2] + body[body.rindex(b"\xff\xda") : -2] * times + body[-2:]


@cache
def bad_pictures() -> list[tuple[str, bytes, str]]:
    """(ending, bytes, cause) of pictures that no reader shows."""
    others = [drawn("L"), drawn("1")]
    out = [(ending, body, "undecodable_image") for ending, body in (
        ("jpg", b""), ("jpg", b"<html>404</html>"), ("jpg", encoded(drawn(), "JPEG")[:400]),
        ("png", encoded(drawn(), "PNG")[:90]),
        ("webp", encoded(drawn(), "WEBP")[:60]), ("jpg", encoded(drawn(), "GIF", save_all=True, append_images=others)),
        ("png", encoded(drawn(), "BMP")), ("jpg", claiming(7000, 7000)), ("jpg", claiming(7000, 7000, progressive=True)),
        ("jpg", many_scans(1000)), ("png", encoded(drawn(), "TIFF")),
    )]  # fmt: skip
    out += [(ending, body, "huge_image") for ending, body in (
        ("jpg", encoded(Image.new("RGB", (2000, 1)), "JPEG")), ("png", encoded(Image.new("1", (1, 5000)), "PNG")),
        ("png", encoded(Image.new("1", (2_000_000, 2)), "PNG")), ("png", encoded(Image.new("1", (8000, 8000)), "PNG")),
        ("jpg", claiming(65500, 65500)), ("webp", encoded(Image.new("RGB", (16383, 5)), "WEBP")),
    )]  # fmt: skip
    out += [("png", encoded(Image.new("I;16", (9, 9)), "PNG"), "sixteen_bit_image")]
    out += [("png", encoded(drawn(), "PNG", save_all=True, append_images=others), "animated_image")]
    out += [("webp", encoded(drawn(), "WEBP", save_all=True, append_images=others), "animated_image")]
    return out


BAD_CAPTIONS = [
    (b"", "empty_caption"), (b" \n\t", "empty_caption"), (b"12 %", "letterless_caption"), (b"\xff\xfea", "caption_not_utf8"),
    (b"a" * 70_000, "long_caption"),
]  # fmt: skip
GOOD_CAPTIONS = [b"a red banana", "schön\n".encode(), b"\xef\xbb\xbfmarked", b"word " * 900]


@dataclass
class Shard:
    """One tar as it grows, and what must be found in it."""

    number: int
    draw: random.Random
    earlier: list[str]  # good keys of shards before
    body: bytearray = field(default_factory=bytearray)
    good: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)  # (key, cause), also of what does not decode
    count: int = 0

    def key(self) -> str:
        """A new one."""
        self.count += 1
        return f"{self.draw.choice(['', 'd/', '/abs/', '../up/', 'a.b/', 'ü/'])}{self.number:04d}_{self.count:03d}"

    def picture(self) -> tuple[str, bytes]:
        return self.draw.choice(good_pictures())

    def pair(self, key: str, before: Callable[[bytes, bytes], bytes] | None = None) -> None:
        """A good pair; `before` gives what stands for each member instead of it."""
        ending, picture = self.picture()
        parts = [(f"{key}.{ending}", picture), (f"{key}.txt", self.draw.choice(GOOD_CAPTIONS))]
        self.draw.shuffle(parts)
        for name, body in parts:
            raw = name.encode("utf-8", "surrogateescape")
            self.body += before(raw, body) if before else member(raw, body)
        self.good.append(key)


def plain(shard: Shard) -> None:
    shard.pair(shard.key())


def further(shard: Shard) -> None:
    """A pair with members that are no pair of their own."""
    key = shard.key()
    shard.pair(key)
    for ending in (".cls", ".mask.png", ".npy", ".json"):
        shard.body += member(f"{key}{ending}".encode(), b"7")


def long_names(shard: Shard) -> None:
    key = f"{shard.key()}{'n' * 120}"
    way = shard.draw.choice([lambda name: pax(path=name), lambda name: pax(mtime=b"1.5", path=name), long_name])
    shard.pair(key, lambda name, body: way(name) + member(name, body))


def names_of_others(shard: Shard) -> None:
    """A long name that is a folder's or a link's own, and no other member's."""
    name = shard.key()
    if shard.draw.random() < 0.5:
        shard.body += long_name(name.encode() + b"f" * 120 + b"/") + header(b"folder/", 0, b"5")
        shard.body += pax(path=name.encode() + b"p" * 120 + b"/") + header(b"folder/", 0, b"5")
    else:
        shard.body += (
            long_name(b"/etc/" + b"k" * 150, b"K") + long_name(f"{name}.jpg".encode()) + header(b"a", 0, b"2", b"b")
        )
        shard.bad.append((name, "link_or_sparse"))
    shard.pair(shard.key())


def said_size(shard: Shard) -> None:
    """The size is in a pax record, and the header has another."""
    wrong = shard.draw.choice([0, 7, 100_000])
    shard.pair(shard.key(), lambda name, body: pax(size=b"%d" % len(body)) + header(name, wrong) + padded(body))


def base_256(shard: Shard) -> None:
    shard.pair(shard.key(), lambda name, body: header(name, b"\x80" + len(body).to_bytes(11, "big")) + padded(body))


def not_utf8(shard: Shard) -> None:
    key = f"{shard.key()}_"
    shard.pair(f"{key}\udce9\udcff")
    shard.good.pop()
    shard.bad.append((f"{key}\\udce9\\udcff", "name_not_utf8"))


def global_header(shard: Shard) -> None:
    shard.body += member(b"pax_global_header", record(b"comment", b"3f" * 20), b"g")
    shard.pair(shard.key())


def bad_picture(shard: Shard) -> None:
    key, (ending, body, cause) = shard.key(), shard.draw.choice(bad_pictures())
    shard.body += member(f"{key}.{ending}".encode(), body) + member(f"{key}.txt".encode(), b"words")
    shard.bad.append((key, cause))


def bad_caption(shard: Shard) -> None:
    key, (ending, body), (text, cause) = shard.key(), shard.picture(), shard.draw.choice(BAD_CAPTIONS)
    if shard.draw.random() < 0.2:
        body = b"neither"  # one cause of two
    shard.body += member(f"{key}.{ending}".encode(), body) + member(f"{key}.txt".encode(), text)
    shard.bad.append((key, cause))


def half(shard: Shard) -> None:
    key, (ending, body) = shard.key(), shard.picture()
    ending, body, cause = shard.draw.choice(
        [(ending, body, "no_caption"), ("txt", b"words", "no_image"), ("pth", b"x", "no_image"), ("", b"", "no_image")]
    )
    shard.body += member(f"{key}.{ending}".rstrip(".").encode(), body)
    shard.bad.append((key, cause))


def again(shard: Shard) -> None:
    """A pair whose key an earlier one has, here or in an earlier shard."""
    here, there = list(shard.good), [key for key in shard.earlier if key not in shard.good]
    if not here or (there and shard.draw.random() < 0.3):
        if there:
            key = shard.draw.choice(there)
            shard.pair(key, lambda name, body: pax(path=name) + member(name, body))
            shard.good.pop()
            shard.bad.append((key, "duplicate_key"))
            shard.earlier.remove(key)  # once
        return
    key = shard.draw.choice(here)
    (ending, body), raw = shard.picture(), key.encode("utf-8", "surrogateescape")
    for name in shard.draw.choice([[b".txt"], [b".txt", f".{ending}".encode()]]):
        shard.body += pax(path=raw + name) + member(raw + name, body)
    shard.bad.append((key, "duplicate_key"))


def dotted(shard: Shard) -> None:
    key, (ending, body) = shard.key(), shard.picture()
    if shard.draw.random() < 0.5:  # with a pair under the key up to the first dot
        shard.pair(key)
    for i in range(shard.draw.randrange(1, 4)):
        shard.body += member(f"{key}.{i}.{ending}".encode(), body) + member(f"{key}.{i}.txt".encode(), b"words")
        shard.bad.append((f"{key}.{i}", "dot_in_name"))


def unstored(shard: Shard) -> None:
    """A picture that is a link or a sparse file."""
    key, body = shard.key(), shard.picture()[1]
    name = f"{key}.jpg".encode()
    sparse = bytearray(header(name, len(body), b"S"))
    sparse[257:265] = b"ustar  \0"
    sparse[386:410], sparse[482], sparse[483:495] = b"%011o\0%011o\0" % (0, len(body)), 1, b"%011o\0" % (len(body) + 5000)
    shard.body += shard.draw.choice([
        header(name, 0, b"1", b"x.jpg"), header(name, 4096, b"2", b"x.jpg"), header(name, 0, b"6"),
        summed(bytes(sparse)) + bytes(504) + b"\1" + bytes(7) + bytes(BLOCK) + padded(body),
        pax(**{"GNU.sparse.major": b"1", "GNU.sparse.name": name, "path": b"GNUSparseFile.0/x"}) + member(b"x", body),
    ])  # fmt: skip
    shard.body += member(f"{key}.txt".encode(), b"words")
    shard.bad.append((key, "link_or_sparse"))


ITEMS = (
    plain, plain, plain, further, long_names, names_of_others, said_size, base_256, not_utf8, global_header, bad_picture,
    bad_picture, bad_caption, half, again, again, dotted, unstored,
)  # fmt: skip


DAMAGES = (
    header(b"a.jpg", 600)[:300], header(b"a.jpg", 1 << 32), header(b"a.jpg", b"-0000001000"),
    header(b"a.jpg", b"\xff" * 11 + b"\x00"), header(b"a.jpg", b"\x80" + b"\xff" * 11), header(b"a.jpg", 5)[:-1] + b"x",
    member(b"x", b"0 path=a\n", b"x"), member(b"x", b"-9 path=a\n", b"x"), member(b"x", b"x path=a\n", b"x"),
    member(b"x", b"9 path=ab", b"x"), member(b"x", b"99 path=a\n", b"x"), member(b"x", b"8 path a\n", b"x"),
    pax(size=b"-512") + member(b"a.jpg", b"x"), pax(size=b"ten") + member(b"a.jpg", b"x"),
    pax(size=b"9" * 20) + member(b"a.jpg", b""), member(b"g", record(b"path", b"all.jpg"), b"g"),
    long_name(b"n" * 5000) + member(b"a", b"x"), header(b"L", 1 << 21, b"L") + bytes(1 << 21), pax(path=b"only.jpg"),
    bytes(2048) + b"x", b"",
)  # fmt: skip  # what ends an archive before its end


def write_shard(folder: Path, number: int, seed: int, earlier: list[str]) -> Shard:
    """The shard of that number, written as NUMBER.tar, its good keys put to the earlier ones; beside a damaged one
    img2dataset's word of how many pairs there should be."""
    shard = Shard(number, random.Random(f"{seed}/{number}"), earlier)
    for _ in range(shard.draw.randrange(1, 12)):
        shard.draw.choice(ITEMS)(shard)
    path = folder / f"{number:04d}.tar"
    if shard.draw.random() < 0.2:
        lost = shard.draw.randrange(1, 5)
        shard.bad += [("", "lost")] * lost
        end = shard.draw.choice(DAMAGES)
        end = end and end + bytes(shard.draw.choice([0, 1024]))  # what is cut off has no end either
        (folder / f"{number:04d}_stats.json").write_text(json.dumps({"successes": len(shard.good) + len(shard.bad)}))
    else:
        end = bytes(shard.draw.choice([512, 1024, 10240]))
    path.write_bytes(shard.body + end)
    earlier += shard.good
    return shard


def causes(shard: Shard) -> Counter[str]:
    return Counter(cause for _, cause in shard.bad)
