"""One request as the message that vLLM's service takes, checked for what its core does not survive.

The pixels of a prompt are most of its bytes, and protobuf would copy them twice. The messages around them are made by
protobuf; the pixels follow as a further piece of the same message, which merges with what came before
(https://protobuf.dev/programming-guides/encoding/, "Last One Wins"): all is joined in one copy. Pixels that the server reads
in shared memory are not in the message at all.

Source of fields and their meanings: smg-grpc-servicer 0.14.1, vllm/servicer.py, `_build_preprocessed_mm_inputs`.
"""

from __future__ import annotations

import numpy as np
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client.connection import MAX_MESSAGE_BYTES
from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.layout import RowForm
from engine_client.contract.tensors import INPUT_IDS, PIXELS, Array
from engine_client.contract.vllm_rules import MODALITY_NAMES
from engine_client.errors import EngineRejected
from engine_client.joining import join_parts
from engine_client.types import EngineRequest
from engine_client.vllm.links import References
from engine_client.vllm.own_tensors import OwnTensorsPrompt
from engine_client.vllm.sampling import encode_sampling
from engine_client.vllm.server import VllmServer
from engine_client.vllm.vision_prompt import UNUSED, VisionPrompt

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
    if tensors.keys() - {INPUT_IDS, *UNUSED}:
        is_own = server.family.form is RowForm.TILES and PIXELS not in tensors
        prompt = _own_prompt(who, request, server) if is_own else VisionPrompt(who, request, server)
        fields = [_MM_INPUTS, _EXTRA_MM_INPUTS]
        for modality in sorted(MODALITY_NAMES, reverse=True):  # videos first, as vLLM's own clients send them
            if items := prompt.items_of(modality):
                pixels, batch = prompt.batch(modality, items)
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


def _own_prompt(who: str, request: EngineRequest, server: VllmServer) -> OwnTensorsPrompt:
    assert server.layout is not None
    try:
        return OwnTensorsPrompt(request, server.model_type, server.layout, server.max_items, server.max_item_tokens)
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
