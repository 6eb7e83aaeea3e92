"""Working ahead: in order or as finished, bounded, with errors in their place. Events say when a call may end."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from flextok.runtime.ahead import Prefetcher, ahead, as_finished


class ByHand:
    """Calls that end when the test says so."""

    def __init__(self) -> None:
        self.calls: dict[int, Future[int]] = {}

    def submit(self, item: int) -> "Future[int]":
        self.calls[item] = Future()
        return self.calls[item]

    def end(self, *items: int) -> None:
        for item in items:
            self.calls[item].set_result(item * item)


def test_results_come_in_order_and_no_more_are_begun_than_the_depth_allows() -> None:
    hand = ByHand()
    results = ahead(hand.submit, range(10), depth=3)

    def later() -> None:
        hand.end(3, 2, 1, 0)

    timer = threading.Timer(0, later)
    taken = iter(results)
    hand_over = threading.Event()

    def first() -> None:
        assert next(taken) == (0, 0)
        hand_over.set()

    consumer = threading.Thread(target=first)
    consumer.start()
    while len(hand.calls) < 4:  # the first one, and three that go on while it is consumed
        pass
    timer.start()
    assert hand_over.wait(10)
    consumer.join()
    assert sorted(hand.calls) == [0, 1, 2, 3]
    assert next(taken) == (1, 1) and sorted(hand.calls) == [0, 1, 2, 3, 4]
    taken.close()  # type: ignore[attr-defined]
    assert hand.calls[4].cancelled()


@pytest.mark.parametrize("depth", [0, 1, 3, 100])
def test_it_is_a_map(depth: int) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = ahead(lambda item: pool.submit(pow, item, 2), iter(range(20)), depth)
        assert list(found) == [(item, item**2) for item in range(20)]
    assert list(ahead(ByHand().submit, [], depth)) == []


def test_a_call_begins_only_while_the_cost_of_those_before_is_within_the_depth() -> None:
    begun: list[int] = []
    taken: list[int] = []

    def submit(item: int) -> "Future[int]":
        assert sum(begun) - sum(taken) <= 3
        begun.append(item)
        done: Future[int] = Future()
        done.set_result(item)
        return done

    sizes = [1, 1, 50, 1, 1, 1, 9, 9, 1]
    for item, _ in ahead(submit, sizes, depth=3, cost=float):
        taken.append(item)
    assert taken == begun == sizes


def test_an_error_comes_in_its_place() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    taken = []
    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="two"):
        for item, _ in ahead(lambda item: pool.submit(work, item), range(5), 4):
            taken.append(item)
    assert taken == [0, 1]


def test_what_is_finished_first_comes_first() -> None:
    hand = ByHand()
    taken = as_finished(hand.submit, range(5), depth=2)
    hand.submit = lambda item: ByHand.submit(hand, item)  # type: ignore[method-assign]
    found: list[tuple[int, int]] = []
    begun = threading.Thread(target=lambda: found.append(next(taken)))
    begun.start()
    while len(hand.calls) < 2:
        pass
    hand.end(1)
    begun.join()
    assert found == [(1, 1)] and sorted(hand.calls) == [0, 1]
    hand.end(0)
    assert next(taken) == (0, 0)


def test_a_prefetcher_gives_all_and_raises_what_its_items_raise() -> None:
    def items():
        yield from range(3)
        raise OSError("the source broke")

    taken = []
    with Prefetcher(items(), 2) as prefetched, pytest.raises(OSError, match="broke"):
        taken.extend(prefetched)
    with Prefetcher(iter(range(7)), 2) as prefetched:
        assert list(prefetched) == list(range(7))
