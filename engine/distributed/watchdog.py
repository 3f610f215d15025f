"""Heartbeats of the ranks: a rank that waits too long says for which others, and ends, instead of hanging.

Each rank has a thread that publishes, in the store that the ranks met at, how often the rank has come further (`beats`) and
how often the thread itself has looked (`looks`): a rank that is late has fewer beats, one that is dead looks no more.
"""

import os
import socket
import sys
import threading
import time

import torch.distributed as dist


class Watchdog:
    """Publishes how far this rank has come, and ends it if it has waited longer than `limit` seconds."""

    def __init__(self, rank: int, size: int, limit: float, store: dist.distributed_c10d.Store) -> None:
        self.rank, self.size, self.limit = rank, size, limit
        self.beats, self.last, self.looks = 0, time.monotonic(), 0
        self.pause = min(1.0, limit / 4)
        self.store = store
        self.done = threading.Event()
        self._publish()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Stops watching, before the store goes."""
        self.done.set()
        self.thread.join(10)

    def _publish(self) -> None:
        self.looks += 1
        self.store.set(f"antidote/{self.rank}", f"{self.beats} {self.looks} {socket.gethostname()}")

    def _read(self) -> list[tuple[int, int, str]]:
        """(beats, looks, host) of every rank as last published; -1 for one that never did."""
        ranks = []
        for rank in range(self.size):
            key = f"antidote/{rank}"
            value = self.store.get(key).decode() if self.store.check([key]) else "-1 -1 an unknown host"
            beats, looks, host = value.split(" ", 2)
            ranks.append((int(beats), int(looks), host))
        return ranks

    def _look(self) -> None:
        while not self.done.wait(self.pause):
            try:
                self._publish()
                if time.monotonic() - self.last > self.limit:
                    print(f"error on rank {self.rank}: {self.waiting()}", file=sys.stderr, flush=True)
                    os._exit(2)
            except RuntimeError as error:  # rank 0, which keeps the store, is gone
                if time.monotonic() - self.last > self.limit:
                    print(f"error on rank {self.rank}: rank 0 is gone ({error})", file=sys.stderr, flush=True)
                    os._exit(2)

    def waiting(self) -> str:
        """What this rank waits for, in words."""
        who = self.missing() or "no rank that is behind it: all stand at the same step and answer"
        return (
            f"no progress for {self.limit:,.0f} s; waiting for {who}; look at their machines, or raise "
            "machine.timeout_minutes"
        )

    def missing(self) -> str:
        """The ranks that are behind this one or have stopped looking, as a stopped process or a dead machine does at
        whatever step it stands; empty if none is. Takes four looks."""
        before = self._read()
        for _ in range(4):
            time.sleep(self.pause)
            self._publish()
        return ", ".join(
            f"rank {rank} on {host}"
            for rank, (beats, looks, host) in enumerate(self._read())
            if rank != self.rank and (beats < self.beats or looks == before[rank][1])
        )


_watchdog: Watchdog | None = None


def start_watchdog(rank: int, size: int, limit: float, store: dist.distributed_c10d.Store) -> None:
    """Watches this process from now on; after `limit` seconds without a `heartbeat` it is ended."""
    global _watchdog
    _watchdog = Watchdog(rank, size, limit, store)


def stop_watchdog() -> None:
    """Ends the watching, if there is any."""
    global _watchdog
    if _watchdog is not None:
        _watchdog.end()
        _watchdog = None


def heartbeat() -> None:
    """Says that this rank has come further; called at each step, and in whatever else may take long."""
    if _watchdog is not None:
        _watchdog.beats += 1
        _watchdog.last = time.monotonic()


def missing_ranks() -> str:
    """The ranks that no longer answer, in words; empty if none is missing, or if nothing is watched."""
    try:
        return _watchdog.missing() if _watchdog is not None else ""
    except RuntimeError:  # the store, which rank 0 keeps, went with it
        return "rank 0"
