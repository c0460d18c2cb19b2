"""How the rows of a plan are divided among idle cores: over several workers, and over threads within each.

A part for another worker costs that worker the file, a walk over its packets and perhaps a fork. Threads within a worker cost
little, but one of them decodes alone. So both are weighed by what they are expected to save, and cores that save little stay
idle.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from preprocessor.media.clip import IndexedClip
from preprocessor.pipeline.cost import seconds_of_groups, thread_bytes
from preprocessor.types.plan import ItemPlan, PixelPlan
from preprocessor.types.request import Media, OnDamage
from preprocessor.types.source import FrameListInfo

MOST_THREADS = 4
"""Threads of one worker: more would wait for the interpreter lock."""

_PART_SECONDS = 0.004  # opening the file, and answering
_SECONDS_A_FILE_BYTE = 1e-9  # a worker gets the file over a socket, one after the other
_THREADS_SECONDS = 0.001  # starting and ending them; each has buffers of its own
_FORK_SECONDS = 0.04  # a worker that ran another caller's tasks is replaced, and the new one has no memory mapped
_LEAST_SAVING = 0.1  # of the time with fewer cores


@dataclass(frozen=True, slots=True)
class IdleCores:
    """What a task may be divided among.

    Attributes:
        core_count: Cores that have nothing else to do, the task's own included.
        worker_count: Idle workers, of which `ready_count` need not be replaced first.
        most_threads: Threads that a worker may use.
        free_bytes: Memory for what the parts need, the tensor aside.
    """

    core_count: int
    worker_count: int
    ready_count: int
    free_bytes: int
    most_threads: int = MOST_THREADS


@dataclass(frozen=True, slots=True)
class Division:
    """Row ranges in order, covering all rows, each for one worker; and the threads of each worker."""

    parts: tuple[range, ...]
    thread_count: int = 1


def divide(
    planned: PixelPlan,
    media: Sequence[Media],
    idle: IdleCores,
    working_bytes: int,
    cached: Container[int] = (),
    first_row: int = 0,
) -> Division:
    """The division that is expected to be finished first; of similar ones, that of the fewest cores.

    Args:
        working_bytes: What one worker needs beside the tensor, with one thread.
        cached: Indices of items whose rows are copied, not made.
        first_row: Rows before it are made already.
    """
    file_bytes, bytes_a_thread = sum(len(medium.data) for medium in media), thread_bytes(planned)
    candidates: list[tuple[int, float, Division]] = []
    most_parts = min(idle.core_count, idle.worker_count)
    divided = {
        len(parts): parts for parts in (cut(planned, media, count, first_row) for count in _part_counts(most_parts))
    }
    for part_count, parts in divided.items():
        work = [_seconds_by_item(planned, part, cached) for part in parts]
        opening = 0.0
        if part_count > 1:
            opening = _PART_SECONDS + (part_count - 1) * file_bytes * _SECONDS_A_FILE_BYTE
        if part_count > max(1, idle.ready_count):
            opening += _FORK_SECONDS
        for thread_count in range(1, min(idle.core_count // part_count, idle.most_threads) + 1):
            needed_bytes = part_count * (working_bytes + (thread_count - 1) * bytes_a_thread)
            if needed_bytes > idle.free_bytes and part_count * thread_count > 1:
                break
            starting = 0.0 if thread_count == 1 else _THREADS_SECONDS
            seconds = opening + starting + max(_wall_seconds(items, thread_count) for items in work)
            candidates.append((part_count * thread_count, seconds, Division(tuple(parts), thread_count)))
    best_seconds, best = float("inf"), Division((range(first_row, planned.row_count),))
    for _, seconds, division in sorted(candidates, key=lambda one: one[:2]):
        if seconds < best_seconds * (1 - _LEAST_SAVING):
            best_seconds, best = seconds, division
    return best


def _part_counts(most: int) -> list[int]:
    """Numbers of parts to try: 1, 2, 3, 4, 6, 8, 12, 16 and so on, and the most."""
    counts = {1, most} | {step << power for step in (2, 3) for power in range(most.bit_length())}
    return sorted(count for count in counts if 1 <= count <= most)


def _seconds_by_item(planned: PixelPlan, part: range, cached: Container[int]) -> list[tuple[float, float]]:
    """As `seconds_of_groups`, of each item of which rows lie in the part."""
    groups = [(item, item.groups_within(part)) for index, item in enumerate(planned.items) if index not in cached]
    return [seconds_of_groups(item, those, planned) for item, those in groups if those]


def _wall_seconds(items: Sequence[tuple[float, float]], thread_count: int) -> float:
    return sum(max(alone, (alone + shared) / thread_count) for alone, shared in items)


def cut(planned: PixelPlan, media: Sequence[Media], part_count: int, first_row: int = 0) -> list[range]:
    """Divide the rows from `first_row` on into at most `part_count` ranges of about equal work, each of which can be made alone.

    A cut lies between two items, or inside a video where a new group of pictures begins, so that parts decode few frames
    twice; in a list of frames, between any two groups of rows. A video with `OnDamage.REPEAT` is not cut: a damaged frame is
    replaced by an earlier one.

    Returns:
        Row ranges in order, covering all of these rows; a single one where no cut is possible.
    """
    rows = range(first_row, planned.row_count)
    if part_count < 2 or planned.video_decoder != "pyav":
        return [rows]
    tolerant = {medium.key for medium in media if medium.on_damage is OnDamage.REPEAT}
    places = [
        place
        for item in planned.items
        for group in (separate_groups(item) if item.key not in tolerant else [0])
        if (place := item.row_start + group * item.rows.group_rows) in rows
    ]
    wanted = (rows[len(rows) * part // part_count] for part in range(1, part_count)) if places else ()
    cuts = sorted({min(places, key=lambda place: abs(place - row)) for row in wanted} - {rows.start})
    return [range(start, stop) for start, stop in itertools.pairwise([rows.start, *cuts, rows.stop])]


def separate_groups(item: ItemPlan) -> list[int]:
    """Groups of rows whose first frame lies in another group of pictures than that of the group before; 0 included."""
    if isinstance(item.source, FrameListInfo):
        return list(range(item.rows.group_count))
    if item.frames is None or not isinstance(item.source, IndexedClip):
        return [0]
    access_points = np.searchsorted(item.source.random_access_frames, item.frames.indices, "right")
    first_of_groups = access_points[:: item.rows.group_frames]
    return [0, *(np.flatnonzero(np.diff(first_of_groups)) + 1).tolist()]
