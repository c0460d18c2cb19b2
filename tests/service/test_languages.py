"""The call that protos/README.md shows in TypeScript, run as it stands there by Node against a service."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path

from preprocessor.client import Client, chat, image
from tests.media import photo
from tests.service.conftest import Caller
from tests.service.node import FOLDER, PROTOS


async def test_the_typescript_of_the_readme_prepares_a_photo(caller: Caller, node: str, tmp_path: Path) -> None:
    (code,) = re.findall(r"```typescript\n(.*?)```", (PROTOS / "README.md").read_text(), re.DOTALL)
    (FOLDER / "prepare.mjs").write_text(code)
    file = photo(1800, 1400, "PNG")
    assert len(file) > 1 << 20, "it must take more than one chunk"
    (tmp_path / "photo.png").write_bytes(file)
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
        with Client(caller.server.address) as client:
            result = client.prepare(chat([{"role": "user", "content": [image(file), "What is this?"]}]))
        return {name: list(tensor.shape) for name, tensor in result.tensors.items()}

    assert printed == await asyncio.to_thread(by_python)
