"""What a caller may not have written into: regions that are none, that are of others, or that shrink."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from preprocessor.client import RowsRegion
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.regions import NAME_PREFIX
from tests.service.caller_region.conftest import MIB, PHOTO, assert_right, failure_of_prepare, opened, path_of, prepare
from tests.service.conftest import Caller, chat, image
from tests.service.refusals import refusal_of
from tests.waiting import PATIENCE_SECONDS, eventually


def renamed(message: pb.RowsRegion, name: str) -> Path:
    """Have the message name something else; returns its path."""
    message.name = name
    return path_of(message)


def linked(message: pb.RowsRegion) -> list[Path]:
    target = path_of(message)
    other = renamed(message, NAME_PREFIX + "link")
    other.symlink_to(target)
    return [other]


def with_two_names(message: pb.RowsRegion) -> list[Path]:
    other = path_of(message).with_name(NAME_PREFIX[1:] + "second")
    other.hardlink_to(path_of(message))
    return [other]


def piped(message: pb.RowsRegion) -> list[Path]:
    other = renamed(message, NAME_PREFIX + "pipe")
    os.mkfifo(other)
    return [other]


def sparse(message: pb.RowsRegion) -> list[Path]:
    os.truncate(path_of(message), 16 * MIB)
    return []


def change(**fields: object) -> Callable[[pb.RowsRegion], list[Path]]:
    def apply(message: pb.RowsRegion) -> list[Path]:
        for name, value in fields.items():
            setattr(message, name, value)
        return []

    return apply


def mode(bits: int) -> Callable[[pb.RowsRegion], list[Path]]:
    def apply(message: pb.RowsRegion) -> list[Path]:
        path_of(message).chmod(bits)
        return []

    return apply


REFUSED: dict[str, tuple[Callable[[pb.RowsRegion], list[Path]], str, str]] = {
    "an unknown name": (change(name=NAME_PREFIX + "nobody"), "REGION_NOT_FOUND", "name"),
    "the service's own region": (change(name="/vlm-preprocessor-0"), "INVALID_REGION", "name"),
    "a path": (change(name=NAME_PREFIX + "/../x"), "INVALID_REGION", "name"),
    "no name": (change(name=""), "INVALID_REGION", "name"),
    "an odd offset": (change(offset_bytes=65), "INVALID_REGION", "offset_bytes"),
    "a negative offset": (change(offset_bytes=-64), "INVALID_REGION", "offset_bytes"),
    "hardly a size": (change(size_bytes=15), "INVALID_REGION", "size_bytes"),
    "more than there is": (change(size_bytes=2 * MIB), "INVALID_REGION", "size_bytes"),
    "no secret": (change(secret=b""), "INVALID_REGION", "secret"),
    "another secret": (change(secret=secrets.token_bytes(16)), "REGION_NOT_ALLOWED", "secret"),
    "a symbolic link": (linked, "REGION_NOT_ALLOWED", "name"),
    "two names": (with_two_names, "REGION_NOT_ALLOWED", "name"),
    "a pipe": (piped, "REGION_NOT_ALLOWED", "name"),
    "pages not allocated": (sparse, "REGION_NOT_ALLOWED", "name"),
    "readers who may not write": (mode(0o644), "REGION_NOT_ALLOWED", "name"),
    "a group that may only read": (mode(0o640), "REGION_NOT_ALLOWED", "name"),
}


@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.usefixtures("own_regions")
async def test_what_the_caller_could_not_write_itself_is_refused(allowing: Caller, why: str) -> None:
    apply, reason, field = REFUSED[why]
    with RowsRegion.create(MIB) as region:
        message = region.message()
        made = apply(message)
        spec = chat("Hi")
        spec.rows_region.CopyFrom(message)
        try:
            failure = await refusal_of(allowing.stub.Prepare(iter([pb.PrepareRequest(spec=spec)])))
        finally:
            for path in made:
                path.unlink()
        assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
        assert failure.fields == (f"rows_region.{field}",)
        assert not region.array(16, np.dtype(np.uint8), (MIB - 16,)).any()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("bits", [0o600, 0o660])
async def test_another_user_s_region_is_taken_if_the_service_can_open_it(
    allowing: Caller, model: Model, bits: int
) -> None:
    """Root can. A region of mode 0600 that the service's user cannot open is REGION_NOT_ALLOWED by the kernel."""
    spec = chat(image("a", PHOTO), "?")
    with RowsRegion.create(4 * MIB, mode=bits) as region:
        os.chown(path_of(region.message()), 1234, 1234)
        assert_right(model, spec, (await prepare(allowing, spec, region)).tensors)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_region_that_the_kernel_does_not_let_the_service_s_user_open_is_refused(own_regions: Path) -> None:
    code = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from preprocessor.errors import InvalidRequest
from preprocessor.service import caller_region
from preprocessor.v1 import preprocessor_pb2 as pb
caller_region.DIRECTORY = Path(sys.argv[1])
os.setuid(1234)
try:
    caller_region.open_region(pb.RowsRegion.FromString(sys.stdin.buffer.read()), ThreadPoolExecutor(1), None, is_allowed=True)
except InvalidRequest as error:
    print(error.reason)
"""
    with RowsRegion.create(MIB) as region:
        done = subprocess.run(
            [sys.executable, "-c", code, own_regions],
            input=region.message().SerializeToString(),
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=True,
        )
    assert done.stdout.decode().strip() == "REGION_NOT_ALLOWED"


async def test_regions_are_refused_unless_the_deployment_takes_them(caller: Caller) -> None:
    failure = await failure_of_prepare(caller, chat("Hi"), True)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REGION_DISABLED")
    assert failure.fields == ("rows_region",)


async def test_memory_that_shrinks_during_the_call_ends_that_call_alone(allowing: Caller, model: Model) -> None:
    async with shrinking(allowing) as (spec, messages):
        failure = await refusal_of(allowing.stub.Prepare(messages))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REGION_TRUNCATED")
    assert_right(model, spec, (await prepare(allowing, spec)).tensors)


@contextlib.asynccontextmanager
async def shrinking(caller: Caller) -> AsyncIterator[tuple[pb.PrepareSpec, AsyncIterator[pb.PrepareRequest]]]:
    """A request with its messages: the file comes when the service has opened the region, and that is cut to nothing."""
    with RowsRegion.create(4 * MIB) as region:
        message, own_count = region.message(), len(opened())

        async def messages() -> AsyncIterator[pb.PrepareRequest]:
            chunked = chat(image("photo"), "?", rows_region=message)
            yield pb.PrepareRequest(spec=chunked)
            await eventually(lambda: len(opened()) > own_count)
            os.truncate(path_of(message), 0)
            yield pb.PrepareRequest(chunk=pb.MediaChunk(key="photo", data=PHOTO, last=True))

        yield chat(image("photo", PHOTO), "?"), messages()
        assert path_of(message).stat().st_size == 0, "the service has not made it larger again"
