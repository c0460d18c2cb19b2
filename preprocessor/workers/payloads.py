"""What a worker runs. The same code runs in a worker process and, for debugging, in a thread."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.media.arriving import ArrivingFile, NotArrived
from preprocessor.models.loaded import CancelCheck, LoadedModel, PlanMemory, PlannedItem
from preprocessor.pipeline.early import EarlyCut, arriving_media, early_cuts
from preprocessor.text.encoded_text import TextMemory
from preprocessor.types.plan import PixelPlan
from preprocessor.types.request import Media, PixelForm, PreparationRequest
from preprocessor.vision.patches import PIXEL_DTYPES
from preprocessor.workers.arena import Arena
from preprocessor.workers.claims import check_early_plan, check_plan, check_report
from preprocessor.workers.rows_window import RowsWindow
from preprocessor.workers.sandbox import memory_left

Memory = Arena | RowsWindow
"""Where a payload writes rows: in the service itself, for a thread, or in a worker."""

# A message for every pair of frames would cost the service more than the bytes do. Batches are whole multiples of this size,
# which is two messages to the caller (`wire.tensors.MAX_ROWS_BYTES` each).
_BATCH_BYTES = 4 << 20


class _ReadsHeaders:
    """A payload that takes files' headers with its message, and has no part of the arena."""

    __slots__ = ()

    @property
    def expected_rows(self) -> range:
        """Rows of a tensor that it is to report, in order."""
        return range(0)

    @property
    def written_bytes(self) -> range:
        """The range of the arena that it writes."""
        return range(0)

    @property
    def read_bytes(self) -> tuple[range, ...]:
        """The ranges of the arena that it reads."""
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class PlanPayload(_ReadsHeaders):
    """`pipeline.plan`; returns the plan, the items that were not known, by media key, and the encoded text.

    Attributes:
        known: By media key, pickled `PlannedItem`s, which the service has pickled itself. Their files are left out.
        known_text: A pickled `EncodedText` of an earlier prompt, in the same way; empty where there is none, None if nothing is
            to be kept of this one.
    """

    request: PreparationRequest
    limits: Limits
    known: Mapping[str, bytes] = field(default_factory=dict)
    known_text: bytes | None = None

    def check_outcome(self, outcome: object) -> None:
        """Check what a worker says that `run` returned.

        Raises:
            Violation: See `claims`.
        """
        check_plan(outcome, self.request, self.limits)

    def run(
        self, model: LoadedModel, memory: Memory, check: CancelCheck, on_rows_written: pipeline.AnnounceRows
    ) -> Any:
        # A tokenizer that runs out of memory aborts the process, so a text that would need too much is refused first.
        tokenizing_bytes = min(self.limits.max_tokenizing_bytes, memory_left())
        limits = dataclasses.replace(self.limits, max_tokenizing_bytes=max(1, tokenizing_bytes))
        items: dict[str, PlannedItem] = {key: pickle.loads(entry) for key, entry in self.known.items()}
        text = None
        if self.known_text is not None:
            text = TextMemory(pickle.loads(self.known_text) if self.known_text else None)
        planned = pipeline.plan(model, self.request, limits, check, PlanMemory(items, text))
        added = {key: item for key, item in items.items() if key not in self.known}
        return planned, added, None if text is None else text.made


@dataclass(frozen=True, slots=True, eq=False)
class EarlyPlanPayload(_ReadsHeaders):
    """A plan of a request of which files are still arriving: a guess, see `media.arriving`.

    It returns the plan of the pixels, and its `pipeline.early.early_cuts`; no plan if it makes no pixels, or if bytes are needed
    that have not arrived.

    Attributes:
        sizes: By media key, bytes of the whole file of each that is still arriving.
    """

    planning: PlanPayload
    sizes: Mapping[str, int]

    def check_outcome(self, outcome: object) -> None:
        """See `PlanPayload`."""
        check_early_plan(outcome, self.planning.request, self.planning.limits)

    def run(
        self, model: LoadedModel, memory: Memory, check: CancelCheck, on_rows_written: pipeline.AnnounceRows
    ) -> Any:
        request = self.planning.request
        nothing: tuple[PixelPlan | None, tuple[EarlyCut, ...]] = None, ()
        try:
            media = arriving_media(request.media, self.sizes, is_padded=True)
            padded = dataclasses.replace(self.planning, request=dataclasses.replace(request, media=media))
            planned, _, _ = padded.run(model, memory, check, on_rows_written)
        except NotArrived:
            return nothing
        return nothing if planned.pixels is None else (planned.pixels, early_cuts(planned.pixels, media, check))


