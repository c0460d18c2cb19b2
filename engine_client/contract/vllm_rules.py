"""What vLLM needs of a prompt beside the contract. Its engine core does not survive a prompt that breaks one of these rules.

Used by the client of vLLM's own gRPC service and by the Triton model around vLLM.

Source: vLLM 0.32, model_executor/models/qwen3_vl.py, `_iter_mm_grid_hw` (one item's positions); v1/core/sched/scheduler.py
(an item above the encoder's budget is never scheduled).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.tensors import IMAGE, VIDEO, Array

MODALITY_NAMES: Mapping[int, str] = {IMAGE: "image", VIDEO: "video"}
"""vLLM's names by the values of `item_modality`."""


@dataclass(frozen=True, slots=True)
class VisionMarkers:
    """The tokens around the placeholders of a temporal step; None where the id is not known, which is then not checked."""

    start_id: int | None
    end_id: int | None


def item_range(
    ids: Array, spans: Sequence[tuple[int, int]], markers: VisionMarkers | None, item: int
) -> tuple[int, int]:
    """The range of tokens that vLLM is to be told for one item.

    A video whose steps have stamps begins at the marker before its first placeholder: vLLM looks for the markers of each
    step from there on, and takes all tokens from a step's first placeholder to the end marker for placeholders.

    Args:
        ids: int32 [L].
        spans: Offset and length of each run of the item's placeholders, one after another within `ids`.
        markers: Of a video whose steps have stamps; None for any other item.
        item: Its index, for messages.
    Returns:
        The first token, and the one after the last.
    Raises:
        InvalidPrompt: a marker is missing, or there is one too many.
    """
    first, stop = spans[0][0], spans[-1][0] + spans[-1][1]
    if markers is None:
        return first, stop
    offsets = np.array([offset for offset, _ in spans])
    ends = offsets + np.array([length for _, length in spans])
    first -= 1
    if first < 0 or (markers.start_id is not None and bool((ids[offsets - 1] != markers.start_id).any())):
        raise InvalidPrompt(f"no vision marker stands before a frame of item {item}; each must follow vision_start")
    if markers.end_id is not None and (stop >= len(ids) or bool((ids[ends] != markers.end_id).any())):
        raise InvalidPrompt(f"no vision marker stands after a frame of item {item}; each must precede vision_end")
    within = ids[first:stop]
    for marker_id, expected in ((markers.start_id, len(spans)), (markers.end_id, len(spans) - 1)):
        found = expected if marker_id is None else int((within == marker_id).sum())
        if found != expected:
            raise InvalidPrompt(f"item {item} has {found} tokens {marker_id} among its frames; it must have {expected}")
    return first, stop


def check_item_counts(modality: Sequence[int], limits: Mapping[int, int]) -> None:
    """Check how many items of each modality a prompt has.

    Args:
        modality: Of each item.
        limits: By modality; one that is missing has no limit.
    Raises:
        InvalidPrompt: there are more than the engine takes.
    """
    for kind, name in MODALITY_NAMES.items():
        count, limit = modality.count(kind), limits.get(kind)
        if limit is not None and count > limit:
            raise InvalidPrompt(f"the prompt has {count} {name}s; the engine takes {limit}")


def check_item_size(item: int, token_count: int, limit: int) -> None:
    """Check how many placeholders one item has.

    Args:
        limit: The encoder's budget in tokens; 0 where it is not known.
    Raises:
        InvalidPrompt: it has more than the engine ever schedules.
    """
    if limit and token_count > limit:
        raise InvalidPrompt(
            f"item {item} takes {token_count} tokens; the engine's encoder takes {limit}: ask for fewer frames or pixels"
        )


def check_seconds(seconds: Array, modality: Sequence[int]) -> None:
    """Check `second_per_grid_ts` of a family that has seconds.

    Args:
        modality: Of each item.
    Raises:
        InvalidPrompt: it has not a value for each item, or a video's is no number above 0.
    """
    if seconds.dtype != np.float32 or seconds.shape != (len(modality),):
        raise InvalidPrompt(
            f"second_per_grid_ts is {seconds.dtype} {list(seconds.shape)}; it must be float32 {[len(modality)]}, one an item"
        )
    of_videos = seconds[np.array(modality, np.int32) == VIDEO]
    if not bool((np.isfinite(of_videos) & (of_videos > 0)).all()):
        raise InvalidPrompt(f"second_per_grid_ts is {seconds.tolist()}; that of a video must be above 0")
