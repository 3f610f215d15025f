"""Audits shards before a run reads them: python -m data.check "shards/*.tar".

Walks every shard (which writes its index beside it), decodes every picture and caption, and says per shard what should be
there, what is good and what is not and why. Exit code 2 if more is bad than --max-bad.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np

from data.decode import DecodeError, caption, whole
from data.jobs import JobOptions, run_jobs
from data.patience import scheme
from data.progress import Progress
from data.refusal import UserError
from data.shards import THREADS, Index, read_index
from data.store import TOGETHER, Range, Reader, expand, in_parts, stamp
from data.table import Table, holds, read_table

RULES = 2  # raised when pairs are judged otherwise, so that no older audit is taken for today's
AT_ONCE = 256  # pairs read together
BYTES = TOGETHER  # of them


@dataclass(frozen=True)
class Audit:
    """What is done with each shard."""

    cache: Path
    field: str  # "txt" or "json.FIELD"
    decode: bool

    def report(self, path: str) -> Path:
        """Where the findings on a shard are kept."""
        identity = json.dumps([RULES, path, *stamp(path), self.field, self.decode])
        return self.cache / f"audit-{blake2b(identity.encode(), digest_size=12).hexdigest()}.json"

    def found(self, path: str) -> list[tuple[str, str]] | None:
        """(key, cause) of the pairs of a shard that do not decode, if it has been audited."""
        try:
            return [(str(key), str(cause)) for key, cause in json.loads(self.report(path).read_text())]
        except (OSError, ValueError, TypeError):  # none, or not as it was written
            return None

    def drop_if_other_bytes(self, path: str) -> bool:
        """Whether a shard on a disk, audited before, holds other bytes than then, though its size and time are the same (a
        bad disk, a copy with its time set back): it is indexed anew, its findings are dropped. A store's own mark tells."""
        if self.found(path) is None or scheme(path) and stamp(path)[1] or holds(path, read_table(path, self.cache)):
            return False
        read_table(path, self.cache, anew=True)
        self.report(path).unlink()
        return True


