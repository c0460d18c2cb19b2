"""Drives TensorRT-LLM: the only file that touches what `surface.py` found.

    PromptAssembler ──▶ Build: params at once, pixels as rows come ──▶ share: MultimodalParams, to_handle
                                                                          └──▶ generate_async ──▶ steps ──▶ emit(token ids, …)

Kept thin, because it could not be run where it was written (README.md). It does by hand what `LLM._preprocess` does
after an input processor has made the tensors, in the same order and by TensorRT-LLM's own functions.

A checkpoint is loaded before this process touches a GPU: TensorRT-LLM starts its workers as children, and those inherit
what is open (triton_backend/all_models/llmapi/tensorrt_llm/1/model.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine_client.contract.assembler import PromptAssembler
from engine_client.contract.errors import InvalidPrompt, Refused
from engine_client.contract.layout import ModelLayout
from engine_client.contract.sampling import SamplingParameters, TokenLogprob
from engine_client.contract.tensors import CANCELLED, LENGTH, STOP
from engine_client.triton.backend.rows import TorchRows

from .params import (
    FAMILY_RULES,
    ItemKeys,
    PromptParams,
    build_params,
    missing_stop_token,
    sampling_arguments,
    token_logprobs,
)
from .pixels import Pixels
from .settings import ModelParameters, place_multimodal_arguments, settings_digest
from .surface import KNOWN, Surface, UnsupportedEngine, find_surface

CANCEL_POLL_SECONDS = 0.05  # only reads a flag
ABORT_SECONDS = 10.0  # for the engine to confirm; a step of a long prefill may be under way


class EngineGone(Refused):
    """The engine takes no prompts any more."""


def load_engine(settings: ModelParameters) -> Engine:
    """Load the checkpoint; minutes.

    Raises:
        UnsupportedEngine: TensorRT-LLM is missing, unknown, or does not treat prompts as this model expects.
    """
    surface = find_surface(accept_other_versions=settings.accept_other_versions)
    in_process = os.environ.get("TLLM_WORKER_USE_SINGLE_PROCESS") == "1"
    if settings.pixel_device != "cpu" and (in_process or settings.tensor_parallel_size > 1):
        # A CUDA handle opens once, in another process (shared_tensor.py); what more than one rank makes of it was
        # not found in the source.
        raise UnsupportedEngine(
            f"pixel_device is {settings.pixel_device} with tensor_parallel_size {settings.tensor_parallel_size}"
            f"{' and the worker in this process' if in_process else ''}; set it to cpu"
        )
    cache: dict[str, Any] = {
        "free_gpu_memory_fraction": settings.kv_cache_free_fraction,
        "enable_block_reuse": settings.kv_cache_reuse,
    }
    if settings.kv_cache_dtype:
        cache["dtype"] = settings.kv_cache_dtype
    llm = surface.LLM(
        model=settings.checkpoint,
        dtype=settings.dtype,
        tensor_parallel_size=settings.tensor_parallel_size,
        kv_cache_config=surface.KvCacheConfig(**cache),
        **place_multimodal_arguments(
            {"guided_decoding_backend": "xgrammar", **settings.llm_arguments}, is_nested=surface.has_multimodal_config
        ),
    )
    try:
        return Engine(llm, surface, settings)
    except BaseException:
        llm.shutdown()
        raise


@dataclass(frozen=True, slots=True, eq=False)
class Build:
    """A prompt on its way: all but its pixels is checked and laid out."""

    params: PromptParams
    pixels: Pixels


@dataclass(frozen=True, slots=True, eq=False)
class SharedPrompt:
    """A prompt ready for `generate`."""

    inputs: Any
    """TensorRT-LLM's `PreprocessedInputs`."""
    data: dict[str, Any]
    """Owns the tensors that `inputs` only lends: it must live until the answer has ended."""


