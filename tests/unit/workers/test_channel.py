"""Messages between the service and its workers, and what the service refuses to read from them."""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia
from preprocessor.models.family import Model
from preprocessor.types.plan import Grid
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PreparationRequest
from preprocessor.workers.arena import Arena
from preprocessor.workers.channel import Command, Finished, ResultSlotWanted, RowsFinished, dump, load
from preprocessor.workers.claims import Violation
from preprocessor.workers.payloads import PlanPayload
from preprocessor.workers.untrusted import build, encode, parse, to_bytes
from tests.media import moving_shapes_clip, photo

CLIP = moving_shapes_clip(seconds=1, width=64, height=64)


def sent(message: Any) -> Any:
    """A message of a worker, as the service reads it."""
    buffers: list[memoryview] = []
    value, places = parse(to_bytes(encode(message, buffers), [len(buffer) for buffer in buffers]))
    assert places == [len(buffer) for buffer in buffers]
    return build(value, [bytes(buffer) for buffer in buffers])


def test_a_plan_is_sent_unchanged(model: Model) -> None:
    media = (Media("a", Modality.VIDEO, CLIP), Media("b", Modality.IMAGE, photo(40, 30)))
    prompt = ChatPrompt((Message("user", (MediaPart("a"), MediaPart("b"))),))
    plan = pipeline.plan(model, PreparationRequest(prompt, media), Limits())
    received = sent(Finished(plan, None)).result()
    assert repr(received) == repr(plan)
    assert all(np.array_equal(received.tensors[name], array) for name, array in plan.tensors.items())


@pytest.mark.parametrize(
    "array",
    [
        np.arange(10, dtype=np.int64),
        np.ones((3, 4), ml_dtypes.bfloat16),
        np.zeros((4, 6), np.float32)[::2, ::3],
        np.float64(3.5),
    ],
    ids=["integers", "bfloat16", "not contiguous", "a scalar"],
)
def test_arrays_of_every_kind_are_sent_unchanged(array: Any) -> None:
    received = sent(array)
    assert np.array_equal(received, array)
    assert received.dtype == array.dtype
    assert received.shape == array.shape


def test_an_error_is_sent_with_its_reason_and_metadata() -> None:
    error = CorruptMedia("clip: broken", reason="TRUNCATED_MEDIA", media_key="clip")
    with pytest.raises(CorruptMedia) as caught:
        sent(Finished(error, None)).result()
    assert (caught.value.reason, caught.value.metadata) == ("TRUNCATED_MEDIA", {"media_key": "clip"})


def test_an_enumeration_is_written_by_its_value_on_every_python() -> None:
    data = dump(Modality.VIDEO)
    assert load(data) is Modality.VIDEO
    assert b"getattr" not in data
    assert sent(Modality.VIDEO) is Modality.VIDEO


@pytest.mark.parametrize(
    "message", [RowsFinished(4, 2), ResultSlotWanted(100), None, [1, (2.5, "\ud800"), {"a": b"\xff\0"}], float("inf")]
)
def test_other_messages_are_sent_unchanged(message: object) -> None:
    assert sent(message) == message


def test_an_object_that_a_message_names_twice_is_the_same_object() -> None:
    grid = Grid(1, 2, 3)
    first, second = sent((grid, [grid]))
    assert first is second[0]
    assert first == grid


@pytest.mark.parametrize(
    "message", [os.system, Limits, Limits(), object(), {1: 2}, np.zeros(1, object), np.zeros(1, "U3")]
)
def test_what_is_not_data_is_not_written(message: object) -> None:
    with pytest.raises(TypeError, match="a message with"):
        encode(message, [])


def test_an_array_is_made_of_no_other_bytes_than_its_own() -> None:
    with pytest.raises(Violation, match="another size"):
        build(["array", "uint8", [4096], 0], [b""])
    assert build(["array", "bool", [2], 0], [b"\x02\x00"]).tobytes() == b"\x01\x00"


def test_a_file_in_the_arena_is_sent_beside_the_message() -> None:
    arena = Arena.create(1 << 20)
    arena.view(8192, len(CLIP))[:] = CLIP
    medium = Media("a", Modality.VIDEO, arena.view(8192, len(CLIP)))
    request = PreparationRequest(ChatPrompt(()), (medium,))
    files: list[memoryview] = []
    data = dump(Command(1, 2.0, 3.0, PlanPayload(request, Limits())), files.append)
    assert len(data) < 2000 < len(CLIP)
    assert [arena.offset_of(file) for file in files] == [8192]
    command: Command = load(data, lambda size_bytes: bytes(files.pop()[:size_bytes]))
    assert isinstance(command.payload, PlanPayload)
    assert command.payload.request.media[0].data == CLIP
    with pytest.raises(RuntimeError, match="without its files"):
        load(data)
