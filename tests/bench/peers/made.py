"""What a peer makes of a request, and how it differs from what ours makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from smg_grpc_proto.generated import vllm_engine_pb2 as engine_pb

_MEAN = _DEVIATION = 0.5  # Qwen3-VL's, of all channels
_SHOWN_GRIDS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """One prompt.

    Attributes:
        token_ids: int [n], placeholders expanded.
        grids: int [items, 3], patches in t, h and w.
        pixels: [P, F], uint8 or normalized floats.
    """

    token_ids: npt.NDArray[Any]
    grids: npt.NDArray[Any]
    pixels: npt.NDArray[Any]


def read_arrays(path: Path) -> Made:
    """What `vllm_renderer.py` wrote."""
    with np.load(path) as arrays:
        return Made(arrays["token_ids"], arrays["grids"], arrays["pixels"])


def read_prompt(prompt: engine_pb.GenerateRequest) -> Made:
    """A prompt as an engine receives it, of one kind of media."""
    inputs = prompt.mm_inputs
    grids = next(tensor for name, tensor in inputs.model_specific_tensors.items() if name.endswith("_grid_thw"))
    return Made(np.array(prompt.tokenized.input_ids), _array(grids), _array(inputs.pixel_values))


def difference(made: Made, expected: Made) -> str:
    """What is not as in `expected`, as a sentence without its full stop; empty where all is equal.

    Floats are compared as the uint8 levels that they were made from, and their type is a difference too.
    """
    found: list[str] = []
    if len(made.token_ids) != len(expected.token_ids):
        found.append(f"{len(made.token_ids)} tokens in place of {len(expected.token_ids)}")
    elif not np.array_equal(made.token_ids, expected.token_ids):
        count = int(np.count_nonzero(made.token_ids != expected.token_ids))
        found.append(f"{count} of {len(expected.token_ids)} token ids differ")
    if made.pixels.dtype != expected.pixels.dtype:
        found.append(f"pixels are {made.pixels.dtype}")
    if not np.array_equal(made.grids, expected.grids):
        found.append(f"grids {_grids(made.grids)} in place of {_grids(expected.grids)}")
    elif made.pixels.shape != expected.pixels.shape:
        found.append(f"pixels of shape {list(made.pixels.shape)} in place of {list(expected.pixels.shape)}")
    elif (off := np.abs(_levels(made.pixels) - _levels(expected.pixels))).any():
        rows = np.count_nonzero(off.any(axis=1)) / len(off)
        found.append(
            f"{np.count_nonzero(off) / off.size:.2%} of the pixels differ, in {rows:.0%} of the patches, "
            f"by {off.mean():.2g} levels on average over all, {off.max()} at most"
        )
    return "; ".join(found)


def _levels(pixels: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    if pixels.dtype == np.uint8:
        return pixels.astype(np.int16)
    return np.rint((pixels * _DEVIATION + _MEAN) * 255).astype(np.int16)


def _grids(grids: npt.NDArray[Any]) -> str:
    shown = ", ".join(str(grid) for grid in grids[:_SHOWN_GRIDS].tolist())
    return shown if len(grids) <= _SHOWN_GRIDS else f"{shown}, … ({len(grids)})"


_TYPES: Mapping[str, npt.DTypeLike] = {
    "uint8": np.uint8,
    "float32": np.float32,
    "float16": np.float16,
    "int64": np.int64,
}


def _array(tensor: engine_pb.TensorData) -> npt.NDArray[Any]:
    """Of a tensor that travels in the message.

    Raises:
        KeyError: Its type is none of `_TYPES`.
    """
    return np.frombuffer(tensor.inline, _TYPES[tensor.dtype]).reshape(tensor.shape)
