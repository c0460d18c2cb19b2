"""vLLM's renderer in a process of its own, without an engine: `vllm_renderer.py CHECKPOINT`, run by vLLM's own Python.

It reads one JSON object a line and answers each with another:

    {"render": BODY_FILE, "write": FILE or null}    a chat request rendered as the render server does → {"wall_ms", "cpu_ms"}
    {"read": ANSWER_FILE, "write": FILE}            an answer of the render server, its tensors decoded → {}

FILE gets `token_ids`, `grids` and `pixels` as `made.read_arrays` takes them. `{"failed": …}` says what went wrong.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vllm import AsyncEngineArgs
from vllm.config import VllmConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import decode_mm_kwargs_item
from vllm.renderers import renderer_from_config
from vllm.renderers.online_renderer import OnlineRenderer


def load(checkpoint: str) -> OnlineRenderer:
    """As `vllm launch render` sets it up (vllm/entrypoints/launchers/render)."""
    model_config = AsyncEngineArgs(model=checkpoint).create_model_config()
    return OnlineRenderer(
        model_config,
        renderer_from_config(VllmConfig(model_config=model_config)),
        request_logger=None,
        chat_template=None,
        chat_template_content_format="auto",
        trust_request_mm_kwargs=True,
    )


def decode(answer: bytes, output: str) -> None:
    made = json.loads(answer)
    features = made["features"]["kwargs_data"]
    items = {kind: [decode_mm_kwargs_item(item) for item in found] for kind, found in features.items()}
    _write(output, made["token_ids"], items)


async def render(renderer: OnlineRenderer, body: bytes, output: str | None) -> dict[str, float]:
    request = ChatCompletionRequest.model_validate_json(body)
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    _, (prompt,) = await renderer.render_chat(request, skip_mm_cache=True)
    took = {"wall_ms": (time.perf_counter() - wall) * 1e3, "cpu_ms": (time.process_time() - cpu) * 1e3}
    if output:
        _write(output, prompt["prompt_token_ids"], prompt["mm_kwargs"])
    return took


def _write(path: str, token_ids: Sequence[int], items: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Items of the one kind of media that the request has."""
    ((_, of_kind),) = items.items()
    tensors = [{name: element.data for name, element in item.items()} for item in of_kind]
    pixels = [tensor for item in tensors for name, tensor in item.items() if name.startswith("pixel_values")]
    grids = [tensor.reshape(-1, 3) for item in tensors for name, tensor in item.items() if name.endswith("_grid_thw")]
    np.savez(path, token_ids=token_ids, grids=np.concatenate(grids), pixels=np.concatenate(pixels))


def read_file(path: str) -> bytes:
    return Path(path).read_bytes()


async def main(checkpoint: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    renderer = load(checkpoint)
    print("{}", file=answers, flush=True)  # ready
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            said: dict[str, Any] = {}
            asked = json.loads(line)
            if "read" in asked:
                decode(read_file(asked["read"]), asked["write"])
            else:
                said = await render(renderer, read_file(asked["render"]), asked["write"])
        except Exception as error:
            said = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
