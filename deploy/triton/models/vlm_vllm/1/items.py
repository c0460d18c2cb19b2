"""The items of one prompt, checked and laid out as vLLM wants them. Pure: arrays in, plain data out, no vLLM and no Triton.

What any engine asks of a prompt was checked by `engine_client.contract.prompt` before. Here is what vLLM asks beside it; most
of it would end its core, and with it every other prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.prompt import Prompt
from engine_client.contract.sampling import SamplingParameters, TokenLogprob
from engine_client.contract.tensors import HASH_BYTES, TILE_COUNTS, VIDEO, Array
from engine_client.contract.vllm_rules import (
    check_item_counts,
    check_item_size,
    check_seconds,
    item_range,
)

from .facts import EngineFacts

TENSORS_OF_THIS_ENGINE = ("item_hash", "second_per_grid_ts", TILE_COUNTS.name)
_CONSTRAINTS = {"json_schema": "json", "regex": "regex", "grammar": "grammar"}
MAX_SEED = (1 << 31) - 1  # as vLLM's own gRPC service has it, so that one seed gives the same tokens by either way


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One image or video."""

    modality: int
    grid: Array
    """int64 [3]: t, h, w in patches."""
    first_row: int
    row_count: int
    """Of `pixel_patches`."""
    hash: str
    """In hexadecimal digits: vLLM's key of its encoder and prefix caches."""
    first_token: int
    placeholders: Array | None
    """bool [range length]: which tokens of the range stand for features; None if all do."""
    token_count: int
    """Length of the range."""
    seconds_per_step: float | None
    """Of a video, where the family has it (Qwen2.5-VL)."""


def read_items(tensors: Mapping[str, Array], prompt: Prompt, facts: EngineFacts) -> tuple[Item, ...]:
    """Check a prompt's items; nothing of `tensors` is referred to afterwards.

    Args:
        tensors: By contract name.
        prompt: What `check_prompt` has made of them.
        facts: Of the engine that will read them.
    Raises:
        InvalidPrompt: vLLM would refuse them, would not survive them, or would see other pixels than were sent.
    """
    count = len(prompt.modality)
    check_item_counts(prompt.modality, facts.max_items)
    if not count:
        return ()
    if facts.normalizes and facts.mean is not None and facts.std is not None:
        _check_normalization(prompt, facts.mean, facts.std)
    hashes = _hashes(tensors, count)
    if VIDEO in prompt.modality and not facts.family.has_videos:
        raise InvalidPrompt(f"a {facts.model_type} in vLLM takes images alone")
    seconds = _seconds(tensors, prompt.modality, facts.family.has_seconds)
    row_counts = prompt.row_counts.tolist()
    first_rows = np.concatenate([[0], np.cumsum(row_counts)]).tolist()
    spans: dict[int, list[tuple[int, int]]] = {}
    for item, offset, length in tensors["item_spans"].tolist():
        spans.setdefault(item, []).append((offset, length))
    items = []
    for index, kind in enumerate(prompt.modality):
        check_item_size(index, sum(length for _, length in spans[index]), facts.max_item_tokens)
        first, stop = item_range(prompt.input_ids, spans[index], facts.markers if kind == VIDEO else None, index)
        placed = prompt.token_types[first:stop] == kind
        items.append(
            Item(
                modality=kind,
                grid=prompt.grids[index].copy(),
                first_row=first_rows[index],
                row_count=row_counts[index],
                hash=hashes[index],
                first_token=first,
                placeholders=None if placed.all() else placed,
                token_count=stop - first,
                seconds_per_step=seconds[index],
            )
        )
    return tuple(items)


def is_constrained(sampling: SamplingParameters) -> bool:
    """Whether the request says which texts an answer may be."""
    return any(getattr(sampling, name) for name in _CONSTRAINTS)


def sampling_arguments(sampling: SamplingParameters) -> dict[str, Any]:
    """Make the keyword arguments of vLLM's `SamplingParams`, all but how outputs come.

    Without stop tokens vLLM takes the checkpoint's own; with them those are replaced, as in the other models here. Not under a
    constraint: at its end the checkpoint's own may be all that it allows, and vLLM must not go on after it.
    `structured_outputs` is there with a constraint: the arguments of `StructuredOutputsParams`.
    Source: vLLM 0.32, sampling_params.py: top_k 0 is off; `ignore_eos` leaves `stop_token_ids` alone to end an answer.
    """
    constraint = {argument: text for name, argument in _CONSTRAINTS.items() if (text := getattr(sampling, name))}
    arguments = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sampling.seed % (MAX_SEED + 1),
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": bool(sampling.stop_token_ids) and not constraint,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "logprobs": sampling.logprobs,
        "n": sampling.answer_count,
        "detokenize": False,  # text is made where the prompt came from
    }
    return arguments | ({"structured_outputs": constraint} if constraint else {})


def token_logprobs(
    token_ids: Sequence[int], likely: Sequence[Mapping[int, Any]] | None, top_count: int | None
) -> tuple[TokenLogprob, ...]:
    """What vLLM tells of new tokens, for the contract.

    Args:
        likely: Token id → its `Logprob`, for each token: the token's own, and those of the likeliest.
        top_count: `SamplingParameters.logprobs`; None reads nothing.
    Source: vLLM 0.32, logprobs.py: of the model's own scores, unless it runs with another --logprobs-mode.
    """
    if top_count is None or likely is None:
        return ()
    told = []
    for token_id, found in zip(token_ids, likely, strict=True):
        values = {other: one.logprob for other, one in found.items()}
        top = sorted(values.items(), key=lambda pair: -pair[1])[:top_count]
        told.append(TokenLogprob(values[token_id], tuple(top)))
    return tuple(told)


def _check_normalization(prompt: Prompt, mean: Array, std: Array) -> None:
    for name, sent, own in (("pixel_mean", prompt.mean, mean), ("pixel_std", prompt.std, std)):
        if sent is not None and not np.array_equal(sent, own):
            raise InvalidPrompt(f"{name} is {sent.tolist()}; this engine normalizes by its checkpoint's {own.tolist()}")


def _hashes(tensors: Mapping[str, Array], count: int) -> list[str]:
    hashes = tensors.get("item_hash")
    if hashes is None:
        # Placeholders are the same ids in every prompt, so features would be found again under another image.
        raise InvalidPrompt("item_hash is missing; vLLM's caches tell items apart by it")
    if hashes.dtype != np.uint8 or hashes.shape != (count, HASH_BYTES):
        raise InvalidPrompt(f"item_hash is {hashes.dtype} {list(hashes.shape)}; it must be uint8 {[count, HASH_BYTES]}")
    return [each.tobytes().hex() for each in hashes]


def _seconds(tensors: Mapping[str, Array], modality: tuple[int, ...], has_seconds: bool) -> list[float | None]:
    """Seconds a temporal step of each item; None for images, and in families that have none."""
    if VIDEO not in modality or not has_seconds:
        return [None] * len(modality)
    if "second_per_grid_ts" not in tensors:
        raise InvalidPrompt("second_per_grid_ts is missing; this model's positions in a video are of seconds")
    seconds = tensors["second_per_grid_ts"]
    check_seconds(seconds, modality)
    return [float(each) if kind == VIDEO else None for each, kind in zip(seconds, modality, strict=True)]
