"""What a worker may send that was taken over: good messages, and what is done to them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from preprocessor.errors import CorruptMedia, Overloaded
from preprocessor.text.encoded_text import EncodedText
from preprocessor.types.plan import Plan
from preprocessor.types.result import PixelReport
from preprocessor.types.timing import Timings
from preprocessor.workers.channel import HEAD, INLINE_BYTES, Fault, Finished, ResultSlotWanted, RowsFinished
from preprocessor.workers.payloads import EarlyPlanPayload, Payload, PixelPayload
from preprocessor.workers.untrusted import encode, to_bytes

_ROOTS = (
    "Model",
    "Limits",
    "system",
    "PixelForm",
    "Modality",
    "error",
    "again",
    "array",
    "bytes",
    "tuple",
    "list",
    "Finished",
)
_TYPES = ("uint8", "float64", "object", "bool", "bfloat16")
_SHAPES: tuple[Any, ...] = ([], [0], [3], [2**40, 0], [-1], [[1]])
_PLACES: tuple[Any, ...] = (
    -1, 0, 1, INLINE_BYTES, INLINE_BYTES + 1, 2**70, [0, 4096], [0, 0], [-1, 1], [2**62, 2**62], "1", None, True,
)  # fmt: skip
_VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda source: None,
    lambda source: source.choice((True, False)),
    lambda source: source.choice((0, 1, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**400)),
    lambda source: source.choice((0.5, -1.0, math.nan, math.inf, -math.inf, 1e308, 5e-324)),
    lambda source: source.choice(("", "x" * 3000, "\ud800", "\0", "\n2026 ERROR made up", *_ROOTS)),
    lambda source: {source.choice(("", "input_ids", "parts", "self", "reason", "__class__")): source.randrange(3)},
    lambda source: ["again", source.choice((0, 1, 2, 5, -1, 10**9))],
    lambda source: ["array", source.choice(_TYPES), source.choice(_SHAPES), source.randrange(-2, 4)],
    lambda source: [source.choice(_ROOTS), *(source.randrange(4) for _ in range(source.randrange(4)))],
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sent:
    """One frame.

    Attributes:
        value, places: As in `untrusted`.
        following: The bytes of its arrays.
    """

    value: Any
    places: list[Any]
    following: bytes


_TEXT = EncodedText(
    np.arange(9, dtype=np.int32), np.array([[5, 2], [20, 8]], np.int64), np.zeros((2, 32), np.uint8), reused_count=2
)


def good_messages(payload: Payload, plan: Plan, source: random.Random) -> list[Sent]:
    """What an honest worker could send for a payload."""
    sent = []
    if isinstance(payload, PixelPayload):
        row, rows = payload.rows.start, payload.rows
        while row < rows.stop and source.random() < 0.7:
            count = source.randint(1, rows.stop - row)
            sent.append(_sent(RowsFinished(row, count)))
            row += count
    outcome: Any = PixelReport(Timings(), (), 3) if isinstance(payload, PixelPayload) else (plan, {}, _TEXT)
    if isinstance(payload, EarlyPlanPayload):
        outcome = plan.pixels, ((0, "a", 0), (4, "b", 100))
    outcome = source.choices((outcome, CorruptMedia("it: broken", media_key="it"), Overloaded("full")), (8, 1, 1))[0]
    fault = Fault("a trace", "a text") if source.random() < 0.05 else None
    if source.random() < 0.3:
        sent.append(_sent(ResultSlotWanted(source.choice((1, 4096, 3 << 20)))))
    return [*sent, _sent(Finished(outcome, fault))]


def spoil(messages: list[Sent], source: random.Random) -> tuple[list[bytes], str]:
    """What goes over the channel, and what was done to it."""
    told, frames = [], _frames(messages)
    for _ in range(source.choice((1, 1, 2, 4))):
        place = source.randrange(len(messages))
        name = source.choice(list(_CHANGES))
        changed = _CHANGES[name](messages, place, source)
        try:
            frames = _frames(changed)
        except RecursionError:  # nested more deeply than Python's own encoder can write
            continue
        told.append(name)
        messages = changed
    if source.random() < 0.3:
        name = source.choice(list(_FRAME_CHANGES))
        told.append(name)
        place = source.randrange(len(frames))
        frames[place] = _FRAME_CHANGES[name](frames[place], source)
    return frames, ", ".join(told)


def _frames(messages: list[Sent]) -> list[bytes]:
    return [frame for one in messages for frame in (_frame(to_bytes(one.value, one.places)), one.following)]


def _sent(message: Any) -> Sent:
    buffers: list[memoryview] = []
    value = encode(message, buffers)
    return Sent(value, [len(one) for one in buffers], b"".join(buffers))


def _frame(data: bytes) -> bytes:
    return HEAD.pack(len(data)) + data


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in an encoded message."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys = range(len(one)) if isinstance(one, list) else list(one) if isinstance(one, dict) else ()
        for key in keys:
            found.append((one, key))
            waiting.append(one[key])
    return found


def _changed_value(messages: list[Sent], place: int, source: random.Random) -> list[Sent]:
    """A part of a message replaced: by a value of another kind, or by a part of another message."""
    value = json.loads(json.dumps(messages[place].value))
    container, key = source.choice(_nodes(value))
    if source.random() < 0.3:
        other, name = source.choice(_nodes(json.loads(json.dumps(source.choice(messages).value))))
        container[key] = other[name]
    elif isinstance(container, list) and source.random() < 0.2:
        container.insert(key, container[key]) if source.random() < 0.5 else container.pop(key)
    else:
        container[key] = source.choice(_VALUES)(source)
    return _replaced(messages, place, Sent(value, messages[place].places, messages[place].following))


def _changed_places(messages: list[Sent], place: int, source: random.Random) -> list[Sent]:
    one = messages[place]
    odd = source.choice(_PLACES)
    places = [*one.places, odd] if source.random() < 0.5 else [odd, *one.places[1:]]
    return _replaced(messages, place, Sent(one.value, places, one.following))


def _again(messages: list[Sent], place: int, source: random.Random) -> list[Sent]:
    return [*messages[:place], messages[place], *messages[place:]]


def _left_out(messages: list[Sent], place: int, source: random.Random) -> list[Sent]:
    return [*messages[:place], *messages[place + 1 :]] if len(messages) > 1 else messages


def _in_another_order(messages: list[Sent], place: int, source: random.Random) -> list[Sent]:
    return source.sample(messages, len(messages))


def _nested(messages: list[Sent], place: int, source: random.Random) -> list[Sent]:
    value: Any = messages[place].value
    for _ in range(source.choice((3, 50, 900, 5000))):
        value = ["list", value]
    return _replaced(messages, place, Sent(value, messages[place].places, messages[place].following))


def _replaced(messages: list[Sent], place: int, one: Sent) -> list[Sent]:
    return [*messages[:place], one, *messages[place + 1 :]]


_CHANGES: dict[str, Callable[[list[Sent], int, random.Random], list[Sent]]] = {
    "a changed value": _changed_value,
    "another changed value": _changed_value,
    "changed places": _changed_places,
    "a message again": _again,
    "a message left out": _left_out,
    "messages in another order": _in_another_order,
    "a nested message": _nested,
}


def _cut(frame: bytes, source: random.Random) -> bytes:
    return frame[: source.randrange(len(frame) + 1)]


def _wrong_length(frame: bytes, source: random.Random) -> bytes:
    length = source.choice((0, 1, len(frame), len(frame) + 100, 8 << 20, (8 << 20) + 1, 2**31, 2**32 - 1))
    return HEAD.pack(length) + frame[HEAD.size :]


def _changed_bytes(frame: bytes, source: random.Random) -> bytes:
    data = bytearray(frame)
    for _ in range(source.choice((1, 2, 8)) if data else 0):
        data[source.randrange(len(data))] = source.randrange(256)
    return bytes(data)


def _noise(frame: bytes, source: random.Random) -> bytes:
    return frame + source.randbytes(source.choice((1, 4, 100)))


_FRAME_CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a cut frame": _cut,
    "a wrong length": _wrong_length,
    "changed bytes": _changed_bytes,
    "noise": _noise,
}
