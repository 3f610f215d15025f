"""Ranks that watch each other: one that waits too long says for which others, one that ends says why, and all leave.

Each rank has a thread that publishes, in the store that the ranks met at, how often the rank has come further (`beats`) and
how often the thread itself has looked (`looks`): a rank that is late has fewer beats, one that is dead looks no more. The
first rank that ends before its time writes there why, and with which exit code; the others end with the same. Rank 0 keeps
the store, and where it was stopped no answer ever comes: whatever is asked of the store is given up after `PATIENCE`.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch.distributed as dist

PATIENCE = 5.0  # seconds within which the store answers
GRACE = 10.0  # seconds that a rank may take to leave, once another has ended
GONE = "rank 0, which does not answer"
T = TypeVar("T")


class End(NamedTuple):
    """Why a rank ended before its time, and the exit code of all."""

    rank: int
    code: int
    words: str

    @classmethod
    def read(cls, text: str) -> "End":
        """The end that `text` tells."""
        rank, code, words = text.split(" ", 2)
        return cls(int(rank), int(code), words)

    @property
    def text(self) -> str:
        """As the store holds it."""
        return f"{self.rank} {self.code} {self.words}"


class Meeting:
    """The store that the ranks met at, asked by a thread of its own that may be left behind."""

    def __init__(self, store: dist.distributed_c10d.Store) -> None:
        self.store = store
        self.free = threading.Lock()  # taken as long as a question is open
        self.answered = time.monotonic()

    def ask(self, question: Callable[[dist.distributed_c10d.Store], T], otherwise: T, patience: float = PATIENCE) -> T:
        """What `question` gets from the store, or `otherwise` if that fails or takes longer."""
        if not self.free.acquire(timeout=patience):
            return otherwise
        answers: list[T] = []

        def get() -> None:
            try:
                answers.append(question(self.store))
                self.answered = time.monotonic()
            except Exception:  # rank 0, which keeps the store, is gone
                pass
            finally:
                self.free.release()

        thread = threading.Thread(target=get, daemon=True)
        thread.start()
        thread.join(patience)
        return answers[0] if answers else otherwise


class Watchdog:
    """Publishes how far this rank has come; ends it if it has waited longer than `limit` seconds, or if another rank has
    ended and this one does not leave by itself."""

    def __init__(self, rank: int, size: int, limit: float, store: dist.distributed_c10d.Store) -> None:
        self.rank, self.size, self.limit = rank, size, limit
        self.beats, self.last, self.looks = 0, time.monotonic(), 0
        self.pause = min(1.0, limit / 4)
        self.speak_last: Callable[[], None] = lambda: None  # what is said after the sentence
        self.meeting = Meeting(store)
        self.ended: End | None = None  # the first that was told
        self.done = threading.Event()
        self._publish()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Stops watching, before the store goes; rank 0 first lets the others read why a rank ended."""
        deadline = time.monotonic() + PATIENCE
        while self.ended and not self.rank and time.monotonic() < deadline and not self._all_know():
            time.sleep(self.pause / 4)
        self.done.set()
        self.thread.join(PATIENCE)

    def announce(self, end: End) -> End:
        """The end that counts: the first that any rank has told, maybe this one."""
        if self.ended is None:
            told = self.meeting.ask(lambda store: store.compare_set("antidote/end", "", end.text), end.text.encode())
            self.ended = End.read(told.decode())
        return self.ended

    def heard(self, patience: float) -> End | None:
        """The end that another rank has told, or tells within so many seconds."""
        deadline = time.monotonic() + patience
        while self.ended is None:
            self.ended = self.meeting.ask(_told, None, max(0.1, deadline - time.monotonic()))
            if self.ended is None and time.monotonic() >= deadline:
                return None
            time.sleep(0.05)
        return self.ended

    def all_come(self, name: str) -> bool:
        """Whether every rank calls this with the same name, within `PATIENCE` seconds."""
        self.meeting.ask(lambda store: store.add(f"antidote/{name}", 1), 0)
        deadline = time.monotonic() + PATIENCE
        while (came := self.meeting.ask(lambda store: store.add(f"antidote/{name}", 0), 0)) < self.size:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return came == self.size

    def _publish(self) -> None:
        self.looks += 1
        text = f"{self.beats} {self.looks} {int(self.ended is not None)} {socket.gethostname()}"
        self.meeting.ask(lambda store: store.set(f"antidote/{self.rank}", text), None)

    def _read(self) -> list[tuple[int, int, int, str]]:
        """(beats, looks, whether it knows of an end, host) of every rank as last published; -1 for one that never did; none
        at all if the store does not answer."""

        def read(store: dist.distributed_c10d.Store) -> list[tuple[int, int, int, str]]:
            ranks = []
            for key in (f"antidote/{rank}" for rank in range(self.size)):
                value = store.get(key).decode() if store.check([key]) else "-1 -1 0 an unknown host"
                beats, looks, knows, host = value.split(" ", 3)
                ranks.append((int(beats), int(looks), int(knows), host))
            return ranks

        return self.meeting.ask(read, [])

    def _all_know(self) -> bool:
        self._publish()
        return all(knows for _, _, knows, _ in self._read())

    def _look(self) -> None:
        told = None
        while not self.done.wait(self.pause):
            self._publish()
            if self.ended is None:
                self.ended = self.meeting.ask(_told, None)
            if self.ended is not None:
                told = told or time.monotonic()
                if time.monotonic() - told > GRACE:
                    os._exit(self.ended.code)
            elif time.monotonic() - self.last > self.limit:
                self._give_up()

    def _give_up(self) -> None:
        end = End(self.rank, 2, self.waiting())
        told = self.announce(end)
        if told == end:
            print(f"error on rank {self.rank}: {end.words}", file=sys.stderr, flush=True)
            self.speak_last()
            if not self.rank:
                time.sleep(4 * self.pause)  # for the others to read it
        os._exit(told.code)

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
        if not before:
            return GONE
        for _ in range(4):
            time.sleep(self.pause)
            self._publish()
        after = self._read()
        if not after:
            return GONE
        return ", ".join(
            f"rank {rank} on {host}"
            for rank, (beats, looks, _, host) in enumerate(after)
            if rank != self.rank and (beats < self.beats or looks == before[rank][1])
        )


