"""A prompt with the tensors of a model's own processor, for models whose tensors vLLM takes as that processor makes them.

Each image has one run of placeholders and some tiles of `pixel_values`, each of which becomes the same number of tokens. So the
tiles of an image follow from its run, and any prompt for which that does not hold is refused: vLLM's core would not survive it.

Names are those of `contract.vllm_families`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.layout import ModelLayout
from engine_client.contract.tensors import CHANNEL_COUNT, HASH_BYTES, IMAGE, INPUT_IDS, Array
from engine_client.contract.vllm_families import FAMILIES
from engine_client.contract.vllm_rules import check_item_counts, check_item_size
from engine_client.types import EngineRequest

PIXEL_VALUES = "pixel_values"
_ITEM_TENSORS = ("item_modality", "item_spans", "item_hash")
_UNUSED = frozenset({"attention_mask", "token_type_ids", "mm_token_type_ids"})  # vLLM works these out itself
_FLOATS: Mapping[np.dtype[Any], str] = {
    np.dtype(np.float32): "float32",
    np.dtype(np.float16): "float16",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
}


class OwnTensorsPrompt:
    """The images of a prompt, checked.

    Args:
        layout: Of the engine's model.
        max_items, max_item_tokens: As those of `VllmServer`.
    Raises:
        InvalidPrompt: they do not fit together, or not to the engine's model.
    """

    def __init__(
        self,
        request: EngineRequest,
        model_type: str,
        layout: ModelLayout,
        max_items: Mapping[int, int],
        max_item_tokens: int,
    ) -> None:
        self._family, self._layout = FAMILIES[model_type], layout
        self._tensors = tensors = request.tensors
        if unknown := sorted(tensors.keys() - {INPUT_IDS, PIXEL_VALUES, *_ITEM_TENSORS, *_UNUSED}):
            raise InvalidPrompt(f"{', '.join(unknown)} cannot be sent to a {model_type} in vLLM")
        if missing := [name for name in (PIXEL_VALUES, *_ITEM_TENSORS) if name not in tensors]:
            raise InvalidPrompt(
                f"the prompt lacks {', '.join(missing)}; a {model_type} in vLLM takes images of one run of placeholders each"
            )
        modalities, spans, hashes = (tensors[name] for name in _ITEM_TENSORS)
        count = len(modalities)
        if modalities.tolist() != [IMAGE] * count or not count:
            raise InvalidPrompt(f"item_modality is {modalities.tolist()}; a {model_type} in vLLM takes images alone")
        if hashes.dtype != np.uint8 or hashes.shape != (count, HASH_BYTES):
            raise InvalidPrompt(
                f"item_hash is {hashes.dtype} {list(hashes.shape)}; it must be uint8 {[count, HASH_BYTES]}"
            )
        check_item_counts(modalities.tolist(), max_items)
        self._check_spans(spans, count, max_item_tokens)
        self._check_pixels()

    def items_of(self, modality: int) -> list[int]:
        """All of the prompt's, which are images."""
        return list(range(len(self._spans))) if modality == IMAGE else []

    def batch(self, modality: int, items: list[int]) -> tuple[Array, pb.MultimodalInputs]:
        """The pixels, float [tiles, 3, height, width], not copied; and all else."""
        pixels = np.ascontiguousarray(self._tensors[PIXEL_VALUES])
        token_id, tile_counts = self._layout.image_token_id, self._family.tile_counts.format("image")
        small = {tile_counts: np.array(self._tile_counts, np.int64)}
        token_ids = {self._family.token_id.format("image"): np.array([token_id], np.int64)}
        shared = token_ids if self._family.token_id else {}
        return pixels, pb.MultimodalInputs(
            pixel_values=pb.TensorData(shape=list(pixels.shape), dtype=_FLOATS[pixels.dtype]),
            model_specific_tensors={
                name: pb.TensorData(inline=array.tobytes(), shape=list(array.shape), dtype="int64")
                for name, array in (small | shared).items()
            },
            im_token_id=token_id,
            mm_placeholders=[pb.PlaceholderRange(offset=offset, length=length) for offset, length in self._spans],
            mm_hashes=[each.tobytes().hex() for each in self._tensors["item_hash"]],
            batched_keys=[tile_counts],
            flat_keys={PIXEL_VALUES: tile_counts},
            keep_on_cpu_keys=[*small, *shared],
            modality=common_pb2.IMAGE,
        )

    def _check_spans(self, spans: Array, count: int, max_item_tokens: int) -> None:
        if spans.shape != (count, 3) or spans[:, 0].tolist() != list(range(count)):
            raise InvalidPrompt(f"item_spans is {spans.tolist()}; each of {count} images must have one, in order")
        self._spans: list[tuple[int, int]] = [(offset, length) for _, offset, length in spans.tolist()]
        is_placeholder = np.concatenate([[False], self._tensors[INPUT_IDS] == self._layout.image_token_id, [False]])
        runs = np.flatnonzero(is_placeholder[1:] != is_placeholder[:-1]).reshape(-1, 2)
        if [(start, stop - start) for start, stop in runs.tolist()] != self._spans:
            raise InvalidPrompt("item_spans are not the runs of the engine's placeholder in the prompt")
        for item, (_, length) in enumerate(self._spans):
            if length % self._layout.tile_tokens:
                raise InvalidPrompt(
                    f"image {item} has {length} placeholders; the engine's model makes {self._layout.tile_tokens} of a tile"
                )
            check_item_size(item, length, max_item_tokens)
        self._tile_counts = [length // self._layout.tile_tokens for _, length in self._spans]

    def _check_pixels(self) -> None:
        pixels, side = self._tensors[PIXEL_VALUES], self._layout.patch_size
        shape = (sum(self._tile_counts), CHANNEL_COUNT, side, side)
        if pixels.dtype not in _FLOATS or pixels.shape != shape:
            raise InvalidPrompt(
                f"{PIXEL_VALUES} is {pixels.dtype} {list(pixels.shape)}; it must be a float {list(shape)} for these placeholders"
            )
