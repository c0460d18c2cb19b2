"""A name server for one name, like a cluster's DNS for a headless Service: the address of every ready pod."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

_HEADER_BYTES = 12  # RFC 1035, 4.1.1
_ANSWERED = 0x8400  # a response, from who knows
_TYPE_A, _CLASS_IN = 1, 1
_POINTER_TO_QUESTION = 0xC000 | _HEADER_BYTES


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for addresses with `hosts`, and others with nothing.

    Attributes:
        hosts: IPv4 addresses; may be changed at any time.
        address: Where it answers, over UDP.
    """

    def __init__(self, hosts: list[str]) -> None:
        self.hosts = hosts
        self.address = ""

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.DatagramTransport = transport
        host, port = transport.get_extra_info("sockname")
        self.address = f"{host}:{port}"

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        end = data.index(0, _HEADER_BYTES) + 5  # the name, its type and its class
        kind, _ = struct.unpack(">HH", data[end - 4 : end])
        hosts = self.hosts if kind == _TYPE_A else []
        header = data[:2] + struct.pack(">HHHHH", _ANSWERED, 1, len(hosts), 0, 0)
        answers = [
            struct.pack(">HHHIH", _POINTER_TO_QUESTION, _TYPE_A, _CLASS_IN, 0, 4) + socket.inet_aton(host)
            for host in hosts
        ]
        self._transport.sendto(header + data[_HEADER_BYTES:end] + b"".join(answers), sender)


@contextlib.asynccontextmanager
async def name_server(hosts: list[str]) -> AsyncIterator[NameServer]:
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: NameServer(hosts), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()
