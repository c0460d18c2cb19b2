"""What each step between finished rows and the first token takes on this machine, one at a time, without a server."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine_client.contract.layout import ModelLayout
from engine_client.contract.prompt import check_prompt
from engine_client.contract.rows import RowBuffer
from engine_client.contract.sampling import SamplingParameters
from engine_client.triton.backend.rows import TorchRows, normalize_patches
from preprocessor import pipeline
from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from tests.bench.device.asking import same_for_the_pipeline
from tests.bench.device.in_process import InProcess
from tests.engine.model_files import model_file


def stages(checkpoint: Path, *, rounds: int, fps: tuple[float, ...]) -> dict[str, Any]:
    """Medians of rounds, in milliseconds, by frames a second."""
    return {f"{each:g} fps": _stages(InProcess(checkpoint), each, rounds) for each in fps}


def _stages(server: InProcess, fps: float, rounds: int) -> dict[str, float]:
    model = load_model("qwen3-vl")
    assert isinstance(model, Model)
    llm, device = server._llm, server._device
    vision = model_file("vlm_transformers", "vision")
    generation = model_file("vlm_transformers", "generation")
    tensors = pipeline.prepare(model, same_for_the_pipeline(fps)).tensors
    layout = ModelLayout.from_config(llm.config)
    prompt = check_prompt(tensors, layout)
    rows = torch.from_numpy(tensors["pixel_patches"])
    on_device = rows.to(device)
    found: dict[str, float] = {"rows": len(rows), "tokens": len(prompt.input_ids), "uint8 MB": rows.nbytes / 1e6}
    for name, dtype in (("uint8", torch.uint8), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        pageable = rows.to(dtype)
        found[f"{name} to the device, pageable"] = _median_ms(partial(pageable.to, device), rounds)
        if device.type == "cuda":
            pinned = pageable.pin_memory()
            found[f"{name} to the device, pinned"] = _median_ms(partial(pinned.to, device), rounds)
    found["normalize on the device"] = _median_ms(
        lambda: normalize_patches(on_device, *prompt.normalization).to(llm.dtype), rounds
    )

    def encode() -> Any:
        collected = RowBuffer(prompt, layout, TorchRows(device))
        collected.take_all(tensors["pixel_patches"])
        encoding = vision.VisionEncoding(llm, prompt, collected, {})
        encoding.take_rows()
        return vision.encoder_outputs(encoding.take_features(), prompt.modality)

    inputs = generation.build_model_inputs(prompt, device) | {"mm_encoder_outputs": encode()}

    def generate(max_tokens: int) -> None:
        generation.generate_tokens(
            llm,
            inputs,
            SamplingParameters(max_tokens=max_tokens),
            emit=lambda *_: None,
            is_cancelled=lambda: False,
        )

    found["to the device, normalize, encode"] = _median_ms(encode, rounds)
    found["first token of encoded rows"] = _median_ms(lambda: generate(1), rounds)
    found["eight tokens of encoded rows"] = _median_ms(lambda: generate(8), rounds)
    return found


def _median_ms(work: Callable[[], Any], rounds: int) -> float:
    """Until the device has done it; the first two are not counted."""
    times = []
    for _ in range(rounds + 2):
        _synchronize()
        began = time.perf_counter()
        work()
        _synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:]) * 1e3


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
