"""HTTP/2 by hand, for what no gRPC library would send. Frames: RFC 9113; headers without compression: RFC 7541, 6.2.2."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Self

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_HEADERS = 4
ENHANCE_YOUR_CALM, REFUSED_STREAM = 11, 7
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class RawConnection:
    """A connection whose every frame the test writes and reads itself."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20)
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
        """Write a frame; one that the server no longer takes is lost, as on any network."""
        head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
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

    def frames_until(self, *kinds: int) -> list[tuple[int, int, bytes]]:
        """(kind, stream, payload) of every frame up to the first of a kind asked for, or to the connection's end."""
        frames = []
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
