"""A prompt prepared in this process: the messages that a service would send, and what a service does not tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preprocessor.cli.prompts import read_whole
from preprocessor.client import PrepareResult, Prompt
from preprocessor.prompt_page.facts import Facts, PreparedPrompt

if TYPE_CHECKING:
    from preprocessor.models.loaded import LoadedModel
    from preprocessor.types.request import PreparationRequest
    from preprocessor.types.result import Prepared


def prepare_here(prompt: Prompt) -> tuple[PreparedPrompt, LoadedModel]:
    """The same answer as a service's, by the same pipeline; and the model that was loaded for it.

    Raises:
        PreprocessorError: As `pipeline.prepare` and `load_model`.
    """
    from preprocessor import pipeline  # torch and transformers: seconds that a service's caller need not wait
    from preprocessor.models.registry import load_model
    from preprocessor.models.versions import library_versions
    from preprocessor.service import writing

    model = load_model(prompt.spec.model or "qwen3-vl")
    request = read_whole(prompt)
    prepared = pipeline.prepare(model, request)
    sizes = {medium.key: len(medium.data) for medium in request.media}
    result = PrepareResult(
        header=writing.write_header(model, prepared.plan, sizes, request_id="local"),
        report=writing.write_report(
            prepared.timings,
            sum(sizes.values()),
            prepared.plan.pixel_bytes,
            writing.write_substitutions(prepared.plan, prepared.substitutions),
        ),
        tensors=dict(prepared.tensors),
    )
    description = writing.write_model(model, False, library_versions())
    return PreparedPrompt(result, prompt.spec, description, _facts(model, request, prepared)), model


def _facts(model: LoadedModel, request: PreparationRequest, prepared: Prepared) -> Facts:
    from preprocessor.cli.capacity import demand_of
    from preprocessor.media.clip import IndexedClip
    from preprocessor.pipeline.cost import decoding_runs, estimate

    runs = [
        tuple((run.start, run.stop) for run in decoding_runs(item.source, item.frames.indices))
        if item.frames is not None and isinstance(item.source, IndexedClip) and prepared.plan.pixels is not None
        else None
        for item in prepared.plan.items
    ]
    if not model.plans_from_headers(request):
        return Facts(prepared.decoded_frame_count, tuple(runs))
    return Facts(
        prepared.decoded_frame_count,
        tuple(runs),
        planning_seconds=model.planning_workload(request, 0).cpu_seconds,
        pixel_seconds=estimate(prepared.plan.pixels, request.media).cpu_seconds if prepared.plan.pixels else 0.0,
        request_seconds=demand_of(prepared.plan, request.media).core_seconds,
    )