def audit(how: Audit, path: str) -> None:
    """Walks a shard and keeps the index beside it; decodes it and keeps what does not decode."""
    table = read_table(path, how.cache)
    bad = _undecodable(how, path, table, 2 if how.field == "txt" else 4) if how.decode else []
    target = how.report(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    fresh.write_text(json.dumps(bad))
    os.replace(fresh, target)


def _undecodable(how: Audit, path: str, table: Table, place: int) -> list[tuple[str, str]]:
    bad = []
    reader = Reader()
    for part in _parts(table, place):
        ranges: list[Range] = []
        for i in part:
            row = [int(n) for n in table.places[i]]
            ranges += [(path, row[0], row[1]), (path, row[place], row[place + 1])]
        bodies = reader.read(ranges)
        for i, picture, text in zip(part, bodies[::2], bodies[1::2], strict=True):
            try:
                caption(text, how.field)  # in the order of a run, so that a pair with two faults has the same cause
                whole(picture)
            except DecodeError as error:
                bad.append((table.keys[i], error.cause))
    reader.close()
    return bad


def _parts(table: Table, place: int) -> Iterator[list[int]]:
    """The pairs with a caption at that place of a row, in parts that are read together."""
    pairs = np.flatnonzero(table.places[:, place] >= 0)
    for part in in_parts((table.places[pairs, 1] + table.places[pairs, place + 1]).tolist(), BYTES):
        for begin in range(part.start, part.stop, AT_ONCE):
            yield pairs[begin : min(begin + AT_ONCE, part.stop)].tolist()


@dataclass(frozen=True)
class ShardRow:
    """One shard: expected = good + bad, always."""

    shard: str
    expected: int
    bad: Counter[str]
    why: str

    @property
    def good(self) -> int:
        """Pairs that can be used."""
        return self.expected - self.bad.total()


def summary(index: Index, undecodable: dict[str, list[tuple[str, str]]]) -> list[ShardRow]:
    """A row for each shard, of what the index counts and of what does not decode."""
    lost = {path: (pairs, why) for path, pairs, why in index.lost}
    bad: dict[str, dict[str, str]] = {path: {} for path in index.paths}
    unkeyed: dict[str, Counter[str]] = {path: Counter() for path in index.paths}
    for path, key, cause in index.bad:
        if cause == "duplicate_key":
            unkeyed[path][cause] += 1
        else:
            bad[path][key] = cause
    rows = []
    for path, count in zip(index.paths, index.counts.tolist(), strict=True):
        pairs, why = lost.get(path, (0, ""))
        known = len(bad[path])
        bad[path].update((key, cause) for key, cause in undecodable.get(path, ()))
        causes = Counter(bad[path].values()) + unkeyed[path] + Counter({"lost": pairs})
        rows.append(ShardRow(path, count + known + unkeyed[path].total() + pairs, causes, why))
    return rows


def of_index(index: Index, undecodable: dict[str, list[tuple[str, str]]]) -> dict[str, list[tuple[str, str]]]:
    """What does not decode, without the pairs whose key an earlier shard has: they are counted as duplicates alone."""
    out, doubles = dict(undecodable), {path for path, _, cause in index.bad if cause == "duplicate_key"}
    for path, end, count in zip(index.paths, index.ends.tolist(), index.counts.tolist(), strict=True):
        if path in doubles and out.get(path):
            used = set(index.keys[end - count : end])
            out[path] = [(key, cause) for key, cause in out[path] if key in used]
    return out


def main(arguments: list[str]) -> int:
    """The command; exit code 2 if too much is bad or a shard can't be read."""
    parser = argparse.ArgumentParser(prog="python -m data.check", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("shards", help="brace or glob pattern of .tar files, or a URL of --schemes")
    parser.add_argument("--caption", default="txt", help="txt, or json.FIELD")
    parser.add_argument("--quick", action="store_true", help="only walk the shards; decode nothing")
    parser.add_argument("--max-bad", type=float, default=0.01, help="share of bad pairs that is accepted (default 0.01)")
    parser.add_argument("--schemes", default="s3,gs,https", help="of URLs that may be opened")
    parser.add_argument("--out", type=Path, help="write a JSON line for each bad pair to this file")
    JobOptions.arguments(parser)
    options = parser.parse_args(arguments)
    how = Audit(Path("runs/.index"), options.caption, not options.quick)
    schemes = tuple(options.schemes.split(","))
    progress = Progress("checking", "shards")
    try:
        paths = expand(options.shards, schemes)
        _look_again(how, paths)
        spread_over = JobOptions(options.jobs, options.slurm, options.hours)
        failed = run_jobs(
            partial(audit, how), paths, lambda path: how.found(path) is not None, spread_over, how.cache / "jobs", progress
        )
        progress.end()
        if failed:
            raise UserError("; ".join(failed[:3]))
        index = read_index(options.shards, how.cache, schemes=schemes, caption=options.caption)
        bad_by_path = of_index(index, {path: _kept(how, path) for path in paths})
        if options.out:
            _list(options.out, index, bad_by_path)
    except UserError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    return _say(summary(index, bad_by_path), options.max_bad)


def _look_again(how: Audit, paths: list[str]) -> None:
    """Compares shards that were audited before with what they held then; says which hold other bytes."""
    known = [path for path in paths if how.found(path) is not None]
    progress = Progress("comparing", "shards")
    with ThreadPoolExecutor(THREADS) as pool:
        for done, (path, other) in enumerate(zip(known, pool.map(how.drop_if_other_bytes, known), strict=True), 1):
            progress(done, len(known))
            if other:
                print(f"{path} holds other bytes than when it was audited; it is audited anew", file=sys.stderr, flush=True)
    progress.end()


def _kept(how: Audit, path: str) -> list[tuple[str, str]]:
    found = how.found(path)
    if found is None:
        raise UserError(f"shard {path} changed while it was checked; start the same command again")
    return found


def _list(out: Path, index: Index, undecodable: dict[str, list[tuple[str, str]]]) -> None:
    """Writes a JSON line for each bad pair."""
    entries = [*index.bad, *((path, key, cause) for path, bad in undecodable.items() for key, cause in bad)]
    try:
        with out.open("w") as file:
            file.writelines(json.dumps({"key": k, "shard": s, "cause": c}) + "\n" for s, k, c in entries)
    except OSError as error:
        raise UserError(f"--out {out} can't be written: {error.strerror}; name another file") from None


def _say(rows: list[ShardRow], most: float) -> int:
    causes: Counter[str] = Counter()
    for row in rows:
        causes += row.bad
        if row.bad:
            words = ", ".join(f"{n:,} {cause}" for cause, n in sorted(row.bad.items()))
            print(f"{row.shard}: {row.expected:,} pairs expected, {row.good:,} good, {words}")
            if row.why:
                print(f"    {row.why}")
    total, good = sum(row.expected for row in rows), sum(row.good for row in rows)
    words = ", ".join(f"{n:,} {cause}" for cause, n in sorted(causes.items())) or "none bad"
    if causes["dot_in_name"]:
        print("dot_in_name: a key ends at the first dot, so a.0.jpg and a.1.jpg are both of 'a'; write a_0.jpg, a_1.jpg")
    print(f"{len(rows):,} shards: {total:,} pairs expected, {good:,} good ({good / max(total, 1):.2%}); {words}")
    if causes.total() > most * total:
        print(f"error: {causes.total() / total:.2%} are bad, more than {most:.2%}; mend or leave out", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    from data.check import main as command  # under its own name, by which other processes find its functions

    sys.exit(command(sys.argv[1:]))
