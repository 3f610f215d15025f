"""What one rank does alone for long is left when any is asked to stop, and is otherwise as if nobody asked."""

import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import play

from engine.distributed import attended as module
from engine.distributed.attended import attended
from engine.evaluation.encode import Cut
from measures.linear_probe import fitted


def busy(calls: int, ending: Callable[[], Any]) -> Any:
    """Calls so many functions, and ends so."""
    for _ in range(calls):
        time.monotonic()
        len([])
        min(1, 2)
    return ending()


def fail() -> None:
    raise KeyError("of the action")


def outcome(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except (Cut, KeyError) as error:
        return type(error)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.sampled_from([0, 1, 9]), st.booleans(), st.integers(0, 40), st.integers(0, 2))
def test_all_ranks_end_alike(size: int, calls: int, fails: bool, asked_at: int, who: int) -> None:
    """Whatever the action does, whenever whichever rank is asked to stop: the same outcome everywhere, never a wait."""
    here, told = threading.local(), [None] * size
    ran: list[int] = []

    def on_rank_0(action: Callable[[], Any]) -> Any:
        if not here.rank:
            told[0] = outcome(action)
        here.group.all_reduce_sum(torch.zeros(1))
        if isinstance(told[0], type):
            raise told[0]
        return told[0]

    def act(rank: int, places: Any) -> Any:
        here.rank, here.group, here.questions = rank, places.everyone, 0

        def ask() -> None:
            here.questions += 1
            stops = here.questions > asked_at and rank == who % size
            if here.group.all_reduce_sum(torch.tensor([int(stops)])).item():
                raise Cut

        def action() -> Any:
            ran.append(rank)
            return busy(calls, fail if fails else lambda: "done")

        return outcome(lambda: attended(action, ask)), here.questions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAUSE", 0.0)
        patch.setattr(module, "on_rank_0", on_rank_0)
        patch.setattr(module, "all_reduce_sum", lambda n: here.group.all_reduce_sum(torch.tensor(n)).tolist())
        patch.setattr(module, "dist", SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: here.rank))
        found = play(size, act)
    assert len(set(found)) == 1
    end, questions = found[0]
    assert ran == [0] or end is Cut and not ran, "rank 0 alone, or it was cut before it began"
    assert end is Cut if questions > asked_at else end == (KeyError if fails else "done")
    assert questions <= asked_at + 1
    assert sys.getprofile() is None


def test_a_fit_is_left_between_two_of_its_calls_and_is_else_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take half a minute; a library that catches the exception does not keep the process."""
    source = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(60, 8, generator=source), torch.arange(60) % 3
    monkeypatch.setattr(module, "PAUSE", 0.0)
    asked: list[int] = []
    probe = attended(lambda: fitted(rows, labels, 0.316, 20), lambda: asked.append(1))
    assert (probe.coef_ == fitted(rows, labels, 0.316, 20).coef_).all()
    assert len(asked) > 100, "at every call, where there is no pause"
    count = len(asked)

    def ask() -> None:
        asked.append(1)
        if len(asked) >= count + 50:
            raise Cut

    def swallowing() -> str:
        try:
            fitted(rows, labels, 1e9, 10**9)
        except Exception:
            return "went on"
        return "converged"

    with pytest.raises(Cut):
        attended(swallowing, ask)
    assert len(asked) == count + 50


def test_nobody_is_asked_about_what_is_quick() -> None:
    assert attended(lambda: busy(9, lambda: 3), fail) == 3
