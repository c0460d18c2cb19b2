"""Sending tensors to the caller of `Prepare`: by messages, by a front, or through shared memory of the caller's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import numpy.typing as npt

from preprocessor.service import writing
from preprocessor.service.caller_region import CallerRegion
from preprocessor.service.calls import Call
from preprocessor.service.fronts.context import RelayedContext
from preprocessor.service.metrics import Metrics
from preprocessor.types.plan import PixelPlan, Plan, Substitution
from preprocessor.types.request import PreparationRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import is_small, write_rows
from preprocessor.workers.pixel_run import PixelRun

SendRows = Callable[[int, npt.NDArray[Any], int, int], Awaitable[None]]
"""Sends finished rows: the tensor's place in the header's list, all of the tensor, the first row and the number of rows."""


def rows_sender(tensors: Iterable[pb.Tensor], call: Call) -> SendRows:
    """How rows go to the caller.

    Args:
        tensors: The header's list.
    Raises:
        InvalidRequest: `REGION_TOO_SMALL`.
    """
    if call.region is None:
        context = call.context
        return _by_front(call, context) if isinstance(context, RelayedContext) else _by_messages(call)
    sizes_bytes = {index: one.total_bytes for index, one in enumerate(tensors) if len(one.data) < one.total_bytes}
    return _by_region(call, call.region, call.region.place(sizes_bytes))


def _by_messages(call: Call) -> SendRows:
    async def send(tensor_index: int, array: npt.NDArray[Any], first_row: int, row_count: int) -> None:
        for message in write_rows(tensor_index, array, first_row, row_count, lambda: call.sender.rows_message_bytes):
            await call.send(message)

    return send


def _by_front(call: Call, context: RelayedContext) -> SendRows:
    by_messages = _by_messages(call)

    async def send(tensor_index: int, array: npt.NDArray[Any], first_row: int, row_count: int) -> None:
        if not await context.send_rows(tensor_index, array, first_row, row_count):
            await by_messages(tensor_index, array, first_row, row_count)

    return send


def _by_region(call: Call, region: CallerRegion, offsets: dict[int, int]) -> SendRows:
    async def send(tensor_index: int, array: npt.NDArray[Any], first_row: int, row_count: int) -> None:
        offset_bytes = offsets[tensor_index] + first_row * array[0].nbytes
        cpu_ms = await region.write(array[first_row : first_row + row_count], offset_bytes)
        call.timings.add("send", 0.0, cpu_ms)  # of another thread; the time that it took counts already
        ready = pb.RowsReady(
            tensor_index=tensor_index, first_row=first_row, row_count=row_count, offset_bytes=offset_bytes
        )
        await call.send(pb.PrepareResponse(rows_ready=ready))

    return send


async def send_large_tensors(planned: Plan, send_rows: SendRows, call: Call, metrics: Metrics) -> None:
    """Send the tensors that are too large for the header, such as the positions of a very long prompt."""
    with call.timings.stage("send"):
        for tensor_index, array in enumerate(planned.tensors.values()):
            metrics.sent_bytes.labels("caller").inc(array.nbytes)  # those in the header, too
            if not is_small(array):
                await send_rows(tensor_index, array, 0, len(array))


async def send_pixels(
    request: PreparationRequest,
    planned: Plan,
    pixel_plan: PixelPlan,
    send_rows: SendRows,
    call: Call,
    metrics: Metrics,
) -> None:
    """Send finished rows while workers write the next ones."""
    await call.resources.await_same_items(request.media, pixel_plan)
    run = call.resources.pixels(request.media, pixel_plan)
    pixels = await run.begun()
    sent_bytes = metrics.sent_bytes.labels("caller")
    tensor_index = len(planned.tensors)  # `write_header` puts the pixels last
    async for first_row, row_count in run.finished_rows():
        with call.timings.stage("send"):
            await send_rows(tensor_index, pixels, first_row, row_count)
        sent_bytes.inc(pixels[first_row : first_row + row_count].nbytes)
    await finish_pixels(run, planned, call, metrics)


async def finish_pixels(run: PixelRun, planned: Plan, call: Call, metrics: Metrics) -> tuple[Substitution, ...]:
    """Wait until all pixels are written, and record timings, substitutions and frame counts; returns the substitutions."""
    report = await run.report()
    call.timings.merge(report.timings)
    call.substitutions += writing.write_substitutions(planned, report.substitutions)
    call.cached_item_count = run.cached_item_count
    call.early_row_count = run.early_row_count
    metrics.observe_pixels(planned, report.decoded_frame_count)
    return report.substitutions
