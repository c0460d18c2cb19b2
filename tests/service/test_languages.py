"""The call that protos/README.md shows in TypeScript, run as it stands there by Node against a service."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from preprocessor.client.calls import open_channel, prepare
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import photo
from tests.service.conftest import Caller

PROTOS = Path(__file__).parents[2] / "protos"
PACKAGES = ("@grpc/grpc-js@^1.13", "@grpc/proto-loader@^0.8")
FOLDER = PROTOS.parent / "build" / "node"  # kept, so that packages are fetched once


@pytest.fixture(scope="module")
def node() -> str:
    """Node, with gRPC's packages beside what it is to run; skips the test where either cannot be had."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        pytest.skip("there is no Node here")
    if not (FOLDER / "node_modules").is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        install = [npm, "install", "--prefix", FOLDER, "--no-audit", "--no-fund", "--no-save", *PACKAGES]
        done = subprocess.run(install, capture_output=True, text=True, timeout=100)
        if done.returncode:
            pytest.skip(f"npm has no gRPC for Node: {done.stderr.strip().splitlines()[-1]}")
    return found


async def test_the_typescript_of_the_readme_prepares_a_photo(caller: Caller, node: str, tmp_path: Path) -> None:
    (code,) = re.findall(r"```typescript\n(.*?)```", (PROTOS / "README.md").read_text(), re.DOTALL)
    (FOLDER / "prepare.mjs").write_text(code)
    image = photo(1800, 1400, "PNG")
    assert len(image) > 1 << 20, "it must take more than one chunk"
    (tmp_path / "photo.png").write_bytes(image)
    process = await asyncio.create_subprocess_exec(
        *(node, str(FOLDER / "prepare.mjs"), caller.server.address, str(tmp_path / "photo.png")),
        env={**os.environ, "PROTOS": str(PROTOS)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    printed = {name: json.loads(shape) for name, _, shape in (line.split() for line in output.decode().splitlines())}

    def by_python() -> dict[str, list[int]]:
        part = {"role": "user", "parts": [{"media_key": "photo"}, {"text": "What is this?"}]}
        medium = {"key": "photo", "modality": pb.MODALITY_IMAGE, "chunked": {}}
        with open_channel(caller.server.address) as channel:
            result = prepare(channel, pb.PrepareSpec(chat={"messages": [part]}, media=[medium]), {"photo": image})
        return {name: list(tensor.shape) for name, tensor in result.tensors.items()}

    assert printed == await asyncio.to_thread(by_python)
