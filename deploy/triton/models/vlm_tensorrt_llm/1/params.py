"""The engine contract's tensors, checked and laid out as TensorRT-LLM's own input processors lay them out.

Pure: arrays in, plain data and torch tensors out; no Triton and no TensorRT-LLM, so that every rule here is tested by
table. What a prompt must be is checked by `engine_client.contract`, which both models share; here is only what TensorRT-LLM
wants beside it, but for the pixels, which come later (`pixels`). The comments name its source by file; README.md says
which snapshots of it were read.

    input_ids                               ─▶ prompt_token_ids
    mrope_position_ids, _delta              ─▶ mrope_config
    item_spans                              ─▶ positions, lengths and runs of each item
    item_hash                               ─▶ eight int32 an item: the key under which KV blocks are reused
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.prompt import Prompt
from engine_client.contract.sampling import SamplingParameters, TokenLogprob
from engine_client.contract.tensors import HASH_BYTES

from .pixels import NAMES

TENSORS_OF_THIS_ENGINE = ("item_hash", "mrope_position_ids", "mrope_position_delta")


_SAME_NAMES = {"min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs"}
_GUIDES = {"json_schema": "json", "regex": "regex", "grammar": "grammar"}


@dataclass(frozen=True, slots=True)
class FamilyRules:
    """What a model family's prompts look like to TensorRT-LLM."""

    one_span_a_video: bool
    mixes_modalities: bool
    """Whether its encoder is known to put image and video features back into prompt order (modeling_qwen3vl.py,
    `mm_encoder_groups`). Elsewhere a mixed prompt is refused: features would be dealt to the wrong placeholders."""


FAMILY_RULES: Mapping[str, FamilyRules] = {
    "qwen2_vl": FamilyRules(one_span_a_video=True, mixes_modalities=False),
    "qwen2_5_vl": FamilyRules(one_span_a_video=True, mixes_modalities=False),
    "qwen3_vl": FamilyRules(one_span_a_video=False, mixes_modalities=True),
    "qwen3_vl_moe": FamilyRules(one_span_a_video=False, mixes_modalities=True),
    # The input processor and the vision encoder of these are Qwen3-VL's: modeling_qwen3_5.py, modeling_qwen4_exp.py,
    # modeling_cosmos3.py. The last was registered as cosmos3_omni before, which is how checkpoints name it.
    "qwen3_5": FamilyRules(one_span_a_video=False, mixes_modalities=True),
    "qwen3_5_moe": FamilyRules(one_span_a_video=False, mixes_modalities=True),
    "qwen4_exp": FamilyRules(one_span_a_video=False, mixes_modalities=True),
    "cosmos3": FamilyRules(one_span_a_video=False, mixes_modalities=True),
    "cosmos3_omni": FamilyRules(one_span_a_video=False, mixes_modalities=True),
}


@dataclass(frozen=True, slots=True)
class ItemKeys:
    """The fields of `MultimodalInput`: which tokens belong to which item, and what the item is.

    All in prompt order. Item i owns the runs from `item_run_cu_offsets[i]` up to `item_run_cu_offsets[i + 1]`.
    """

    hashes: list[list[int]]
    """Eight signed 32-bit integers an item."""
    positions: list[int]
    """Where each item's first placeholder stands."""
    lengths: list[int]
    """Placeholders of each item, the text between its runs not counted."""
    item_run_cu_offsets: list[int]
    run_positions: list[int]
    run_lengths: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class PromptParams:
    """One prompt as `PreprocessedInputs` and `MultimodalParams` want it, in plain types."""

    prompt_token_ids: list[int]
    """Placeholders stand as the ids of the vocabulary: Qwen's processors no longer replace them (`_postprocess`)."""
    multimodal_data: dict[str, Any]
    """`mrope_config` always; `multimodal_embedding_lengths` where the prompt has items. Pixels and grids are not here."""
    item_order: list[dict[str, str | int]] | None
    """`modality` and `index` of each item in prompt order, for a mixed prompt; else None."""
    keys: ItemKeys | None
    """None for text alone, and for a prompt without hashes."""


