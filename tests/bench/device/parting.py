"""Where an answer parts from transformers' own: the steps between a clip and its tokens, both ways in one process.

`equality` compares two processes from end to end. Here nothing is between but the code: the same weights on the same device,
the same kernels to choose from. What still differs is named by the first step at which it does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine_client.contract.layout import ModelLayout
from engine_client.contract.prompt import check_prompt
from engine_client.contract.rows import RowBuffer
from engine_client.contract.sampling import SamplingParameters
from engine_client.triton.backend.rows import TorchRows, normalize_patches
from preprocessor import pipeline
from preprocessor.types.request import PixelForm
from preprocessor.vision.patches import normalization_table, normalize_rows
from tests.bench.device import direct
from tests.bench.device.asking import same_for_the_pipeline
from tests.bench.device.equality import common_length
from tests.engine.model_files import model_file
from tests.golden import oracle

ROUNDS = 4
"""Of every answer: a device may add up in another order from one time to the next."""


def parting(checkpoint: Path) -> dict[str, Any]:
    """By question: what is equal at each step, and how many tokens from the first on are."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    llm = model_file("vlm_transformers", "checkpoint").load_checkpoint(str(checkpoint), device)
    return {name: _steps(llm, device, fps, of_clip) for name, (fps, of_clip) in direct.QUESTIONS.items()}


def _steps(llm: Any, device: torch.device, fps: float, of_clip: str) -> dict[str, Any]:
    model, request = direct.seed_model(), same_for_the_pipeline(fps, of_clip)
    theirs = oracle.answer(model, request)
    tensors = pipeline.prepare(model, request).tensors
    generation = model_file("vlm_transformers", "generation")
    normalized = np.empty(theirs.pixels.shape, np.float32)
    normalize_rows(tensors["pixel_patches"], normalization_table(model.video.pixels, PixelForm.FP32), normalized)

    layout = ModelLayout.from_config(llm.config)
    prompt = check_prompt(tensors, layout)
    rows = torch.from_numpy(tensors["pixel_patches"]).to(device)
    ours_on_device = normalize_patches(rows, *prompt.normalization).to(llm.dtype)
    theirs_on_device = torch.from_numpy(theirs.pixels).to(device, llm.dtype)
    collected = RowBuffer(prompt, layout, TorchRows(device))
    collected.take_all(tensors["pixel_patches"])
    vision = model_file("vlm_transformers", "vision")
    encoding = vision.VisionEncoding(llm, prompt, collected, {})
    encoding.take_rows()
    outputs = vision.encoder_outputs(encoding.take_features(), prompt.modality)
    with torch.inference_mode():
        grids = torch.from_numpy(theirs.grid_thw).to(device)
        whole = llm.get_image_features(theirs_on_device, grids, return_dict=True)
    ours_video = outputs["video"]
    ours_features = [ours_video.pooler_output[0], *(layer[0] for layer in ours_video.deepstack_features)]
    their_features = [torch.cat(whole.pooler_output), *(torch.cat(layer) for layer in whole.deepstack_features)]

    inputs = generation.build_model_inputs(prompt, device)
    ways: dict[str, Callable[[], Any]] = {
        "theirs": lambda: direct.generate(llm, theirs, device),
        "ours": lambda: _generate(llm, generation, inputs | {"mm_encoder_outputs": outputs}),
        "ours, encoded by generate": lambda: _generate(
            llm, generation, inputs | {"pixel_values_videos": theirs_on_device}
        ),
    }
    answers = {name: [answer() for _ in range(ROUNDS)] for name, answer in ways.items()}
    right = answers["theirs"][0]
    return {
        "ids are equal": bool(np.array_equal(tensors["input_ids"], theirs.token_ids)),
        "pixels are equal": bool(np.array_equal(normalized, theirs.pixels)),
        "pixels on the device are equal": bool(torch.equal(ours_on_device, theirs_on_device)),
        "features are equal": all(map(torch.equal, ours_features, their_features)),
        "agreeing tokens": {name: [common_length(one, right) for one in given] for name, given in answers.items()},
        "answer": right,
    }


def _generate(llm: Any, generation: Any, inputs: dict[str, Any]) -> list[int]:
    tokens: list[int] = []
    generation.generate_tokens(
        llm,
        inputs,
        SamplingParameters(max_tokens=direct.ANSWER_TOKENS),
        emit=lambda token_id, _: tokens.append(token_id),
        is_cancelled=lambda: False,
    )
    return tokens
