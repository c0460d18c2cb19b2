"""How a request is cut into messages: which tensors where, how large, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from engine_client import EngineRejected, EngineRequest, OwnedRegion, RowProgress
from engine_client.triton.messages import (
    MAX_INLINE_PIECE_BYTES,
    MAX_REFERRED_PIECE_BYTES,
    MIN_PIECE_BYTES,
    EngineMessage,
    KnownRegion,
    RequestMessages,
)

WIDTH = 1024
ROWS = 5 * MAX_INLINE_PIECE_BYTES // WIDTH + 1  # five pieces and a row


@pytest.fixture(scope="module")
def region() -> Iterator[OwnedRegion]:
    with OwnedRegion.create(3 * MAX_REFERRED_PIECE_BYTES) as made:
        yield made


def request(rows: np.ndarray, pending: RowProgress | None = None) -> EngineRequest:
    return EngineRequest("r", {"input_ids": np.arange(3, dtype=np.int32), "pixel_patches": rows}, pending=pending)


def cut(asked: EngineRequest, region: OwnedRegion | None = None, *, takes_pieces: bool = True) -> RequestMessages:
    known = None if region is None else KnownRegion(region, "known")
    return RequestMessages("m", asked, takes_pieces=takes_pieces, known=known)


async def parsed(messages: RequestMessages) -> list[tuple[EngineMessage, service_pb2.ModelInferRequest]]:
    return [(each, service_pb2.ModelInferRequest.FromString(each.wire)) async for each in messages]


def random_rows(count: int = ROWS) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, WIDTH), np.uint8)


async def test_pieces_hold_every_row_once_in_order_and_are_of_one_sequence() -> None:
    rows = random_rows()
    (opening, first), *pieces = await parsed(cut(request(rows)))
    assert (opening.request_id, opening.is_piece) == ("r", False)
    assert "pixel_patches" not in [tensor.name for tensor in first.inputs]
    assert {"input_ids", "max_tokens", "seed"} <= {tensor.name for tensor in first.inputs}
    assert (first.parameters["sequence_start"].bool_param, first.parameters["sequence_end"].bool_param) == (True, False)

    assert [[tensor.name for tensor in piece.inputs] for _, piece in pieces] == [["first_row", "pixel_patches"]] * 6
    starts = [int(np.frombuffer(piece.raw_input_contents[0], "<i8")[0]) for _, piece in pieces]
    assert starts == list(range(0, ROWS, MAX_INLINE_PIECE_BYTES // WIDTH))
    assert b"".join(piece.raw_input_contents[1] for _, piece in pieces) == rows.tobytes()
    assert [piece.parameters["sequence_end"].bool_param for _, piece in pieces] == [False] * 5 + [True]
    keys = {message.parameters["sequence_id"].int64_param for _, message in [(opening, first), *pieces]}
    assert len(keys) == 1 and keys.pop() > 0
    assert all(len(each.wire) < MAX_INLINE_PIECE_BYTES + 1000 for each, _ in pieces)
    assert len({each.request_id for each, _ in [(opening, first), *pieces]}) == 7


async def test_no_two_prompts_share_a_sequence() -> None:
    asked = request(random_rows(1))
    keys = [(await parsed(cut(asked)))[0][1].parameters["sequence_id"].int64_param for _ in range(2)]
    assert keys[0] != keys[1]


async def test_a_prompt_that_fits_one_piece_is_one_message_and_a_whole_sequence() -> None:
    [(message, wire)] = await parsed(cut(request(random_rows(10))))
    assert not message.is_piece
    assert (wire.parameters["sequence_start"].bool_param, wire.parameters["sequence_end"].bool_param) == (True, True)


async def test_an_engine_that_takes_no_pieces_gets_one_message_without_a_sequence_and_no_stop() -> None:
    rows = random_rows()
    messages = cut(request(rows), takes_pieces=False)
    [(_, wire)] = await parsed(messages)
    assert "sequence_id" not in wire.parameters
    assert rows.tobytes() in list(wire.raw_input_contents)
    assert messages.stop is None


async def test_the_stop_ends_the_same_sequence() -> None:
    messages = cut(request(random_rows(1)))
    [(_, wire)] = await parsed(messages)
    assert messages.stop is not None
    stop = service_pb2.ModelInferRequest.FromString(messages.stop)
    assert stop.parameters["sequence_id"] == wire.parameters["sequence_id"]
    assert stop.parameters["stop"].bool_param
    assert not stop.inputs


async def test_what_lies_in_the_region_is_referred_to_and_the_rest_is_sent(region: OwnedRegion) -> None:
    count = (2 * MAX_REFERRED_PIECE_BYTES + MAX_REFERRED_PIECE_BYTES // 2) // WIDTH
    rows = np.frombuffer(region.buffer, np.uint8, count * WIDTH, 4096).reshape(count, WIDTH)
    _, *pieces = await parsed(cut(request(rows), region))
    assert len(pieces) == 3
    covered = 0
    for message, wire in pieces:
        first_row, patches = wire.inputs
        assert message.refers
        assert len(wire.raw_input_contents) == 1, "first_row's"
        assert not first_row.parameters
        assert patches.parameters["shared_memory_region"].string_param == "known"
        assert patches.parameters["shared_memory_offset"].int64_param == 4096 + covered
        covered += patches.parameters["shared_memory_byte_size"].int64_param
    assert covered == rows.nbytes


async def test_a_tensor_beside_the_region_is_sent(region: OwnedRegion) -> None:
    messages = await parsed(cut(request(random_rows()), region))
    assert not any(message.refers for message, _ in messages)


async def test_one_message_refers_too(region: OwnedRegion) -> None:
    rows = np.frombuffer(region.buffer, np.uint8, 1000 * WIDTH).reshape(1000, WIDTH)
    [(message, wire)] = await parsed(cut(request(rows), region, takes_pieces=False))
    assert message.refers
    assert len(message.wire) < 1000
    assert [bool(tensor.parameters) for tensor in wire.inputs][:2] == [False, True]


async def test_rows_go_as_soon_as_enough_are_final() -> None:
    rows, pending = np.zeros((ROWS, WIDTH), np.uint8), RowProgress("pixel_patches")
    worth = MIN_PIECE_BYTES // WIDTH
    each = aiter(cut(request(rows, pending)))
    assert not (await anext(each)).is_piece
    coming = asyncio.ensure_future(anext(each))
    pending.finish(worth - 1)
    _, still = await asyncio.wait({coming}, timeout=0.01)
    assert still, "too few to be worth a message"
    rows[: worth + 5] = 7
    pending.finish(worth + 5)
    piece = service_pb2.ModelInferRequest.FromString((await coming).wire)
    assert list(piece.inputs[1].shape) == [worth + 5, WIDTH]
    assert set(piece.raw_input_contents[1]) == {7}
    pending.finish(ROWS)
    later = [service_pb2.ModelInferRequest.FromString(message.wire) async for message in each]
    assert sum(message.inputs[1].shape[0] for message in later) == ROWS - worth - 5


@pytest.mark.parametrize("takes_pieces", [True, False])
async def test_an_error_that_ends_the_rows_is_no_fault_of_the_request(takes_pieces: bool) -> None:
    pending, error = RowProgress("pixel_patches"), ValueError("a bug where the rows are made")
    pending.fail(error)
    with pytest.raises(ValueError, match="a bug") as caught:
        await parsed(cut(request(random_rows(), pending), takes_pieces=takes_pieces))
    assert caught.value is error


async def test_the_last_rows_go_however_few() -> None:
    rows, pending = random_rows(3), RowProgress("pixel_patches")
    pending.finish(3)
    _, (_, piece) = await parsed(cut(request(rows, pending)))
    assert piece.raw_input_contents[1] == rows.tobytes()
    assert piece.parameters["sequence_end"].bool_param


async def test_more_rows_than_there_are_is_the_caller_s_mistake() -> None:
    pending = RowProgress("pixel_patches")
    pending.finish(4)
    with pytest.raises(EngineRejected, match="4 rows of pixel_patches are said to be final; it has 3"):
        await parsed(cut(request(random_rows(3), pending)))


async def test_rows_that_fail_end_the_messages_with_that_error() -> None:
    pending = RowProgress("pixel_patches")
    pending.fail(RuntimeError("the decoder broke"))
    with pytest.raises(RuntimeError, match="the decoder broke"):
        await parsed(cut(request(random_rows(), pending)))
