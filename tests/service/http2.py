"""HTTP/2 frames written by hand, for requests that no gRPC library sends.

Frames: RFC 9113; headers without compression: RFC 7541, 6.2.2.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from tests.waiting import PATIENCE_SECONDS

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_HEADERS = 4
ENHANCE_YOUR_CALM = 11
_INITIAL_WINDOW_SIZE = 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class RawConnection:
    """An HTTP/2 connection on which the test writes and reads each frame."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)
        self._buffer = b""

    def __enter__(self) -> Self:
        self._socket.sendall(_PREFACE)
        self.send(SETTINGS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> None:
        """Write a frame; errors of a closed connection are ignored."""
        head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(head + payload)

    def open_stream(self, number: int, path: str, more: Iterable[tuple[str, str]] = ()) -> None:
        """Begin a gRPC call, with every header in full."""
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "test"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *more,
        ]
        self.send(HEADERS, b"".join(map(_literal, headers)), flags=END_HEADERS, stream=number)

    def send_data(self, stream: int, data: bytes, *, patience_seconds: float) -> int:
        """Send data as far as the server opens its windows for it; returns how much went, when they stay shut for so long."""
        windows = {0: 65_535, stream: 65_535}  # RFC 9113, 6.9.2, until the server says otherwise
        initial, sent = 65_535, 0
        self._socket.settimeout(patience_seconds)
        with contextlib.suppress(TimeoutError):
            while sent < len(data):
                size = min(16_384, len(data) - sent, *windows.values())
                if size > 0:
                    self.send(DATA, data[sent : sent + size], stream=stream)
                    windows = {number: left - size for number, left in windows.items()}
                    sent += size
                    continue
                (kind, number, payload) = self.frames_until(WINDOW_UPDATE, SETTINGS)[-1]
                if kind == WINDOW_UPDATE:
                    windows[number] = windows.get(number, 0) + int.from_bytes(payload, "big")
                else:
                    for name, value in struct.iter_unpack(">HI", payload):
                        if name == _INITIAL_WINDOW_SIZE:
                            windows[stream] += value - initial
                            initial = value
        return sent

    def frames_until(self, *kinds: int) -> list[tuple[int, int, bytes]]:
        """(kind, stream, payload) of every frame up to the first of a kind asked for, or to the connection's end."""
        frames: list[tuple[int, int, bytes]] = []
        while True:
            head = self._read(9)
            if len(head) < 9:
                return frames
            payload = self._read(int.from_bytes(head[:3], "big"))
            frames.append((head[3], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF, payload))
            if head[3] in kinds:
                return frames

    def _read(self, size_bytes: int) -> bytes:
        while len(self._buffer) < size_bytes:
            try:
                more = self._socket.recv(1 << 16)
            except ConnectionResetError:
                more = b""
            if not more:
                break
            self._buffer += more
        data, self._buffer = self._buffer[:size_bytes], self._buffer[size_bytes:]
        return data


def _literal(header: tuple[str, str]) -> bytes:
    """A header that is not indexed, neither name nor value compressed."""
    return b"\x00" + b"".join(_length(len(text)) + text.encode() for text in header)


def _length(number: int) -> bytes:
    """An integer with a prefix of seven bits."""
    if number < 127:
        return bytes([number])
    parts, number = bytearray([127]), number - 127
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
