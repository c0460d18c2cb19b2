"""Shared memory of a test's own, for tests of what is removed and what is left there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_client import shm
from preprocessor.service import caller_region


@pytest.fixture
def own_regions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in /dev/shm in which this process makes and seeks regions.

    In /dev/shm itself any service that starts meanwhile, in another process of the tests, removes those whose owner has ended.
    """
    with tempfile.TemporaryDirectory(prefix="regions-", dir=shm.DIRECTORY) as name:
        folder = Path(name)
        folder.chmod(0o1777)  # as /dev/shm
        for module in (shm, caller_region):
            monkeypatch.setattr(module, "DIRECTORY", folder)
        yield folder
        assert not list(folder.iterdir())