def build_params(
    tensors: Mapping[str, np.ndarray],
    prompt: Prompt,
    family: FamilyRules,
    max_positions: int,
    *,
    reuses_kv_blocks: bool,
) -> PromptParams:
    """Make one prompt's parameters, all but its pixels; nothing of `tensors` is referred to afterwards.

    Args:
        tensors: By contract name; names that this model does not read are ignored.
        prompt: What `check_prompt` has made of them, for this family.
        family: Of the model that will read them.
        max_positions: Of the same model.
        reuses_kv_blocks: Whether the engine keeps KV blocks across prompts: then items must have hashes.
    Raises:
        InvalidPrompt: a tensor is missing, has the wrong type or shape, or contradicts another.
    Source: modeling_qwen2vl.py, `Qwen2VLInputProcessorBase.call_with_text_prompt`; registry.py,
        `multimodal_hashing_process`.
    """
    token_ids: list[int] = prompt.input_ids.tolist()
    item_count = len(prompt.modality)
    is_mixed = len(set(prompt.modality)) > 1
    if is_mixed and not family.mixes_modalities:
        raise InvalidPrompt(
            "the prompt has images and videos; TensorRT-LLM is known to keep their order for Qwen3-VL alone. "
            "Send one kind a prompt"
        )
    positions = _mrope_config(tensors, len(token_ids), max_positions, is_required=item_count > 0)
    if not item_count:
        return PromptParams(token_ids, {"mrope_config": positions}, None, None)

    hashes = _item_hashes(tensors, item_count, is_required=reuses_kv_blocks)
    keys = _item_keys(tensors["item_spans"], item_count, hashes)
    data = {
        "mrope_config": positions,
        # Embedding rows an item, which the encoder's output is split by; a Qwen item has no token without a row.
        "multimodal_embedding_lengths": list(keys.lengths),
    }
    order = _item_order(prompt.modality) if is_mixed else None
    return PromptParams(token_ids, data, order, None if hashes is None else keys)


def sampling_arguments(sampling: SamplingParameters, prompt_length: int) -> dict[str, Any]:
    """Make the keyword arguments of TensorRT-LLM's `SamplingParams`.

    Without stop tokens `end_id` stays unset, and TensorRT-LLM takes the checkpoint's own; with them those are replaced,
    as `vlm_transformers` does. `guided_decoding` is there with a constraint: the arguments of `GuidedDecodingParams`. Stop tokens
    are added to the checkpoint's own then, as `vlm_vllm` does: these end what the constraint allows.

    Args:
        prompt_length: In tokens.
    Source: sampling_params.py: all of top_k, top_p and temperature unset, or top_k = 1, is greedy; a stop token other
        than `end_id` is cut off the answer unless `include_stop_str_in_output`. guided_decoder.py: nothing is masked once the
        tokenizer's end of text is accepted. docs/source/features/sampling.md: presence and frequency penalties count the
        prompt too, but for its first `prompt_ignore_length` tokens.
    """
    arguments: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "detokenize": False,  # text is made where the prompt came from
        "include_stop_str_in_output": True,
    }
    if sampling.temperature == 0:
        arguments["top_k"] = 1
    else:
        # top_p is given even where it is off: with top_k and top_p both unset, earlier releases decode greedily.
        arguments |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        if sampling.top_k:
            arguments["top_k"] = sampling.top_k
    stops = list(sampling.stop_token_ids)
    if stops and not sampling.constraint:
        arguments["end_id"] = stops.pop(0)
    if stops:
        arguments["stop_token_ids"] = stops
    for name in sampling.features & _SAME_NAMES:
        arguments[name] = getattr(sampling, name)
    if sampling.presence_penalty or sampling.frequency_penalty:
        arguments["prompt_ignore_length"] = prompt_length
    for name, argument in _GUIDES.items():
        if text := getattr(sampling, name):
            arguments["guided_decoding"] = {argument: text}
    return arguments


def token_logprobs(token_ids: Sequence[int], likely: Sequence[Mapping[int, Any]], top_count: int) -> list[TokenLogprob]:
    """What TensorRT-LLM tells of new tokens, for the contract.

    Args:
        likely: Token id → its `Logprob`, for each place: the token's own, and those of the likeliest. A stop token that
            `missing_stop_token` adds may have none, and is told as NaN.
    Source: executor/result.py, `CompletionOutput.logprobs`.
    """
    told = []
    for place, token_id in enumerate(token_ids):
        values = {other: one.logprob for other, one in likely[place].items()} if place < len(likely) else {}
        top = sorted(values.items(), key=lambda pair: -pair[1])[:top_count]
        top += [(token_id, math.nan)] * (top_count - len(top))  # as many for each token
        told.append(TokenLogprob(values.get(token_id, math.nan), tuple(top)))
    return told


