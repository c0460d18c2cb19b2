"""Triton's messages about system shared memory, as bytes and back."""

from __future__ import annotations

from dataclasses import dataclass

from tritonclient.grpc import service_pb2


@dataclass(frozen=True, slots=True)
class RegisteredRegion:
    """A shared memory region as an engine knows it."""

    name: str
    """Requests refer to it by this."""
    key: str
    """As `shm_open` takes it."""
    offset_bytes: int
    byte_size: int


def encode_region_register(region: RegisteredRegion) -> bytes:
    """Make the bytes of a SystemSharedMemoryRegisterRequest."""
    message = service_pb2.SystemSharedMemoryRegisterRequest(
        name=region.name, key=region.key, offset=region.offset_bytes, byte_size=region.byte_size
    )
    return bytes(message.SerializeToString())


def encode_region_unregister(name: str) -> bytes:
    """Make the bytes of a SystemSharedMemoryUnregisterRequest; `name` must not be empty, which would mean all."""
    if not name:
        raise ValueError("the name of a region to unregister is empty; Triton would unregister every client's")
    return bytes(service_pb2.SystemSharedMemoryUnregisterRequest(name=name).SerializeToString())


def encode_region_status() -> bytes:
    """Make the bytes of a SystemSharedMemoryStatusRequest for all regions."""
    return bytes(service_pb2.SystemSharedMemoryStatusRequest().SerializeToString())


def decode_region_status(wire: bytes) -> tuple[RegisteredRegion, ...]:
    """Read a SystemSharedMemoryStatusResponse."""
    message = service_pb2.SystemSharedMemoryStatusResponse.FromString(wire)
    return tuple(
        RegisteredRegion(name, region.key, region.offset, region.byte_size) for name, region in message.regions.items()
    )
