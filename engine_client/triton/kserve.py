"""KServe v2 messages as bytes and back. tritonclient's generated code, which has no types, stays in here and in
`kserve_regions`.

A request is written by hand around protobuf, for one reason: `raw_input_contents.append` and `SerializeToString` copy
every tensor twice on top of gRPC's own copy, and a video is 100 MB. Here a tensor is copied once, straight into the
finished message. What comes out is byte for byte what protobuf would have made.

    the message without tensor contents, by protobuf │ tag 7, length, content │ tag 7, length, content │ …
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from google.protobuf.wrappers_pb2 import UInt64Value
from tritonclient.grpc import service_pb2

from engine_client.connection import MAX_MESSAGE_BYTES
from engine_client.contract.sampling import TokenLogprob
from engine_client.contract.tensors import ANSWER_INDEX, HELD_ITEMS, LOGPROBS, Array
from engine_client.joining import join_parts
from engine_client.triton.outputs import CONTRACT_OUTPUTS, Outputs, read_logprobs
from engine_client.types import EngineInfo, TensorInfo

SERVICE = "/inference.GRPCInferenceService/"

_RAW_INPUT_CONTENTS_TAG = b"\x3a"  # field 7, length-delimited: grpc_service.proto, ModelInferRequest
_FINAL_RESPONSE = "triton_final_response"

_DATATYPES: Mapping[np.dtype[Any], str] = {
    np.dtype(np.bool_): "BOOL",
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.uint16): "UINT16",
    np.dtype(np.uint32): "UINT32",
    np.dtype(np.uint64): "UINT64",
    np.dtype(np.int8): "INT8",
    np.dtype(np.int16): "INT16",
    np.dtype(np.int32): "INT32",
    np.dtype(np.int64): "INT64",
    np.dtype(np.float16): "FP16",
    np.dtype(np.float32): "FP32",
    np.dtype(np.float64): "FP64",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}


@dataclass(frozen=True, slots=True)
class RegionRange:
    """Where a tensor lies instead of in the message: bytes of a shared memory region that the engine has registered."""

    region_name: str
    offset_bytes: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Which part of a prompt a message is: by the parameters of Triton's sequence extension, which its models can read
    with or without its sequence batcher."""

    prompt_key: int
    """The same in every message of a prompt, and in no other prompt's; 1 to 2**63 - 1."""
    is_first: bool = False
    is_last: bool = False
    is_stop: bool = False
    """No piece at all: nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class InferReply:
    """One message of a ModelStreamInfer answer."""

    error_message: str
    """Empty, or what the model failed with; nothing else is then set."""
    token_ids: tuple[int, ...]
    finish_reason: str | None
    is_final: bool
    """No message follows for this request."""
    request_id: str = ""
    """Of the message that this replies to; set with an `error_message` too."""
    answer_index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token id, or none."""
    held_items: tuple[bool, ...] = ()
    """One for each item of the prompt, in the first reply of a model that holds items: whether it holds this one."""


def datatype_of(name: str, dtype: np.dtype[Any]) -> str:
    """The KServe name of a tensor's type, for example `UINT8`.

    Raises:
        ValueError: there is none.
    """
    datatype = _DATATYPES.get(dtype.newbyteorder("="))
    if datatype is None:
        known = ", ".join(str(dtype) for dtype in _DATATYPES)
        raise ValueError(f"tensor {name} is {dtype}; an engine takes {known}")
    return datatype


def dtype_of(datatype: str) -> np.dtype[Any] | None:
    """The array type of a KServe v2 name; None for a name that has none here, such as BYTES."""
    return next((dtype for dtype, name in _DATATYPES.items() if name == datatype), None)