def missing_stop_token(
    token_ids: Sequence[int], end_id: int | None, stop_token_ids: Sequence[int] | None, stop_reason: Any
) -> list[int]:
    """The stop token that ended an answer, if the answer lacks it: the contract has it as the last token.

    Args:
        token_ids: Of the whole answer.
        end_id, stop_token_ids: As the engine used them, a checkpoint's own filled in.
        stop_reason: The stop token id that TensorRT-LLM names; None where it was `end_id` (executor/result.py).
    """
    stops = {end_id, *(stop_token_ids or ())}
    if token_ids and token_ids[-1] in stops:
        return []
    ended_by = stop_reason if isinstance(stop_reason, int) else end_id
    return [] if ended_by is None or ended_by < 0 else [ended_by]


def _mrope_config(
    tensors: Mapping[str, np.ndarray], length: int, max_positions: int, *, is_required: bool
) -> dict[str, torch.Tensor]:
    """`mrope_position_ids` int64 [3, 1, L] and `mrope_position_deltas` int32 [1, 1].

    Text alone needs them too: the language model reads no other positions. There they count up from 0 on all axes, so
    they are made here when they did not come.
    """
    positions, delta = tensors.get("mrope_position_ids"), tensors.get("mrope_position_delta")
    if positions is None and delta is None and not is_required:
        positions, delta = np.broadcast_to(np.arange(length, dtype=np.int32), (3, length)), np.zeros(1, np.int32)
    if positions is None or delta is None:
        missing = "mrope_position_ids" if positions is None else "mrope_position_delta"
        raise InvalidPrompt(f"{missing} is missing; this engine places no rotary positions itself")
    if positions.dtype != np.int32 or positions.shape != (3, length):
        raise InvalidPrompt(
            f"mrope_position_ids is {positions.dtype} {list(positions.shape)}; it must be int32 {[3, length]}"
        )
    if positions.min() < 0 or positions.max() >= max_positions:
        raise InvalidPrompt(
            f"mrope_position_ids range from {positions.min()} to {positions.max()}; the model has 0 to "
            f"{max_positions - 1}"
        )
    if delta.dtype != np.int32 or delta.shape != (1,):
        raise InvalidPrompt(f"mrope_position_delta is {delta.dtype} {list(delta.shape)}; it must be int32 [1]")
    following = int(positions.max()) + 1
    if delta[0] != following - length:
        raise InvalidPrompt(
            f"mrope_position_delta is {delta[0]}; {length} input ids whose positions end before {following} have "
            f"{following - length}"
        )
    return {
        "mrope_position_ids": torch.from_numpy(positions.astype(np.int64))[:, None],
        "mrope_position_deltas": torch.from_numpy(delta.copy())[None],
    }


def _item_hashes(tensors: Mapping[str, np.ndarray], item_count: int, *, is_required: bool) -> list[list[int]] | None:
    """Eight signed integers an item: a digest's 32 bytes, four at a time, the first the highest.

    Source: inputs/multimodal.py, `hexdigest_to_int32`.
    """
    hashes = tensors.get("item_hash")
    if hashes is None:
        if is_required:
            # Placeholders are the same ids in every prompt, so blocks would be found again under another image.
            raise InvalidPrompt("item_hash is missing; this engine reuses KV blocks and tells items apart by it")
        return None
    if hashes.dtype != np.uint8 or hashes.shape != (item_count, HASH_BYTES):
        raise InvalidPrompt(
            f"item_hash is {hashes.dtype} {list(hashes.shape)}; it must be uint8 {[item_count, HASH_BYTES]}"
        )
    digits: list[list[int]] = np.ascontiguousarray(hashes).view(">i4").tolist()
    return digits


def _item_keys(spans: np.ndarray, item_count: int, hashes: list[list[int]] | None) -> ItemKeys:
    """Group the spans, which are in prompt order and at least one an item, by their items."""
    items, offsets, lengths = spans.T
    first_spans = np.searchsorted(items, np.arange(item_count))
    return ItemKeys(
        hashes=hashes or [],
        positions=offsets[first_spans].tolist(),
        lengths=np.bincount(items, weights=lengths, minlength=item_count).astype(int).tolist(),
        item_run_cu_offsets=[*first_spans.tolist(), len(spans)],
        run_positions=offsets.tolist(),
        run_lengths=lengths.tolist(),
    )


def _item_order(modality: Sequence[int]) -> list[dict[str, str | int]]:
    counts = dict.fromkeys((name for name, _, _ in NAMES.values()), 0)
    order: list[dict[str, str | int]] = []
    for kind in modality:
        name, _, _ = NAMES[kind]
        order.append({"modality": name, "index": counts[name]})
        counts[name] += 1
    return order
