"""The messages of an answer → what a caller asked for. Calls nothing: both clients read messages in their own way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy.typing as npt

from preprocessor.client.errors import CallFailed
from preprocessor.client.requests import Progress
from preprocessor.client.shared_memory import RowsRegion
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import DTYPES, allocate_tensor, read_tensor, store_rows


@dataclass(frozen=True, slots=True, eq=False)
class PrepareResult:
    """What `Prepare` answered.

    Attributes:
        header: Items, their grids and frames; model and digests.
        report: Time of each stage; damaged frames and what stands in their place.
        tensors: By the engine contract's names; on the generic path by the processor's own.
    """

    header: pb.Header
    report: pb.Report
    tensors: dict[str, npt.NDArray[Any]] = field(repr=False)


class ResultAssembler:
    """Puts the messages of one answer of `Prepare` together.

    Args:
        region: The shared memory that rows go to, where they do not come in messages.
    """

    def __init__(self, progress: Progress | None = None, region: RowsRegion | None = None) -> None:
        self._progress = progress
        self._region = region
        self._header = pb.Header()
        self._report: pb.Report | None = None
        self._tensors: list[npt.NDArray[Any] | None] = []  # as the header lists them; None until rows of one have come
        self._received_bytes = Counter[int]()

    def add(self, response: pb.PrepareResponse) -> None:
        """Take the next message."""
        match response.WhichOneof("message"):
            case "header":
                self._header = response.header
                if self._region is not None:
                    self._region.opened()
                for tensor in response.header.tensors:
                    self._tensors.append(read_tensor(tensor) if len(tensor.data) == tensor.total_bytes else None)
            case "rows":
                index = response.rows.tensor_index
                array = self._tensors[index]
                if array is None:
                    array = self._tensors[index] = allocate_tensor(self._header.tensors[index])
                store_rows(response.rows, array)
                self._count(index, len(response.rows.data), array.nbytes)
            case "rows_ready":
                ready = response.rows_ready
                tensor = self._header.tensors[ready.tensor_index]
                row_bytes = tensor.total_bytes // tensor.shape[0]
                if self._tensors[ready.tensor_index] is None and self._region is not None:
                    start_bytes = ready.offset_bytes - ready.first_row * row_bytes
                    shared = self._region.array(start_bytes, DTYPES[tensor.data_type], tensor.shape)
                    self._tensors[ready.tensor_index] = shared
                self._count(ready.tensor_index, ready.row_count * row_bytes, tensor.total_bytes)
            case "report":
                self._report = response.report

    def _count(self, index: int, size_bytes: int, total_bytes: int) -> None:
        """So many more bytes of a tensor have come."""
        self._received_bytes[index] += size_bytes
        if self._progress is not None:
            self._progress(self._received_bytes[index], total_bytes)

    def result(self) -> PrepareResult:
        """What has come, once the answer has ended.

        Raises:
            CallFailed: It ended too early.
        """
        if self._report is None:
            raise _ended_without("a report")
        tensors: dict[str, npt.NDArray[Any]] = {}
        for message, array in zip(self._header.tensors, self._tensors, strict=True):
            if array is None:
                raise _ended_without(f"the rows of {message.name}")
            tensors[message.name] = array
        return PrepareResult(self._header, self._report, tensors)


class OneAnswer:
    """What has come of one of the answers to a prompt.

    Attributes:
        token_ids: Of all deltas so far.
        logprobs: One for each of them, if `logprobs` was given.
        end: Finish reason and token count; empty until the last delta has been read.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[pb.TokenLogprob] = []
        self.end = pb.AnswerEnd()
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """Of all deltas so far."""
        return "".join(self._texts)

    def _add(self, delta: pb.Delta) -> None:
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self._texts.append(delta.text)


class AnswerState:
    """What has come of the answers of one call of `Generate` so far.

    Attributes:
        header: Of the prompt: items, token count, model.
    """

    def __init__(self) -> None:
        self.header = pb.Header()
        self._answers: dict[int, OneAnswer] = {0: OneAnswer()}
        self._completion: pb.Completion | None = None

    @property
    def answers(self) -> list[OneAnswer]:
        """Each of `answer_count` answers, as far as it has come. Until the last delta has been read, those that nothing has
        come of may be missing."""
        return [answer for _, answer in sorted(self._answers.items())]

    @property
    def token_ids(self) -> list[int]:
        """Of the first answer."""
        return self._answers[0].token_ids

    @property
    def logprobs(self) -> list[pb.TokenLogprob]:
        """Of the first answer."""
        return self._answers[0].logprobs

    @property
    def text(self) -> str:
        """Of the first answer."""
        return self._answers[0].text

    @property
    def completion(self) -> pb.Completion:
        """Finish reasons, token counts and report; empty until the last delta has been read."""
        return self._completion or pb.Completion()

    def _begin(self, response: pb.GenerateResponse | None) -> None:
        """Take the first message, None where the answer has none."""
        if response is None or response.WhichOneof("message") != "header":
            raise _ended_without("a header")
        self.header = response.header

    def _add(self, response: pb.GenerateResponse) -> pb.Delta | None:
        """Take a further message; the delta that it is, or None for the completion."""
        if response.WhichOneof("message") == "completion":
            self._completion = whole = response.completion
            first = pb.AnswerEnd(finish_reason=whole.finish_reason, token_count=whole.completion_token_count)
            for index, end in enumerate(whole.answers or [first]):  # earlier services tell the first alone
                self._answers.setdefault(index, OneAnswer()).end = end
            return None
        self._answers.setdefault(response.delta.answer_index, OneAnswer())._add(response.delta)
        return response.delta

    def _end(self) -> None:
        """Know that no message follows."""
        if self._completion is None:
            raise _ended_without("a completion")


def _ended_without(what: str) -> CallFailed:
    return CallFailed(grpc.StatusCode.DATA_LOSS, "", f"the answer has come without {what}")
