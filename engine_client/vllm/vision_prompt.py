"""The images and videos of a prompt of the fast path as vLLM's messages, checked for what its core does not survive."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.layout import RowForm
from engine_client.contract.tensors import (
    FAMILY_INPUTS,
    IMAGE,
    INPUT_IDS,
    OPTIONAL_TENSORS,
    PIXELS,
    TILE_COUNTS,
    VIDEO,
    VISION_TENSORS,
    Array,
    ContractTensor,
)
from engine_client.contract.vllm_fields import Parts, VllmFields, vllm_fields
from engine_client.contract.vllm_rules import (
    MODALITY_NAMES,
    check_item_counts,
    check_item_size,
    check_seconds,
    item_range,
)
from engine_client.errors import EngineRejected
from engine_client.types import EngineRequest
from engine_client.vllm.floats import normalize
from engine_client.vllm.server import VllmServer

UNUSED = frozenset(
    {"mrope_position_ids", "mrope_position_delta", "mm_token_type_ids", "token_type_ids", "attention_mask"}
)
"""What vLLM works out itself."""
_TENSORS = {**VISION_TENSORS, **OPTIONAL_TENSORS, **FAMILY_INPUTS}
_KNOWN = {INPUT_IDS, *VISION_TENSORS, "item_hash", "second_per_grid_ts"} | UNUSED
_KNOWN_BY_FORM = {RowForm.TILES: {TILE_COUNTS.name}, RowForm.LINES: {"image_sizes"}}
_MODALITIES = {IMAGE: common_pb2.IMAGE, VIDEO: common_pb2.VIDEO}
_PIXEL_FIELD = "pixel_values"  # of videos too: the servicer renames it


class VisionPrompt:
    """The images and videos of a prompt, checked.

    Raises:
        EngineRejected: they do not fit together, or not to the server.
    """

    def __init__(self, who: str, request: EngineRequest, server: VllmServer) -> None:
        self._who = who
        self._server = server
        self._tensors = tensors = request.tensors
        self._family, self._layout = server.family, server.layout
        counts_name = TILE_COUNTS.name if self._family.form is RowForm.TILES else "grid_thw"
        needed = [counts_name, *(name for name in VISION_TENSORS if name != "grid_thw"), "item_hash"]
        needed += ["second_per_grid_ts"] if self._family.has_seconds else []
        missing = [name for name in needed if name not in tensors]
        unknown = sorted(tensors.keys() - _KNOWN - _KNOWN_BY_FORM.get(self._family.form, set()))
        self._require(not unknown, f"{', '.join(unknown)} of another processor cannot be sent to vLLM")
        self._require(not missing, f"the prompt lacks {', '.join(missing)}")
        for name in needed:
            self._require_shape(tensors[name], _TENSORS[name])
        grids = tensors[counts_name].astype(np.int64)
        if self._family.form is RowForm.TILES:
            grids = np.stack([grids, np.ones_like(grids), np.ones_like(grids)], axis=1)
        self._grids = grids
        self._modalities: list[int] = tensors["item_modality"].tolist()
        self._counts = self._grids.prod(axis=1)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self._require(bool((self._grids > 0).all()), f"{counts_name} has a side that is not above 0")
        self._require(
            len(self._grids) == len(self._modalities) == len(tensors["item_hash"]),
            f"{counts_name}, item_modality and item_hash must have a row for each item",
        )
        self._require(
            tensors[PIXELS].dtype == np.uint8,
            f"pixels are {tensors[PIXELS].dtype}; they must be uint8",
        )
        self._require(
            int(self._starts[-1]) == len(tensors[PIXELS]),
            f"{counts_name} has {self._starts[-1]} rows, pixels {len(tensors[PIXELS])}",
        )
        self._require(
            self._layout is None or tensors[PIXELS].shape[1:] == (self._layout.feature_count,),
            f"pixels are {list(tensors[PIXELS].shape)}; the engine's model takes rows of "
            f"{self._layout and self._layout.feature_count} values",
        )
        mean, std = tensors["pixel_mean"], tensors["pixel_std"]
        self._require(bool((std > 0).all()), f"pixel_std is {std.tolist()}; it must be above 0")
        self._require(
            self._family.form is not RowForm.PADDED or len({*mean.tolist()}) == len({*std.tolist()}) == 1,
            "the channels of its pixels differ in mean or deviation, which rows of this family do not tell apart",
        )
        with self._rejecting():
            check_item_counts(self._modalities, server.max_items)
        self._require(
            set(self._modalities) <= MODALITY_NAMES.keys(), "item_modality has a value that is neither image nor video"
        )
        self._require(
            self._family.has_videos or VIDEO not in self._modalities,
            f"a {server.model_type} in vLLM takes images alone",
        )
        self._spans: dict[int, list[tuple[int, int]]] = {}
        for item, offset, length in tensors["item_spans"].tolist():
            self._spans.setdefault(item, []).append((offset, length))
        self._require(
            self._spans.keys() <= set(range(len(self._modalities))),
            "item_spans names an item that the prompt does not have",
        )
        for item in range(len(self._modalities)):
            self._check_item(item)

    def items_of(self, modality: int) -> list[int]:
        return [item for item, each in enumerate(self._modalities) if each == modality]

    def batch(self, modality: int, items: list[int]) -> tuple[Array, pb.MultimodalInputs]:
        """Their pixels in the form that the server takes, copied only where they must be; and all else of them."""
        has_seconds = modality == VIDEO and self._family.has_seconds
        seconds = self._seconds(items) if has_seconds else None
        made = vllm_fields(self._family, self._layout, modality, self._rows(items), self._grids[items], seconds)
        self._require(
            not isinstance(made.pixels, list),
            "its images differ in size, which vLLM's gRPC service cannot carry for this model; send them in prompts of their "
            "own, or to vLLM in Triton",
        )
        assert not isinstance(made.pixels, list)
        return made.pixels, pb.MultimodalInputs(
            pixel_values=pb.TensorData(
                shape=list(made.pixels.shape), dtype="uint8" if self._server.normalizes else self._server.float_type
            ),
            im_token_id=self._pad_id(items[0]),
            mm_placeholders=[self._range(item) for item in items],
            mm_hashes=[self._tensors["item_hash"][item].tobytes().hex() for item in items],
            modality=_MODALITIES[modality],
            **_beside_pixels(made),
        )

    def _rows(self, items: list[int]) -> Array:
        """Their rows in the type that the server takes, [rows, features]; a copy only where it must be one."""
        pixels = self._tensors[PIXELS]
        if items[-1] - items[0] == len(items) - 1:  # one after another in the tensor too
            pixels = pixels[self._starts[items[0]] : self._starts[items[-1] + 1]]
        else:
            pixels = np.concatenate([pixels[self._starts[item] : self._starts[item + 1]] for item in items])
        pixels = np.ascontiguousarray(pixels)
        return pixels if self._server.normalizes else normalize(pixels, self._tensors, self._server)

    def _seconds(self, items: list[int]) -> list[float]:
        """Of `items`, which are videos."""
        seconds = self._tensors["second_per_grid_ts"]
        with self._rejecting():
            check_seconds(seconds, self._modalities)
        told: list[float] = seconds[items].tolist()
        return told

    def _check_item(self, item: int) -> None:
        spans = self._spans.get(item, [])
        ids = self._tensors[INPUT_IDS]
        self._require(bool(spans), f"item {item} has no placeholders")
        self._require(
            all(offset >= 0 and length > 0 and offset + length <= len(ids) for offset, length in spans)
            and all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans)),
            f"the spans of item {item} do not lie in the prompt one after another",
        )
        self._check_shape(item, spans)
        pad = self._pad_id(item)
        expected = self._server.pad_ids.get(self._modalities[item], pad)
        self._require(pad == expected, f"item {item} has the placeholder {pad}; the engine's model has {expected}")
        placed = sum(int((ids[offset : offset + length] == pad).sum()) for offset, length in spans)
        token_count = sum(length for _, length in spans)
        self._require(placed == token_count, f"a span of item {item} holds other tokens than its placeholder")
        first, stop = self._bounds(item)
        self._require(
            int((ids[first:stop] == pad).sum()) == token_count,
            f"placeholders of another item lie among those of item {item}",
        )
        rows_per_token = self._server.rows_per_token
        self._require(
            self._layout is not None
            or self._counts[item] == token_count * (rows_per_token or self._counts[item] // token_count),
            f"item {item} has {self._counts[item]} rows for {token_count} placeholders",
        )
        with self._rejecting():
            check_item_size(item, token_count, self._server.max_item_tokens)

    def _check_shape(self, item: int, spans: list[tuple[int, int]]) -> None:
        """That its placeholders are as many as the engine's model will make features of its rows, in the same runs."""
        modality = self._modalities[item]
        if self._layout is None:
            is_stamped = modality == VIDEO and self._server.video_markers is not None
            self._require(
                len(spans) == 1 or is_stamped, f"item {item} has {len(spans)} runs of placeholders; it must have one"
            )
            return
        grid = self._grids[item].tolist()
        complaint = self._layout.grid_complaint(modality, grid)
        self._require(not complaint, f"item {item} has the grid {grid}; {complaint}")
        count, length = self._layout.span_shape(modality, grid)
        self._require(
            [span[1] for span in spans] == [length] * count,
            f"item {item} has {len(spans)} runs of placeholders; by its grid it must have {count} of {length}",
        )

    def _pad_id(self, item: int) -> int:
        return int(self._tensors[INPUT_IDS][self._spans[item][0][0]])

    def _bounds(self, item: int) -> tuple[int, int]:
        """First token of the item's range, and the one after its last: see `item_range`."""
        markers = self._server.video_markers if self._modalities[item] == VIDEO else None
        with self._rejecting():
            return item_range(self._tensors[INPUT_IDS], self._spans[item], markers, item)

    def _range(self, item: int) -> pb.PlaceholderRange:
        first, stop = self._bounds(item)
        return pb.PlaceholderRange(offset=first, length=stop - first)

    @contextmanager
    def _rejecting(self) -> Iterator[None]:
        """Turn the contract's errors into this package's."""
        try:
            yield
        except InvalidPrompt as invalid:
            raise EngineRejected(f"{self._who}: {invalid}") from invalid

    def _require_shape(self, array: Array, expected: ContractTensor) -> None:
        shape, told = expected.shape, f"{array.dtype} {list(array.shape)}"
        fits = len(shape) == array.ndim and all(n in (-1, m) for n, m in zip(shape, array.shape, strict=True))
        self._require(fits, f"{expected.name} is {told}; it must be {expected}")

    def _require(self, is_right: bool, what: str) -> None:
        if not is_right:
            raise EngineRejected(f"{self._who}: {what}")


def _beside_pixels(made: VllmFields) -> dict[str, Any]:
    """The tensors beside the pixels, and how all of them are divided among the items."""
    tensors = {field.name: _tensor(field.array) for field in made.fields}
    batched = [field.name for field in made.fields if field.parts is Parts.ONE_EACH]
    flat = {field.name: made.counts_name for field in made.fields if field.parts is Parts.BY_COUNT}
    if not made.counts_name:
        batched.append(_PIXEL_FIELD)
    else:
        flat[_PIXEL_FIELD] = made.counts_name
        if made.counts_name not in tensors:
            tensors[made.counts_name] = _tensor(made.counts)
            batched.append(made.counts_name)
    return {
        "model_specific_tensors": tensors,
        "batched_keys": batched,
        "flat_keys": flat,
        "keep_on_cpu_keys": [field.name for field in made.fields if field.on_cpu],
    }


def _tensor(array: Array) -> pb.TensorData:
    array = np.ascontiguousarray(array)
    return pb.TensorData(inline=array.tobytes(), shape=list(array.shape), dtype=str(array.dtype))
