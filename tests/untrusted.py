"""Tars and pictures that nobody vouches for, read in a process of its own, whose memory is limited.

    python tests/untrusted.py ledger FOLDER SHARDS SEED      shards with a ledger, against an audit and against a run
    python tests/untrusted.py fuzz FOLDER SECONDS SEED       SECONDS * 100 changed tars and pictures, or as many as it can

Prints one line of JSON: how many were tried, what was wrong (the first few), the peak in MB above the idle process.
"""

import json
import random
import re
import resource
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from odd_tars import (
    bad_pictures,
    causes,
    good_pictures,
    header,
    long_name,
    member,
    pax,
    record,
    summed,
    write_shard,
)  # fmt: skip

from data import archive
from data.archive import Contents, Damage, contents, grouped
from data.augmentation.augment import Augment
from data.check import Audit, audit, of_index, summary
from data.decode import DecodeError, picture, whole
from data.pipeline import Pairs, Reading
from data.refusal import UserError
from data.shards import Index, read_index
from data.sources import Data, Source
from data.tar import members_of

LIMIT = 1 << 30  # bytes above the idle process
SECONDS = 20.0  # of CPU for one tar or picture


def memory(name: str) -> int:
    """Bytes, of this process."""
    return int(re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def ledger(folder: Path, shards: int, seed: int) -> tuple[int, list[str]]:
    """(how many pairs were found and judged, what differs from the reference)."""
    wrong, earlier = list[str](), list[str]()
    expected = [write_shard(folder, number, seed, earlier) for number in range(shards)]
    how = Audit(folder / "cache", "txt", True)
    paths = [str(folder / f"{number:04d}.tar") for number in range(shards)]
    for path in paths:
        audit(how, path)
    index = read_index(f"{folder}/*.tar", how.cache)
    undecodable = of_index(index, {path: how.found(path) or [] for path in paths})
    rows = summary(index, undecodable)
    by_run = seen_by_a_run(index, seed)
    begin = 0
    for shard, row, path in zip(expected, rows, paths, strict=True):
        keys, begin = index.keys[begin : begin + int(index.counts[shard.number])], begin + int(index.counts[shard.number])
        bad = Counter((key, cause) for at, key, cause in index.bad if at == path)
        bad.update(undecodable[path])
        bad.update(dict.fromkeys([("", "lost")], row.bad["lost"]))
        if Counter(shard.bad) != +bad:
            wrong.append(f"{path}: {Counter(shard.bad) - bad} is not listed, {bad - Counter(shard.bad)} is listed")
        if (row.expected, row.good, row.bad) != (len(shard.good) + len(shard.bad), len(shard.good), causes(shard)):
            wrong.append(
                f"{path}: {row.expected} expected, {row.good} good, {row.bad}; right: {len(shard.good)}, {causes(shard)}"
            )
        if sorted(set(keys) - {key for key, _ in undecodable[path]}) != sorted(shard.good):
            wrong.append(f"{path}: not the same good keys")
        if sorted(undecodable[path]) != sorted(by_run.get(path, [])):
            wrong.append(f"{path}: a run finds {by_run.get(path)}, the audit {undecodable[path]}")
    return sum(row.expected for row in rows), wrong


def seen_by_a_run(index: Index, seed: int) -> dict[str, list[tuple[str, str]]]:
    """(key, cause) by shard of what a run can't use, in either mode and at several sizes."""
    size, mode = random.Random(seed).choice([(32, "exact"), (64, "fast"), (224, "exact"), (224, "fast")])
    reading = Reading(0, 0, 1, 1, (1, 1), size, Augment(synonyms="none"), "txt", mode)  # type: ignore[arg-type]
    pairs = Pairs(index, None, Data(pretrain=Source(shards="x"), test={}), reading, lambda texts: None, None)  # type: ignore
    out: dict[str, list[tuple[str, str]]] = {path: [] for path in index.paths}
    for i in range(len(index)):
        try:
            pairs.first(i)
        except DecodeError as bad:
            out[index.path(i)].append((index.keys[i], bad.cause))
    return out


def fuzz(folder: Path, seconds: float, seed: int) -> tuple[int, list[str]]:
    """(how many were tried, what was wrong)."""
    wrong = list[str]()
    began, number = time.monotonic(), 0
    while time.monotonic() - began < seconds and number < seconds * 100 and len(wrong) < 5:
        draw, cpu = random.Random(f"{seed}/{number}"), time.process_time()
        (folder / "now").write_text(f"{seed}/{number}")  # where it was, should it never end
        try:
            wrong += tar_is_read(folder / "x.tar", draw) if number % 2 else picture_is_judged(draw)
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
        if (spent := time.process_time() - cpu) > SECONDS:
            wrong.append(f"{spent:.0f} s")
        wrong = [line if line.startswith("draw ") else f"draw {seed}/{number}: {line}" for line in wrong]
        number += 1
    return number, wrong


def numbers(draw: random.Random) -> bytes:
    """Twelve bytes where a size should stand."""
    sign = draw.choice([b"\x80", b"\xff"])
    return draw.choice([
        b"-%010o\0" % draw.choice([1, 512, 1024, 4096]), b"%011o\0" % draw.getrandbits(draw.randrange(1, 33)),
        sign + draw.randrange(1 << 16).to_bytes(11, "big"), sign + draw.randbytes(11), b"7" * 12, b" " * 12,
        b"+1_0".ljust(12), sign + (-draw.randrange(1 << 16)).to_bytes(11, "big", signed=True), draw.randbytes(12),
        b"\0" * 12,
    ])  # fmt: skip


def part(draw: random.Random) -> bytes:
    """Something that may stand in a tar."""
    name = draw.choice(
        [b"a.jpg", b"a.txt", b"b.jpg", b"b.json", b"c.0.jpg", b"c.0.txt", b"d/", b"", b"\xff.jpg", b"n" * 100]
    )
    value = draw.choice([b"", b"1", b"-1", b"512", b"99999999999", b"z.jpg", b"x\0y.txt", draw.randbytes(5)])
    keyword = draw.choice([b"path", b"size", b"mtime", b"GNU.sparse.name", b"linkpath"])
    line = draw.choice([
        record(keyword, value),
        b"%d path=x\n" % draw.randrange(30), b"0 a=b\n", b"-1 a=b\n", b"9" * 21 + b" a=b\n", b"7 a=bcd",
        draw.randbytes(9), b"",
    ])  # fmt: skip
    return draw.choice([
        lambda: member(name, draw.randbytes(draw.randrange(700))),
        lambda: member(name, b"x", draw.choice([b"0", b"\0", b"7", b"1", b"2", b"3", b"5", b"6", b"S", b"V", b"Z"])),
        lambda: member(b"h", line + draw.choice([b"", record(b"path", name)]), draw.choice([b"x", b"X", b"g"])),
        lambda: pax(mtime=b"1") + member(name, b"x"),
        lambda: long_name(name + draw.choice([b"", b"\0junk", b"l" * 200]), draw.choice([b"L", b"K"])),
        lambda: header(name, numbers(draw)) + bytes(draw.choice([0, 512])),
        lambda: summed(header(name, 5)[:482] + draw.randbytes(30)) + bytes(512),
    ])()  # fmt: skip


def tar_is_read(path: Path, draw: random.Random) -> list[str]:
    """Writes a tar of such parts, perhaps changed; what is wrong with how it is read."""
    body = bytearray(b"".join(part(draw) for _ in range(draw.randrange(1, 8))) + bytes(draw.choice([0, 512, 1024])))
    for _ in range(draw.choice([0, 0, 0, 1, 3])):
        body[draw.randrange(len(body))] = draw.randrange(256)
    path.write_bytes(body[: draw.randrange(len(body))] if draw.random() < 0.1 else body)
    quick = archive._quick(str(path))
    try:
        members = members_of(str(path))
    except Damage as damage:
        got = contents(str(path))
        return inside(got, len(body)) + ([] if got.damage == str(damage) and quick is None else ["the damage is not seen"])
    except UserError as refusal:
        return [] if "is compressed" in str(refusal) else [str(refusal)]
    slow = grouped(*members)
    out = inside(slow, len(body))
    if quick is not None and not equal(quick, slow):
        out.append("the quick way finds something else")
    theirs = by_tarfile(path)
    lacks = [one for one in theirs or () if one not in members.files]  # what claims to be sparse, we never take for a file
    if theirs is not None and (
        len(lacks) > len(members.others) or [one for one in theirs if one not in lacks] != members.files
    ):
        out.append(f"tarfile finds {theirs}, we find {members.files}")
    return out


def inside(got: Contents, size: int) -> list[str]:
    """What is wrong with places in a file of that size."""
    ends = got.places[:, ::2] + got.places[:, 1::2]
    keys = list(got.keys)
    return (
        [] if (ends <= size).all() and (got.places >= -1).all() and len(set(keys)) == len(keys) else ["places lie outside"]
    )


def equal(one: Contents, other: Contents) -> bool:
    return list(one.keys) == list(other.keys) and one.bad == other.bad and np.array_equal(one.places, other.places)


def by_tarfile(path: Path) -> list[tuple[str, int, int]] | None:
    """What Python's own reader finds in a whole tar; None of one that ends behind a global header, which it refuses."""
    try:
        with tarfile.open(path, "r:") as tar:
            return [(info.name, info.offset_data, info.size) for info in tar if info.isreg() and info.sparse is None]
    except tarfile.ReadError as error:
        if "end of file header" in str(error):
            return None
        raise


def picture_is_judged(draw: random.Random) -> list[str]:
    """Changes a picture; what is wrong with how it is judged."""
    body = bytearray(draw.choice([picture for _, picture, *_ in (*good_pictures(), *bad_pictures())]))  # type: ignore[misc]
    for _ in range(draw.choice([0, 1, 1, 4]) if body else 0):
        at, odd = draw.randrange(min(len(body), draw.choice([40, 1 << 20]))), draw.choice([b"\0", b"\xff\xff", b"\xff\xda"])
        new = draw.choice([draw.randbytes(1), draw.randbytes(4), odd, bytes(body[at // 2 : at])])
        body[at : at + draw.choice([len(new), 0, 1])] = new
    body = body if draw.random() < 0.9 else body[: draw.randrange(len(body) + 1)]
    verdicts = {verdict(lambda: whole(bytes(body)))}
    for size, mode in ((32, "exact"), (32, "fast"), (224, "fast")):
        verdicts.add(verdict(lambda size=size, mode=mode: picture(memoryview(body), size, mode)))  # type: ignore[misc]
    return [] if len(verdicts) == 1 else [f"judged differently: {verdicts}"]


def verdict(decode: Any) -> str:
    try:
        pixels = decode()
    except DecodeError as bad:
        return bad.cause
    return "good" if pixels.dtype == np.uint8 and pixels.ndim == 3 else str(pixels.shape)


def main(what: str, folder: str, number: str, seed: str) -> None:
    good_pictures(), bad_pictures()
    whole(good_pictures()[0][1])
    Path("/proc/self/clear_refs").write_text("5")
    idle = memory("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + LIMIT, resource.RLIM_INFINITY))
    Path(folder).mkdir(exist_ok=True)
    work = ledger if what == "ledger" else fuzz
    tried, wrong = work(Path(folder), int(number), int(seed))
    print(json.dumps({"tried": tried, "wrong": wrong[:5], "peak": (memory("VmHWM") - idle) >> 20}))


if __name__ == "__main__":
    main(*sys.argv[1:])