def encode_infer_request(
    model_name: str,
    request_id: str,
    tensors: Mapping[str, Array],
    *,
    ranges: Mapping[str, RegionRange] | None = None,
    piece: Piece | None = None,
) -> bytes:
    """Make the bytes of a ModelInferRequest that asks to be told when its answer is over.

    Args:
        model_name: As the engine calls it.
        request_id: Comes back with every reply.
        tensors: By input name; any byte order and layout in memory.
        ranges: By input name, where the engine finds a tensor; only the others' contents are in the message. What lies
            there must be little-endian and in C order.
        piece: Which part of a prompt this is; None is a prompt in one message, of which no part follows.
    Returns:
        At most `MAX_MESSAGE_BYTES` bytes.
    Raises:
        ValueError: a dtype has no KServe name, or the message would be too large.
    """
    message = service_pb2.ModelInferRequest(model_name=model_name, id=request_id)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    if piece is not None:
        message.parameters["sequence_id"].int64_param = piece.prompt_key
        message.parameters["sequence_start"].bool_param = piece.is_first
        message.parameters["sequence_end"].bool_param = piece.is_last or piece.is_stop
        if piece.is_stop:
            message.parameters["stop"].bool_param = True
    contents: list[memoryview] = []
    for name, array in tensors.items():
        declared = message.inputs.add(name=name, datatype=datatype_of(name, array.dtype), shape=array.shape)
        if ranges is not None and name in ranges:
            where = ranges[name]
            declared.parameters["shared_memory_region"].string_param = where.region_name
            declared.parameters["shared_memory_offset"].int64_param = where.offset_bytes
            declared.parameters["shared_memory_byte_size"].int64_param = where.byte_size
        else:
            contents.append(_little_endian_bytes(array))
    # Deterministic, so that the order of its parameters is not the hash seed's.
    head = message.SerializeToString(deterministic=True)

    heads = [_RAW_INPUT_CONTENTS_TAG + _varint(content.nbytes) for content in contents]
    total_bytes = len(head) + sum(map(len, heads)) + sum(content.nbytes for content in contents)
    if total_bytes > MAX_MESSAGE_BYTES:
        raise ValueError(f"the request has {total_bytes} bytes; one gRPC message holds {MAX_MESSAGE_BYTES}")
    parts: list[bytes | memoryview] = [head]
    for content_head, content in zip(heads, contents, strict=True):
        parts += [content_head, content]
    return join_parts(parts)


