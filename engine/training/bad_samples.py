"""Pairs that can't be used, and batches whose step was not taken, run by run."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

from data.refusal import Diverged, UserError
from engine.distributed.collectives import gather_objects, on_rank_0
from engine.distributed.world import World
from engine.training.inputs import RunInputs
from engine.training.journal import Journal
from records.lines import Lines, read_lines, seal
from records.manifest import BadSteps
from records.skipped import LostPairs, SkippedPair, add_skipped, read_skipped, write_skipped

Entry = tuple[str, str, str]  # shard, key, cause


class BadSamples:
    """Pairs that can't be used, listed in skipped.jsonl by shard, key and cause, and shown as shares in TensorBoard;
    UserError beyond data.max_bad. Per shard, what should be there = good pairs + those listed."""

    def __init__(self, inputs: RunInputs, world: World, journal: Journal) -> None:
        index = inputs.pairs.index
        self.path, self.world, self.journal = inputs.folder / "skipped.jsonl", world, journal
        self.known = list(index.bad)
        self.lost = {shard: (pairs, why) for shard, pairs, why in index.lost}
        self.total = len(index) + len(index.bad) + sum(pairs for pairs, _ in self.lost.values())
        self.most = inputs.run.spec.data.max_bad
        self.entries: Counter[Entry] = Counter()  # a key may come again and again in one shard

    def begin(self, step: int) -> None:
        """Takes what the file lists from before, and what reading the shards' tables found."""
        listed, damaged = on_rank_0(lambda: read_skipped(self.path))
        self.entries = Counter((entry.shard, entry.key, entry.cause) for entry in listed if isinstance(entry, SkippedPair))
        if self.world.first and damaged:
            print(f"{self.path} is damaged (line {damaged[0]:,}); written anew without it", file=sys.stderr, flush=True)
            write_skipped(self.path, listed)
        if self.world.first and len(listed) == self.entries.total():
            for _, (pairs, why) in self.lost.items():
                print(f"about {pairs:,} pairs are lost: {why}", file=sys.stderr)
            add_skipped(self.path, [LostPairs(shard=s, pairs=pairs, why=why) for s, (pairs, why) in self.lost.items()])
        self._add(list((Counter(self.known) - self.entries).elements()), step)

    def add(self, skipped: list[Entry], step: int) -> None:
        """Takes the same entries on every rank; one that came before, in an earlier epoch, counts once."""
        self._add([entry for entry in dict.fromkeys(skipped) if entry not in self.entries], step)

    def _add(self, new: list[Entry], step: int) -> None:
        self.entries.update(new)
        if new and self.world.first:
            add_skipped(self.path, [SkippedPair(key=k, shard=s, cause=c) for s, k, c in new])
        causes: Counter[str] = Counter()
        for (_, _, cause), number in self.entries.items():
            causes[cause] += number
        causes["lost"] = sum(pairs for pairs, _ in self.lost.values())
        causes = +causes
        self.journal.shares("skipped", {cause: n / self.total for cause, n in causes.items()}, step)
        if causes.total() > self.most * self.total:
            shards = Counter(shard for shard, _, _ in self.entries.elements())
            shards.update({shard: pairs for shard, (pairs, _) in self.lost.items()})
            worst = ", ".join(f"{n:,} in {shard}" for shard, n in shards.most_common(3))
            why = next((f"; {why.split(';')[0]}" for _, why in self.lost.values()), "")
            raise UserError(
                f"{causes.total():,} of {self.total:,} pairs can't be used ({', '.join(sorted(causes))}; {worst}{why}), "
                f"more than data.max_bad = {self.most:.2%}; mend or remove those shards, or raise data.max_bad; "
                f"all are listed in {self.path}"
            )


class BadBatches:
    """Batches whose step was not taken, as its loss or a gradient was not finite: counted over all launches of a run, listed
    in bad_batches.jsonl by step and the keys of all ranks' pairs. Every rank calls the same methods."""

    def __init__(self, folder: Path, world: World, before: BadSteps | None) -> None:
        """`before` as the checkpoint has it that the run goes on from: what the file lists beyond is taken off, since those
        steps come again. What is not as it was written is said."""
        self.path, self.world = folder / "bad_batches.jsonl", world
        self.in_a_row, self.total = (before.in_a_row, before.total) if before else (0, 0)
        self.unlogged = before.unlogged if before else 0  # of the total, since the last row of the journal
        if world.first and before is not None and self.path.exists() and self.path.stat().st_size > before.listed:
            os.truncate(self.path, before.listed)
        lines = read_lines(self.path, before.listed if before else None) if world.first else Lines([], [], "")
        self.last_digest = lines.last
        if lines.damaged:
            numbers = ", ".join(f"{number:,}" for number in lines.damaged[:10])
            words = f"what it lists there (line {numbers}) is not what was written; the run does not depend on it"
            print(f"{self.path} is damaged: {words}", file=sys.stderr, flush=True)

    def count(self, taken: bool, step: int, keys: list[str]) -> None:
        """Takes in a step (from 1) with the keys of this rank's pairs."""
        self.in_a_row = 0 if taken else self.in_a_row + 1
        if taken:
            return
        self.total += 1
        self.unlogged += 1
        whole = [key for part in gather_objects(keys) for key in part]
        if self.world.first:
            with self.path.open("a") as file:
                line, self.last_digest = seal(json.dumps({"step": step, "keys": whole}), self.last_digest)
                file.write(line)

    def committed(self) -> BadSteps:
        """What a checkpoint keeps; what is listed is safe on disk."""
        listed = 0
        if self.world.first and self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
                listed = os.fstat(file.fileno()).st_size
        return BadSteps(in_a_row=self.in_a_row, total=self.total, unlogged=self.unlogged, listed=listed)

    def logged(self) -> int:
        """How many there were since the last row of the journal, which is written now."""
        number, self.unlogged = self.unlogged, 0
        return number

    def refuse(self, most: int, step: int) -> None:
        """Diverged if the last `most` steps, to this one, were not taken; to be called when the run is saved."""
        if self.in_a_row >= most:
            raise Diverged(
                f"the loss was not finite in the last {self.in_a_row} steps, to step {step}; none of them was taken, and "
                f"the weights from before are saved; lower optimizer.rate, set optimizer.clip, or look at {self.path}"
            )

    def refuse_end(self, steps: int) -> None:
        """Diverged if most steps of the whole run were not taken: its weights are not what the spec asks for."""
        if 2 * self.total > steps:
            raise Diverged(
                f"the loss was not finite in {self.total:,} of {steps:,} steps, which were not taken, so the run does not "
                f"count as finished; lower optimizer.rate, set optimizer.clip, or look at {self.path}; delete "
                f"{self.path.parent} to begin it anew"
            )
