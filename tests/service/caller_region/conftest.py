"""A service that takes regions of callers, and what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from engine_client import shm
from preprocessor import pipeline
from preprocessor.client import CallFailed, PrepareResult, Prompt, RowsRegion
from preprocessor.config import AccessSettings
from preprocessor.errors import forget_frames
from preprocessor.models.family import Model
from preprocessor.service.reading import read_spec
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.regions import NAME_PREFIX
from tests.media import moving_shapes_clip, photo
from tests.regions import own_regions  # noqa: F401  # a fixture
from tests.service.conftest import Caller, serving
from tests.waiting import PATIENCE_SECONDS

CLIP = moving_shapes_clip(seconds=2, width=160, height=120)
PHOTO = photo(333, 222)
MIB = 1 << 20
ALLOWED = AccessSettings(is_caller_shared_memory_on=True)


@pytest_asyncio.fixture(scope="module")
async def allowing(model: Model) -> AsyncIterator[Caller]:
    """A shared server that takes regions of callers."""
    async with serving(model, access=ALLOWED) as one:
        yield one


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test leaves shared memory behind, nor a descriptor of some."""
    yield
    assert not names()
    assert not opened()


def names() -> set[str]:
    return {path.name for path in shm.DIRECTORY.glob(NAME_PREFIX[1:] + "*")}


def opened() -> list[str]:
    """The callers' regions that this process has open, the service included that runs in it."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(path.readlink()))
    return [path for path in found if NAME_PREFIX in path]


async def prepare(caller: Caller, spec: pb.PrepareSpec, memory: bool | RowsRegion = True) -> PrepareResult:
    def call() -> PrepareResult:
        with caller.client() as client:
            return client.prepare(Prompt(spec), timeout_seconds=PATIENCE_SECONDS, shared_memory=memory)

    return await asyncio.to_thread(call)


async def failure_of_prepare(caller: Caller, spec: pb.PrepareSpec, memory: bool | RowsRegion) -> CallFailed:
    """Its error without the frames, which would keep the memory."""
    with pytest.raises(CallFailed) as caught:
        await prepare(caller, spec, memory)
    forget_frames(caught.value)
    return caught.value


def assert_right(model: Model, spec: pb.PrepareSpec, tensors: Mapping[str, np.ndarray]) -> None:
    expected = dict(pipeline.prepare(model, read_spec(spec)[0]).tensors)
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype, name
        np.testing.assert_array_equal(tensors[name].view(np.uint8), array.view(np.uint8), err_msg=name)


def path_of(message: pb.RowsRegion) -> Path:
    return shm.DIRECTORY / message.name[1:]
