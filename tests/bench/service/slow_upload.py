"""What a slow upload costs after its end, with `--early-decoding` and without: `python -m tests.bench.service.slow_upload`.

One caller sends the seed clip, its index in front, at an even pace. Measured is the time from its last byte sent to the last row
received. Two services run beside each other on an idle machine and are asked in turn. Every answer is compared with the
pipeline's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence

import grpc

from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.config.machine import available_cpu_count
from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from preprocessor.traffic.load import Ask
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.options import WrongAnswer
from tests.bench.section import markdown_table
from tests.bench.service.asks import video_ask
from tests.bench.service.checksum import Checksum
from tests.bench.service.sizes import GIB, sized
from tests.bench.service.watched import WatchedServer
from tests.media import index_in_front, moving_shapes_clip

_PREPARE = "/preprocessor.v1.Preprocessor/Prepare"
_CHUNK_BYTES = 16 << 10
_SETTINGS = ("off", "on")


def in_small_chunks(ask: Ask) -> list[bytes]:
    """The ask's messages, its file in chunks so small that they can be sent at an even pace."""
    spec, *chunks = (pb.PrepareRequest.FromString(message) for message in ask.messages)
    key, data = chunks[0].chunk.key, b"".join(one.chunk.data for one in chunks)
    offsets = range(0, len(data), _CHUNK_BYTES)
    small = (
        pb.MediaChunk(
            key=key, offset_bytes=offset, data=data[offset : offset + _CHUNK_BYTES], last=offset == offsets[-1]
        )
        for offset in offsets
    )
    return [spec.SerializeToString(), *(pb.PrepareRequest(chunk=one).SerializeToString() for one in small)]


def slow_call(address: str, messages: Sequence[bytes], seconds: float) -> tuple[float, float, str, int]:
    """One call whose messages are sent over so many seconds.

    Returns:
        Milliseconds from the last message sent until the first rows and until the last have come, the answer's checksum, and how
        many rows were made early.
    """
    sent_at = 0.0

    def sending() -> Iterator[bytes]:
        nonlocal sent_at
        began_at = time.perf_counter()
        for number, message in enumerate(messages):
            due_at = began_at + seconds * number / (len(messages) - 1)
            time.sleep(max(0.0, due_at - time.perf_counter()))
            sent_at = time.perf_counter()
            yield message

    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(_PREPARE, None, None)
        arrived = [(time.perf_counter(), answer) for answer in call(sending(), timeout=120)]
    check = Checksum()
    for _, answer in arrived:
        check.add(answer)
    report = pb.PrepareResponse.FromString(arrived[-1][1]).report
    first_ms, last_ms = ((arrived[index][0] - sent_at) * 1e3 for index in (1, -1))
    return first_ms, last_ms, check.result(), report.early_row_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=available_cpu_count())
    parser.add_argument("--fps", type=float, nargs="+", default=[1.0, 8.0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.0, 0.5, 2.0], help="that the upload takes")
    options = parser.parse_args()
    model, clip = load_model("qwen3-vl"), index_in_front(moving_shapes_clip())
    assert isinstance(model, Model)
    size = sized(options.workers, 2 * GIB)
    rows = []
    with (
        WatchedServer(*size, "--early-decoding", "off") as without,
        WatchedServer(*size, "--early-decoding", "on") as early,
    ):
        for fps in options.fps:
            ask = video_ask(model, f"{fps:g} fps", clip, fps)
            messages = in_small_chunks(ask)
            for seconds in options.seconds:
                first: dict[str, list[float]] = {name: [] for name in _SETTINGS}
                last: dict[str, list[float]] = {name: [] for name in _SETTINGS}
                early_rows = 0
                for number in range(options.rounds + 1):  # the first warms up
                    for name, server in zip(_SETTINGS, (without, early), strict=True):
                        first_ms, last_ms, checksum, early_rows = slow_call(server.address, messages, seconds)
                        if checksum != ask.right_outcome:
                            raise WrongAnswer(f"{ask.name}: not what the pipeline makes")
                        if number:
                            first[name].append(first_ms)
                            last[name].append(last_ms)
                before, after = (statistics.median(last[name]) for name in _SETTINGS)
                first_rows = [f"{statistics.median(first[name]):.0f}" for name in _SETTINGS]
                cells = [ask.name, f"{seconds:g}", f"{before:.0f}", f"{after:.0f}", f"{after / before:.2f}"]
                rows.append([*cells, *first_rows, f"{early_rows:,}"])
    head = ("clip", "upload, s", "off, ms", "on, ms", "on ÷ off", "first rows off, ms", "on, ms", "rows made early")
    print(f"{options.workers} workers, {options.rounds} rounds; medians, from the last byte sent\n")
    print("\n".join(markdown_table(head, rows)))


if __name__ == "__main__":
    main()