def _told(store: dist.distributed_c10d.Store) -> End | None:
    return End.read(store.get("antidote/end").decode()) if store.check(["antidote/end"]) else None


_watchdog: Watchdog | None = None


def start_watchdog(rank: int, size: int, limit: float, store: dist.distributed_c10d.Store) -> None:
    """Watches this process from now on; after `limit` seconds without a `heartbeat` it is ended."""
    global _watchdog
    _watchdog = Watchdog(rank, size, limit, store)


def speak_last(say: Callable[[], None]) -> None:
    """Has this said, too, when the watching ends this process."""
    if _watchdog is not None:
        _watchdog.speak_last = say


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


def is_watched() -> bool:
    """Whether this rank has met others and watches them."""
    return _watchdog is not None


def announce(end: End) -> End:
    """Tells the other ranks that this one ends; the end that was told first, with whose code all leave."""
    return _watchdog.announce(end) if _watchdog is not None else end


def heard_end(patience: float) -> End | None:
    """The end that another rank has told, or tells within so many seconds."""
    return _watchdog.heard(patience) if _watchdog is not None else None


def all_come(name: str) -> bool:
    """Whether every rank comes here with the same name, within seconds."""
    return _watchdog is None or _watchdog.all_come(name)


def missing_ranks() -> str:
    """The ranks that no longer answer, in words; empty if none is missing, or if nothing is watched."""
    return _watchdog.missing() if _watchdog is not None else ""
