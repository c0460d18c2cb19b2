"""Misbehaving callers: all kinds of refused, slow and cancelled calls, repeatedly and concurrently.

Each way is a function that makes one call on a channel and returns how it ended, a reason or a status code.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import grpc

from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.client.errors import failure_of
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import photo
from tests.service.conftest import PREPARE, chat, image, video

MIB = 1 << 20
LARGE_BYTES = 77 * MIB
_PIECE = bytes(MIB)
_STUB_SECONDS = 20.0
_OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)

Way = Callable[[grpc.Channel], str]


def chunks(key: str = "clip", size_bytes: int = LARGE_BYTES) -> Iterator[bytes]:
    """A file of zeros as serialized messages, one at a time."""
    for offset in range(0, size_bytes, MIB):
        chunk = pb.MediaChunk(key=key, offset_bytes=offset, data=_PIECE, last=offset + MIB >= size_bytes)
        yield pb.PrepareRequest(chunk=chunk).SerializeToString()


def too_large(channel: grpc.Channel) -> str:
    """An upload beyond the limit, without an announced size."""
    return _ending(channel, [_spec(video())], chunks())


def told_too_large(channel: grpc.Channel) -> str:
    return _ending(channel, [_spec(video(size_bytes=LARGE_BYTES))], chunks())


def unknown_key(channel: grpc.Channel) -> str:
    return _ending(channel, [_spec(video())], chunks("nobody"))


def bad_spec(channel: grpc.Channel) -> str:
    return _ending(channel, [pb.PrepareRequest(spec=pb.PrepareSpec()).SerializeToString()], chunks())


def no_spec(channel: grpc.Channel) -> str:
    return _ending(channel, [], chunks())


def no_model(channel: grpc.Channel) -> str:
    spec = chat(video(), model="nobody's")
    return _ending(channel, [pb.PrepareRequest(spec=spec).SerializeToString()], chunks())


def many_inline(channel: grpc.Channel) -> str:
    """As many inline bytes as a message may hold, none of them an image."""
    return _ending(channel, [_spec(*(image(f"p{number}", _PIECE * 3) for number in range(5)))], ())


def inline_too_large(channel: grpc.Channel) -> str:
    return _ending(channel, [_spec(image("p", _PIECE * 5))], ())


def data_url(channel: grpc.Channel) -> str:
    media = pb.Media(key="p", modality=pb.MODALITY_IMAGE, url="data:image/png;base64," + "A" * (4 * MIB))
    return _ending(channel, [_spec(media)], ())


def message_too_large(channel: grpc.Channel) -> str:
    return _ending(channel, [_spec(image("p", _PIECE * 15)), _spec(image("p", _PIECE * 17))], ())


def noise(channel: grpc.Channel) -> str:
    """A file that is received completely and is no video."""
    return _ending(channel, [_spec(video())], chunks(size_bytes=12 * MIB))


def leaves(channel: grpc.Channel) -> str:
    """A call cancelled during the upload."""
    call = _call(channel, _until(8, [_spec(video())], chunks()))
    threading.Event().wait(0.05)
    call.cancel()
    return "left"


def slow_sender(channel: grpc.Channel) -> str:
    def messages() -> Iterator[bytes]:
        yield _spec(video())
        for message in chunks():
            yield message
            threading.Event().wait(3.0)

    return _ending(channel, messages(), ())


def slow_reader(channel: grpc.Channel) -> str:
    """Requests many rows and reads none."""
    call = _call(channel, iter([_spec(image("p", _large_picture()))]))
    threading.Event().wait(8.0)
    call.cancel()
    return "left"


WAYS: tuple[Way, ...] = (
    too_large, told_too_large, unknown_key, bad_spec, no_spec, no_model, many_inline, inline_too_large, data_url,
    message_too_large, noise, leaves, slow_sender, slow_reader,
)  # fmt: skip


@contextlib.contextmanager
def pressure(address: str, ways: Iterable[Way] = WAYS, *, each: int = 1) -> Iterator[Counter[tuple[str, str]]]:
    """Run `each` callers of every way continuously, each on its own connection.

    Yields counts by way and ending, which are complete when the context is left.
    """
    endings: Counter[tuple[str, str]] = Counter()
    stop = threading.Event()

    def go_on(way: Way) -> None:
        with grpc.insecure_channel(address, options=(*CHANNEL_OPTIONS, _OWN_CONNECTION)) as channel:
            while not stop.is_set():
                endings[way.__name__, way(channel)] += 1

    threads = [threading.Thread(target=go_on, args=(way,)) for way in ways for _ in range(each)]
    for thread in threads:
        thread.start()
    try:
        yield endings
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _spec(*media: pb.Media) -> bytes:
    return pb.PrepareRequest(spec=chat(*media)).SerializeToString()


def _until(count: int, *parts: Iterable[bytes]) -> Iterator[bytes]:
    for part in parts:
        for message in part:
            if count:
                yield message
                count -= 1


def _call(channel: grpc.Channel, messages: Iterator[bytes]) -> grpc.Call:
    method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PREPARE)
    return method(messages, timeout=_STUB_SECONDS)


def _ending(channel: grpc.Channel, first: Iterable[bytes], rest: Iterable[bytes]) -> str:
    call = _call(channel, _until(1 << 30, first, rest))
    try:
        for _ in call:  # type: ignore[attr-defined]
            pass
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return failure_of(error).reason or error.code().name
    return "OK"


def _large_picture() -> bytes:
    return photo(2000, 1500)
