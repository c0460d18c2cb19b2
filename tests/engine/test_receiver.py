"""What becomes of a batch of Triton's when one of its messages cannot be taken; without a Triton."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine_client.contract.assembler import PromptAssembler, State
from engine_client.contract.tensors import FIRST_ROW, PIXELS, STOP, Array
from tests.engine.prompts import mixed_prompt
from tests.engine.test_contract import LAYOUT
from tests.waiting import eventually

PROMPT = mixed_prompt()
OPENING = {name: array for name, array in PROMPT.items() if name != PIXELS}
START, END = 1, 2
_BACKEND = "engine_client.triton.backend"
_IMPORTING = [f"{_BACKEND}.{name}" for name in ("answers", "receiver")]


class Metrics:
    COUNTER = 1

    def __init__(self, **_: object) -> None:
        pass

    def Metric(self, **_: object) -> Metrics:
        return self

    def increment(self, count: float) -> None:
        pass


class TritonError:
    INVALID_ARG, UNAVAILABLE, INTERNAL = range(3)

    def __init__(self, text: str, code: int) -> None:
        self.text = text


class Request:
    """One message, and the replies to it."""

    def __init__(self, key: int, flags: int, tensors: dict[str, Any]) -> None:
        self._key, self._flags, self.tensors = key, flags, tensors
        self.replies: list[str | None] = []
        """The text of the error of each; None is without."""

    def correlation_id(self) -> int:
        return self._key

    def flags(self) -> int:
        return self._flags

    def request_id(self) -> str:
        return f"{self._key}"

    def parameters(self) -> str:
        return "{}"

    def get_response_sender(self) -> Request:
        return self

    def is_cancelled(self) -> bool:
        return False

    def send(self, response: Any = None, flags: int = 0) -> None:
        self.replies.append(None if response is None else response.error.text)


class Model:
    """Answers a prompt as soon as it is whole."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage

    def begin(self, tensors: dict[str, Array], owner: object, *, is_whole: bool) -> tuple[PromptAssembler, None]:
        return PromptAssembler(tensors, owner, LAYOUT, self._storage, is_whole=is_whole), None

    def advance(self, opened: Any) -> str | None:
        return None if opened.assembler.advance(lambda: None) is State.WAITING else STOP


class Storage:
    """Keeps nothing; has no place for the first prompt."""

    def __init__(self) -> None:
        self._allocated_count = 0

    def allocate(self, row_count: int, feature_count: int) -> None:
        self._allocated_count += 1
        if self._allocated_count == 1:
            raise torch.OutOfMemoryError("device is out of memory")

    def write(self, first_row: int, rows: Array) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Over a stand-in for the module that Triton gives to its Python models."""
    stand_in = ModuleType("triton_python_backend_utils")
    stand_in.__dict__.update(
        TRITONSERVER_REQUEST_FLAG_SEQUENCE_START=START,
        TRITONSERVER_REQUEST_FLAG_SEQUENCE_END=END,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        MetricFamily=Metrics,
        TritonError=TritonError,
        InferenceResponse=lambda error: SimpleNamespace(error=error),
        Logger=SimpleNamespace(log_error=lambda text: None),
        get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
    )
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    for name in _IMPORTING:
        monkeypatch.delitem(sys.modules, name, raising=False)
    from engine_client.triton.backend.receiver import PromptReceiver

    made = PromptReceiver("m", Model(Storage()), max_prompts=9, thread_count=1, max_row_wait_seconds=600.0)
    yield made
    made.close(0, 0)
    for name in _IMPORTING:
        sys.modules.pop(name, None)


def opening(key: int) -> Request:
    return Request(key, START, {name: as_input(array) for name, array in OPENING.items()})


def rows(key: int, pixels: Any = None, flags: int = END) -> Request:
    pixels = as_input(PROMPT[PIXELS]) if pixels is None else pixels
    return Request(key, flags, {FIRST_ROW: as_input(np.zeros(1, np.int64)), PIXELS: pixels})


def as_input(array: Array) -> Any:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return SimpleNamespace(to_dlpack=tensor.__dlpack__)


async def test_rows_for_which_there_is_no_memory_end_their_prompt_alone(receiver: Any) -> None:
    first, second = opening(1), opening(2)
    its_rows, others_rows = rows(1), rows(2)
    receiver.receive([first])
    receiver.receive([its_rows, second, others_rows])  # one batch
    await eventually(lambda: bool(first.replies and second.replies))
    (error,) = first.replies
    assert error is not None and "out of memory" in error
    assert [request.replies for request in (its_rows, second, others_rows)] == [[None]] * 3
    assert not receiver._opened


async def test_rows_that_cannot_be_read_end_their_prompt_alone(receiver: Any) -> None:
    def refuse() -> Any:
        raise RuntimeError("DLPack has no such type")

    first, second = opening(1), opening(2)
    unreadable = rows(1, SimpleNamespace(to_dlpack=refuse))
    receiver.receive([first])
    receiver.receive([unreadable, second])
    await eventually(lambda: bool(first.replies))
    (error,) = first.replies
    assert error is not None and "no such type" in error
    assert unreadable.replies == [None]
    assert [opened.key for opened in receiver._opened] == [2]
