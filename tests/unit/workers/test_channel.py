"""Messages between the service and its workers, and what the service refuses to read from them."""

from __future__ import annotations

import os
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, Overloaded
from preprocessor.models.family import Model
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PreparationRequest
from preprocessor.workers.arena import Arena
from preprocessor.workers.channel import Command, Finished, ResultSlotWanted, RowsFinished, dump, load, load_untrusted
from preprocessor.workers.payloads import PlanPayload
from tests.media import moving_shapes_clip, photo

CLIP = moving_shapes_clip(seconds=1, width=64, height=64)


class Evil:
    """Calls a function when it is unpickled, as any pickle may."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._reduced = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


def test_a_plan_is_sent_unchanged(model: Model) -> None:
    media = (Media("a", Modality.VIDEO, CLIP), Media("b", Modality.IMAGE, photo(40, 30)))
    prompt = ChatPrompt((Message("user", (MediaPart("a"), MediaPart("b"))),))
    plan = pipeline.plan(model, PreparationRequest(prompt, media), Limits())
    received = load_untrusted(dump(Finished(plan, None, 0))).result()
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
    assert np.array_equal(load_untrusted(dump(array)), array)
    buffers: list[pickle.PickleBuffer] = []
    data = dump(array, aside=buffers.append)
    assert np.array_equal(load_untrusted(data, [bytes(buffer.raw()) for buffer in buffers]), array)


def test_an_error_is_sent_with_its_reason_and_metadata() -> None:
    error = CorruptMedia("clip: broken", reason="TRUNCATED_MEDIA", media_key="clip")
    with pytest.raises(CorruptMedia) as caught:
        load_untrusted(dump(Finished(error, None, 0))).result()
    assert (caught.value.reason, caught.value.metadata) == ("TRUNCATED_MEDIA", {"media_key": "clip"})


def test_an_enumeration_is_written_by_its_value_on_every_python() -> None:
    data = dump(Modality.VIDEO)
    assert load_untrusted(data) is Modality.VIDEO
    assert b"getattr" not in data


def test_progress_messages_are_sent_unchanged() -> None:
    for message in (RowsFinished(4, 2), ResultSlotWanted(100)):
        assert load_untrusted(dump(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        Evil(os.system, "true"),
        Evil(eval, "1"),
        Evil(getattr, "x", "upper"),
        Evil(np.load, "/nowhere"),
        Evil(np.fromfile, "/dev/null"),
        Evil(Overloaded.__init__, None),
        Evil(pickle.loads, b"N."),
        Evil(dump, None),
        os.system,
        Limits,
    ],
    ids=lambda message: getattr(message, "_reduced", [message])[0].__qualname__,
)
def test_a_message_of_a_worker_that_names_a_callable_is_refused(message: object) -> None:
    with pytest.raises(pickle.UnpicklingError, match="not data"):
        load_untrusted(dump(message))


def test_a_dotted_name_does_not_reach_attributes_of_a_data_class() -> None:
    forged = b"\x80\x04\x8c\x1apreprocessor.types.request\x94\x8c\x12Modality.__class__\x94\x93."
    with pytest.raises(pickle.UnpicklingError, match="not data"):
        load_untrusted(forged)


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
