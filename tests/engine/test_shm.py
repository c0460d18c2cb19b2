"""A shared region knows what lies in it, goes when its owner goes, and is swept when its owner was killed."""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from engine_client import OwnedRegion, SharedRegion, shm
from engine_client.shm import KEY_PREFIX, is_abandoned, remove_abandoned_regions
from tests.regions import own_regions  # noqa: F401  # a fixture
from tests.waiting import PATIENCE_SECONDS

PAGE = mmap.PAGESIZE


@pytest.fixture
def region(own_regions: Path) -> Iterator[OwnedRegion]:  # noqa: F811
    with OwnedRegion.create(4 * PAGE) as made:
        yield made


def file_of(key: str) -> Path:
    return shm.DIRECTORY / key[1:]


def inside(region: SharedRegion, offset: int, *shape: int) -> np.ndarray:
    count = int(np.prod(shape))
    return np.frombuffer(region.buffer, np.uint8, count, offset).reshape(shape)


def test_arrays_in_the_region_have_their_offset(region: OwnedRegion) -> None:
    array = inside(region, PAGE + 16, 10, 100)
    assert region.offset_of(array) == PAGE + 16
    assert region.offset_of(array[3:7]) == PAGE + 16 + 300
    assert region.offset_of(inside(region, 0, region.byte_size)) == 0


def test_what_an_engine_could_not_read_there_has_none(region: OwnedRegion) -> None:
    array = inside(region, 0, 10, 100)
    assert region.offset_of(np.zeros((10, 100), np.uint8)) is None, "elsewhere"
    assert region.offset_of(array[:, :50]) is None, "not contiguous"
    assert region.offset_of(array[::-1]) is None, "backwards"
    assert region.offset_of(array[:, ::2].T) is None, "transposed"
    assert region.offset_of(array.view(">u2")) is None, "big-endian"
    assert region.offset_of(array[:0]) is None, "empty"
    with OwnedRegion.create(PAGE) as other:
        assert region.offset_of(inside(other, 0, 10)) is None, "in another region"


def test_a_region_given_by_its_owner_need_not_be_ours() -> None:
    buffer = mmap.mmap(-1, PAGE)
    region = SharedRegion("/somebody-else-s", buffer)
    assert (region.byte_size, region.offset_of(np.frombuffer(buffer, np.uint8)[8:])) == (PAGE, 8)
    assert not is_abandoned("/somebody-else-s"), "whose owners hold no lock is not for us to judge"


@pytest.mark.parametrize("key", ["", "/", "no-slash", "/two/slashes"])
def test_a_key_that_shm_open_would_not_take_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="shm_open takes"):
        SharedRegion(key, mmap.mmap(-1, PAGE))


def test_a_region_is_a_file_of_whole_pages_for_its_user_alone(region: OwnedRegion) -> None:
    with OwnedRegion.create(PAGE + 1) as odd:
        status = file_of(odd.key).stat()
        assert (status.st_size, status.st_mode & 0o777) == (2 * PAGE, 0o600)
        assert status.st_blocks == 0, "pages that nobody touched take no memory"
    assert region.key != odd.key


def test_its_name_goes_at_the_end_even_while_arrays_live() -> None:
    with OwnedRegion.create(PAGE) as region:
        array = inside(region, 0, 10)
        array[:] = 7
    assert not file_of(region.key).exists()
    assert array.sum() == 70
    region.close()


def test_more_than_there_is_room_for_is_refused_before_a_write_would_end_the_process() -> None:
    space = os.statvfs("/dev/shm")
    with pytest.raises(OSError, match="bytes left; the region needs") as raised:
        OwnedRegion.create(space.f_bavail * space.f_frsize + PAGE)
    assert raised.value.errno == errno.ENOSPC


def own(folder: Path, key: multiprocessing.Queue[str], end: Event) -> None:
    shm.DIRECTORY = folder
    with OwnedRegion.create(PAGE) as region:
        for number in range(2):  # as `engine_client.vllm.links` makes them
            os.link(file_of(region.key), file_of(f"{region.key}-{number}"))
        key.put(region.key)
        end.wait(PATIENCE_SECONDS)


def test_only_regions_of_owners_who_are_gone_are_swept(
    region: OwnedRegion,
    own_regions: Path,  # noqa: F811
) -> None:
    context = multiprocessing.get_context("spawn")
    keys, end = context.Queue(), context.Event()
    owner = context.Process(target=own, args=(own_regions, keys, end))
    owner.start()
    key = keys.get(timeout=PATIENCE_SECONDS)
    names = [key, f"{key}-0", f"{key}-1"]
    assert not any(is_abandoned(name) for name in names)
    assert not {*remove_abandoned_regions()} & {*names}
    assert all(file_of(name).exists() for name in names), "its owner lives"
    assert owner.pid is not None
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    assert all(is_abandoned(name) for name in names)
    assert key in remove_abandoned_regions()
    assert not any(file_of(name).exists() for name in names), "further names go with the first"
    assert file_of(region.key).exists(), "its owner lives"
    assert is_abandoned(KEY_PREFIX + "0" * 32), "a name without a file"


def test_a_further_name_alone_is_swept_too(region: OwnedRegion) -> None:
    name = KEY_PREFIX + "1" * 32 + "-0"
    file_of(name).write_bytes(b"left behind by a region whose own name is gone")
    os.link(file_of(region.key), file_of(region.key + "-0"))
    assert name in remove_abandoned_regions()
    assert file_of(region.key + "-0").exists(), "its owner lives"
    file_of(region.key + "-0").unlink()
