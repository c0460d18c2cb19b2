"""A prompt with the tensors of a model's own processor, for models whose tensors vLLM takes as that processor makes them.

Each image has one run of placeholders and some tiles of `pixel_values`, each of which becomes the same number of tokens. So the
tiles of an image follow from its run, and any prompt for which that does not hold is refused: vLLM's core would not survive it.

Source: vLLM 0.32, model_executor/models/gemma3_mm.py, `_get_mm_fields_config` (`num_patches`); interns1.py (`image_num_patches`,
`image_token_id`), which serves InternVL in Hugging Face's form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.tensors import CHANNEL_COUNT, HASH_BYTES, IMAGE, INPUT_IDS, Array
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


@dataclass(frozen=True, slots=True)
class OwnTensors:
    """What vLLM is to be told of one type of model.

    Attributes:
        tokens_setting: The entry of `config.json` that says how many tokens a tile becomes.
        tile_counts: vLLM's name for the number of tiles of each image.
        has_token_id: Whether vLLM asks for the placeholder beside the pixels.
    """

    tokens_setting: str
    tile_counts: str
    has_token_id: bool


OWN_TENSORS: Mapping[str, OwnTensors] = {
    "gemma3": OwnTensors("mm_tokens_per_image", "num_patches", has_token_id=False),
    "internvl": OwnTensors("image_seq_length", "image_num_patches", has_token_id=True),
}
"""By model type of Hugging Face."""


@dataclass(frozen=True, slots=True)
class TileSettings:
    """Of one model, from its `config.json`: the placeholder's id, tokens of a tile, and its height and width in pixels."""

    token_id: int
    tokens: int
    height_px: int
    width_px: int


def read_tile_settings(model_type: str, config: Mapping[str, Any]) -> TileSettings | None:
    """None where the configuration does not tell, or the model is of another type."""
    own = OWN_TENSORS.get(model_type)
    vision = config.get("vision_config", {})
    if own is None or not isinstance(vision, dict):
        return None
    token_id = config.get("image_token_id", config.get("image_token_index"))
    size = vision.get("image_size")
    height_px, width_px = size if isinstance(size, list) and len(size) == 2 else (size, size)
    found = (token_id, config.get(own.tokens_setting), height_px, width_px)
    if not all(isinstance(value, int) and value > 0 for value in found):
        return None
    return TileSettings(*found)  # type: ignore[arg-type]


class OwnTensorsPrompt:
    """The images of a prompt, checked.

    Args:
        settings: Of the engine's model.
        max_items, max_item_tokens: As those of `VllmServer`.
    Raises:
        InvalidPrompt: they do not fit together, or not to the engine's model.
    """

    def __init__(
        self,
        request: EngineRequest,
        model_type: str,
        settings: TileSettings,
        max_items: Mapping[int, int],
        max_item_tokens: int,
    ) -> None:
        self._own, self._settings = OWN_TENSORS[model_type], settings
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

    def pixels_of(self, items: list[int]) -> Array:
        """float [tiles, 3, height, width]; not copied."""
        return np.ascontiguousarray(self._tensors[PIXEL_VALUES])

    def batch(self, modality: int, items: list[int]) -> pb.MultimodalInputs:
        """All but the bytes of the pixels."""
        pixels = self._tensors[PIXEL_VALUES]
        own, token_id = self._own, self._settings.token_id
        small = {own.tile_counts: np.array(self._tile_counts, np.int64)}
        shared = {"image_token_id": np.array([token_id], np.int64)} if own.has_token_id else {}
        return pb.MultimodalInputs(
            pixel_values=pb.TensorData(shape=list(pixels.shape), dtype=_FLOATS[pixels.dtype]),
            model_specific_tensors={
                name: pb.TensorData(inline=array.tobytes(), shape=list(array.shape), dtype="int64")
                for name, array in (small | shared).items()
            },
            im_token_id=token_id,
            mm_placeholders=[pb.PlaceholderRange(offset=offset, length=length) for offset, length in self._spans],
            mm_hashes=[each.tobytes().hex() for each in self._tensors["item_hash"]],
            batched_keys=[own.tile_counts],
            flat_keys={PIXEL_VALUES: own.tile_counts},
            keep_on_cpu_keys=[*small, *shared],
            modality=common_pb2.IMAGE,
        )

    def _check_spans(self, spans: Array, count: int, max_item_tokens: int) -> None:
        if spans.shape != (count, 3) or spans[:, 0].tolist() != list(range(count)):
            raise InvalidPrompt(f"item_spans is {spans.tolist()}; each of {count} images must have one, in order")
        self._spans: list[tuple[int, int]] = [(offset, length) for _, offset, length in spans.tolist()]
        is_placeholder = np.concatenate([[False], self._tensors[INPUT_IDS] == self._settings.token_id, [False]])
        runs = np.flatnonzero(is_placeholder[1:] != is_placeholder[:-1]).reshape(-1, 2)
        if [(start, stop - start) for start, stop in runs.tolist()] != self._spans:
            raise InvalidPrompt("item_spans are not the runs of the engine's placeholder in the prompt")
        for item, (_, length) in enumerate(self._spans):
            if length % self._settings.tokens:
                raise InvalidPrompt(
                    f"image {item} has {length} placeholders; the engine's model makes {self._settings.tokens} of a tile"
                )
            check_item_size(item, length, max_item_tokens)
        self._tile_counts = [length // self._settings.tokens for _, length in self._spans]

    def _check_pixels(self) -> None:
        pixels, settings = self._tensors[PIXEL_VALUES], self._settings
        shape = (sum(self._tile_counts), CHANNEL_COUNT, settings.height_px, settings.width_px)
        if pixels.dtype not in _FLOATS or pixels.shape != shape:
            raise InvalidPrompt(
                f"{PIXEL_VALUES} is {pixels.dtype} {list(pixels.shape)}; it must be a float {list(shape)} for these placeholders"
            )
