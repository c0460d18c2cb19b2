"""The order of waiting tasks."""

from __future__ import annotations

from preprocessor.workers.queue import AGEING, TaskQueue


def taken(queue: TaskQueue[str]) -> list[str]:
    items = []
    while (item := queue.take(lambda _: True)) is not None:
        items.append(item)
    return items


def test_short_tasks_overtake_long_ones() -> None:
    queue = TaskQueue[str]()
    queue.put("video", 10.0, arrived_at_seconds=0.0)
    queue.put("photo", 0.01, arrived_at_seconds=1.0)
    queue.put("clip", 1.0, arrived_at_seconds=2.0)
    assert taken(queue) == ["photo", "clip", "video"]


def test_equal_tasks_keep_their_order() -> None:
    queue = TaskQueue[str]()
    for name in "abc":
        queue.put(name, 1.0, arrived_at_seconds=5.0)
    assert taken(queue) == ["a", "b", "c"]


def test_a_long_task_is_not_overtaken_for_ever() -> None:
    queue = TaskQueue[str]()
    queue.put("video", 10.0, arrived_at_seconds=0.0)
    queue.put("early photo", 0.01, arrived_at_seconds=10.0 * AGEING - 1)
    queue.put("late photo", 0.01, arrived_at_seconds=10.0 * AGEING + 1)
    assert taken(queue) == ["early photo", "video", "late photo"]


def test_a_task_that_does_not_fit_is_skipped_and_keeps_its_place() -> None:
    queue = TaskQueue[str]()
    for position, name in enumerate(("large", "small", "smaller")):
        queue.put(name, 1.0, arrived_at_seconds=position)
    assert queue.take(lambda item: item != "large") == "small"
    assert taken(queue) == ["large", "smaller"]


def test_removing_a_task_keeps_the_order_of_the_others() -> None:
    queue = TaskQueue[str]()
    names = list("abcdef")
    for position, name in enumerate(names):
        queue.put(name, 1.0, arrived_at_seconds=-position)
    queue.remove(names[2])
    queue.remove("never there")
    assert taken(queue) == ["f", "e", "d", "b", "a"]


def test_only_tasks_that_would_run_first_count_as_ahead() -> None:
    queue = TaskQueue[str]()
    queue.put("video", 10.0, arrived_at_seconds=0.0)
    queue.put("clip", 1.0, arrived_at_seconds=0.0)
    assert queue.seconds_ahead(0.01, arriving_at_seconds=1.0) == 0.0
    assert queue.seconds_ahead(1.0, arriving_at_seconds=1.0) == 1.0
    assert queue.seconds_ahead(11.0, arriving_at_seconds=1.0) == 11.0
