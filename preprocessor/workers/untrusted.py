"""What a worker sends, as bytes: JSON with arrays beside it, which a process that was taken over can write as it likes.

Not pickles: whoever writes one can build arrays of memory that was never written, which holds what the service has freed, and
change objects that the whole process shares. Here a message can name the classes below and nothing else. Each of its objects is
new, made by the class's constructor; whether it is what it should be, `claims` checks.

    message   [value, places]
    value     null, true, 1, 0.5, "text", {"name": value}
              ["list", value, …]  ["tuple", value, …]  ["bytes", "each byte as a character"]  ["again", number of an object]
              ["array", type, [length, …], place]  ["error", class, message, reason, field, metadata, trace]  [class, value, …]
    places    of the bytes of arrays: [size, …], if they follow the message, or [[offset, size], …] in the arena
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from preprocessor import errors
from preprocessor.errors import PreprocessorError
from preprocessor.media.clip import IndexedClip
from preprocessor.models.family.rules import ItemLayout
from preprocessor.models.loaded import PlannedItem
from preprocessor.text.encoded_text import EncodedText
from preprocessor.text.placeholders import Replacement
from preprocessor.types import plan, request, result, source, timing
from preprocessor.workers.channel import Fault, Finished, ResultSlotWanted, RowsFinished
from preprocessor.workers.claims import Violation

_DATA = (
    Fault, Finished, ResultSlotWanted, RowsFinished,
    plan.Grid, plan.ItemPlan, plan.ItemRows, plan.PixelPlan, plan.Plan, plan.Substitution,
    source.ClipInfo, source.FrameChoice, source.FrameListInfo, source.ImageInfo, source.SoundInfo,
    timing.StageTime, timing.Timings, result.PixelReport, IndexedClip, ItemLayout, PlannedItem, Replacement, EncodedText,
)  # fmt: skip
_FIELDS = {kind: tuple(one.name for one in dataclasses.fields(kind)) for kind in _DATA}
_CLASSES = {kind.__name__: kind for kind in _DATA}
_ENUMS = {kind.__name__: kind for kind in (request.Modality, request.PixelForm, request.SamplingBasis)}
_ERRORS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, PreprocessorError)
}
_DTYPES = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in (
        np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64,
        np.float16, np.float32, np.float64, ml_dtypes.bfloat16,
    )
}  # fmt: skip
_MAX_LENGTH = 1 << 40  # of an array's axis: beside an axis of length 0 any would do


def encode(message: Any, aside: list[memoryview]) -> Any:
    """A message as what JSON can say.

    Args:
        aside: Gets the bytes of its arrays.
    Raises:
        TypeError: It holds something that no message may hold.
    """
    return _Writer(aside).value(message)


def to_bytes(value: Any, places: Sequence[Any] = ()) -> bytes:
    """An encoded message, with where the bytes of its arrays are, as it is sent."""
    return json.dumps((value, places), separators=(",", ":")).encode()


def parse(data: bytes) -> tuple[Any, list[Any]]:
    """A message as JSON says it, and its places.

    Raises:
        Violation: It is none.
    """
    try:
        value, places = json.loads(data.decode())  # else the first bytes would choose a codec
    except (ValueError, TypeError, RecursionError) as error:
        raise Violation("message", f"a message that is none: {type(error).__name__}") from None
    if type(places) is not list:
        raise Violation("message", "a message without a list of places")
    return value, places


def build(value: Any, buffers: Sequence[bytes | memoryview] = ()) -> Any:
    """The message.

    Args:
        buffers: The bytes of its arrays.
    Raises:
        Violation: It holds something that no message may hold.
    """
    try:
        return _Reader(buffers).value(value)
    except Violation:
        raise
    except Exception as error:  # any: constructors fail in many ways for what is not theirs
        raise Violation("message", f"a message that cannot be: {type(error).__name__}") from None


class _Writer:
    def __init__(self, aside: list[memoryview]) -> None:
        self._aside = aside
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no other object gets the identity of one that was written

    def value(self, item: Any) -> Any:
        kind = type(item)
        if item is None or kind in (bool, int, float, str):
            return item
        if kind is dict:
            if not all(type(key) is str for key in item):
                raise TypeError("a message with a key that is no text")
            return {key: self.value(one) for key, one in item.items()}
        if kind in (list, tuple):
            return [kind.__name__, *map(self.value, item)]
        if kind is bytes:
            return ["bytes", item.decode("latin-1")]
        if isinstance(item, enum.Enum) and kind.__name__ in _ENUMS:
            return [kind.__name__, item.value]
        if isinstance(item, PreprocessorError) and kind.__name__ in _ERRORS:
            return ["error", kind.__name__, item.message, item.reason, item.field, item.metadata, item.trace]
        return self._object(item)

    def _object(self, item: Any) -> Any:
        number = self._numbers.get(id(item))
        if number is not None:
            return ["again", number]
        self._numbers[id(item)] = len(self._kept)
        self._kept.append(item)
        if isinstance(item, np.ndarray | np.generic):
            array = np.ascontiguousarray(item).reshape(item.shape)  # which makes one axis of none
            if array.dtype.name not in _DTYPES:
                raise TypeError(f"a message with an array of {array.dtype}")
            if not array.dtype.isnative:
                array = array.astype(array.dtype.newbyteorder("="))
            self._aside.append(array.reshape(-1).view(np.uint8).data)
            return ["array", array.dtype.name, list(array.shape), len(self._aside) - 1]
        if type(item) not in _FIELDS:
            raise TypeError(f"a message with a {type(item).__name__}")
        return [type(item).__name__, *(self.value(getattr(item, name)) for name in _FIELDS[type(item)])]


class _Reader:
    def __init__(self, buffers: Sequence[bytes | memoryview]) -> None:
        self._buffers = buffers
        self._objects: list[Any] = []

    def value(self, item: Any) -> Any:
        if type(item) is dict:
            return {key: self.value(one) for key, one in item.items()}
        if type(item) is not list:
            return item
        match item:
            case ["list", *rest]:
                return [self.value(one) for one in rest]
            case ["tuple", *rest]:
                return tuple([self.value(one) for one in rest])
            case ["bytes", str() as text]:
                return text.encode("latin-1")
            case ["again", int() as number] if 0 <= number < len(self._objects):
                return self._objects[number]
            case ["array", str() as name, list() as shape, int() as place]:
                return self._remembered(self._new_place(), self._array(name, shape, place))
            case [
                "error",
                str() as name,
                str() as message,
                str() as reason,
                str() as field,
                dict() as metadata,
                str() as trace,
            ]:
                return _error(_ERRORS[name], message, reason, field, metadata, trace)
            case [str() as name, value] if name in _ENUMS:
                return _ENUMS[name](value)
            case [str() as name, *values] if name in _CLASSES:
                kind = _CLASSES[name]
                number = self._new_place()
                fields = zip(_FIELDS[kind], map(self.value, values), strict=True)
                return self._remembered(number, kind(**dict(fields)))
        raise Violation("message", "a message that names what is not data")

    def _new_place(self) -> int:
        self._objects.append(None)
        return len(self._objects) - 1

    def _remembered(self, number: int, made: Any) -> Any:
        self._objects[number] = made
        return made

    def _array(self, name: str, shape: list[Any], place: int) -> Any:
        dtype = _DTYPES[name]
        data = self._buffers[place] if place >= 0 else b""
        if not all(type(length) is int and 0 <= length < _MAX_LENGTH for length in shape):
            raise Violation("message", "an array with a wrong shape")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise Violation("message", "an array of another size than its bytes")
        if dtype == np.bool_:
            return (np.frombuffer(data, np.uint8) != 0).reshape(shape)
        return np.frombuffer(data, dtype).reshape(shape)


def _error(
    kind: type[PreprocessorError], message: str, reason: str, field: str, metadata: dict[str, str], trace: str
) -> PreprocessorError:
    error = kind(message, reason=reason, field=field, **metadata)
    if error.metadata != metadata:
        raise Violation("message", "an error with an argument among its metadata")
    error.trace = trace
    return error