@dataclass(frozen=True, slots=True, eq=False)
class PixelPayload:
    """`pipeline.write_pixels` of some rows into a leased range of the arena.

    Attributes:
        offset: Where the whole tensor begins in the arena, in bytes.
        cached: Where finished rows of an item lie in the arena, and their form, by the item's index; see `pipeline.write_pixels`.
        thread_count: As `pipeline.write_pixels`'s.
        arriving: By media key, bytes of the whole file of each that is still arriving. The payload returns None if it needs bytes
            that have not.
    """

    media: tuple[Media, ...]
    plan: PixelPlan
    offset: int
    rows: range
    cached: Mapping[int, tuple[int, PixelForm]] = field(default_factory=dict)
    thread_count: int = 1
    arriving: Mapping[str, int] = field(default_factory=dict)

    @property
    def expected_rows(self) -> range:
        """See `PlanPayload`."""
        return self.rows

    @property
    def written_bytes(self) -> range:
        """See `PlanPayload`."""
        return range(self.offset + self.rows.start * self._row_bytes, self.offset + self.rows.stop * self._row_bytes)

    @property
    def read_bytes(self) -> tuple[range, ...]:
        """See `PlanPayload`."""
        return tuple(
            range(offset, offset + math.prod(self._shape_of(index)) * PIXEL_DTYPES[form].itemsize)
            for index, (offset, form) in self.cached.items()
        )

    @property
    def _row_bytes(self) -> int:
        return self.plan.size_bytes // max(1, self.plan.row_count)

    def _shape_of(self, index: int) -> tuple[int, int]:
        """Of the rows of the item of that index."""
        return self.plan.items[index].rows.row_count, self.plan.feature_count

    def check_outcome(self, outcome: object) -> None:
        """See `PlanPayload`."""
        if outcome is not None or not self.arriving:
            check_report(outcome, self.plan)

    def run(
        self, model: LoadedModel, memory: Memory, check: CancelCheck, on_rows_written: pipeline.AnnounceRows
    ) -> Any:
        plan = self.plan
        out = memory.array(self.offset, (plan.row_count, plan.feature_count), PIXEL_DTYPES[plan.form])
        cached = {
            index: memory.array(offset, self._shape_of(index), PIXEL_DTYPES[form])
            for index, (offset, form) in self.cached.items()
        }
        batches = _RowBatches(on_rows_written, self.rows, max(1, _BATCH_BYTES // max(1, out[:1].nbytes)))
        group_bytes = max((item.rows.group_rows for item in plan.items), default=0) * self._row_bytes
        ahead_bytes = max(_BATCH_BYTES, group_bytes)  # the rows of a large image are written at once
        memory.map_ahead(self.written_bytes.start + ahead_bytes)

        def add(first_row: int, row_count: int) -> None:
            batches.add(first_row, row_count)
            memory.map_ahead(self.offset + (first_row + row_count) * self._row_bytes + ahead_bytes)

        try:
            media = arriving_media(self.media, self.arriving, is_padded=False)
            check = _checked(check, media)
            return pipeline.write_pixels(model, media, plan, out, add, check, self.rows, cached, self.thread_count)
        except NotArrived:
            return None


Payload = PlanPayload | EarlyPlanPayload | PixelPayload


def _checked(check: CancelCheck, media: Sequence[Media]) -> CancelCheck:
    """The check, which also ends the work once it has read bytes that have not arrived."""
    files = [medium.data for medium in media if isinstance(medium.data, ArrivingFile)]
    if not files:
        return check

    def check_all() -> None:
        check()
        for file in files:
            file.check()

    return check_all


def header_bytes(payload: object, model: LoadedModel) -> int | None:
    """Memory limit of a payload that only reads headers, whose counts cannot be trusted; None for any other payload.

    Its files are in memory already. Others take what their plan says, which the budget has reserved.
    """
    if isinstance(payload, EarlyPlanPayload):
        payload = payload.planning
    if not (isinstance(payload, PlanPayload) and model.plans_from_headers(payload.request)):
        return None
    return payload.limits.max_header_bytes


def most_result_bytes(payload: object, model: LoadedModel) -> int | None:
    """Size of the arrays of the largest result that a payload can have; None: as much as a worker may use.

    A report of pixels has no arrays, and a plan from headers is no larger than the memory in which it is made.
    """
    return 0 if isinstance(payload, PixelPayload) else header_bytes(payload, model)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library failed to allocate: torch and OpenCV have no error class for it."""
    if isinstance(error, cv2.error):
        return bool(error.code == cv2.Error.StsNoMem)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


class _RowBatches:
    """Reports finished rows in batches; the first ones at once, so that they are on their way soon.

    The last rows are not reported: the end of the task says that all are finished.
    """

    def __init__(self, on_rows_written: pipeline.AnnounceRows, rows: range, batch_row_count: int) -> None:
        self._on_rows_written = on_rows_written
        self._rows = rows
        self._batch_row_count = batch_row_count
        self._first_row = rows.start

    def add(self, first_row: int, row_count: int) -> None:
        end = first_row + row_count
        ready_count = end - self._first_row
        if first_row > self._rows.start:
            ready_count = ready_count // self._batch_row_count * self._batch_row_count
        if ready_count and end < self._rows.stop:
            self._on_rows_written(self._first_row, ready_count)
            self._first_row += ready_count
