"""`vlm_transformers` for pixels that were normalized before they came: what it would be with floats on the wire.

Becomes `1/model.py` of a model whose other files are the deployed ones, the real `model.py` as `served.py` among them
(`engines.py`). Rows are collected as the bytes that they are, with four or two times the length; where the real model
normalizes them, they are looked at as floats again.
"""

import json
from typing import Any

import numpy as np
import torch

from engine_client.contract.layout import ModelLayout
from engine_client.contract.tensors import PIXELS
from engine_client.triton.backend import receiver

from . import served, vision

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class TritonPythonModel(served.TritonPythonModel):
    def initialize(self, args: dict[str, str]) -> None:
        form = json.loads(args["model_config"])["parameters"]["pixel_form"]["string_value"]
        take_floats(DTYPES[form])
        super().initialize(args)


def take_floats(dtype: torch.dtype) -> None:
    """Change this process's modules, which serve this one model."""
    messages: Any = receiver
    layout: Any = ModelLayout
    encoding: Any = vision
    tensor_of, feature_count = messages._tensor, layout.feature_count

    def bytes_of(request: Any, name: str) -> Any:
        if name in ("pixel_mean", "pixel_std"):  # not sent with floats; the check wants them, and nothing reads them
            return np.ones(3, np.float32)
        if name != PIXELS:
            return tensor_of(request, name)
        tensor = messages.pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        if dtype == torch.bfloat16:  # of which numpy knows nothing
            return torch.from_dlpack(tensor.to_dlpack()).view(torch.uint8).numpy()
        return tensor.as_numpy().view(np.uint8)

    messages._tensor = bytes_of
    layout.feature_count = property(lambda self: dtype.itemsize * feature_count.fget(self))
    encoding.normalize_patches = lambda patches, mean, std: patches.view(dtype)