def decode_infer_reply(wire: bytes, wanted: Outputs = CONTRACT_OUTPUTS) -> InferReply:
    """Read one ModelStreamInferResponse.

    Args:
        wanted: What the outputs are called; the engine contract's names unless a tensor mapping says otherwise.
    Raises:
        ValueError: an output is not what `wanted` or the contract says.
        DecodeError: it is another message.
    """
    message = service_pb2.ModelStreamInferResponse.FromString(wire)
    response = message.infer_response
    outputs = {
        output.name: (output.datatype, content)
        for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    token_ids: tuple[int, ...] = ()
    if wanted.token_ids in outputs:
        datatype, content = outputs[wanted.token_ids]
        if datatype != wanted.token_ids_datatype:
            raise ValueError(f"output {wanted.token_ids} is {datatype}; it must be {wanted.token_ids_datatype}")
        token_ids = tuple(np.frombuffer(content, "<i8" if datatype == "INT64" else "<i4").tolist())
    return InferReply(
        error_message=message.error_message,
        token_ids=token_ids,
        finish_reason=_first_string(outputs[wanted.finish_reason][1]) if wanted.finish_reason in outputs else None,
        is_final=response.parameters[_FINAL_RESPONSE].bool_param if _FINAL_RESPONSE in response.parameters else False,
        request_id=response.id,
        answer_index=_only_int(outputs[ANSWER_INDEX][1]) if ANSWER_INDEX in outputs else 0,
        logprobs=read_logprobs(outputs, len(token_ids)) if LOGPROBS in outputs else (),
        held_items=tuple(map(bool, outputs[HELD_ITEMS][1])) if HELD_ITEMS in outputs else (),
    )


def encode_model_ready(model_name: str) -> bytes:
    """Make the bytes of a ModelReadyRequest for any version of the model."""
    return _serialized(service_pb2.ModelReadyRequest(name=model_name))


def decode_model_ready(wire: bytes) -> bool:
    """Read a ModelReadyResponse."""
    return bool(service_pb2.ModelReadyResponse.FromString(wire).ready)


def encode_server_ready() -> bytes:
    """Make the bytes of a ServerReadyRequest."""
    return _serialized(service_pb2.ServerReadyRequest())


def decode_server_ready(wire: bytes) -> bool:
    """Read a ServerReadyResponse."""
    return bool(service_pb2.ServerReadyResponse.FromString(wire).ready)


def encode_model_config(model_name: str) -> bytes:
    """Make the bytes of a ModelConfigRequest for any version of the model."""
    return _serialized(service_pb2.ModelConfigRequest(name=model_name))


def with_model_config(info: EngineInfo, wire: bytes) -> EngineInfo:
    """Add what a ModelConfigResponse knows: the model's parameters, and which inputs a prompt may come without."""
    config = service_pb2.ModelConfigResponse.FromString(wire).config
    optional = {tensor.name: tensor.optional for tensor in config.input}
    return replace(
        info,
        inputs=tuple(replace(tensor, is_optional=optional.get(tensor.name)) for tensor in info.inputs),
        parameters={key: value.string_value for key, value in config.parameters.items()},
    )


def encode_model_metadata(model_name: str) -> bytes:
    """Make the bytes of a ModelMetadataRequest for any version of the model."""
    return _serialized(service_pb2.ModelMetadataRequest(name=model_name))


def decode_datatypes(model_wire: bytes) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Read the datatypes of a model's inputs, and of its outputs, by name, from a ModelMetadataResponse."""
    model = service_pb2.ModelMetadataResponse.FromString(model_wire)
    inputs, outputs = ({tensor.name: tensor.datatype for tensor in each} for each in (model.inputs, model.outputs))
    return inputs, outputs


def encode_server_metadata() -> bytes:
    """Make the bytes of a ServerMetadataRequest."""
    return _serialized(service_pb2.ServerMetadataRequest())


def decode_engine_info(server_wire: bytes, model_wire: bytes) -> EngineInfo:
    """Read a ServerMetadataResponse and a ModelMetadataResponse together."""
    server = service_pb2.ServerMetadataResponse.FromString(server_wire)
    model = service_pb2.ModelMetadataResponse.FromString(model_wire)
    return EngineInfo(
        server_name=server.name,
        server_version=server.version,
        model_name=model.name,
        model_versions=tuple(model.versions),
        inputs=tuple(_tensor_infos(model.inputs)),
        outputs=tuple(_tensor_infos(model.outputs)),
    )


def _serialized(message: Any) -> bytes:
    to_bytes: Callable[[], bytes] = message.SerializeToString
    return to_bytes()


def _tensor_infos(declared: Sequence[Any]) -> Iterator[TensorInfo]:
    for tensor in declared:
        yield TensorInfo(name=tensor.name, datatype=tensor.datatype, shape=tuple(tensor.shape))


def _little_endian_bytes(array: Array) -> memoryview:
    """A view of the elements in C order, copied only if they do not lie so already."""
    ordered = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    # Through uint8, because bfloat16 is not a type that Python's buffer protocol knows.
    return ordered.reshape(-1).view(np.uint8).data


def _varint(value: int) -> bytes:
    """Protobuf's encoding of a length, made by protobuf: this message is a tag of one byte and that."""
    return UInt64Value(value=value).SerializeToString()[1:] or b"\0"  # 0 is left out


def _only_int(content: bytes) -> int:
    """The one element of an INT32 tensor.

    Raises:
        ValueError: it has more or fewer.
    """
    (element,) = np.frombuffer(content, "<i4").tolist()
    return int(element)


def _first_string(content: bytes) -> str:
    """The first element of a BYTES tensor: four bytes of length, little-endian, then that many bytes."""
    length = int.from_bytes(content[:4], "little")
    return content[4 : 4 + length].decode()
