import asyncio
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from tensorrt_llm import script
from tensorrt_llm.executor.utils import RequestError

PACE_SECONDS = 0.001
FURTHER_ARGUMENTS = {
    "kv_cache_config",
    "max_batch_size",
    "max_num_tokens",
    "max_seq_len",
    "enable_chunked_prefill",
    "encoder_max_num_tokens",
    "guided_decoding_backend",
}
"""Of `LLM`'s many, those that this model or its README names."""


@dataclass
class PreprocessedInputs:
    prompt_token_ids: list[int]
    multimodal_params: Any = None
    encoder_input_token_ids: list[int] | None = None


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass
class CompletionOutput:
    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: Any = None


class InputProcessor:
    def __init__(self, config: Any) -> None:
        self.config = config
        self.dtype = torch.bfloat16

    def get_mm_token_ids(self) -> list[int]:
        return [self.config.image_token_id, self.config.video_token_id]

    def get_mm_encoder_item_metadata(self, prompt_token_ids: list[int], multimodal_data: dict[str, Any]) -> Any:
        return ("items", len(prompt_token_ids), sorted(multimodal_data))

    def _postprocess(self, input_ids: Any) -> Any:
        return input_ids


class LLM:
    """Keeps what it was made with and what was asked of it."""

    made: ClassVar[list[Any]] = []
    processor_type = InputProcessor

    def __init__(
        self,
        model: str,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        unknown = kwargs.keys() - FURTHER_ARGUMENTS
        if unknown:
            raise ValueError(f"Extra inputs are not permitted: {sorted(unknown)}")
        text = (Path(model) / "config.json").read_text()
        self.input_processor = self.processor_type(json.loads(text, object_hook=lambda item: SimpleNamespace(**item)))
        self.arguments = {"model": model, "tensor_parallel_size": tensor_parallel_size, "dtype": dtype, **kwargs}
        self.args = SimpleNamespace(max_num_tokens=8192, max_seq_len=None, enable_chunked_prefill=False)
        vars(self.args).update({name: kwargs[name] for name in vars(self.args) if name in kwargs})
        self.outputs: list[RequestOutput] = []
        self.is_shut_down = False
        LLM.made.append(self)

    def generate_async(
        self,
        inputs: Any,
        sampling_params: Any = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
    ) -> "RequestOutput":
        asyncio.get_running_loop()  # the real one makes its queue for the loop that it is called on
        assert isinstance(inputs, PreprocessedInputs)
        assert streaming
        course = inputs.prompt_token_ids[0]
        if course == script.REFUSED:
            raise RequestError("the script refuses")
        if course == script.LEAVING:
            raise RuntimeError("LLM is shutting down")
        if sampling_params.end_id is None:
            sampling_params.end_id = script.OWN_END_ID
        output = RequestOutput(inputs, sampling_params)
        self.outputs.append(output)
        print(f"the stand-in takes a prompt of {len(inputs.prompt_token_ids)} tokens", flush=True)
        return output

    def shutdown(self) -> None:
        self.is_shut_down = True
        print("the stand-in is shut down", flush=True)


class RequestOutput:
    def __init__(self, inputs: PreprocessedInputs, sampling: Any) -> None:
        self.inputs, self.sampling = inputs, sampling
        self.outputs = [CompletionOutput()]
        self.finished = False
        self.is_aborted = False
        self._is_aborted = asyncio.Event()

    def abort(self) -> None:
        self.is_aborted = True
        self._is_aborted.set()

    def __aiter__(self) -> "RequestOutput":
        return self

    async def __anext__(self) -> "RequestOutput":
        if self.finished:
            raise StopAsyncIteration
        answer = self.outputs[0]
        course = self.inputs.prompt_token_ids[0]
        if course == script.SILENT or (course == script.LINGERING and answer.token_ids):
            await self._is_aborted.wait()
        await asyncio.sleep(PACE_SECONDS)
        if self.is_aborted:
            return self._finish("cancelled")
        count = len(answer.token_ids)
        if course in _TOLD_AT_ONCE:
            answer.token_ids += _TOLD_AT_ONCE[course](self)
            return self._finish("length")
        if course not in (script.COUNT_UP, script.LINGERING) and count == 2:
            return self._end(course)
        answer.token_ids.append(count)
        if self.sampling.logprobs is not None:  # the token's own first, then the likeliest: here the ids after it
            others = range(count + 1, count + 1 + self.sampling.logprobs)
            answer.logprobs.append({token_id: Logprob(-0.5 * token_id) for token_id in (count, *others)})
        if count + 1 == self.sampling.max_tokens:
            self._finish("length")
        return self

    def _end(self, course: int) -> "RequestOutput":
        if course == script.FAIL:
            self.finished = True
            raise RequestError("the script fails")
        if course == script.STOP_WORD:
            stop = self.sampling.stop_token_ids[-1]
            if self.sampling.include_stop_str_in_output:
                self.outputs[0].token_ids.append(stop)
            self.outputs[0].stop_reason = stop
        return self._finish("timeout" if course == script.TIME_OUT else "stop")

    def _finish(self, reason: str) -> "RequestOutput":
        self.finished = True
        self.outputs[0].finish_reason = reason
        return self


def _checksum(output: RequestOutput) -> list[int]:
    data = output.inputs.multimodal_params.multimodal_data
    pixels = [data[kind][name].tensor for kind, name in _PIXELS if kind in data]
    return [zlib.crc32(torch.cat(pixels).float().numpy().tobytes()) & 0x7FFFFFFF]


def _keys(output: RequestOutput) -> list[int]:
    keys = output.inputs.multimodal_params.multimodal_input
    hashes = [number for digest in keys.multimodal_hashes for number in digest]
    return [*hashes, *keys.multimodal_run_positions, *keys.multimodal_run_lengths]


def _sampling(output: RequestOutput) -> list[int]:
    given = output.sampling
    return [given.max_tokens, round(1000 * given.temperature), round(1000 * given.top_p), given.top_k, given.seed]


_PIXELS = (("image", "pixel_values"), ("video", "pixel_values_videos"))
_TOLD_AT_ONCE = {script.CHECKSUM: _checksum, script.KEYS: _keys, script.SAMPLING: _sampling}
