"""Audits shards before a run reads them: python -m data.check "shards/*.tar".

Walks every shard (which writes its index beside it), decodes every picture and caption, and says per shard what should be
there, what is good and what is not and why. Exit code 2 if more is bad than --max-bad.
"""

import argparse
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

from data.decode import DecodeError, caption, whole
from data.jobs import JobOptions, run_jobs
from data.progress import Progress
from data.refusal import UserError
from data.shards import Index, Table, read_index, read_table
from data.store import Range, Reader, expand, stamp

AT_ONCE = 256  # pairs read together


@dataclass(frozen=True)
class Audit:
    """What is done with each shard."""

    cache: Path
    field: str  # "txt" or "json.FIELD"
    decode: bool

    def report(self, path: str) -> Path:
        """Where the findings on a shard are kept."""
        identity = json.dumps([path, *stamp(path), self.field, self.decode])
        return self.cache / f"audit-{blake2b(identity.encode(), digest_size=12).hexdigest()}.json"


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
    usable = [i for i in range(len(table.keys)) if table.places[i, place] >= 0]
    for begin in range(0, len(usable), AT_ONCE):
        part = usable[begin : begin + AT_ONCE]
        ranges: list[Range] = []
        for i in part:
            row = [int(n) for n in table.places[i]]
            ranges += [(path, row[0], row[1]), (path, row[place], row[place + 1])]
        bodies = reader.read(ranges)
        for i, picture, text in zip(part, bodies[::2], bodies[1::2], strict=True):
            try:
                whole(picture)
                caption(text, how.field)
            except DecodeError as error:
                bad.append((table.keys[i], error.cause))
    reader.close()
    return bad


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
        spread_over = JobOptions(options.jobs, options.slurm, options.hours)
        failed = run_jobs(
            partial(audit, how), paths, lambda path: how.report(path).is_file(), spread_over, how.cache / "jobs", progress
        )
        progress.end()
        if failed:
            raise UserError("; ".join(failed[:3]))
        index = read_index(options.shards, how.cache, schemes=schemes, caption=options.caption)
    except UserError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    bad_by_path = {path: [(key, cause) for key, cause in json.loads(how.report(path).read_text())] for path in paths}
    if options.out:
        entries = [*index.bad, *((path, key, cause) for path, bad in bad_by_path.items() for key, cause in bad)]
        with options.out.open("w") as file:
            file.writelines(json.dumps({"key": k, "shard": s, "cause": c}) + "\n" for s, k, c in entries)
    return _say(summary(index, bad_by_path), options.max_bad)


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
    print(f"{len(rows):,} shards: {total:,} pairs expected, {good:,} good ({good / max(total, 1):.2%}); {words}")
    if causes.total() > most * total:
        print(f"error: {causes.total() / total:.2%} are bad, more than {most:.2%}; mend or leave out", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    from data.check import main as command  # under its own name, by which other processes find its functions

    sys.exit(command(sys.argv[1:]))
