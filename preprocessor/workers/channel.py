"""Messages between the service and one worker, each with its length in front.

The service sends pickles. A command's files follow it on a second socket, and so do descriptors of the memory that the worker is
to map. The service does not trust what a worker sends, as the worker has decoded an untrusted file: see `untrusted`.
"""

from __future__ import annotations

import enum
import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from preprocessor.errors import PreprocessorError
from preprocessor.workers.chunks import Windows
from preprocessor.workers.claims import Violation, check_error, conforms
from preprocessor.workers.payloads import Payload

HEAD = struct.Struct("<I")

INLINE_BYTES = 1 << 20
"""Up to this size, arrays follow a result: asking for a range of the arena would take longer."""


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """Service → worker: run this payload. `Given` comes before it, and its files follow it.

    Attributes:
        task_id: What the worker's `StopFlag` will hold if the task is to stop.
        deadline_seconds: On the machine's monotonic clock.
        cpu_seconds: CPU time that the task may use.
        scope: Whose task it is.
    """

    task_id: int
    deadline_seconds: float
    cpu_seconds: float
    payload: Payload
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """Service → worker: what a command comes with.

    Attributes:
        windows: What is to be mapped.
        file_bytes: Of all its files together.
    """

    windows: Windows
    file_bytes: int


@dataclass(frozen=True, slots=True)
class RowsFinished:
    """Worker → service: these rows are final."""

    first_row: int
    row_count: int


@dataclass(frozen=True, slots=True)
class ResultSlotWanted:
    """Worker → service: the result's large arrays need a range of the arena. A `ResultSlot` answers."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class ResultSlot:
    """Service → worker: the offset of the range; None: there is no memory. Windows as in `Given`."""

    offset: int | None
    windows: Windows | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """Worker → service: an error that no request should be able to cause.

    Attributes:
        trace: As `errors.trace_of` gives it.
        text: The whole traceback; it may quote the request.
    """

    trace: str
    text: str


class TaskFailed(RuntimeError):
    """A task failed in a way that no request should be able to cause.

    Attributes:
        trace: Where in the worker it failed.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"a task failed in its worker:\n{fault.text}")
        self.trace = fault.trace + "\n"


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """Worker → service: the task has ended.

    Attributes:
        outcome: What `Payload.run` returned, or the `PreprocessorError` it raised.
        fault: Any other error that it raised.
    """

    outcome: Any
    fault: Fault | None

    @property
    def is_good(self) -> bool:
        """Whether there is a result."""
        return self.fault is None and not isinstance(self.outcome, PreprocessorError)

    def result(self) -> Any:
        """What `Payload.run` returned.

        Raises:
            PreprocessorError: `Payload.run` raised it.
            TaskFailed: `Payload.run` raised another error.
        """
        if self.fault is not None:
            raise TaskFailed(self.fault)
        if isinstance(self.outcome, PreprocessorError):
            raise self.outcome
        return self.outcome


def check_finished(finished: object, payload: Payload) -> None:
    """Check the end of a task, which a worker claims.

    Raises:
        Violation: It is no end of this task.
    """
    if not isinstance(finished, Finished):
        raise Violation("message", f"a result of type {type(finished).__name__}")
    if finished.fault is not None:
        if not conforms(finished.fault, Fault):
            raise Violation("message", "a malformed fault")
    elif isinstance(finished.outcome, PreprocessorError):
        check_error(finished.outcome)
    else:
        payload.check_outcome(finished.outcome)


def dump(message: Any, files: Callable[[memoryview], Any] | None = None) -> bytes:
    """Pickle a message.

    Args:
        files: Called with the views of a command, in order, which are then no part of the pickle.
    """
    file = io.BytesIO()
    _Pickler(file, files).dump(message)
    return file.getvalue()


def load(data: bytes, read_file: Callable[[int], bytes] | None = None) -> Any:
    """Unpickle a message of the service.

    Args:
        read_file: Returns the next file, of so many bytes.
    """
    return _FileUnpickler(data, read_file).load()


def sent_file(size_bytes: int) -> bytes:
    """Stands for a file in a pickle; the reader replaces it with the file."""
    raise RuntimeError(f"a command with a file of {size_bytes} bytes was read without its files")


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, files: Callable[[memoryview], Any] | None) -> None:
        super().__init__(file, 5)
        self._files = files

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, enum.Enum):  # by value: Python before 3.11.4 would write a call of `getattr`
            return type(obj), (obj.value,)
        if isinstance(obj, memoryview) and self._files is not None:
            self._files(obj)
            return sent_file, (obj.nbytes,)
        return NotImplemented


class _FileUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, read_file: Callable[[int], bytes] | None) -> None:
        super().__init__(io.BytesIO(data))
        self._read_file = read_file

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (__name__, sent_file.__name__) and self._read_file is not None:
            return self._read_file
        return super().find_class(module, name)
