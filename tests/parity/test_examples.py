"""deploy/examples/to_transformers.py: a model's logits on our tensors are those on what transformers' own processor makes."""

from __future__ import annotations

import asyncio
import importlib.util
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import pytest_asyncio
import torch

from preprocessor.client import Client, Prompt, chat, image, video
from preprocessor.models.family import Model
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import serving

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)

from tests.golden.huggingface import processor_of  # first: torchvision is imported there

from deploy.examples.to_transformers import main, model_inputs  # isort: skip
from deploy.vllm.tiny_checkpoint import write_folder  # isort: skip
from transformers import AutoModelForImageTextToText  # isort: skip
from transformers.image_utils import load_image  # isort: skip

CLIP = moving_shapes_clip(seconds=2, width=160, height=120)
QUESTION = "Which of these two is round?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL of random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_folder(folder)
    return folder


def by_transformers(model: Model, clip: bytes, picture: Path) -> Any:
    """What its processor makes of every frame of the clip, the photo and the question."""
    with av.open(io.BytesIO(clip), "r") as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    processor = processor_of(model)
    content = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    metadata = {"total_num_frames": len(frames), "fps": 30.0, "duration": len(frames) / 30}
    return processor(
        text=[text],
        images=[load_image(str(picture))],
        videos=[frames],
        video_metadata=[metadata],
        fps=2,
        do_sample_frames=True,
        return_tensors="pt",
    )


@pytest_asyncio.fixture(scope="module")
async def address(model: Model) -> AsyncIterator[str]:
    async with serving(model, worker_count=1) as caller:
        yield caller.server.address


async def test_logits_are_those_of_transformers_own_processing(
    model: Model, address: str, checkpoint: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "photo.png"
    picture.write_bytes(photo(120, 90, "PNG"))
    content = [video(CLIP, fps=2), image(picture), QUESTION]
    prompt: Prompt = chat([{"role": "user", "content": content}], pixel_form="fp32", with_token_types=True)

    def prepared() -> dict[str, torch.Tensor]:
        with Client(address) as client:
            return model_inputs(client.prepare(prompt).tensors)

    ours, theirs = await asyncio.to_thread(prepared), by_transformers(model, CLIP, picture)
    assert ours.keys() == theirs.keys()
    tiny = AutoModelForImageTextToText.from_pretrained(checkpoint)
    with torch.inference_mode():
        logits = [tiny(**inputs).logits for inputs in (ours, theirs)]
    assert logits[0].std() > 0.1
    assert torch.equal(*logits)


async def test_the_example_answers(
    address: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    await asyncio.to_thread(main, address, str(checkpoint), str(tmp_path / "clip.mp4"), QUESTION)
    assert capsys.readouterr().out.strip()
