"""The frames of one item → its rows, on one thread or on several.

Decoding is one sequence. What becomes of a decoded frame depends on no other group of rows, and takes twice as long where many
frames are wanted. So with several threads, the calling one decodes, and all convert, resize and cut frames into rows, a group
each; the libraries that do it release the interpreter lock. The rows are those of one thread, byte for byte. Where groups wait,
the calling thread makes one itself instead of decoding on, which bounds the decoded frames that are held.

Threads are started for one item, and have ended when the item is written or has failed.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.media.frames import Picture, Pixels
from preprocessor.models.loaded import CancelCheck, RowWriter
from preprocessor.types.plan import ItemPlan
from preprocessor.types.timing import Stopwatch, Timings
from preprocessor.vision.patches import normalize_rows

AnnounceRows = Callable[[int, int], None]
"""Called with (first row, row count) when those rows are final."""

GROUPS_A_THREAD = 2
"""Groups of rows whose frames may be decoded and not written, for each thread."""


class ItemWriter:
    """Writes frames of one item into its rows of `out`. Its buffers are those of one thread.

    Args:
        out: All rows of the tensor, [row_count, feature_count].
    """

    def __init__(self, item: ItemPlan, writer: RowWriter, out: npt.NDArray[Any]) -> None:
        self._rows, self._row_start, self._last = item.rows, item.row_start, item.frame_count - 1
        self._write_frame, self._table = writer.write_frame, writer.normalized
        self._out = out
        self._scratch = None if self._table is None else np.empty((item.rows.group_rows, out.shape[1]), np.uint8)

    def write(self, number: int, frame: Pixels, stopwatch: Stopwatch) -> int | None:
        """Write the item's frame of that number; frames of a group come one after the other.

        Returns:
            The first of the group's rows if they are final now.
        """
        group_rows, group_frames = self._rows.group_rows, self._rows.group_frames
        group, first = divmod(number, group_frames)
        row = self._row_start + group * group_rows
        target = self._out[row : row + group_rows]
        is_whole = first == group_frames - 1 or number == self._last
        places = slice(first, group_frames if is_whole else first + 1)
        self._write_frame(frame, target if self._scratch is None else self._scratch, places, stopwatch)
        if not is_whole:
            return None
        if self._table is not None and self._scratch is not None:
            normalize_rows(self._scratch, self._table, target)
            stopwatch.end("normalize")
        return row


def write_item(
    frames: Iterable[Pixels],
    first_frame: int,
    group_rows: int,
    writer: ItemWriter,
    announce: AnnounceRows,
    timings: Timings,
) -> None:
    """Write consecutive frames of an item, from that number on, on this thread."""
    stopwatch = timings.stopwatch()
    for number, frame in enumerate(frames, first_frame):
        stopwatch.end("decode")
        if (row := writer.write(number, frame, stopwatch)) is not None:
            announce(row, group_rows)
            stopwatch.restart()


def write_item_in_threads(
    pictures: Generator[Picture, None, None],
    item: ItemPlan,
    groups: range,
    new_writer: Callable[[], ItemWriter],
    announce: AnnounceRows,
    check: CancelCheck,
    timings: Timings,
    thread_count: int,
) -> None:
    """Write consecutive groups of an item.

    Args:
        pictures: Decodes their frames. An error of one is thrown into it.
        new_writer: Makes a writer for one thread.
        check: Called between groups; whatever it raises ends the work.
        thread_count: This one included. Fewer are used if no more can be started.
    """
    own, group_frames, group_rows = new_writer(), item.rows.group_frames, item.rows.group_rows
    queue: SimpleQueue[_Group | None] = SimpleQueue()
    threads = _started(thread_count - 1, queue, new_writer)
    waiting: deque[_Group] = deque()
    stopwatch = timings.stopwatch()

    def finish_those_done() -> None:
        while waiting and waiting[0].done.is_set():
            first = waiting.popleft()
            if first.error is not None:
                pictures.throw(first.error)
            for name, spent in first.timings.stages.items():
                timings.add(name, spent.wall_ms, spent.cpu_ms, spent.ended_seconds)
            announce(item.row_start + first.number * group_rows, group_rows)

    def write_one() -> None:
        """Write the last group that no thread has begun; if there is none, wait for the first."""
        mine = next((group for group in reversed(waiting) if group.take()), None)
        if mine is not None:
            mine.write(own)
        else:
            waiting[0].done.wait()

    try:
        for number in groups:
            first_frame = number * group_frames
            count = min(group_frames, item.frame_count - first_frame)
            group = _Group(number, first_frame, list(itertools.islice(pictures, count)))
            stopwatch.end("decode")
            waiting.append(group)
            queue.put(group)
            if len(waiting) >= GROUPS_A_THREAD * thread_count:
                write_one()
            finish_those_done()
            stopwatch.restart()
        while waiting:
            check()
            write_one()
            finish_those_done()
    finally:
        for group in waiting:
            group.give_up()
        for _ in threads:
            queue.put(None)
        for thread in threads:
            thread.join()
    for _ in pictures:  # let it end as it does where one thread reads it to its end
        raise AssertionError("more frames than were planned")


class _Group:
    """The frames of one group of rows, on their way into their rows.

    Attributes:
        done: Set once they are written, or have failed with `error`.
    """

    def __init__(self, number: int, first_frame: int, pictures: list[Picture]) -> None:
        self.number = number
        self.done = threading.Event()
        self.error: Exception | None = None
        self.timings = Timings()
        self._first_frame, self._pictures = first_frame, pictures
        self._is_taken = threading.Lock()

    def take(self) -> bool:
        """Whether the caller is the first to ask, and so the one to write it."""
        return self._is_taken.acquire(blocking=False)

    def give_up(self) -> None:
        """Have no thread begin it, and one that has begun end after its present frame."""
        self.take()
        self._pictures.clear()

    def write(self, writer: ItemWriter) -> None:
        """Make the frames' pixels, and write them."""
        stopwatch = self.timings.stopwatch()
        latest: Picture | None = None
        try:
            for number, picture in enumerate(self._pictures, self._first_frame):
                if picture is not latest:
                    latest, pixels = picture, picture()
                stopwatch.end("decode")
                writer.write(number, pixels, stopwatch)
        except Exception as error:  # any: the thread that decodes raises it
            self.error = error
        finally:
            self._pictures.clear()  # or the frames would stay until the queue is read on
            self.done.set()


def _write_groups(queue: SimpleQueue[_Group | None], new_writer: Callable[[], ItemWriter]) -> None:
    """Write groups that nobody has begun, until there is None."""
    writer: ItemWriter | None = None
    while (group := queue.get()) is not None:
        if group.take():
            writer = writer or new_writer()
            group.write(writer)


def _started(
    count: int, queue: SimpleQueue[_Group | None], new_writer: Callable[[], ItemWriter]
) -> list[threading.Thread]:
    """So many threads that write groups, or as many as the system allows."""
    threads: list[threading.Thread] = []
    for _ in range(count):
        thread = threading.Thread(target=_write_groups, args=(queue, new_writer), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no memory for its stack, or too many threads
            break
        threads.append(thread)
    return threads
