"""The Python that the documents show to callers, run as it stands there against a service."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.markdown import ROOT, Document
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller

PAGES = ("README.md", "preprocessor/client/README.md")


@pytest.mark.parametrize("page", PAGES)
async def test_every_python_block_of_the_page_runs(caller: Caller, page: str, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(moving_shapes_clip(seconds=1))
    (tmp_path / "photo.jpg").write_bytes(photo())
    blocks = Document(ROOT / page).python_blocks
    assert blocks
    for block in blocks:
        assert "127.0.0.1:50051" in block
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", block.replace("127.0.0.1:50051", caller.server.address)),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