class Engine:
    """One loaded checkpoint. `generate` runs on one event loop; the rest on any thread."""

    def __init__(self, llm: Any, surface: Surface, settings: ModelParameters) -> None:
        self._llm = llm
        self._surface = surface
        self._processor = llm.input_processor
        config = self._processor.config
        if config.model_type not in FAMILY_RULES:
            raise UnsupportedEngine(
                f"checkpoint {settings.checkpoint} is of family {config.model_type}; supported: {', '.join(FAMILY_RULES)}"
            )
        self._family = FAMILY_RULES[config.model_type]
        layout = ModelLayout.from_config(config)
        self._layout = dataclasses.replace(
            layout,
            max_positions=min(layout.max_positions, getattr(llm.args, "max_seq_len", None) or layout.max_positions),
            one_span_a_video=self._family.one_span_a_video,
        )
        self._check_placeholders()
        self._dtype = self._processor.dtype
        if not isinstance(self._dtype, torch.dtype):
            raise UnsupportedEngine(
                f"the input processor's dtype is {self._dtype!r}; it must be a torch dtype. {KNOWN}"
            )
        self._device = torch.device(settings.pixel_device)
        self._reuses_kv_blocks = settings.kv_cache_reuse
        self._settings_digest = settings_digest(settings.fingerprint, str(self._dtype))

    @property
    def description(self) -> str:
        """One line for the log."""
        return f"tensorrt_llm {self._surface.version}, {self._processor.config.model_type}, pixels on {self._device}"

    def begin(
        self, tensors: Mapping[str, np.ndarray], owner: object = None, *, is_whole: bool = True
    ) -> tuple[PromptAssembler, Build]:
        """Check the message that opens a prompt; see `PromptAssembler` for the arguments.

        Raises:
            InvalidPrompt: it is no prompt, or one that this engine does not take.
        """
        assembler = PromptAssembler(tensors, owner, self._layout, TorchRows(self._device), is_whole=is_whole)
        params = build_params(
            tensors,
            assembler.prompt,
            self._family,
            self._layout.max_positions,
            reuses_kv_blocks=self._reuses_kv_blocks,
        )
        # Checked by generate_async too, but after the tensors were shared, and a shared tensor that no worker opens
        # is never freed (shared_tensor.py).
        length = len(params.prompt_token_ids)
        most = getattr(self._llm.args, "max_num_tokens", None)
        if most and length > most and not getattr(self._llm.args, "enable_chunked_prefill", False):
            raise InvalidPrompt(f"input_ids has {length} tokens; max_num_tokens of this engine is {most}")
        pixels = Pixels(assembler.prompt, assembler.rows, self._layout.feature_count, self._device, self._dtype)
        return assembler, Build(params, pixels)

    def share(self, build: Build) -> SharedPrompt:
        """Put the tensors of a whole prompt where the workers find them.

        Does what `LLM._preprocess` does after the input processor (llm.py; registry.py, `input_processor_wrapper`).
        """
        params = build.params
        data = build.pixels.data() | params.multimodal_data
        if "multimodal_embedding_lengths" in data:
            self._surface.maybe_compute_mm_embed_cumsum(
                params.prompt_token_ids, {"multimodal_data": data}, self._processor
            )
            describe_items = getattr(self._processor, "get_mm_encoder_item_metadata", None)
            if self._surface.item_metadata_key and describe_items:
                metadata = describe_items(params.prompt_token_ids, data)
                if metadata is not None:
                    data[self._surface.item_metadata_key] = metadata
        keys = None
        if params.keys is not None:
            data["mm_processor_kwargs_hash"] = self._settings_digest
            values = {f"multimodal_{name}": getattr(params.keys, name) for name in ItemKeys.__slots__}
            keys = self._surface.MultimodalInput(**values)
        shared = self._surface.MultimodalParams(
            multimodal_input=keys, multimodal_data=data, mm_item_order=params.item_order
        )
        shared.to_handle("multimodal_data")
        inputs = self._surface.PreprocessedInputs(prompt_token_ids=params.prompt_token_ids, multimodal_params=shared)
        return SharedPrompt(inputs, data)

    async def generate(
        self,
        prompt: SharedPrompt,
        sampling: SamplingParameters,
        *,
        emit: Callable[[list[int], str | None, list[TokenLogprob]], None],
        is_cancelled: Callable[[], bool],
    ) -> str:
        """Stream one answer.

        Args:
            prompt: From `share`.
            sampling: The request's.
            emit: Called with new token ids, on the last call with the finish reason, and with their log probabilities where
                the request asks for them.
            is_cancelled: Asked every `CANCEL_POLL_SECONDS` and before each `emit`.
        Returns:
            `STOP`, `LENGTH` or `CANCELLED`; with the last the engine has let go of the request.
        Raises:
            InvalidPrompt: TensorRT-LLM refused the prompt or the sampling.
            EngineGone: it is shutting down.
        """
        arguments = sampling_arguments(sampling, len(prompt.inputs.prompt_token_ids))
        if "guided_decoding" in arguments:
            arguments["guided_decoding"] = self._surface.GuidedDecodingParams(**arguments["guided_decoding"])
        parameters = self._surface.SamplingParams(**arguments)
        output = self._submit(prompt.inputs, parameters)
        sent_count = 0
        async with aclosing(_steps(output, is_cancelled)) as steps:
            async for completion in steps:
                reason = completion.finish_reason if output.finished else None
                if reason not in (STOP, LENGTH, None):
                    raise RuntimeError(f"TensorRT-LLM ended the answer with {reason!r}")
                new_ids = list(completion.token_ids[sent_count:])
                likely = () if sampling.logprobs is None else completion.logprobs[sent_count:]
                sent_count += len(new_ids)
                if reason == STOP:
                    new_ids += missing_stop_token(
                        completion.token_ids, parameters.end_id, parameters.stop_token_ids, completion.stop_reason
                    )
                if new_ids or reason:
                    told = [] if sampling.logprobs is None else token_logprobs(new_ids, likely, sampling.logprobs)
                    emit(new_ids, reason, told)
                if reason:
                    return str(reason)
        if is_cancelled():
            return CANCELLED
        raise RuntimeError("TensorRT-LLM ended the answer without a finish reason")

    def shutdown(self) -> None:
        """Stop the workers and free the GPU."""
        self._llm.shutdown()

    def _submit(self, inputs: Any, parameters: Any) -> Any:
        try:
            return self._llm.generate_async(inputs, sampling_params=parameters, streaming=True)
        except (self._surface.RequestError, ValueError) as error:
            raise InvalidPrompt(f"TensorRT-LLM refused the request: {error}") from error
        except RuntimeError as error:  # llm.py: "LLM is shutting down", also after a fatal error of a worker
            raise EngineGone(str(error)) from error

    def _check_placeholders(self) -> None:
        """See that TensorRT-LLM finds features' places by the ids that prompts here have at them.

        Earlier releases had ids beyond the vocabulary there, put in by `_postprocess`.
        """
        ids = [0, self._layout.image_token_id, self._layout.video_token_id]
        data: dict[str, Any] = {}
        self._surface.maybe_compute_mm_embed_cumsum(ids, {"multimodal_data": data}, self._processor)
        counted = data.get("multimodal_embed_mask_cumsum")
        counts = None if counted is None else counted.tolist()
        replace = getattr(self._processor, "_postprocess", None)
        replaced = ids if replace is None else replace(torch.tensor(ids)).tolist()
        if counts != [0, 1, 2] or replaced != ids:
            raise UnsupportedEngine(
                f"tensorrt_llm {self._surface.version} counts features in the token ids {ids} as {counts} and replaces "
                f"them by {replaced}; this model needs [0, 1, 2] and no replacement. {KNOWN}"
            )


async def _steps(output: Any, is_cancelled: Callable[[], bool]) -> AsyncGenerator[Any, None]:
    """Yield the completion each time it has grown, until it is finished or cancelled.

    However it is left, the engine is told, and given time to confirm: only then are the prompt's tensors free.
    """
    step: asyncio.Future[Any] | None = None
    try:
        while not output.finished:
            step = asyncio.ensure_future(anext(output))
            while not step.done() and not is_cancelled():
                await asyncio.wait({step}, timeout=CANCEL_POLL_SECONDS)
            if is_cancelled():
                return
            await step
            yield output.outputs[0]
    finally:
        if not output.finished:
            output.abort()
            # An aborted answer ends as it likes: to the caller the request is over either way.
            with suppress(Exception):
                async with asyncio.timeout(ABORT_SECONDS):
                    while not output.finished:
                        await (step if step is not None and not step.done() else anext(output))
