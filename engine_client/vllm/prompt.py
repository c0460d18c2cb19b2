"""One request as the message that vLLM's service takes, checked for what its core does not survive.

The pixels of a prompt are most of its bytes, and protobuf would copy them twice. The messages around them are made by
protobuf; the pixels follow as a further piece of the same message, which merges with what came before
(https://protobuf.dev/programming-guides/encoding/, "Last One Wins"): all is joined in one copy. Pixels that the server reads
in shared memory are not in the message at all.

Source of fields and their meanings: smg-grpc-servicer 0.14.1, vllm/servicer.py, `_build_preprocessed_mm_inputs`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import ml_dtypes
import numpy as np
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client.connection import MAX_MESSAGE_BYTES
from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.tensors import IMAGE, INPUT_IDS, PIXELS, VIDEO, VISION_TENSORS, Array
from engine_client.contract.vllm_rules import (
    MODALITY_NAMES,
    check_item_counts,
    check_item_size,
    check_seconds,
    item_range,
)
from engine_client.errors import EngineRejected
from engine_client.joining import join_parts
from engine_client.types import EngineRequest
from engine_client.vllm.links import References
from engine_client.vllm.own_tensors import OwnTensorsPrompt
from engine_client.vllm.sampling import encode_sampling
from engine_client.vllm.server import VllmServer

_MODALITIES = {IMAGE: common_pb2.IMAGE, VIDEO: common_pb2.VIDEO}
_UNUSED = {
    "mrope_position_ids",
    "mrope_position_delta",
    "mm_token_type_ids",
    "token_type_ids",
    "attention_mask",
}  # vLLM works these out itself
_KNOWN = {INPUT_IDS, *VISION_TENSORS, "item_hash", "second_per_grid_ts"} | _UNUSED

_MM_INPUTS = pb.GenerateRequest.MM_INPUTS_FIELD_NUMBER
_EXTRA_MM_INPUTS = pb.GenerateRequest.EXTRA_MM_INPUTS_FIELD_NUMBER
_PIXEL_VALUES = pb.MultimodalInputs.PIXEL_VALUES_FIELD_NUMBER
_INLINE = pb.TensorData.INLINE_FIELD_NUMBER


def encode_prompt(who: str, request: EngineRequest, server: VllmServer, references: References | None = None) -> bytes:
    """A `GenerateRequest` on the wire.

    Args:
        who: Starts the messages of errors; names the engine.
        references: Refers to pixels in shared memory, where they lie there as they are sent; None sends them all.
    Raises:
        EngineRejected: the server would not take it, or would not survive it.
    """
    tensors = request.tensors
    ids = tensors[INPUT_IDS]
    _check_ids(who, ids, server)
    message = pb.GenerateRequest(
        request_id=request.request_id,
        tokenized=pb.TokenizedInput(input_ids=ids.tolist()),
        sampling_params=encode_sampling(request.sampling),
        stream=True,
    )
    pieces: list[bytes | memoryview] = [message.SerializeToString()]
    if tensors.keys() - {INPUT_IDS, *_UNUSED}:
        prompt = _VisionPrompt(who, request, server) if server.tiles is None else _own_prompt(who, request, server)
        fields = [_MM_INPUTS, _EXTRA_MM_INPUTS]
        for modality in sorted(MODALITY_NAMES, reverse=True):  # videos first, as vLLM's own clients send them
            if items := prompt.items_of(modality):
                pixels = prompt.pixels_of(items)
                batch = prompt.batch(modality, items)
                handle = None if references is None else references.refer(pixels)
                if handle is None:
                    pieces += _nested(fields[0], batch.SerializeToString(), pixels.reshape(-1).view(np.uint8).data)
                else:
                    batch.pixel_values.shm.CopyFrom(handle)
                    pieces += [_head(fields[0], batch.ByteSize()), batch.SerializeToString()]
                fields = fields[1:] or fields
    if sum(map(len, pieces)) > MAX_MESSAGE_BYTES:
        raise EngineRejected(f"{who}: the prompt has more than 2 GiB, which one message cannot carry")
    return join_parts(pieces)


class _VisionPrompt:
    """The images and videos of a prompt, checked.

    Raises:
        EngineRejected: they do not fit together, or not to the server.
    """

    def __init__(self, who: str, request: EngineRequest, server: VllmServer) -> None:
        self._who = who
        self._server = server
        self._tensors = tensors = request.tensors
        needed = [*VISION_TENSORS, "item_hash", *(["second_per_grid_ts"] if server.has_seconds else [])]
        missing = [name for name in needed if name not in tensors]
        unknown = sorted(tensors.keys() - _KNOWN)
        self._require(not unknown, f"{', '.join(unknown)} of another processor cannot be sent to vLLM")
        self._require(not missing, f"the prompt lacks {', '.join(missing)}")
        self._grids = tensors["grid_thw"].astype(np.int64)
        self._modalities: list[int] = tensors["item_modality"].tolist()
        self._counts = self._grids.prod(axis=1)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self._require(bool((self._grids > 0).all()), "grid_thw has a side that is not above 0")
        self._require(
            len(self._grids) == len(self._modalities) == len(tensors["item_hash"]),
            "grid_thw, item_modality and item_hash must have a row for each item",
        )
        self._require(
            tensors[PIXELS].dtype == np.uint8,
            f"pixels are {tensors[PIXELS].dtype}; they must be uint8",
        )
        self._require(
            int(self._starts[-1]) == len(tensors[PIXELS]),
            f"grid_thw has {self._starts[-1]} rows, pixels {len(tensors[PIXELS])}",
        )
        with self._rejecting():
            check_item_counts(self._modalities, server.max_items)
        self._require(
            set(self._modalities) <= MODALITY_NAMES.keys(), "item_modality has a value that is neither image nor video"
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

    def pixels_of(self, items: list[int]) -> Array:
        """Their rows in the form that the server takes, [rows, features]; a copy only where it must be one."""
        pixels = self._tensors[PIXELS]
        if items[-1] - items[0] == len(items) - 1:  # one after another in the tensor too
            pixels = pixels[self._starts[items[0]] : self._starts[items[-1] + 1]]
        else:
            pixels = np.concatenate([pixels[self._starts[item] : self._starts[item + 1]] for item in items])
        pixels = np.ascontiguousarray(pixels)
        return pixels if self._server.normalizes else self._normalized(pixels)

    def batch(self, modality: int, items: list[int]) -> pb.MultimodalInputs:
        """All of one modality but the bytes of its pixels."""
        name = MODALITY_NAMES[modality]
        grid, sizes = f"{name}_grid_thw", f"patches_per_{name}"
        tensors = {grid: _tensor(self._grids[items]), sizes: _tensor(self._counts[items])}
        batched = [grid, sizes]
        if modality == VIDEO and self._server.has_seconds:
            tensors["second_per_grid_ts"] = _tensor(self._seconds(items))
            batched.append("second_per_grid_ts")
        rows = int(self._counts[items].sum())
        dtype = "uint8" if self._server.normalizes else self._server.float_type
        return pb.MultimodalInputs(
            pixel_values=pb.TensorData(shape=[rows, self._tensors[PIXELS].shape[1]], dtype=dtype),
            model_specific_tensors=tensors,
            im_token_id=self._pad_id(items[0]),
            mm_placeholders=[self._range(item) for item in items],
            mm_hashes=[self._tensors["item_hash"][item].tobytes().hex() for item in items],
            batched_keys=batched,
            flat_keys={"pixel_values": sizes},
            keep_on_cpu_keys=[grid],
            modality=_MODALITIES[modality],
        )

    def _seconds(self, items: list[int]) -> Array:
        """Of `items`, which are videos."""
        seconds = self._tensors["second_per_grid_ts"]
        with self._rejecting():
            check_seconds(seconds, self._modalities)
        return seconds[items]

    def _check_item(self, item: int) -> None:
        spans = self._spans.get(item, [])
        ids = self._tensors[INPUT_IDS]
        self._require(bool(spans), f"item {item} has no placeholders")
        self._require(
            all(offset >= 0 and length > 0 and offset + length <= len(ids) for offset, length in spans)
            and all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans)),
            f"the spans of item {item} do not lie in the prompt one after another",
        )
        is_stamped = self._modalities[item] == VIDEO and self._server.video_markers is not None
        self._require(
            len(spans) == 1 or is_stamped, f"item {item} has {len(spans)} runs of placeholders; it must have one"
        )
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
            self._counts[item] % token_count == 0
            and (rows_per_token is None or self._counts[item] == token_count * rows_per_token),
            f"item {item} has {self._counts[item]} rows for {token_count} placeholders",
        )
        with self._rejecting():
            check_item_size(item, token_count, self._server.max_item_tokens)

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

    def _normalized(self, pixels: Array) -> Array:
        """uint8 rows as the encoder's floats, by a table: exact, as each of 256 values is worked out once per channel.

        Source: transformers 5.23, image_processing_backends, rescale_and_normalize: (value - mean) / std in float32, both
        scaled to 0 … 255 before.
        """
        mean = self._tensors["pixel_mean"].astype(np.float32) * np.float32(255)
        std = self._tensors["pixel_std"].astype(np.float32) * np.float32(255)
        table = (np.arange(256, dtype=np.float32)[None, :] - mean[:, None]) / std[:, None]
        if self._server.float_type == "bfloat16":
            table = table.astype(ml_dtypes.bfloat16)
        elif self._server.float_type == "float16":
            table = table.astype(np.float16)
        by_channel = pixels.reshape(len(pixels), 3, -1)
        out = np.empty(by_channel.shape, table.dtype)
        for channel in range(3):
            out[:, channel] = table[channel][by_channel[:, channel]]
        return out.reshape(pixels.shape)

    @contextmanager
    def _rejecting(self) -> Iterator[None]:
        """Turn the contract's errors into this package's."""
        try:
            yield
        except InvalidPrompt as invalid:
            raise EngineRejected(f"{self._who}: {invalid}") from invalid

    def _require(self, is_right: bool, what: str) -> None:
        if not is_right:
            raise EngineRejected(f"{self._who}: {what}")


def _own_prompt(who: str, request: EngineRequest, server: VllmServer) -> OwnTensorsPrompt:
    assert server.tiles is not None
    try:
        return OwnTensorsPrompt(request, server.model_type, server.tiles, server.max_items, server.max_item_tokens)
    except InvalidPrompt as invalid:
        raise EngineRejected(f"{who}: {invalid}") from invalid


def _check_ids(who: str, ids: Array, server: VllmServer) -> None:
    limit = server.max_prompt_tokens
    if limit and len(ids) >= limit:
        raise EngineRejected(
            f"{who}: the prompt has {len(ids)} tokens; the engine's context holds {limit}, answer included"
        )
    if not len(ids):
        raise EngineRejected(f"{who}: the prompt is empty")
    if int(ids.min()) < 0 or (server.vocabulary_size and int(ids.max()) >= server.vocabulary_size):
        raise EngineRejected(f"{who}: a token id is outside the vocabulary of {server.vocabulary_size}")


def _tensor(array: Array) -> pb.TensorData:
    array = np.ascontiguousarray(array)
    return pb.TensorData(inline=array.tobytes(), shape=list(array.shape), dtype=str(array.dtype))


def _nested(field: int, batch: bytes, pixels: memoryview) -> list[bytes | memoryview]:
    """A `MultimodalInputs` as that field of a request: the batch, and the pixels as `pixel_values.inline` behind it."""
    inline = _head(_INLINE, len(pixels))
    values = _head(_PIXEL_VALUES, len(inline) + len(pixels))
    head = _head(field, len(batch) + len(values) + len(inline) + len(pixels))
    return [head, batch, values, inline, pixels]


def _head(field: int, size_bytes: int) -> bytes:
    """Tag and length of a field of bytes."""
    encoded = bytearray()
    for value in (field << 3 | 2, size_bytes):
        while value > 0x7F:
            encoded.append(value & 0x7F | 0x80)
            value >>= 7
        encoded.append(value)
    return bytes(encoded)
