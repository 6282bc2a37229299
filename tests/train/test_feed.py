"""The thread ahead of the loop: order, errors, ending early."""

import threading
import time

import pytest

from train.feed import Ahead, head_lookup


def _feeding() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gfm-feed"]


def test_items_come_in_order_and_the_thread_ends() -> None:
    with Ahead(range(50), lambda item: item * item) as feed:
        assert list(feed) == [item * item for item in range(50)]
    assert not _feeding()


def test_it_works_ahead_but_not_further_than_asked() -> None:
    made = []
    with Ahead(range(100), made.append, depth=2) as feed:
        iterator = iter(feed)
        next(iterator)
        deadline = time.monotonic() + 30
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(made) == 4  # one taken, two waiting, one in the thread's hand


def test_an_error_reaches_the_loop_after_what_came_before() -> None:
    def prepare(item: int) -> float:
        return 1 / (2 - item)

    with Ahead(range(5), prepare) as feed:
        iterator = iter(feed)
        assert [next(iterator), next(iterator)] == [0.5, 1.0]
        with pytest.raises(ZeroDivisionError):
            next(iterator)
    assert not _feeding()


def test_leaving_early_ends_the_thread() -> None:
    with Ahead(iter(int, 1), lambda item: item, depth=1) as feed:
        next(iter(feed))
    assert not _feeding()


def test_sources_are_matched_by_name() -> None:
    assert head_lookup(["a", "b", "c"], ["c", "a"]).tolist() == [1, 255, 0]
