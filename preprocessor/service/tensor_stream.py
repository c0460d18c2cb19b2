"""Sending tensors to the caller of `Prepare`."""

from __future__ import annotations

from preprocessor.service import writing
from preprocessor.service.calls import Call
from preprocessor.service.metrics import Metrics
from preprocessor.types.plan import PixelPlan, Plan, Substitution
from preprocessor.types.request import PreparationRequest
from preprocessor.wire.tensors import is_small
from preprocessor.workers.pixel_run import PixelRun


async def send_large_tensors(planned: Plan, call: Call, metrics: Metrics) -> None:
    """Send the tensors that are too large for the header, such as the positions of a very long prompt."""
    with call.timings.stage("send"):
        for tensor_index, array in enumerate(planned.tensors.values()):
            metrics.sent_bytes.labels("caller").inc(array.nbytes)  # those in the header, too
            if not is_small(array):
                await call.send_rows(tensor_index, array, 0, len(array))


async def send_pixels(
    request: PreparationRequest, planned: Plan, pixel_plan: PixelPlan, call: Call, metrics: Metrics
) -> None:
    """Send finished rows while workers write the next ones."""
    run = call.resources.pixels(request.media, pixel_plan)
    pixels = await run.begun()
    sent_bytes = metrics.sent_bytes.labels("caller")
    tensor_index = len(planned.tensors)  # `write_header` puts the pixels last
    async for first_row, row_count in run.finished_rows():
        with call.timings.stage("send"):
            await call.send_rows(tensor_index, pixels, first_row, row_count)
        sent_bytes.inc(pixels[first_row : first_row + row_count].nbytes)
    await finish_pixels(run, planned, call, metrics)


async def finish_pixels(run: PixelRun, planned: Plan, call: Call, metrics: Metrics) -> tuple[Substitution, ...]:
    """Wait until all pixels are written, and record timings, substitutions and frame counts; returns the substitutions."""
    report = await run.report()
    call.timings.merge(report.timings)
    call.substitutions += writing.write_substitutions(planned, report.substitutions)
    call.cached_item_count = run.cached_item_count
    metrics.observe_pixels(planned, report.decoded_frame_count)
    return report.substitutions
