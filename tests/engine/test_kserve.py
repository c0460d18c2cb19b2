"""The messages written by hand are those that protobuf writes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from engine_client import FinishReason, SamplingParameters
from engine_client.joining import COPY_PIECE_BYTES
from engine_client.triton import kserve

TENSORS: dict[str, np.ndarray] = {
    "input_ids": np.arange(5, dtype=np.int32),
    "pixel_patches": np.arange(600, dtype=np.uint8).reshape(2, 300),  # longer than one varint byte can say
    "grid_thw": np.array([[1, 2, 3]], np.int64),
    "bf16": np.arange(4, dtype=ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
}


def by_protobuf(tensors: dict[str, np.ndarray], datatypes: list[str]) -> bytes:
    message = service_pb2.ModelInferRequest(model_name="m", id="r")
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    for (name, array), datatype in zip(tensors.items(), datatypes, strict=True):
        message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    wire: bytes = message.SerializeToString()
    return wire


def test_a_request_is_byte_for_byte_what_protobuf_makes() -> None:
    datatypes = ["INT32", "UINT8", "INT64", "BF16", "FP32", "BOOL"]
    assert kserve.encode_infer_request("m", "r", TENSORS) == by_protobuf(TENSORS, datatypes)


def test_references_and_sequence_parameters_are_those_of_triton_s_extensions() -> None:
    ranges = {"pixel_patches": kserve.RegionRange("region", 4096, 600)}
    piece = kserve.Piece(2**63 - 1, is_first=True)
    tensors = {"pixel_patches": TENSORS["pixel_patches"], "input_ids": TENSORS["input_ids"]}
    message = service_pb2.ModelInferRequest(model_name="m", id="r")
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    message.parameters["sequence_id"].int64_param = 2**63 - 1
    message.parameters["sequence_start"].bool_param = True
    message.parameters["sequence_end"].bool_param = False
    referred = message.inputs.add(name="pixel_patches", datatype="UINT8", shape=[2, 300])
    referred.parameters["shared_memory_region"].string_param = "region"
    referred.parameters["shared_memory_offset"].int64_param = 4096
    referred.parameters["shared_memory_byte_size"].int64_param = 600
    message.inputs.add(name="input_ids", datatype="INT32", shape=[5])
    message.raw_input_contents.append(TENSORS["input_ids"].tobytes())
    wire = kserve.encode_infer_request("m", "r", tensors, ranges=ranges, piece=piece)
    assert wire == message.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("piece", "is_end", "is_stop"),
    [
        (kserve.Piece(1), False, False),
        (kserve.Piece(1, is_last=True), True, False),
        (kserve.Piece(1, is_stop=True), True, True),
    ],
)
def test_the_last_piece_and_a_stop_end_the_sequence(piece: kserve.Piece, is_end: bool, is_stop: bool) -> None:
    message = service_pb2.ModelInferRequest.FromString(kserve.encode_infer_request("m", "r", {}, piece=piece))
    assert message.parameters["sequence_end"].bool_param is is_end
    assert ("stop" in message.parameters) is is_stop


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(12, dtype=np.int32).reshape(3, 4).T, id="transposed"),
        pytest.param(np.arange(12, dtype=np.int32)[::-2], id="strided"),
        pytest.param(np.arange(12, dtype=">i4"), id="big-endian"),
        pytest.param(np.zeros(COPY_PIECE_BYTES // 4 + 1, np.int32), id="more than one piece"),
    ],
)
def test_contents_are_little_endian_in_c_order(array: np.ndarray) -> None:
    plain = np.ascontiguousarray(array, np.dtype("<i4"))
    assert kserve.encode_infer_request("m", "r", {"x": array}) == by_protobuf({"x": plain}, ["INT32"])


def test_a_dtype_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor x is complex128"):
        kserve.encode_infer_request("m", "r", {"x": np.zeros(1, np.complex128)})


def test_a_request_beyond_the_limit_is_refused_before_it_is_made() -> None:
    huge = np.zeros(2**31, np.uint8)  # pages that nobody touches take no memory
    with pytest.raises(ValueError, match="one gRPC message holds 2147483647"):
        kserve.encode_infer_request("m", "r", {"x": huge})


def test_stop_token_ids_are_sent_only_when_there_are_some() -> None:
    assert "stop_token_ids" not in SamplingParameters().tensors()
    sampling = SamplingParameters(seed=2**64 - 1, stop_token_ids=(7, 8)).tensors()
    assert {name: str(array.dtype) for name, array in sampling.items()} == {
        "max_tokens": "int32",
        "temperature": "float32",
        "top_p": "float32",
        "top_k": "int32",
        "seed": "uint64",
        "stop_token_ids": "int32",
    }
    assert sampling["seed"].tolist() == [2**64 - 1]


def test_a_reply_is_read_by_output_name() -> None:
    message = service_pb2.ModelStreamInferResponse()
    message.infer_response.id = "r#1"
    message.infer_response.outputs.add(name="finish_reason", datatype="BYTES", shape=[1])
    message.infer_response.raw_output_contents.append(b"\x04\x00\x00\x00stop")
    message.infer_response.outputs.add(name="token_ids", datatype="INT32", shape=[2])
    message.infer_response.raw_output_contents.append(np.array([5, 151645], "<i4").tobytes())
    reply = kserve.decode_infer_reply(message.SerializeToString())
    assert reply == kserve.InferReply("", (5, 151645), FinishReason.STOP, is_final=False, request_id="r#1")


@pytest.mark.parametrize(
    ("logprobs", "ids", "values"), [([], [], []), ([-1], [], []), ([-1, -2], [3], [-3]), ([-1, -2], [3, 4], [-3])]
)
def test_log_probabilities_that_are_not_as_many_as_the_tokens_are_refused(
    logprobs: list[float], ids: list[int], values: list[float]
) -> None:
    message = service_pb2.ModelStreamInferResponse()
    for name, datatype, content in (
        ("token_ids", "INT32", np.array([5, 6], "<i4")),
        ("logprobs", "FP32", np.array(logprobs, "<f4")),
        ("top_token_ids", "INT32", np.array(ids, "<i4")),
        ("top_logprobs", "FP32", np.array(values, "<f4")),
    ):
        message.infer_response.outputs.add(name=name, datatype=datatype, shape=[len(content)])
        message.infer_response.raw_output_contents.append(content.tobytes())
    with pytest.raises(ValueError, match="values for 2 tokens"):
        kserve.decode_infer_reply(message.SerializeToString())


def test_a_reply_of_another_type_is_refused() -> None:
    message = service_pb2.ModelStreamInferResponse()
    message.infer_response.outputs.add(name="token_ids", datatype="INT64", shape=[1])
    message.infer_response.raw_output_contents.append(bytes(8))
    with pytest.raises(ValueError, match="token_ids is INT64"):
        kserve.decode_infer_reply(message.SerializeToString())


@pytest.mark.parametrize("content", [b"", bytes(8), bytes(3)])
def test_an_answer_index_that_is_not_one_number_is_refused(content: bytes) -> None:
    message = service_pb2.ModelStreamInferResponse()
    message.infer_response.outputs.add(name="answer_index", datatype="INT32", shape=[1])
    message.infer_response.raw_output_contents.append(content)
    with pytest.raises(ValueError):
        kserve.decode_infer_reply(message.SerializeToString())


def test_the_empty_final_reply_is_final() -> None:
    message = service_pb2.ModelStreamInferResponse()
    message.infer_response.parameters["triton_final_response"].bool_param = True
    assert kserve.decode_infer_reply(message.SerializeToString()).is_final
