"""One prompt through transformers' `generate`, each token handed on as it is chosen.

Several prompts run at once on one model, each on its own thread, so nothing here may touch state that they share:
sampling draws from a generator of the request's own, never from torch's global one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from engine_client.contract.prompt import Prompt
from engine_client.contract.sampling import SamplingParameters, TokenLogprob
from engine_client.contract.tensors import CANCELLED, IMAGE, LENGTH, STOP, VIDEO

Emit = Callable[[int, str | None, Sequence[TokenLogprob]], None]


def build_model_inputs(prompt: Prompt, device: torch.device) -> dict[str, torch.Tensor]:
    """Make the keyword arguments of `generate` for one prompt, all but its pixels.

    Returns:
        `input_ids`, `attention_mask` int64 [1, L]; with vision also `mm_token_type_ids` int32 [1, L], and for each
        modality that occurs `image_grid_thw` or `video_grid_thw` int64 [M', 3].
    """
    input_ids = torch.from_numpy(prompt.input_ids.astype(np.int64))[None].to(device)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if not prompt.modality:
        return inputs
    inputs["mm_token_type_ids"] = torch.from_numpy(prompt.token_types)[None].to(device)
    for kind, name in ((IMAGE, "image_grid_thw"), (VIDEO, "video_grid_thw")):
        chosen = [index for index, item_kind in enumerate(prompt.modality) if item_kind == kind]
        if chosen:
            inputs[name] = torch.from_numpy(prompt.grids[chosen]).to(device)
    return inputs


def generate_tokens(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    sampling: SamplingParameters,
    *,
    emit: Emit,
    is_cancelled: Callable[[], bool],
) -> str:
    """Generate until a stop token, the length limit or a cancellation, whichever comes first.

    Args:
        model: From `load_checkpoint`.
        inputs: From `build_model_inputs`; batch of one.
        sampling: The request's.
        emit: Called with each token id, a stop token included; on the last with the finish reason, and where the request
            asks for log probabilities with those of the token.
        is_cancelled: Asked once a token.
    Returns:
        `STOP`, `LENGTH` or `CANCELLED`.
    """
    stop_token_ids = sampling.stop_token_ids or _own_stop_token_ids(model)
    scores = None if sampling.logprobs is None else _ModelScores(sampling.logprobs)
    stream = _TokenStream(sampling.max_tokens, frozenset(stop_token_ids), emit, is_cancelled, scores)
    config = GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        do_sample=False,  # argmax; `_processors` have added the randomness by then
        eos_token_id=list(stop_token_ids) or None,
        pad_token_id=stop_token_ids[0] if stop_token_ids else 0,  # never used with one sequence; unset, it warns
    )
    with torch.inference_mode():
        model.generate(
            **inputs,
            generation_config=config,
            logits_processor=_processors(sampling, inputs["input_ids"], scores),
            stopping_criteria=StoppingCriteriaList([_Cancellation(is_cancelled)]),
            streamer=stream,
        )
    return stream.outcome


def forget_sampling_defaults(model: Any) -> None:
    """Drop a checkpoint's own temperature, top_k and penalties, keeping its stop tokens.

    `generate` fills what a request leaves unset from there; here a request always says how to sample.
    """
    model.generation_config = GenerationConfig(eos_token_id=list(_own_stop_token_ids(model)) or None)


def _own_stop_token_ids(model: Any) -> tuple[int, ...]:
    own = model.generation_config.eos_token_id
    return () if own is None else (own,) if isinstance(own, int) else tuple(own)


def _processors(
    sampling: SamplingParameters, input_ids: torch.Tensor, scores: _ModelScores | None
) -> LogitsProcessorList:
    """Processors after which the largest score is the token: the likeliest, or a draw from the warped distribution.

    In the order of transformers 5.23 (generation/utils.py, `_get_logits_processor`).
    """
    processors = LogitsProcessorList([] if scores is None else [scores])
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.presence_penalty or sampling.frequency_penalty:
        processors.append(_AnswerPenalties(sampling.presence_penalty, sampling.frequency_penalty, input_ids.shape[1]))
    if sampling.temperature == 0:
        return processors
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    processors.append(_GumbelNoise(sampling.seed, input_ids.device))
    return processors


class _ModelScores(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Keeps the model's own scores of the next token, before other processors change them."""

    def __init__(self, top_count: int) -> None:
        self._top_count = top_count
        self._scores = torch.empty(0)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self._scores = scores
        return scores

    def logprob(self, token_id: int) -> TokenLogprob:
        """Of the token that was chosen."""
        logprobs = torch.log_softmax(self._scores[0].float(), -1)
        top = torch.topk(logprobs, min(self._top_count, len(logprobs)))
        return TokenLogprob(
            logprobs[token_id].item(), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        )


class _AnswerPenalties(LogitsProcessor):  # type: ignore[misc]
    """Lowers the scores of tokens that the answer has: once each, and once for each time. transformers has no such ones.

    Source: OpenAI's API reference, presence_penalty and frequency_penalty; vLLM does the same.
    """

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self._presence, self._frequency, self._prompt_length = presence, frequency, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        answer = input_ids[:, self._prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, answer, torch.ones_like(answer, dtype=scores.dtype))
        return scores - self._frequency * counts - self._presence * (counts > 0)


class _GumbelNoise(LogitsProcessor):  # type: ignore[misc]
    """Makes argmax a draw from softmax: the largest of score + Gumbel noise is distributed so (Gumbel-max).

    transformers 5.23 samples with `torch.multinomial` and takes no generator, which would tie a request's tokens to
    whatever else the process draws, or need a lock around every generation.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        exponential = torch.empty_like(scores).exponential_(generator=self._generator)
        return scores - exponential.log()


class _Cancellation(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        self._is_cancelled = is_cancelled

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((len(input_ids),), self._is_cancelled(), dtype=torch.bool, device=input_ids.device)


class _TokenStream(BaseStreamer):  # type: ignore[misc]
    """Receives the prompt first, then one token at a time, from within `generate`."""

    def __init__(
        self,
        max_tokens: int,
        stop_token_ids: frozenset[int],
        emit: Emit,
        is_cancelled: Callable[[], bool],
        scores: _ModelScores | None,
    ) -> None:
        self._remaining = max_tokens
        self._stop_token_ids = stop_token_ids
        self._emit = emit
        self._is_cancelled = is_cancelled
        self._scores = scores
        self._prompt_seen = False
        self.outcome = CANCELLED  # until a token ends the answer

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        if self._is_cancelled():  # nobody reads it any more
            return
        token_id = int(value)
        self._remaining -= 1
        finish_reason = STOP if token_id in self._stop_token_ids else LENGTH if self._remaining == 0 else None
        if finish_reason:
            self.outcome = finish_reason
        self._emit(token_id, finish_reason, () if self._scores is None else (self._scores.logprob(token_id),))

    def end(self) -> None:
        pass
