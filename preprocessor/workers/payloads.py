"""What a worker is asked to do. The same code runs in a worker process and, for debugging, in a thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.errors import LimitExceeded
from preprocessor.models.loaded import CancelCheck, LoadedModel
from preprocessor.types.plan import PixelPlan
from preprocessor.types.request import Media, PreparationRequest
from preprocessor.vision.patches import PIXEL_DTYPES
from preprocessor.workers.arena import Arena
from preprocessor.workers.sandbox import memory_left

# News of every frame pair would keep the service busier than its bytes. Runs are whole multiples of this, which is two messages
# to the caller (`service.tensors`): a little more would be a third.
_ANNOUNCED_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, eq=False)
class PlanPayload:
    """`pipeline.plan`. The files lie in the arena."""

    request: PreparationRequest
    limits: Limits

    def run(self, model: LoadedModel, arena: Arena, check: CancelCheck, announce: pipeline.AnnounceRows) -> Any:
        request = dataclasses.replace(self.request, media=_own(self.request.media))
        # A tokenizer that gets no memory aborts the process, so a text that needs more than there is must be refused before.
        tokenizing_bytes = min(self.limits.max_tokenizing_bytes, memory_left())
        limits = dataclasses.replace(self.limits, max_tokenizing_bytes=max(1, tokenizing_bytes))
        return pipeline.plan(model, request, limits, check)


@dataclass(frozen=True, slots=True, eq=False)
class PixelPayload:
    """`pipeline.write_pixels` of some rows into a leased range of the arena.

    Attributes:
        offset: Where the whole tensor begins in the arena.
    """

    media: tuple[Media, ...]
    planned: PixelPlan
    offset: int
    rows: range

    def run(self, model: LoadedModel, arena: Arena, check: CancelCheck, announce: pipeline.AnnounceRows) -> Any:
        planned = self.planned
        row_bytes = planned.size_bytes // max(1, planned.row_count)
        arena.reserve(self.offset + self.rows.start * row_bytes, len(self.rows) * row_bytes)
        out = arena.array(self.offset, (planned.row_count, planned.feature_count), PIXEL_DTYPES[planned.form])
        progress = _Gathered(announce, self.rows, max(1, _ANNOUNCED_BYTES // max(1, out[:1].nbytes)))
        return pipeline.write_pixels(model, _own(self.media), planned, out, progress.add, check, self.rows)


Payload = PlanPayload | PixelPayload


def header_bytes(payload: object, model: LoadedModel) -> int | None:
    """What a job may take that only reads headers, whose counts are a stranger's to make up; None for any other.

    What others take the plan says, and the budget has it set aside.
    """
    if not (isinstance(payload, PlanPayload) and model.plans_from_headers):
        return None
    return payload.limits.max_header_bytes + sum(len(medium.data) for medium in payload.request.media)


def memory_exhausted() -> LimitExceeded:
    """The error for a request whose work does not fit into a worker's memory."""
    return LimitExceeded(
        "the request needs more memory than a worker may use; send a smaller file, or fewer pixels",
        reason="WORKER_MEMORY_EXCEEDED",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library failed to allocate: torch and OpenCV have no class for it."""
    if isinstance(error, cv2.error):
        return bool(error.code == cv2.Error.StsNoMem)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def _own(media: Sequence[Media]) -> tuple[Media, ...]:
    """The files as bytes of this process: decoders then read what nobody else can change."""
    return tuple(dataclasses.replace(medium, data=bytes(medium.data)) for medium in media)


class _Gathered:
    """Passes finished rows on in runs that are worth a message, but for the last: the job's end says that all are finished."""

    def __init__(self, announce: pipeline.AnnounceRows, rows: range, run_rows: int) -> None:
        self._announce = announce
        self._stop = rows.stop
        self._run_rows = run_rows
        self._first = rows.start

    def add(self, first_row: int, row_count: int) -> None:
        end = first_row + row_count
        ready = (end - self._first) // self._run_rows * self._run_rows
        if ready and end < self._stop:
            self._announce(self._first, ready)
            self._first += ready
