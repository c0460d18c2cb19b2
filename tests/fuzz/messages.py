"""Mutations of requests: extreme values in any field, serialized bytes spoiled, chunks that come as they should not."""

from __future__ import annotations

import random
from collections.abc import Iterator, MutableSequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from preprocessor.v1 import preprocessor_pb2 as pb
from tests.fuzz.mutators import mutate

_STRINGS = (
    "",
    "clip",
    "photo",
    "x" * 129,
    "x" * 70_000,
    "\0",
    "<|image_pad|>",
    "<|video_pad|><|vision_start|>",
    "{{ messages }}",
    "data:image/png;base64,AAAA",
    "data:,",
    "http://127.0.0.1:1/",
    "file:///etc/passwd",
    "\u202e\U0010ffff",
    "qwen3-vl",
)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), 2.0**63, 0.1, 1e9)
_MAX_REPEATS = 300


def list_frames(medium: pb.Media, picture: bytes, spoiled: bytes, source: random.Random) -> bytes:
    """Make of a medium a list of frames: copies of a picture with a spoiled one among them, or raw pixels. Returns their file."""
    count = source.choice((1, 2, 3, 8))
    pictures = [picture] * count
    pictures[source.randrange(count)] = spoiled
    medium.modality = pb.MODALITY_VIDEO
    medium.ClearField("sampling")
    if source.random() < 0.2:
        width, height = source.choice(((2, 2), (64, 48), (28, 300)))
        pictures = [source.randbytes(width * height * 3) for _ in range(count)]
        medium.frames.encoding, medium.frames.width_px, medium.frames.height_px = pb.FRAME_ENCODING_RGB24, width, height
    if source.random() < 0.5:
        medium.frames.fps = source.choice((0.5, 4.0, 29.97))
    else:
        medium.frames.times_seconds.values.extend(number * 0.7 for number in range(count))
    if source.random() < 0.5:
        medium.damage_policy = pb.DAMAGE_POLICY_TOLERANT
    if source.random() < 0.2:
        medium.inline_frames.pictures.extend(pictures)
    else:
        medium.frames.sizes_bytes.extend(map(len, pictures))
    return b"".join(pictures)


def spoil_spec(spec: Message, source: random.Random) -> str:
    """Put extreme values into some of its fields, at any depth. Returns what was done."""
    told = []
    for _ in range(source.choice((1, 1, 2, 4, 8))):
        holder = source.choice([one for one in _messages(spec) if one.DESCRIPTOR.fields])
        field: Any = source.choice(list(holder.DESCRIPTOR.fields))  # a FieldDescriptor, in Python or in C
        told.append(f"{holder.DESCRIPTOR.name}.{field.name}")
        if source.random() < 0.15:
            holder.ClearField(field.name)
        elif _is_map(field):
            continue
        elif field.is_repeated:
            _spoil_list(holder, field, source)
        elif field.message_type is not None:
            getattr(holder, field.name).SetInParent()
        else:
            setattr(holder, field.name, _extreme(field, source))
    return ", ".join(told)


def spoil_bytes(spec: Message, source: random.Random) -> str:
    """Spoil its serialized form, and keep what still parses; a field may now be one that nobody knows."""
    spoiled, told = mutate(spec.SerializeToString(), "pieces", source)
    try:
        spec.ParseFromString(spoiled)
    except DecodeError:
        return "bytes that do not parse, left out"
    return told


def chunks(files: dict[str, bytes], source: random.Random) -> tuple[list[pb.MediaChunk], str]:
    """The files in chunks, in an order, with offsets, sizes and names that may be wrong."""
    size = source.choice((97, 1000, 1 << 20))
    queues = [
        [
            pb.MediaChunk(key=key, offset_bytes=at, data=data[at : at + size], last=at + size >= len(data))
            for at in range(0, max(1, len(data)), size)
        ][:_MAX_REPEATS]
        for key, data in files.items()
    ]
    sent = [chunk for queue in queues for chunk in queue]
    if not sent:
        return sent, "no chunks"
    what = source.choice(("right", "shuffle", "drop", "repeat", "offset", "key", "last", "empty", "large", "field"))
    one = source.randrange(len(sent))
    match what:
        case "shuffle":
            source.shuffle(sent)
        case "drop":
            del sent[one]
        case "repeat":
            sent.insert(source.randrange(len(sent)), sent[one])
        case "offset":
            sent[one].offset_bytes = _extreme(sent[one].DESCRIPTOR.fields_by_name["offset_bytes"], source)
        case "key":
            sent[one].key = source.choice(_STRINGS)
        case "last":
            sent[one].last = not sent[one].last
        case "empty":
            sent[one].data = b""
        case "large":
            sent[one].data = bytes((1 << 20) + source.randrange(2))
        case "field":
            spoil_bytes(sent[one], source)
    return sent, f"chunks of {size}: {what}"


def _messages(message: Message) -> Iterator[Message]:
    """The message and all that it holds."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None or _is_map(field):
            continue
        for inner in value if field.is_repeated else [value]:
            yield from _messages(inner)


def _spoil_list(holder: Message, field: FieldDescriptor, source: random.Random) -> None:
    values = getattr(holder, field.name)
    count = source.choice((1, 2, 65, _MAX_REPEATS))
    if field.message_type is not None:
        for _ in range(count):
            added = values.add()
            if len(values) > 1 and source.random() < 0.7:
                added.CopyFrom(values[0])
    elif source.random() < 0.5 and values:
        _reorder(values, source)
    else:
        values.extend(_extreme(field, source) for _ in range(count))


def _reorder(values: MutableSequence[object], source: random.Random) -> None:
    shuffled = list(values)
    source.shuffle(shuffled)
    values[:] = shuffled


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _extreme(field: FieldDescriptor, source: random.Random) -> Any:
    """A value of the field's type at its edge."""
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = source.choice(_STRINGS)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return source.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return source.choice(_FLOATS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return source.choice((0, 1, 2, 3, 4, 5, 6, 99, -1, 2**31 - 1))
        case FieldDescriptor.CPPTYPE_UINT64 | FieldDescriptor.CPPTYPE_UINT32:
            bits = 64 if field.cpp_type == FieldDescriptor.CPPTYPE_UINT64 else 32
            return source.choice((0, 1, 2**bits - 1, 2 ** (bits - 1)))
    bits = 64 if field.cpp_type == FieldDescriptor.CPPTYPE_INT64 else 32
    return source.choice((0, 1, -1, 2, 15, 28, 784, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 10**6, 151_655))
