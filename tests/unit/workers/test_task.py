"""The states of a task: which transitions there are, and what each sets."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from preprocessor.errors import Cancelled
from preprocessor.workers.task import Task, TaskState

WORKER: Any = object()
POSSIBLE = {
    (TaskState.QUEUED, TaskState.RUNNING),
    (TaskState.QUEUED, TaskState.DONE),
    (TaskState.RUNNING, TaskState.CANCELLING),
    (TaskState.RUNNING, TaskState.DONE),
    (TaskState.RUNNING, TaskState.QUEUED),
    (TaskState.CANCELLING, TaskState.DONE),
}


def task_in(state: TaskState) -> Task:
    no_payload: Any = None
    task = Task(no_payload, 1.0, 0, 0.0, lambda first_row, row_count: None, lambda size_bytes: None)
    if state in (TaskState.RUNNING, TaskState.CANCELLING):
        task.start(WORKER, 1)
    if state is TaskState.CANCELLING:
        task.cancel()
    if state is TaskState.DONE:
        task.finish("result")
    assert task.state is state
    return task


def move(task: Task, state: TaskState) -> None:
    match state:
        case TaskState.QUEUED:
            task.requeue()
        case TaskState.RUNNING:
            task.start(WORKER, 2)
        case TaskState.CANCELLING:
            task.cancel()
        case TaskState.DONE:
            task.finish("result")


@pytest.mark.parametrize(
    ("before", "after"), list(itertools.product(TaskState, TaskState)), ids=lambda state: state.value
)
async def test_only_possible_transitions_are_made(before: TaskState, after: TaskState) -> None:
    task = task_in(before)
    if (before, after) in POSSIBLE:
        move(task, after)
        assert task.state is after
    else:
        with pytest.raises(RuntimeError, match=f"from {before.value} to {after.value}"):
            move(task, after)
        assert task.state is before


@pytest.mark.parametrize("state", TaskState)
async def test_the_result_is_set_exactly_when_a_task_is_done(state: TaskState) -> None:
    assert task_in(state).done.done() == (state is TaskState.DONE) == task_in(state).is_done


async def test_cancelling_returns_the_worker_to_be_told() -> None:
    assert task_in(TaskState.RUNNING).cancel() is WORKER


async def test_a_task_that_is_tried_again_counts_its_starts_and_keeps_the_time_of_the_first() -> None:
    task = task_in(TaskState.RUNNING)
    first_started_at_seconds = task.started_at_seconds
    task.requeue()
    task.start(WORKER, 2)
    assert (task.start_count, task.task_id, task.started_at_seconds) == (2, 2, first_started_at_seconds)


async def test_an_error_is_the_outcome_of_a_task() -> None:
    task = task_in(TaskState.CANCELLING)
    task.finish(Cancelled("the caller went away"))
    with pytest.raises(Cancelled):
        task.done.result()
